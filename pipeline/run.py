"""What all long trainings share: how they tell where they are, stop, and keep their state."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

# How much work a kill may cost. The environment can change it; it never changes a result.
CHECKPOINT_SECONDS = float(os.environ.get("TSPACE_CHECKPOINT_SECONDS", "30"))
CURVE_POINTS = 50  # mean losses that a run records


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run is: images done and in all, images/s of late, and the last mean loss."""

    images: int
    total: int
    rate: float
    loss: float | None


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a run's state so that it is either the old one or complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with open(temporary, "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
