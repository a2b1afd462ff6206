"""The experts of a recipe as one model: each state goes to the expert that owns it.

A mixture is plain data (see `describe`), identified by the checksums of its weights. Sampling walks
all samples of a job through the states together, so each expert is loaded once a job, and only a
few are in memory at a time.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.data.latents import to_images
from pipeline.errors import UserError
from pipeline.levels.partition import SAME_STATE
from pipeline.networks.build import network_of
from pipeline.noise import philox, process
from pipeline.rows import label_sequence
from pipeline.sampling import samplers
from pipeline.sampling.params import Sampling
from pipeline.specs import DenoiserSpec, NetworkSpec
from pipeline.store.identity import digest

LOADED_EXPERTS = 4  # networks kept in memory


def member(part: dict[str, Any], spec: NetworkSpec, first: int, last: int) -> dict[str, Any]:
    """An expert of a mixture as plain data.

    part: `entry`, `file` and `sha256` of its weights; spec: what its network is; first and last:
    indices of the states that it owns, inclusive.
    """
    keys = {"network", "conditioning", "interval_bounds", "source"}
    own = spec.model_dump(mode="json", include=keys)
    return {**part, **own, "first": first, "last": last}


def describe(
    spec: DenoiserSpec,
    log_snr: Sequence[float],
    experts: Sequence[dict[str, Any]],
    shift: Sequence[float],
    scale: float,
    decoder: dict[str, Any] | None = None,
    terminal: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A mixture as plain data, with its digest.

    spec: any of its experts' spec (what all share is taken from it); log_snr: the recipe's states
    (or the two ends of a continuous schedule); experts: its members, in order.
    decoder: `entry`, `file` and `sha256` of what turns latents into images; None for pixels.
    terminal: those of the data's means, the answer at a state without any signal.
    """
    shared = ("channels", "resolution", "classes", "prediction", "continuous")
    mixture = {key: getattr(spec, key) for key in shared}
    mixture |= {"shift": list(shift), "scale": scale}
    # JSON has no infinity; float() reads the text.
    mixture["log_snr"] = [v if np.isfinite(v) else str(v) for v in log_snr]
    mixture |= {"decoder": decoder, "terminal": terminal, "experts": list(experts)}
    return mixture | {"digest": identity(mixture)}


def identity(mixture: dict[str, Any]) -> str:
    """The digest of a mixture by what it says now, wherever its weights lie."""
    parts = {
        "decoder": _without_entry(mixture["decoder"]),
        "terminal": _without_entry(mixture["terminal"]),
        "experts": [_without_entry(expert) for expert in mixture["experts"]],
    }
    return digest({key: value for key, value in (mixture | parts).items() if key != "digest"})


def network_spec(given: dict[str, Any]) -> NetworkSpec:
    """The network of an expert; given: what the mixture says, and beside it the expert."""
    return NetworkSpec(**{key: given[key] for key in NetworkSpec.model_fields if key in given})


def _without_entry(part: dict[str, Any] | None) -> dict[str, Any] | None:
    return part and {key: value for key, value in part.items() if key != "entry"}


def with_weights(network: nn.Module, path: Path, whose: str) -> nn.Module:
    """A network with the weights of a file, to be asked. UserError for a file that has none."""
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as e:
        raise UserError(f"{path}: not the weights of this {whose} ({e})") from e
    return network.eval()


