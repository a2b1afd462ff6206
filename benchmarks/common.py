"""What every benchmark shares: timing, the machine, the table and the result file."""

import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """The hardware and versions that decide how fast things are here."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    for package in ("numpy", "scipy", "torch"):
        found[package] = metadata.version(package)
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def versions(python: str, packages: list[str], option: str) -> dict[str, str]:
    """Of packages in another Python; SystemExit naming the option it was given by if one lacks."""
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({p: version(p) for p in sys.argv[1:]}))"
    )
    done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{option} {python}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def time_alternating(
    calls: Mapping[str, Callable[[], Any]], repeats: int, warm_up: bool = True
) -> dict[str, dict[str, float]]:
    """Seconds of each call, taken in turns so that other load on the machine meets all alike.

    Per name: `best` and `median` of `repeats`.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1 if warm_up else 0, repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 0:
                taken[name].append(time.perf_counter() - start)
    return {n: {"best": min(t), "median": statistics.median(t)} for n, t in taken.items()}


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows as aligned text; a column that a row lacks stays empty."""
    table = [list(columns)] + [[_text(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)))
    print(flush=True)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_results(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    headline: Mapping[str, Any],
    described: Mapping[str, Any],
) -> Path:
    """Write benchmarks/results/<name>.json; `described` is what `machine` said at the start.

    It names the commit of this checkout, with `+` if its code differs from it.
    """
    for key, value in headline.items():
        print(f"{key}: {_text(value)}")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    result = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": dict(described),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "rows": [dict(row) for row in rows],
        "headline": dict(headline),
    }
    path.write_text(as_lines(result))
    return path


def as_lines(result: Mapping[str, Any]) -> str:
    """JSON with a line for each row and each key of a block, which diffs and eyes can follow."""

    def text(value: Any) -> str:
        return json.dumps(value, allow_nan=False)

    blocks = []
    for key, value in result.items():
        if isinstance(value, dict) and value:
            lines = ",\n".join(f"  {text(name)}: {text(own)}" for name, own in value.items())
            blocks.append(f" {text(key)}: {{\n{lines}\n }}")
        elif isinstance(value, list) and value:
            lines = ",\n".join(f"  {text(row)}" for row in value)
            blocks.append(f" {text(key)}: [\n{lines}\n ]")
        else:
            blocks.append(f" {text(key)}: {text(value)}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def commit() -> str:
    """Of this checkout, with `+` if its code differs from it; of a copy without git: unknown."""
    if not (Path(__file__).parent.parent / ".git").exists():
        return "unknown"

    def git(*arguments: str) -> str:
        root = Path(__file__).parent.parent
        return subprocess.check_output(["git", *arguments], cwd=root, text=True).strip()

    edited = git("status", "--porcelain", "--", "pipeline", "stages", "benchmarks/*.py")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if edited else "")
