"""Whether two checkouts hold the same results: tensors and scores, not checksums of files.

    python benchmarks/same_results.py OTHER_CHECKOUT

A change of the code gives every entry another name, and often the files other metadata, even where
no number moves. This compares what the entries hold: those of both checkouts that have one label
(`ddpm at 60,000 samples 0-1796`), array by array. Exits with 1 where anything differs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file

STAGES = ("latents", "analyses", "features", "pairings", "experts", "samples", "scores")
# What is said of the making, not of what was made.
APART = ("seconds", "snapshot_seconds", "device", "floor", "extractor_digest")


def arrays(path: Path) -> Iterator[tuple[str, Any]]:
    """What a file of an entry holds, by name: arrays, or JSON values."""
    if path.suffix == ".safetensors":
        yield from load_file(path).items()
    elif path.suffix == ".npy":
        yield "", np.load(path, mmap_mode="r", allow_pickle=False)
    elif path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            flat = column.flatten() if hasattr(column, "flatten") else column
            yield name, flat.to_numpy(zero_copy_only=False)
    elif path.suffix == ".json":
        found = json.loads(path.read_text())
        for name, value in found.items() if isinstance(found, dict) else [("", found)]:
            if name not in APART:
                yield name, value


def entries(checkout: Path, stage: str) -> dict[str, Path]:
    """Folders of a stage's entries by label."""
    folder = checkout / "artefacts" / stage
    manifest = json.loads((folder / "manifest.json").read_text())
    return {e["label"]: folder / e["name"].partition("/")[2] for e in manifest["entries"]}


def differences(mine: Path, other: Path) -> Iterator[str]:
    """What differs between two folders of one label."""
    files = {p.name for p in mine.iterdir() if p.suffix in (".safetensors", ".npy", ".arrow")}
    files |= {p.name for p in mine.iterdir() if p.suffix == ".json" and p.name != "spec.json"}
    for name in sorted(files):
        if not (other / name).exists():
            yield f"{name}: not in the other"
            continue
        theirs = dict(arrays(other / name))
        for key, value in arrays(mine / name):
            if key not in theirs:
                yield f"{name}: {key}: not in the other"
            elif isinstance(value, np.ndarray):
                if not np.array_equal(value, theirs[key], equal_nan=value.dtype.kind == "f"):
                    yield f"{name}: {key}: other numbers"
            elif value != theirs[key]:
                yield f"{name}: {key}: {str(value)[:80]}, in the other {str(theirs[key])[:80]}"


def main(other: Path) -> int:
    here, differ = Path.cwd(), 0
    for stage in STAGES:
        mine, theirs = entries(here, stage), entries(other, stage)
        found = [f"{label}: only in one" for label in sorted(mine.keys() ^ theirs.keys())]
        for label in mine.keys() & theirs.keys():
            found += [f"{label}: {text}" for text in differences(mine[label], theirs[label])]
        print(f"{stage}: {len(mine.keys() & theirs.keys())} compared, {len(found)} differences")
        print("".join(f"  {text}\n" for text in sorted(found)), end="")
        differ += len(found)
    return 1 if differ else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
