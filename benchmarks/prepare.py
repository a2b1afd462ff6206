"""How fast `prepare` reads photographs: images/s by source and number of processors.

Photographs of ImageNet's usual size (500x375, JPEG) are drawn, then brought to 256x256.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from common import machine, print_table, write_results
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.data.dataset import prepare  # noqa: E402


def photograph(number: int) -> bytes:
    """Smooth shapes and fine grain, about 70 KB."""
    random = np.random.default_rng(number)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
    pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
    pixels = pixels + random.normal(0, 9, pixels.shape).astype(np.int16)
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def write(folder: Path, count: int) -> float:
    """The photographs as files and as tar shards; their mean size in bytes."""
    (folder / "folder").mkdir()
    (folder / "webdataset").mkdir()
    total = 0
    for first in range(0, count, 500):
        with tarfile.open(folder / "webdataset" / f"{first:06}.tar", "w") as shard:
            for number in range(first, min(first + 500, count)):
                data = photograph(number)
                total += len(data)
                (folder / "folder" / f"{number:06}.jpg").write_bytes(data)
                member = tarfile.TarInfo(f"{number:06}.jpg")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return total / count


def one(source: str, path: Path, out: Path) -> None:
    """Prepare a source in this process, and say how long it took and what came out."""
    started = time.perf_counter()
    info = prepare(out, source=source, path=path, resolution=256, channels=3)
    seconds = time.perf_counter() - started
    print(json.dumps({"images_per_second": info.rows / seconds, "digest": info.digest}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        source, path, out = options.one
        return one(source, Path(path), Path(out))
    described = machine()
    cores = sorted(os.sched_getaffinity(0))
    counts = [n for n in (1, 2, 4, 8, 16) if n <= len(cores)]
    found: dict[str, dict[int, list[float]]] = {}
    digests: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write(folder, options.images)
        for _ in range(options.rounds):
            for source in ("folder", "webdataset"):
                for count in counts:
                    out = folder / "out.parquet"
                    said = subprocess.run(
                        [sys.executable, __file__, "--one", source, folder / source, out],
                        check=True,
                        capture_output=True,
                        text=True,
                        preexec_fn=lambda own=cores[:count]: os.sched_setaffinity(0, own),
                    ).stdout
                    told = json.loads(said)
                    rates = found.setdefault(source, {}).setdefault(count, [])
                    rates.append(told["images_per_second"])
                    digests.setdefault(source, set()).add(told["digest"])
    assert all(len(of) == 1 for of in digests.values()), "the rows depend on the processors"
    rows = [
        {"source": source, "processors": count, "images_per_second": median(rates)}
        for source, of in found.items()
        for count, rates in of.items()
    ]
    print_table(rows, ("source", "processors", "images_per_second"))
    headline = {
        "images": options.images,
        "kilobytes": size / 1000,
        "processors": counts[-1],
        "alone": median(found["folder"][1]),
        "together": median(found["folder"][counts[-1]]),
    }
    write_results("prepare", rows, headline, described)


if __name__ == "__main__":
    main()
