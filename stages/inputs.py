"""What the runners of jobs read, by what a spec names."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, room_for
from pipeline.specs import File, Images, Led, Routed
from pipeline.store.entry import Entry, Store
from pipeline.store.files import keep, kept, replacing, write_text
from pipeline.store.identity import file_digest
from stages.reporter import Reporter
from stages.workspace import Workspace

# Writes an entry's results; what it returns belongs to the circumstances, not to the results.
Runner = Callable[[Any, Entry, Store, Workspace, Reporter], dict[str, Any] | None]


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def dataset_of(workspace: Workspace, images: Images):
    """The dataset of a job, its held-out rows last."""
    from pipeline.data.dataset import open_dataset
    from pipeline.data.split import Split

    dataset = open_dataset(workspace.dataset)
    if dataset.info.digest != images.dataset:
        raise UserError(f"{workspace.dataset}: is not the dataset this job was planned for")
    return Split(dataset, images.held_out)


def save_array(path: Path, values: Any) -> None:
    """Write an array so that the file is complete or absent."""
    import numpy as np

    with replacing(path) as temporary, open(temporary, "wb") as f:
        np.save(f, values, allow_pickle=False)


def training_progress(reporter: Reporter):
    """What a training calls with its `Progress`."""
    return lambda state: reporter.progress(state.images, state.total, state.rate, state.loss)


def codec_of(encoder: str, store: Store):
    from pipeline.data.codec import load_codec

    return load_codec(store.entry(encoder).file("encoder.json").parent, device())


def checked_file(workspace: Workspace, file: File) -> Path:
    """A file of the checkout that is still the one a job was planned with; UserError if not."""
    path = workspace.root / file.path
    try:
        found = file_digest(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    if found != file.sha256:
        raise UserError(f"{path}: changed since this was planned; run `dvc repro` again")
    return path


def mixture_of(
    description: dict[str, Any],
    store: Store,
    workspace: Workspace,
    led: Led | None = None,
    find: Callable[[dict[str, Any]], Path] | None = None,
):
    """A mixture ready to denoise. led: what its samples are led away from, and where.

    find: the file of each part; None for those of finished entries.
    """
    from pipeline.sampling.mixture import Mixture

    find = find or file_of(store)
    made = Routed().maker if "router" in description else Mixture
    mixture = made(description, find, device(), workspace.root)
    if led is None:
        return mixture
    guide = led.guide and mixture_of(led.guide, store, workspace, find=find)
    return led.maker(mixture, led.interval, guide)


def file_of(store: Store):
    """What finds the file of a mixture's part, which must be the very one that it names."""

    def find(part: dict[str, Any]) -> Path:
        entry = store.entry(part["entry"])
        path = entry.file(part["file"])
        if part.get("sha256", (known := entry.files()[part["file"]]["sha256"])) != known:
            raise UserError(f"{path}: not the file that the mixture was made of; run `dvc repro`")
        return path

    return find


def mapped_images(images: Any, rows: int, entry: Entry, log: Callable[[str], None]):
    """The first images, uint8 [rows, C, H, W], mapped: Parquet gives single rows slowly."""
    import numpy as np

    for _, path in kept(entry.state, "images.npy", log):
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    info = images.info
    shape = (rows, info.channels, info.resolution, info.resolution)

    def write(path: Path) -> None:
        mapped = new_array(path, np.uint8, shape)
        first = 0
        for block, _ in images.blocks(0, rows):
            mapped[first : first + len(block)] = block
            first += len(block)
        mapped.flush()

    keep(entry.state, "images.npy", rows, write)
    return mapped_images(images, rows, entry, log)


def new_array(path: Path, dtype: Any, shape: tuple[int, ...]):
    """A mapped .npy file with room for all of it: a full disk would kill whoever fills a hole."""
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        size = path.stat().st_size
        with room_for(path, size), open(path, "r+b") as f:
            os.posix_fallocate(f.fileno(), 0, size)
    return array


@contextlib.contextmanager
def stopping(reporter: Reporter, entry: Entry):
    """Save when asked to stop, and let it be run again.

    SLURM announces preemption and the time limit by SIGTERM; Ctrl-C sends SIGINT to all processes.
    """
    from pipeline.training.run import Interrupted

    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        asked = True

    before = {asking: signal.signal(asking, ask) for asking in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    except Interrupted as e:
        text = "interrupted; its checkpoint is kept, and it goes on from there"
        write_text(entry.path / "error.txt", f"{text}\n")
        reporter.log(text)
        raise SystemExit(1) from e  # not even the other entries of this process are begun
    finally:
        for asking, handler in before.items():
            signal.signal(asking, handler)


def flat_rows(latents: Any):
    """Row indices to scaled rows, float32 [n, d]."""
    return lambda indices: latents.gather(indices).flatten(1).cpu().numpy()


def latents_of(names: Sequence[str], store: Store, place: str | None = None):
    """The rows of these shards, as one; `place` is "cpu" for what computes in numpy."""
    from pipeline.data.latents import Latents

    return Latents([store.entry(name).file("latents.arrow") for name in names], place or device())
