"""What benchmarks that train share: recipes run by this project's pipeline, and speed-ups.

A benchmark gives `run` what params.yaml would hold and gets every recipe's metrics back. Folders
lie below .bench/, with one store for all benchmarks, so an interrupted one goes on where it was and
two benchmarks that need the same expert train it once.

Speed-ups are against a baseline's quality: how much sooner an arm has the FID that the baseline
ends with (or, where asked for, the worse of the two ends), in images on the critical path, in
FLOPs, and in seconds on a number of workers. The last is computed, from each expert's measured
seconds.
"""

import fcntl
import heapq
import json
import math
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from common import as_lines, print_table, write_results

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
# What a folder needs for `tspace` to take it for a checkout and to run this one's code.
LINKS = ("Snakefile", "data", "dvc.yaml", "envs", "pipeline", "stages", "tspace.py")
SEEDED = re.compile(r"^(.*)-seed(\d+)$")

Recipe = Mapping[str, Any]
sys.path.insert(0, str(ROOT))  # a clone must read its results with its own code, too


@dataclass(frozen=True)
class Experiment:
    """Finished recipes: metrics.json of each with what costs.json says, and the experts' seconds.

    `expert_seconds` of a milestone holds a list for each generation: what a recipe starts from
    comes before it.
    """

    name: str
    folder: Path
    params: dict[str, Any]
    recipes: dict[str, dict[str, Any]]
    reference: dict[str, Any]

    def seeds(self) -> dict[str, dict[int, dict[str, Any]]]:
        """The recipes by what they are but for the seed: name -> seed -> metrics."""
        return by_seed(self.recipes, self.params.get("seed", 0))


