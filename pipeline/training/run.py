"""What all trainings share: how they tell where they are, stop, and keep their state."""

from __future__ import annotations

import concurrent.futures
import ctypes
import dataclasses
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from pipeline.errors import UserError, one_line
from pipeline.store.circumstances import Clock
from pipeline.store.files import keep, kept
from pipeline.store.identity import file_digest

# How much work a kill may cost, or more where a checkpoint takes so long that it would take more
# than a share of the time. The environment can change it (0: one after every batch); it never
# changes a result.
CHECKPOINT_SECONDS = float(os.environ.get("TSPACE_CHECKPOINT_SECONDS", "30"))
CHECKPOINT_SHARE = 0.03
CHECKPOINT = "checkpoint.pt"
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


def ahead(work: Callable[[int], Any], items: Iterable[int], device: torch.device) -> Iterator[Any]:
    """`work` of each item in turn; beside a GPU a thread does the next while one is used.

    On a CPU it would take a core from what it is to help.
    """
    if device.type == "cpu":
        yield from map(work, items)
        return
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            following = pool.submit(work, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors free, where the C library is glibc.

    By default large blocks go back to the system and come anew, page by page, in every step. The
    largest memory at any time stays the same.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


class Run:
    """How far a training is, and the state from which it goes on, in `folder`/state.

    parts: what has a state of its own, by name; None for a part that this training lacks. images:
    done. curve: mean loss since the point before, [[images, loss], ...], and the sums of the open
    point, so that a checkpoint may lie between two. files: results in `folder` that are finished
    before the run is, with their checksums; a checkpoint counts only with them intact.

    A checkpoint is copied from the device at once, and written by a thread while the training, in a
    `with` block, goes on.
    """

    def __init__(
        self,
        folder: Path,
        parts: dict[str, Any],
        device: torch.device,
        log: Callable[[str], None] = lambda _: None,
    ):
        self.folder, self.log = Path(folder), log
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.images = 0
        self.clock = Clock()
        self.saved = time.monotonic()
        self.pause = CHECKPOINT_SECONDS
        self.curve: list[list[float]] = []
        self.loss_sum = torch.zeros((), device=device)
        self.loss_images = 0
        self.files: dict[str, str] = {}
        self.more: dict[str, Any] = {}  # of one kind of training
        self._told = (self.saved, 0)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Run:
        self._told = (time.monotonic(), self.images)
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        """Nothing is written after the block. Raises what went wrong with the last checkpoint."""
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

    def add_loss(self, loss: torch.Tensor, images: int) -> None:
        """Count the mean loss of a batch, and the batch."""
        self.loss_sum += loss.detach() * images
        self.loss_images += images
        self.images += images

    def close_point(self) -> float:
        """Mean loss since the last point of the curve, which it is added to; it may be NaN."""
        mean = self.loss_sum.item() / self.loss_images
        self.curve.append([self.images, mean])
        self.loss_sum.zero_()
        self.loss_images = 0
        return mean

    def tell(self, progress: Callable[[Progress], None], total: int) -> None:
        """Call `progress` if a second has passed since the last call, or all is done."""
        now, (then, images) = time.monotonic(), self._told
        if now - then >= 1.0 or self.images >= total:
            loss = self.curve[-1][1] if self.curve else None
            progress(Progress(self.images, total, (self.images - images) / (now - then), loss))
            self._told = (now, self.images)

    def resume(self) -> None:
        """Go on from the last checkpoint that is intact, with all it relies on, if there is one.

        UserError for an intact one that is none of this run: it was put there.
        """
        for _, path in kept(self.folder / "state", CHECKPOINT, self.log):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if not all(self._intact(name, seal) for name, seal in state["files"].items()):
                    continue
                self._restore(state)
            except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, ValueError) as e:
                text = f"{path}: not a checkpoint of this run; delete it ({one_line(e)})"
                raise UserError(text) from e
            self.log(f"resumes at {self.images:,} images")
            return

    def _intact(self, name: str, seal: str) -> bool:
        path = self.folder / name
        intact = path.exists() and file_digest(path) == seal
        if not intact:
            self.log(f"{name}: {'damaged' if path.exists() else 'missing'}")
        return intact

    def _restore(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.images, self.clock.before = state["images"], tuple(state["seconds"])
        self.curve, self.loss_images = state["curve"], state["loss_images"]
        self.loss_sum.fill_(state["loss_sum"])
        self.files, self.more = state["files"], state["more"]

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        writing = self._thread is not None and self._thread.is_alive()
        return not writing and time.monotonic() - self.saved >= self.pause

    def checkpoint(self) -> None:
        """Keep the state as it is now. Raises what went wrong with the one before."""
        self.wait()
        started = time.monotonic()
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"images": self.images, "seconds": self.clock.read(), "curve": self.curve}
        state |= {"loss_sum": self.loss_sum.item(), "loss_images": self.loss_images}
        state |= {"files": self.files, "more": self.more}
        state = _copied(state)

        def save(path: Path) -> None:
            # Through a file of Python's own, whose errors say what the system refused.
            with open(path, "wb") as f:
                torch.save(state, f)

        def write() -> None:
            try:
                keep(self.folder / "state", CHECKPOINT, state["images"], save)
            except BaseException as e:
                self._error = e
            self.saved = time.monotonic()
            if CHECKPOINT_SECONDS:
                self.pause = max(CHECKPOINT_SECONDS, (self.saved - started) / CHECKPOINT_SHARE)

        self._thread = threading.Thread(target=write)
        self._thread.start()
        if not CHECKPOINT_SECONDS:
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint is on disk. Raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def interrupt(self) -> NoReturn:
        """Keep the state and raise Interrupted."""
        self.checkpoint()
        self.wait()
        raise Interrupted


def _copied(value: Any) -> Any:
    """The same state in this process's own memory, so that training may go on."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _copied(part)) for key, part in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_copied(part) for part in value)
    return value
