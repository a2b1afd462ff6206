"""What the pipeline itself costs with 10, 100 and 1000 experts: planning, training, doing nothing.

    python benchmarks/orchestration.py

In a throwaway clone of this checkout (what is committed), experts of one state each are trained on
one image with the smallest network, by one worker, `--experts-per-job` to a process. Hardly any of
it is training, so the seconds of `tspace train` over the number of experts are what an expert costs
beside its own work: start-up of torch, Snakemake, the network built, four files written and
checksummed. `stage no-op` is `tspace train` again, `dvc no-op` is `dvc repro` when all
stages are up to date; medians of the repeats, start-up of Python included.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from common import machine, print_table, write_results

ROOT = Path(__file__).resolve().parent.parent


def params(experts: int, experts_per_job: int) -> dict[str, Any]:
    return {
        "seed": 0,
        "data": {"source": "digits", "limit": 200},
        "latent": {"encoder": "pixels"},
        "features": {"images": 400, "batch": 16, "dimension": 8, "channels": 8},
        "evaluate": {"samples": 8, "allow_few": True},
        "defaults": {"network": {"kind": "unet", "channels": 4, "multipliers": [1]}},
        "recipes": {
            "many": {
                "schedule": {"kind": "log-snr", "states": experts},
                "partition": {"kind": "per-state"},
                "training": {"images": experts, "batch": 1, "experts_per_job": experts_per_job},
                "sampling": {"steps": 2},
            }
        },
    }


class Clone:
    """A clone of this checkout in which commands are timed."""

    def __init__(self, root: Path):
        self.root = root
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True)
        (root / "dvc.lock").unlink(missing_ok=True)
        (root / "one-worker").mkdir()
        (root / "one-worker" / "config.yaml").write_text("cores: 1\n")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "TSPACE_FILM": "0"}
        self.environment["SNAKEMAKE_PROFILE"] = str(root / "one-worker")
        self.environment.pop("TSPACE_STORE", None)

    def run(self, *command: str) -> float:
        """Seconds of a command; SystemExit with what it said if it fails."""
        start = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return seconds


def measure(clone: Clone, experts: int, experts_per_job: int, repeats: int) -> dict[str, Any]:
    (clone.root / "params.yaml").write_text(yaml.safe_dump(params(experts, experts_per_job)))
    clone.run("dvc", "repro", "pair")
    load = os.getloadavg()[0]
    train = clone.run("tspace", "train")
    clone.run("dvc", "repro")

    def median(*command: str) -> float:
        return statistics.median(clone.run(*command) for _ in range(repeats))

    return {
        "experts": experts,
        "experts_per_job": experts_per_job,
        "plan_seconds": median("tspace", "plan"),
        "train_seconds": train,
        "overhead_seconds_per_expert": train / experts,
        "stage_noop_seconds": median("tspace", "train"),
        "dvc_noop_seconds": median("dvc", "repro"),
        "load_before": round(load, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--experts-per-job", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    described = machine()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clone = Clone(Path(folder) / "tspace")
        described["dvc_start_seconds"] = clone.run("python", "-c", "import dvc.repo, dvc.cli")
        for experts in arguments.experts:
            rows.append(measure(clone, experts, arguments.experts_per_job, arguments.repeats))
            print_table(rows[-1:], list(rows[-1]))
    headline = {
        "noop_seconds": max(row["stage_noop_seconds"] for row in rows),
        "dvc_noop_seconds": max(row["dvc_noop_seconds"] for row in rows),
    }
    for row in rows:
        for key in ("plan_seconds", "overhead_seconds_per_expert"):
            headline[f"{key}_{row['experts']}"] = row[key]
    write_results("orchestration", rows, headline, described)


if __name__ == "__main__":
    main()