def run(name: str, params: dict[str, Any], *, workers: int = 2, folder: Path = BENCH) -> Experiment:
    """Run all stages on `params` with so many jobs at once; SystemExit if one fails.

    Only what the store lacks is done. Sets TSPACE_STORE and SNAKEMAKE_PROFILE of this process.
    """
    workspace = make_workspace(folder / name, params, workers)
    os.environ["TSPACE_STORE"] = str(folder / "store")
    os.environ["SNAKEMAKE_PROFILE"] = str(workspace / "profile")
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    with open(workspace / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of one benchmark: one after the other
        for stage in stages.values():
            tspace(workspace, *stage["cmd"].split()[1:])
        return read(name, workspace)


def make_workspace(folder: Path, params: dict[str, Any], workers: int) -> Path:
    """A folder in which `tspace` runs this checkout's code on `params`."""
    (folder / "profile").mkdir(parents=True, exist_ok=True)
    for name in LINKS:
        link = folder / name
        if link.is_symlink():
            link.unlink()
        link.symlink_to(ROOT / name)
    (folder / "profile" / "config.yaml").write_text(f"cores: {workers}\nkeep-going: true\n")
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def tspace(workspace: Path, *arguments: str) -> None:
    """One command of `tspace` in a workspace, its output streamed; SystemExit if it fails."""
    command = [str(Path(sys.executable).parent / "tspace"), *arguments]
    # A job's threads are in its recipe; a film would take part of the time that is measured.
    one = {"OMP_NUM_THREADS": "1", "TSPACE_FILM": "0"}
    process = subprocess.Popen(command, cwd=workspace, env={**os.environ, **one})
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # the terminal interrupted it as well: its jobs keep their checkpoints
        raise
    if code:
        raise SystemExit(f"{workspace}: `tspace {' '.join(arguments)}` failed, see above")


def read(name: str, folder: Path) -> Experiment:
    """The results of a finished workspace."""
    from pipeline import plan
    from stages import facts
    from stages.report.costs import together
    from stages.workspace import Workspace

    workspace = Workspace(folder)
    spent = json.loads((folder / "results" / "costs.json").read_text())["recipes"]
    params = yaml.safe_load((folder / "params.yaml").read_text())
    recipes = {}
    for key, planned in plan.experts(workspace.params, facts.facts_of(workspace)).items():
        metrics = json.loads((folder / "results" / "recipes" / key / "metrics.json").read_text())
        found = together({key: metrics}, spent)[key]
        for images, point in found["milestones"].items():
            point["expert_seconds"] = expert_seconds(workspace, planned, int(images))
        found["sample_flops"] = sample_flops(planned)
        recipes[key] = found
    summary = json.loads((folder / "results" / "summary.json").read_text())
    return Experiment(name, folder, params, recipes, summary["reference"])


def expert_seconds(workspace: Any, planned: Any, milestone: int) -> list[list[float]]:
    """Measured seconds of each expert up to a milestone, by generation, the oldest first."""
    before = []
    if getattr(planned, "parent", None) is not None:
        before = expert_seconds(workspace, planned.parent, planned.parent.milestones[-1])
    own = []
    for expert in planned.experts:
        made = workspace.store.entry(expert.job.name).circumstances()
        own.append(made["snapshot_seconds"][str(expert.snapshots[milestone])])
    return [*before, own]


def sample_flops(planned: Any) -> float:
    """Forward FLOPs of a sample: each state visited, by the network that answers there."""
    from pipeline.networks.build import flops_of

    total, known = 0.0, {}
    for log_snr in planned.sampling_states:
        if math.isinf(log_snr):  # the data's mean answers
            continue
        index = sum(log_snr < bound for bound in planned.bounds)
        spec = planned.experts[index if len(planned.experts) > 1 else 0].job.spec
        place = (spec.network.model_dump_json(), spec.conditioning, index)
        if place not in known:
            known[place] = flops_of(spec, log_snr)
        total += known[place]
    return total


def by_seed(recipes: Mapping[str, Any], seed: int = 0) -> dict[str, dict[int, Any]]:
    """`NAME-seed3` is NAME with seed 3; a name without a seed was run with `seed`."""
    found: dict[str, dict[int, Any]] = {}
    for name, value in recipes.items():
        match = SEEDED.match(name)
        base, number = (match[1], int(match[2])) if match else (name, seed)
        found.setdefault(base, {})[number] = value
    return {base: dict(sorted(runs.items())) for base, runs in found.items()}


def curve(recipe: Recipe, cost: str = "images_seen", score: str = "fid") -> tuple[Any, Any]:
    """A cost and a score at each milestone, float64 [milestones] each, cost ascending."""
    points = _points(recipe)
    return tuple(np.array([float(point[key]) for point in points]) for key in (cost, score))


def images_to_reach(images: Sequence[float], fid: Sequence[float], target: float) -> float | None:
    """The first cost at which a curve is down to `target`, between milestones by a power law.

    The first milestone's cost if that is there already (an upper bound); None if none is.
    """
    for i, value in enumerate(fid):
        if value <= target:
            if i == 0:
                return float(images[0])
            share = math.log(fid[i - 1] / target) / math.log(fid[i - 1] / value)
            return float(images[i - 1] * (images[i] / images[i - 1]) ** share)
    return None


def makespan(generations: Sequence[Sequence[float]], workers: int) -> float:
    """Seconds that jobs take on so many workers, the longest first, a generation after the other.

    Longest-processing-time list scheduling (Graham 1969): at most 4/3 of the optimum.
    """
    total = 0.0
    for seconds in generations:
        busy = [0.0] * workers
        for job in sorted(seconds, reverse=True):
            heapq.heapreplace(busy, busy[0] + job)
        total += max(busy)
    return total


def wall_curve(recipe: Recipe, workers: int) -> tuple[Any, Any]:
    """Computed seconds on so many workers, and FID, at each milestone."""
    seconds = [makespan(point["expert_seconds"], workers) for point in _points(recipe)]
    return np.array(seconds), curve(recipe)[1]


def _points(recipe: Recipe) -> list[dict[str, Any]]:
    return [point for _, point in sorted(recipe["milestones"].items(), key=lambda i: int(i[0]))]


Curve = Callable[[Recipe], tuple[Any, Any]]


def speedup(baseline: Recipe, arm: Recipe, of: Curve, *, worse: bool = False) -> float | None:
    """How many times less an arm needs than the baseline for the baseline's last FID.

    worse: for the worse of the two last ones, which both reach. Who was as good before its end is
    charged for that moment only. None: never reached.
    """
    (cost, fid), theirs = of(baseline), of(arm)
    target = max(fid[-1], theirs[1][-1]) if worse else fid[-1]
    needed = images_to_reach(*theirs, target)
    return None if needed is None else images_to_reach(cost, fid, target) / needed


def s_iterations(baseline: Recipe, arm: Recipe, *, worse: bool = False) -> float | None:
    """Speed-up in images on the critical path: with a worker for every expert."""
    return speedup(baseline, arm, lambda r: curve(r, "images_seen_critical"), worse=worse)


def s_compute(baseline: Recipe, arm: Recipe, *, worse: bool = False) -> float | None:
    """Speed-up in training FLOPs, summed over experts."""
    return speedup(baseline, arm, lambda r: curve(r, "train_flops"), worse=worse)


def s_wall(baseline: Recipe, arm: Recipe, workers: int, *, worse: bool = False) -> float | None:
    """Speed-up in computed seconds when both have so many workers."""
    return speedup(baseline, arm, lambda r: wall_curve(r, workers), worse=worse)


def bracket(
    score: Callable[[list[tuple[str, int]]], Mapping[tuple[str, int], float]],
    names: Iterable[str],
    first: Iterable[int],
    count: int,
) -> dict[str, dict[int, float]]:
    """The scores of each name at some of the places 0 to count - 1, a minimum among them.

    The `first` places are scored, and the next one while the lowest score is at an end of those.
    score: of all pairs of name and place so far.
    """
    wanted = {(name, place) for name in names for place in first}
    while True:
        scores = score(sorted(wanted))
        found: dict[str, dict[int, float]] = {}
        for name, place in sorted(wanted):
            found.setdefault(name, {})[place] = scores[name, place]
        around = set()
        for name, own in found.items():
            lowest = min(own, key=own.__getitem__)
            around |= {(name, n) for n in (lowest - 1, lowest + 1) if n in range(count)}
        if around <= wanted:
            return found
        wanted |= around


def summarise(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, std (n - 1), min and max over seeds; None where a seed has no value.

    A mean over only the seeds that got there would flatter: it is None unless all did. `n` of `of`
    have a value.
    """
    known = [v for v in values if v is not None]
    found: dict[str, Any] = dict.fromkeys(("mean", "std", "min", "max"))
    if known and len(known) == len(values):
        found = {"mean": statistics.fmean(known), "min": min(known), "max": max(known)}
        found["std"] = statistics.stdev(known) if len(known) > 1 else 0.0
    return {**found, "n": len(known), "of": len(values)}


def ratio_with_spread(
    numerators: Sequence[float | None], denominators: Sequence[float | None]
) -> dict[str, Any]:
    """`summarise` of the ratios, paired by seed; ValueError if the lengths differ."""
    pairs = zip(numerators, denominators, strict=True)
    return summarise([None if a is None or b is None else a / b for a, b in pairs])


def text(summary: Mapping[str, Any], form: str = "{:.3g}") -> str:
    """`mean (min-max)`; `>budget` where not all seeds got there."""
    if summary["mean"] is None:
        return f">budget ({summary['n']}/{summary['of']})"
    mean, low, high = (form.format(summary[key]) for key in ("mean", "min", "max"))
    return mean if summary["n"] == 1 else f"{mean} ({low}-{high})"


COLUMNS = {"fid": "{:.3f}", "images_seen": "{:,.0f}", "images_seen_critical": "{:,.0f}"}
COLUMNS |= {"train_flops": "{:.3g}", "compute_seconds": "{:.0f}"}


def table(experiment: Experiment, extra: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Print each recipe's figures over its seeds. extra: summaries by recipe and column."""
    rows, columns = [], {}
    for name, runs in experiment.seeds().items():
        row = {"recipe": name, "seeds": len(runs)}
        for key, form in COLUMNS.items():
            row[key] = text(summarise([found[key] for found in runs.values()]), form)
        row |= {key: text(value) for key, value in (extra or {}).get(name, {}).items()}
        columns |= dict.fromkeys(row)
        rows.append(row)
    print_table(rows, list(columns))


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a benchmark's own rows, summaries over seeds as text."""
    print_table(
        [{k: text(v) if isinstance(v, Mapping) else v for k, v in row.items()} for row in rows],
        list(dict.fromkeys(key for row in rows for key in row)),
    )


def run_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """A row for every recipe, seed and milestone, with all that was measured."""
    return [
        {"recipe": name, "seed": seed, "milestone": int(images), **point}
        for name, runs in experiment.seeds().items()
        for seed, found in runs.items()
        for images, point in found["milestones"].items()
    ]


def write(
    experiment: Experiment,
    rows: Sequence[Mapping[str, Any]],
    headline: Mapping[str, Any],
    described: Mapping[str, Any],
) -> Path:
    """Write benchmarks/results/<name>.json: the rows given, every run's, and its params."""
    path = write_results(experiment.name, [*rows, *run_rows(experiment)], headline, described)
    result = json.loads(path.read_text())
    path.write_text(as_lines(result | {"params": experiment.params}))
    return path
