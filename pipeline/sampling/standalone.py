"""The model in this folder: which network answers at which noise level, and how samples are drawn.

`settings.json` says all that; `tspace export` wrote both. A noisy image is
x = alpha z + sigma eps with alpha^2 = sigmoid(log_snr) and sigma^2 = sigmoid(-log_snr), of data z
(pixels or latents) that was brought to zero mean and unit variance: z = (value - shift) / scale.
Nothing but torch and safetensors is needed, unless a network or decoder is one of diffusers.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.noise.philox import derive_key, normal_by_torch
from pipeline.noise.process import to_x0
from pipeline.sampling.routing import mixed

LOADED = 4  # networks kept in memory
SAME = 1e-6  # log-SNRs that are this close are one state
FAR = 60.0  # below minus this no image is left in the noise


def load(device: torch.device | str = "cpu", folder: Path | None = None) -> Model:
    """The model of this folder, or of another one that `tspace export` wrote."""
    folder = Path(folder) if folder else Path(__file__).parent.parent
    settings = json.loads((folder / "model" / "settings.json").read_text(encoding="utf-8"))
    return Model(settings, folder, torch.device(device))


class Networks:
    """The networks of a model as one function: each answers where it was trained.

    Files are read when they are first needed. ValueError for one that is damaged.
    """

    def __init__(self, told: dict[str, Any], folder: Path, device: torch.device):
        self.told, self.folder, self.device = told, folder, device
        self.classes: int = told["classes"]
        self.network: Callable[[int], nn.Module] = functools.lru_cache(LOADED)(self._network)

    def owner(self, log_snr: float, cluster: int = 0) -> int:
        """Number of the network that answers there. ValueError if it knows one state, not this.

        cluster: of the data, whose networks come one after the other.
        """
        borders = self.told["borders"]
        index = cluster * (len(borders) + 1) + sum(log_snr < float(border) for border in borders)
        own = self.told["experts"][index]["only"]
        if own is not None and abs(float(own) - log_snr) > SAME:
            raise ValueError(f"no network for log-SNR {log_snr}; the nearest one knows {own} only")
        return index

    @torch.no_grad()
    def __call__(self, x: Tensor, log_snr: float, labels: Tensor | None = None) -> Tensor:
        """E[z | x] at one log-SNR, in the shape of x [N, C, H, W]; labels int64 [N] or None."""
        if log_snr == -math.inf:  # no image is left: the data's mean, or that of each class
            return self._means[0 if labels is None else labels + 1].expand_as(x)
        level = torch.full((1,), log_snr, device=x.device)

        def answer(cluster: int, rows: Tensor | slice = slice(None)) -> Tensor:
            own = labels if labels is None else labels[rows]
            found = self.network(self.owner(log_snr, cluster))(x[rows], level, own).float()
            return to_x0(self.told["prediction"], found, x[rows], log_snr)

        if self.told["router"] is None:
            return answer(0)
        return mixed(self.router(x, level, labels).softmax(1), self.told["top"], answer)

    def file(self, name: str) -> Path:
        """A file of the model, its checksum compared."""
        with open(self.folder / name, "rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != self.told["files"][name]:
                raise ValueError(f"{self.folder / name}: damaged (checksum differs)")
        return self.folder / name

    @functools.cached_property
    def router(self) -> nn.Module:
        """What tells which of the data's clusters a noisy image may be of."""
        return self._made(self.told["router"])

    def _network(self, index: int) -> nn.Module:
        return self._made(self.told["experts"][index])

    def _made(self, own: dict[str, Any]) -> nn.Module:
        spec = SimpleNamespace(**own["spec"] | {"network": SimpleNamespace(**own["network"])})
        make, *around = map(_named, own["made_by"])
        for outer in around:
            make = functools.partial(outer, make)
        network = make(spec, 0, "cpu", self.folder / "network")
        network.load_state_dict(load_file(self.file(own["file"])))
        return network.to(self.device).eval()

    @functools.cached_property
    def _means(self) -> Tensor:
        found = load_file(self.file(self.told["means"]))["means"]
        return torch.cat([found, found[:1]]).to(self.device)  # the last is of "no class"


