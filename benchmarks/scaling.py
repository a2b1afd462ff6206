"""One expert on 1, 2, ... processes of this machine: images/s, and the share of communication.

    python benchmarks/scaling.py [--processes 1 2] [--shards 2 8] [--steps 40] [--rounds 3]

Each run is `pipeline.training.train` itself in so many processes, with one thread each on CPUs and
a GPU each where there are some, on rows of a shard on disk; the first steps are not counted.
Communication is the time that rank 0 spends in `Group.total`, waits for the others included, over
that of its steps (on a GPU: the time to start it, as nothing waits for it to end). All runs of a
number of shards must end with the same weights. `efficiency` is images/s over those of one process,
per process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from common import machine, print_table, write_results
from throughput import SETTINGS, make_rows, our_spec

if TYPE_CHECKING:
    from pipeline.training.group import Group

ROOT = Path(__file__).parent.parent
SETTING = SETTINGS["images"]
WARM_UP = 3  # steps


def trained(folder: Path, shards: int, steps: int, group: Group, stop=lambda: False) -> Path:
    """Train in `folder`, which has the rows; where rank 0 writes the weights."""
    from pipeline.data.latents import Latents
    from pipeline.training.train import train
    from stages.inputs import device

    spec, images = our_spec(SETTING, 1), steps * SETTING["batch"]
    training = spec.training.model_copy(update={"shards": shards})
    spec = spec.model_copy(
        update={"images": images, "snapshots": [images], "training": training, "latents": []}
    )
    train(spec, Latents([folder / "rows.arrow"], device()), folder, group=group, stop=stop)
    return folder / f"weights-{images}.safetensors"


def lead(folder: Path, processes: int, shards: int, steps: int) -> dict[str, Any]:
    """Train with other processes, as rank 0, and measure."""
    from pipeline.data.latents import write_shard
    from pipeline.store.identity import file_digest
    from stages.ranks import together

    shape = SETTING["shape"]
    write_shard(folder / "rows.arrow", [(make_rows(shape), None)], shape, (127.5,) * shape[0], 73.9)
    marks, spent = [], [0.0]

    def mark() -> bool:
        marks.append((time.perf_counter(), spent[0]))
        return False

    os.environ["TSPACE_PROCESSES"] = str(processes)
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", str(folder)]
    command += [str(processes), str(shards), str(steps)]
    with together("expert/scaling", shards, command, print) as group:
        total = group.total

        def timed(vector: Any) -> None:
            started = time.perf_counter()
            total(vector)
            spent[0] += time.perf_counter() - started

        group.total = timed
        weights = trained(folder, shards, steps, group, mark)
    (first, before), (last, after) = marks[WARM_UP], marks[-1]
    seconds = last - first
    return {
        "images_per_second": (len(marks) - 1 - WARM_UP) * SETTING["batch"] / seconds,
        "communication": (after - before) / seconds,
        "weights": file_digest(weights),
    }


def measured(processes: int, shards: int, steps: int) -> dict[str, Any]:
    """A run in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        options = [folder, str(processes), str(shards), str(steps)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, __file__, "--measure", *options],
            capture_output=True,
            text=True,
            env=environment,
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def one_of_a_run(folder: str, *numbers: str) -> None:
    """What a process of a run does: rank 0 prints what it measured."""
    from stages.ranks import ADDRESS, follow

    processes, shards, steps = map(int, numbers)
    if ADDRESS in os.environ:
        follow(
            json.loads(os.environ[ADDRESS]),
            lambda _, group: trained(Path(folder), shards, steps, group),
        )
    else:
        print(json.dumps(lead(Path(folder), processes, shards, steps)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shards", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        one_of_a_run(*options.measure)
        return
    described = machine()
    cases = [(s, p) for s in options.shards for p in options.processes if p <= s]
    found: dict[tuple[int, int], list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(options.rounds):  # in turns, so that other load meets all alike
        for shards, processes in cases:
            found[shards, processes].append(measured(processes, shards, options.steps))
    rows = []
    for shards, processes in cases:
        runs = found[shards, processes]
        row = {"shards": shards, "processes": processes}
        for key in ("images_per_second", "communication"):
            row[key] = median(run[key] for run in runs)
        if alone := [r for r in rows if r["shards"] == shards and r["processes"] == 1]:
            row["efficiency"] = row["images_per_second"] / alone[0]["images_per_second"] / processes
        rows.append(row)
    same = all(
        len({run["weights"] for (s, _), runs in found.items() if s == shards for run in runs}) == 1
        for shards in options.shards
    )
    columns = ("shards", "processes", "images_per_second", "efficiency", "communication")
    print_table(rows, columns)
    most = max(options.processes)
    last = next(row for row in rows if row["processes"] == most)
    headline = {
        "processes": most,
        "speedup": most * last.get("efficiency", 1.0),
        "communication": last["communication"],
        "same_weights": same,
    }
    write_results("scaling", rows, headline, described)


if __name__ == "__main__":
    main()
