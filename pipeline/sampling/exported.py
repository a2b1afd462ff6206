"""A model in a folder of its own: what `tspace export` writes, and needs neither store nor params.

model.json         what it is: the mixture, the sampler, each file's place, size and checksum
experts/           weights, a file once even if several experts are equal
decoder/ ...       the files of the mixture's other members, where it has any
guide/ ...         the same of the model that guidance leads away from, where it does
network/ ...       files that networks are made of; loading the model executes Python files
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from pipeline.block import Block, neutral
from pipeline.errors import UserError, one_line
from pipeline.sampling.clusters import Clustered, identity
from pipeline.sampling.mixture import Mixture, draw, network_spec
from pipeline.sampling.params import Sampling
from pipeline.specs import Led, States
from pipeline.store.files import plain
from pipeline.store.identity import file_digest

FORMAT = 3
MODEL = "model.json"
SOURCES = "network"  # the folder of what networks are written in
DECODER = ("encoder.json", "encoder.safetensors")  # read together, from one folder


class Drawing(Block):
    """How samples are drawn.

    states: log-SNRs that sampling visits, cleanest first; led: what guidance leads away from, and
    where; class_counts: in whose proportions classes are drawn, [] without classes.
    """

    states: States
    sampling: Annotated[Sampling, Field(discriminator="kind")]
    led: Led | None = neutral(None)
    batch: int
    class_counts: list[int] = neutral([])

    @property
    def guide(self) -> dict[str, Any] | None:
        """The mixture that guidance leads away from, if it is another one."""
        return self.led and self.led.guide


@dataclass(frozen=True)
class Exported:
    """A loaded model: its mixture and how it is sampled."""

    recipe: str
    images: int  # of training
    mixture: Mixture
    drawing: Drawing

    def draw(
        self, rows: Sequence[int] | np.ndarray, *, seed: int, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Samples number `rows` of a seed, as `mixture.draw`: uint8 [N, C, H, W] and classes."""
        options = self.drawing.arguments("led")
        return draw(self.mixture, options.pop("states"), rows, seed=seed, labels=labels, **options)


def members(mixture: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """Every part of a mixture that is kept in the store: (name, member, its files)."""
    for name, value in mixture.items():
        for member in value if isinstance(value, list) else [value]:
            if isinstance(member, dict) and "entry" in member:
                files = DECODER if name == "decoder" else (member["file"],)
                yield name, member, files


def sources(mixture: dict[str, Any]) -> dict[str, str]:
    """The files that a mixture's networks are made of: path to checksum."""
    specs = [network_spec(mixture | expert) for expert in mixture["experts"] if "source" in expert]
    return {spec.network.file: spec.source for spec in specs}


def load_exported(folder: Path, device: torch.device | str = "cpu") -> Exported:
    """The model that `tspace export` wrote to `folder`, every file checked.

    UserError naming the file that is missing, damaged or of another version.
    """
    path = Path(folder) / MODEL
    try:
        model = json.loads(path.read_text())
    except FileNotFoundError as e:
        raise UserError(f"{path}: missing; is this a folder that `tspace export` wrote?") from e
    except ValueError as e:
        raise UserError(f"{path}: damaged; export the recipe again") from e
    if not isinstance(model, dict) or model.get("format") != FORMAT:
        raise UserError(f"{path}: not a model of this version of tspace; export the recipe again")
    try:
        drawing = Drawing.model_validate(model["drawing"])
        for mixture in filter(None, (model["mixture"], drawing.guide)):
            if identity(mixture) != mixture["digest"]:
                raise ValueError("a mixture's digest does not match")
        for known in model["files"].values():
            if not all(map(plain, known["path"].split("/"))):
                raise ValueError(f"{known['path']!r} is no file of this folder")
            _check(path.parent / known["path"], known)
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise UserError(f"{path}: damaged ({one_line(e)}); export the recipe again") from e

    def find(member: dict[str, Any]) -> Path:
        return path.parent / model["files"][f"{member['entry']}/{member['file']}"]["path"]

    def opened(described: dict[str, Any]) -> Mixture:
        made = Clustered if "router" in described else Mixture
        return made(described, find, device, path.parent / SOURCES)

    mixture = opened(model["mixture"])
    if drawing.led is not None:
        guide = drawing.guide and opened(drawing.guide)
        mixture = drawing.led.maker(mixture, drawing.led.interval, guide)
    return Exported(model["recipe"], model["images"], mixture, drawing)


def _check(path: Path, known: dict[str, Any]) -> None:
    try:
        intact = path.stat().st_size == known["bytes"] and file_digest(path) == known["sha256"]
    except OSError as e:
        raise UserError(f"{path}: missing or unreadable; export the recipe again") from e
    if not intact:
        raise UserError(f"{path}: damaged (checksum differs); export the recipe again")
