"""Memory, speed and bytes on disk of each stage on a dataset of 100,000 images of 32x32x3.

    python benchmarks/streaming.py

Generated images (discs of one colour on a gradient, with grain) go through prepare, encode,
analyse, pair and train, as pixels and as latents of an autoencoder that is trained here. Budgets
are tiny: what is measured is how data passes through, not what is learnt.

`peak MiB` is the largest resident memory that any one process of a stage ever had, as the kernel
keeps it (ru_maxrss); `own MiB` the part of it that is the process's own, without the pages of files
that are mapped into it, which the kernel takes back when it needs them (sampled, so a lower bound).
`rows/s` is rows of the dataset over the wall time of the whole stage, start-up of Python and
Snakemake included; a row of `pair` is one row in one pass, a row of `train` one image trained on.
`raw MiB/s` is the pixels' bytes (307 MB a pass) at that speed.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, print_table, write_results
from experiment import make_workspace

SIDE, CHANNELS = 32, 3
LIMIT = 2 << 30
SAMPLE_SECONDS = 0.02
CHUNK = 5_000
STAGES = ("prepare", "encode", "analyse", "pair", "train")
ENCODERS: dict[str, dict[str, Any]] = {
    "pixels": {"encoder": "pixels"},
    "autoencoder": {
        "encoder": "autoencoder",
        "channels": 4,
        "downsample": 4,
        "width": 16,
        "images": 2_000,
    },
}


def params(path: Path, latent: dict[str, Any], images: int) -> dict[str, Any]:
    return {
        "seed": 0,
        "data": {"source": "npz", "path": str(path)},
        "latent": latent,
        "features": {},
        "evaluate": {},
        "defaults": {
            "network": {"kind": "unet", "channels": 8, "multipliers": [1], "blocks": 1},
            "schedule": {"kind": "log-snr", "states": 4},
            "training": {"images": images, "batch": 250},
        },
        "recipes": {
            "assignment": {"pairing": {"method": "assignment"}},
        },
    }


def write_images(path: Path, rows: int) -> None:
    """An .npz with `images` uint8 [rows, 32, 32, 3] and `labels` int64 [rows], of 10 classes."""
    shape = (rows, SIDE, SIDE, CHANNELS)
    grid = np.linspace(-1, 1, SIDE)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for start in range(0, rows, CHUNK):
                draw = np.random.default_rng(start)
                n = min(CHUNK, rows - start)
                x, y, radius = draw.uniform(-0.6, 0.6, (3, n, 1, 1))
                disc = (grid - x) ** 2 + (grid[:, None] - y) ** 2 < (0.3 + 0.3 * radius) ** 2
                colour, slope = draw.uniform(40, 215, (2, n, 1, 1, CHANNELS))
                image = slope * (1 + 0.3 * grid[:, None]) + disc[..., None] * (colour - slope)
                image += draw.integers(-6, 7, (n, SIDE, SIDE, CHANNELS))
                stream.write(image.clip(0, 255).astype(np.uint8).tobytes())
        with archive.open("labels.npy", "w") as stream:
            np.lib.format.write_array(stream, np.arange(rows) % 10)


def measure(workspace: Path, stage: str) -> dict[str, float]:
    """Run a stage in a process of its own: its seconds, and the peaks of all processes below it.

    A process of its own, since ru_maxrss of finished children never goes down.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        log = os.open(workspace / f"{stage}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "tspace"), stage],
            cwd=workspace,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        own = _Own(process.pid)
        code = process.wait()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        os.write(writer, f"{code} {seconds} {peak} {own.stop()}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        code, seconds, peak, own = map(float, stream.read().split())
    os.waitpid(child, 0)
    if code:
        raise SystemExit(f"tspace {stage} failed:\n{(workspace / f'{stage}.log').read_text()}")
    return {"seconds": seconds, "peak": peak, "own": own}


class _Own:
    """The largest memory, mapped files apart, that any process of a session was seen with."""

    def __init__(self, session: int):
        self.session, self.largest, self.ended = session, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def stop(self) -> int:
        """Bytes."""
        self.ended.set()
        self.thread.join()
        return self.largest

    def _watch(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    if os.getsid(int(pid)) != self.session:
                        continue
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue
                found = re.search(r"RssAnon:\s+(\d+) kB", status)
                if found:
                    self.largest = max(self.largest, int(found[1]) * 1024)


def size(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def run(
    name: str, latent: dict[str, Any], source: Path, rows: int, images: int
) -> list[dict[str, Any]]:
    table = []
    with tempfile.TemporaryDirectory(prefix="streaming-") as folder:
        workspace = make_workspace(Path(folder), params(source, latent, images), 1)
        os.environ["SNAKEMAKE_PROFILE"] = str(workspace / "profile")
        os.environ["TSPACE_STORE"] = str(workspace / "store")
        for stage in STAGES:
            found = measure(workspace, stage)
            passes = {"train": images / rows}.get(stage, 1)
            rate = passes * rows / found["seconds"]
            made = {"prepare": "dataset", "encode": "latents", "pair": "pairings"}.get(stage)
            table.append(
                {
                    "encoder": name,
                    "stage": stage,
                    "seconds": round(found["seconds"], 1),
                    "rows/s": round(rate),
                    "raw MiB/s": round(rate * SIDE * SIDE * CHANNELS / 2**20, 1),
                    "peak MiB": round(found["peak"] / 2**20),
                    "own MiB": round(found["own"] / 2**20),
                    "disk MB": made and round(size(workspace / "artefacts" / made) / 1e6, 1),
                    "makes": made,
                }
            )
            print_table(table[-1:], list(table[-1]))
    return table


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--images", type=int, default=20_000, help="trained on")
    options = arguments.parse_args()
    described = machine()
    os.environ["OMP_NUM_THREADS"] = "1"
    table = []
    with tempfile.TemporaryDirectory(prefix="streaming-") as folder:
        source = Path(folder) / "images.npz"
        write_images(source, options.rows)
        raw = options.rows * SIDE * SIDE * CHANNELS
        print(f"{options.rows:,} images of {SIDE}x{SIDE}x{CHANNELS}: {raw / 1e6:.1f} MB raw\n")
        for name, latent in ENCODERS.items():
            table += run(name, latent, source, options.rows, options.images)
    print_table(table, list(table[0]))
    peaks = {f"{row['encoder']}_{row['stage']}": row["peak MiB"] for row in table}
    disk = {f"{row['encoder']}_{row['makes']}_mb": row["disk MB"] for row in table if row["makes"]}
    headline = {
        "rows": options.rows,
        "raw_mb": raw / 1e6,
        "limit_mib": LIMIT >> 20,
        "largest_peak_mib": max(peaks.values()),
        "every_process_under_limit": max(peaks.values()) < LIMIT >> 20,
        **{f"{name}_peak_mib": value for name, value in peaks.items()},
        **disk,
    }
    write_results("streaming", table, headline, described)


if __name__ == "__main__":
    main()
