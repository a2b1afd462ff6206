"""A model's denoiser as programs for other runtimes: `torch.export` and ONNX."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import UserError, one_line
from pipeline.networks import unet
from pipeline.networks.multi_decoder import MultiDecoder
from pipeline.noise.process import to_x0
from pipeline.sampling.exported import Exported
from pipeline.store.files import write_json, write_text
from stages.tools.standalone import borders_of

ENDINGS = {"programs": ".pt2", "onnx": ".onnx"}
ABOUT = "denoisers.json"
EXAMPLES = 3  # images that a network is traced with; any number can be asked later
README = """\
# {recipe}, the denoiser as programs

`{about}` names each program, and the log-SNRs at which it answers: below `below`, down to `from`
(null: no bound). A program maps

| input | |
|---|---|
| `x` | float32 [N, {channels}, {side}, {side}]: alpha z + sigma eps |
| `log_snr` | float32 [1]: alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr) |
{labels}
to its estimate of z, of the shape of `x`; a {what} is z scale + shift (both in `{about}`).
{run}
"""
RUN = {
    "programs": '`torch.export.load("denoiser-0.pt2").module()(x, log_snr)` runs it.',
    "onnx": '`onnxruntime.InferenceSession("denoiser-0.onnx").run(None, {"x": x, ...})` runs it.',
}


class Denoiser(nn.Module):
    """E[z | x] of one network at one log-SNR for all images."""

    def __init__(self, network: nn.Module, prediction: str, interval: int | None):
        super().__init__()
        self.network, self.prediction = network, prediction
        self.told = {} if interval is None else {"interval": interval}

    def forward(self, x: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        return to_x0(self.prediction, self.network(x, log_snr, labels, **self.told), x, log_snr)


def write_programs(model: Exported, kind: str, folder: Path) -> None:
    """Write a program for each network of a model to a folder; kind: `programs` or `onnx`.

    A multi-decoder network is one for each interval. Guidance is left to whoever runs them.
    UserError for a network that cannot be traced, and for `onnx` without its packages.
    """
    save = _onnx if kind == "onnx" else torch.export.save
    mixture, found = model.mixture, []
    told, borders = mixture.description, borders_of(mixture.description)
    for index, expert in enumerate(told["experts"]):
        network = mixture.network(index).cpu()
        bounds = _bounds(borders, index, network)
        for number, (below, above) in enumerate(bounds):
            interval = number if len(bounds) > 1 else None
            denoiser = Denoiser(network, told["prediction"], interval).eval()
            name = f"denoiser-{len(found)}{ENDINGS[kind]}"
            try:
                with _quiet():
                    save(_traced(denoiser, told), folder / name)
            except UserError:
                raise
            except Exception as e:  # of the tracer: whatever a network's code may do
                raise UserError(
                    f"--format {kind}: network.kind: {expert['network']['kind']} cannot be traced "
                    f"({type(e).__name__}: {one_line(e)[:200]}); export without --format"
                ) from e
            found.append({"file": name, "below": below, "from": above})
    keys = ("channels", "resolution", "classes", "shift", "scale", "log_snr")
    about: dict[str, Any] = {"recipe": model.recipe, "images": model.images}
    about |= {key: told[key] for key in keys} | {"denoisers": found}
    write_json(folder / ABOUT, about)
    labels = f"| `labels` | int64 [N]: classes, {told['classes']} for none |\n"
    write_text(
        folder / "README.md",
        README.format(
            about=ABOUT,
            recipe=model.recipe,
            channels=told["channels"],
            side=told["resolution"],
            labels=labels if told["classes"] else "",
            what="latent" if told["decoder"] else "pixel from 0 to 255",
            run=RUN[kind],
        ),
    )


def _bounds(
    borders: list[float], index: int, network: nn.Module
) -> list[tuple[float | None, float | None]]:
    """Where each of a network's programs answers: (below, from), cleanest first."""
    ends = [None, *borders, None][index : index + 2]
    inner = [-noise for noise in network.noise_bounds] if isinstance(network, MultiDecoder) else []
    return list(pairwise([ends[0], *inner, ends[1]]))


def _traced(denoiser: Denoiser, told: dict[str, Any]) -> Any:
    side, batch = told["resolution"], torch.export.Dim("batch", min=1)
    inputs = [torch.linspace(-1, 1, EXAMPLES * told["channels"] * side**2), torch.zeros(1)]
    inputs[0] = inputs[0].reshape(EXAMPLES, told["channels"], side, side)
    shapes: list[Any] = [{0: batch}, None]
    if told["classes"]:
        inputs.append(torch.arange(EXAMPLES) % (told["classes"] + 1))
        shapes.append({0: batch})
    folded, unet.film_norm = unet.film_norm, _film_norm
    try:
        with torch.no_grad():
            return torch.export.export(denoiser, tuple(inputs), dynamic_shapes=tuple(shapes))
    finally:
        unet.film_norm = folded


def _film_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`unet.film_norm` for any number of samples: that one folds them into the channels."""
    y = F.group_norm(x, unet.norm_groups(x.shape[1]), eps=unet.EPS)
    return torch.addcmul(shift[:, :, None, None], y, scale[:, :, None, None])


def _onnx(program: Any, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as e:
        raise UserError(
            "--format onnx: needs the packages onnx and onnxscript: "
            "pip install -c constraints.txt -e '.[onnx]'"
        ) from e
    torch.onnx.export(program, dynamo=True, verbose=False).save(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracers' remarks about packages that nothing here needs."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