class Model:
    """Networks, a sampler, and what turns its samples into images.

    settings: what settings.json holds.
    """

    def __init__(self, settings: dict[str, Any], folder: Path, device: torch.device):
        self.settings, self.device = settings, device
        self.networks = Networks(settings["networks"], folder, device)
        guide = settings["guide"]
        self.guide = guide and Networks(guide, folder, device)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by label."""
        return self.settings["classes"]

    def sample(
        self, numbers: Sequence[int], *, seed: int = 0, labels: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Samples by number: images uint8 [N, C, H, W], and their labels int64 [N] or None.

        A sample is a function of seed and number, whatever else is drawn with it. Without labels
        a class-conditional model draws classes as frequent as in the data.
        """
        s, told = self.settings, self.networks.told
        if self.networks.classes:
            if labels is None:
                sequence = list(islice(_labels(s["class_counts"]), max(numbers) + 1))
                labels = [sequence[number] for number in numbers]
            labels = torch.as_tensor(labels, device=self.device)
        elif labels is not None:
            raise ValueError("this model knows no classes")
        ids = torch.as_tensor(list(numbers), dtype=torch.int64, device=self.device)
        shape = (told["channels"], told["resolution"], told["resolution"])
        key, states = derive_key(seed, "sampling"), [float(state) for state in s["states"]]
        walk = _named(s["sampler"]["made_by"])(**s["sampler"]["arguments"])
        z = walk(
            self.denoiser(labels),
            normal_by_torch(key, 0, ids, shape),
            states,
            noise=lambda i: normal_by_torch(key, i or len(states), ids, shape),
        )
        return self.decode(z), labels

    def denoiser(self, labels: Tensor | None = None) -> Callable[[Tensor, float], Tensor]:
        """E[z | x], guided and bounded as the model's sampler wants it; labels as for `sample`."""
        s, guidance = self.settings, self.settings["guidance"]
        none = labels if labels is None else torch.full_like(labels, self.networks.classes)
        low, high = s["interval"] or (-math.inf, math.inf)
        if self.guide is not None:
            low, none = max(low, -FAR), labels if self.guide.classes else None
        other = self.guide or self.networks

        def answer(x: Tensor, log_snr: float, rows: slice) -> Tensor:
            own = self.networks(x, log_snr, labels if labels is None else labels[rows])
            if guidance == 1 or not low <= log_snr < high:
                return own
            away = other(x, log_snr, none if none is None else none[rows])
            return away + guidance * (own - away)

        def denoise(x: Tensor, log_snr: float) -> Tensor:
            parts = [slice(i, i + s["batch"]) for i in range(0, len(x), s["batch"])]
            found = torch.cat([answer(x[rows], log_snr, rows) for rows in parts])
            if not s["clip"]:
                return found
            shift, scale = self._scaling()
            return found.clamp((0 - shift) / scale, (255 - shift) / scale)

        return denoise

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images uint8 [N, C, H, W] of scaled pixels or latents."""
        shift, scale = self._scaling()
        value = z * scale + shift
        if self.networks.told["decoder"] is None:
            found = value
        else:
            parts = value.split(self.settings["batch"])
            found = torch.cat([self._decoder(part) for part in parts]) + 1
            found = found * 127.5
        return found.round().clamp(0, 255).to(torch.uint8).cpu()

    def _scaling(self) -> tuple[Tensor, float]:
        told = self.networks.told
        return torch.tensor(told["shift"], device=self.device).reshape(-1, 1, 1), told["scale"]

    @functools.cached_property
    def _decoder(self) -> Callable[[Tensor], Tensor]:
        """Latents to images in [-1, 1]."""
        networks, folder = self.networks, self.networks.told["decoder"]
        about = json.loads(networks.file(f"{folder}/encoder.json").read_text(encoding="utf-8"))
        weights = load_file(networks.file(f"{folder}/encoder.safetensors"))
        if about["kind"] == "autoencoder":
            network = _named("autoencoder:Autoencoder")(**about["config"])
            network.load_state_dict(weights)
            return network.to(self.device).eval().decode
        import diffusers

        network = getattr(diffusers, about["config"]["_class_name"]).from_config(about["config"])
        network.load_state_dict(weights)
        decode, grey = network.to(self.device).eval().decode, about["image_shape"][0] == 1

        def decoded(latents: Tensor) -> Tensor:
            images = decode(latents).sample
            return images.mean(1, keepdim=True) if grey else images

        return decoded


def _named(place: str) -> Any:
    """What `module:name` names, in this package."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f".{module}", __name__), name)


def _labels(counts: Sequence[int]) -> Iterator[int]:
    """Labels in proportion to their counts without end: each is the one that lags most behind."""
    lag, present = [0] * len(counts), [label for label, count in enumerate(counts) if count]
    while True:
        lag = [behind + count for behind, count in zip(lag, counts, strict=True)]
        label = max(present, key=lambda label: lag[label])
        lag[label] -= sum(counts)
        yield label
