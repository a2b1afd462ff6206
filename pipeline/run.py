"""What all long trainings share: how they tell where they are, stop, and keep their state."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError, one_line

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


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors free, where the C library is glibc.

    By default large blocks go back to the system and come anew, page by page, in every step. The
    largest memory at any time stays the same.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def resume(path: Path, restore: Callable[[dict[str, Any]], None], run: str) -> None:
    """Call `restore` with the state in `path`, if there is one. UserError if it cannot be read."""
    if not path.exists():
        return
    try:
        restore(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as e:
        raise UserError(
            f"{path}: damaged checkpoint ({one_line(e)}); delete it to start this {run} again"
        ) from e


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a run's state so that it is either the old one or complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with open(temporary, "wb") as f:
        torch.save(state, f)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