class Mixture:
    """A mixture ready to denoise.

    `weights` finds the file of an expert (of any part with `entry` and `file`). root: where files
    that networks name are.
    """

    def __init__(
        self,
        description: dict[str, Any],
        weights: Callable[[dict[str, Any]], Path],
        device: torch.device | str = "cpu",
        root: Path = Path(),
    ):
        self.description = description
        self.root = root
        self.device = torch.device(device)
        self._weights = weights
        self._loaded: OrderedDict[int, nn.Module] = OrderedDict()
        self._loaded_means: Tensor | None = None
        states = np.array([float(value) for value in description["log_snr"]])
        experts = description["experts"]
        # Between two experts' nearest states the border is halfway.
        self._borders = [
            (states[a["last"]] + states[b["first"]]) / 2 for a, b in itertools.pairwise(experts)
        ]
        self._states = states

    def owner(self, log_snr: float) -> int:
        """Index of the expert that answers at a log-SNR.

        Raises ValueError if that expert was trained for one state only and this is another.
        """
        index = sum(log_snr < border for border in self._borders)
        expert = self.description["experts"][index]
        if expert["conditioning"] == "none":
            own = self._states[expert["first"]]
            if abs(own - log_snr) > SAME_STATE:
                raise ValueError(
                    f"no expert for log-SNR {log_snr}; the nearest one owns {own} only"
                )
        return index

    def network(self, index: int) -> nn.Module:
        """The network of an expert, loaded when first asked for. UserError for a damaged file."""
        if index in self._loaded:
            self._loaded.move_to_end(index)
            return self._loaded[index]
        expert = self.description["experts"][index]
        given = self.description | expert
        network = network_of(network_spec(given), root=self.root)
        network = with_weights(network, self._weights(expert), "expert")
        layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        network.to(self.device, memory_format=layout)
        self._loaded[index] = network
        if len(self._loaded) > LOADED_EXPERTS:
            self._loaded.popitem(last=False)
        return network

    @torch.no_grad()
    def denoise(self, x: Tensor, log_snr: float, labels: Tensor | None = None) -> Tensor:
        """E[z | x] at one state: x [N, C, H, W], labels int64 [N] or None; shape of x."""
        if log_snr == -np.inf:
            return self._means()[0 if labels is None else labels + 1].expand_as(x)
        network = self.network(self.owner(log_snr))
        given = torch.full((1,), log_snr, device=x.device, dtype=torch.float32)
        output = network(x, given, labels).float()
        return process.to_x0(self.description["prediction"], output, x, log_snr)

    def _means(self) -> Tensor:
        """The data's mean, then those of its classes [1 + K, C, H, W], for dropped labels last."""
        if self._loaded_means is None:
            found = load_file(self._weights(self.description["terminal"]))["means"]
            self._loaded_means = torch.cat([found, found[:1]]).to(self.device)
        return self._loaded_means

    def decode(self, z: Tensor, batch: int = 256) -> np.ndarray:
        """Images uint8 [N, C, H, W] of scaled latents, `batch` at a time."""
        d = self.description
        if d["decoder"] is None:
            return to_images(z, d["shift"], d["scale"])
        from pipeline.data.codec import load_codec

        folder = self._weights(d["decoder"]).parent
        shift = torch.tensor(d["shift"], device=z.device).reshape(-1, 1, 1)
        return load_codec(folder, self.device).decode(z * d["scale"] + shift, batch)

    def denoiser(
        self, labels: Tensor | None = None, guidance: float = 1.0, batch: int = 256
    ) -> process.Denoiser:
        """A denoiser for any number of samples, `batch` of them at a time.

        labels: int64 [N], one a sample, for a class-conditional mixture; guidance as in
        `sampling.guided`.
        """
        if not self.description["classes"]:
            return self._told(None, batch)
        if labels is None:
            raise ValueError("a class-conditional mixture needs labels")
        own = self._told(labels, batch)
        if guidance == 1:
            return own
        plain = self._told(torch.full_like(labels, self.description["classes"]), batch)
        return samplers.guided(lambda x, log_snr: (own(x, log_snr), plain(x, log_snr)), guidance)

    def _told(self, labels: Tensor | None, batch: int) -> process.Denoiser:
        """A denoiser that is told these classes, or none, `batch` samples at a time."""

        def whole(x: Tensor, log_snr: float) -> Tensor:
            parts = (slice(start, start + batch) for start in range(0, len(x), batch))
            return torch.cat(
                [
                    self.denoise(x[rows], log_snr, None if labels is None else labels[rows])
                    for rows in parts
                ]
            )

        return whole


def draw(
    mixture: Mixture,
    states: Sequence[float | str],
    rows: Sequence[int] | np.ndarray,
    *,
    seed: int,
    sampling: Sampling,
    batch: int = 256,
    labels: np.ndarray | None = None,
    class_counts: Sequence[int] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples number `rows` of a seed: uint8 [N, C, H, W] and their classes (or None).

    A sample is a function of (mixture, sampler, seed, number): its start and the noise of each
    step are drawn by number. `batch` changes it at most by floating-point rounding. `sampling` is
    a block of params.yaml, whose `steps` were chosen already: they are `states`.
    A class-conditional mixture is told the classes: `labels` (int [N]), or else they follow
    `class_counts` (images of each) by number, see `rows.label_sequence`; ValueError without both.
    `progress(states done, states in all)`.
    """
    d = mixture.description
    shape = (d["channels"], d["resolution"], d["resolution"])
    ids = torch.as_tensor(np.asarray(rows, dtype=np.int64), device=mixture.device)
    key = philox.derive_key(seed, "sampling")
    classes = None
    if d["classes"]:
        if labels is None:
            if not class_counts:
                raise ValueError("a class-conditional mixture needs labels, or counts of classes")
            numbers = np.asarray(rows, np.int64)
            labels = label_sequence(class_counts, int(numbers.max()) + 1)[numbers]
        classes = torch.as_tensor(labels, device=mixture.device)
    denoise = mixture.denoiser(classes, sampling.guidance, batch)
    if sampling.clip:
        denoise = samplers.clipped(denoise, _range_of_pixels(mixture))
    done = 0

    def tell(_: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        progress(done, len(states))

    z = samplers.sampler(sampling)(
        denoise,
        philox.normal(key, 0, ids, shape),
        [float(state) for state in states],
        noise=lambda i: philox.normal(key, i or len(states), ids, shape),  # 0 is the start's
        callback=tell,
    )
    return mixture.decode(z, batch), None if labels is None else np.asarray(labels)


def _range_of_pixels(mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Levels 0 and 255 of each channel as the networks see them, [C, 1, 1] each."""
    d = mixture.description
    if d["decoder"] is not None:
        raise UserError("sampling.clip: pixels end at 0 and 255, latents nowhere; set it to false")
    shift = torch.tensor(d["shift"], dtype=torch.float32, device=mixture.device).reshape(-1, 1, 1)
    return (0 - shift) / d["scale"], (255 - shift) / d["scale"]
