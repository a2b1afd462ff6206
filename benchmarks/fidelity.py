"""Frechet distance of the same features by this pipeline and by others, in turns.

    OMP_NUM_THREADS=1 python benchmarks/fidelity.py --peer-python OTHER/bin/python

Timed from the means and covariances of both sets to the distance, in float64. `ours` starts from
nothing; `ours, reference kept` has scored against the same reference before. `sqrtm` is the
formula with scipy's matrix square root, as pytorch-fid and most others compute it; torch-fidelity
and torchmetrics compute theirs in the environment of `--peer-python` (torch-fidelity, torchmetrics
and the torchvision that fits their torch), on features handed over in a file.

Features are a stand-in for a network's: rectified, correlated, standard deviations falling over
three decades.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, print_table, time_alternating, versions, write_results

OURS, KEPT, SQRTM = "ours", "ours, reference kept", "sqrtm"
PEERS = ("torch-fidelity", "torchmetrics")


def make_features(dimension: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features, float64 [count, dimension], that differ a little."""
    random = np.random.Generator(np.random.Philox(dimension))
    mix = random.standard_normal((dimension, dimension)) / np.sqrt(dimension)
    mix *= np.geomspace(1, 1e-3, dimension)[:, None]
    turn = np.linalg.qr(random.standard_normal((dimension, dimension)))[0]
    sets = []
    for scale, shift in ((1.0, 0.0), (1.1, 0.02)):
        hidden = random.standard_normal((count, dimension)) @ mix @ turn * scale + shift
        sets.append(np.maximum(hidden + 0.05, 0))
    return sets[0], sets[1]


def mean_and_covariance(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def by_matrix_root(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> float:
    import scipy.linalg

    (m1, s1), (m2, s2) = first, second
    trace = np.trace(scipy.linalg.sqrtm(s1 @ s2)).real
    return float(np.sum((m1 - m2) ** 2) + np.trace(s1) + np.trace(s2) - 2 * trace)


def peer_methods(path: str) -> dict[str, Callable[[], float]]:
    """The peers' own functions, on the features in `path`."""
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    with np.load(path) as file:
        sets = [torch.from_numpy(file[name]) for name in ("first", "second")]
    statistics = [fid_features_to_statistics(s) for s in sets]
    moments = [torch.from_numpy(m) for s in sets for m in mean_and_covariance(s.numpy())]
    return {
        "torch-fidelity": lambda: next(
            iter(fid_statistics_to_metric(*statistics, verbose=False).values())
        ),
        "torchmetrics": lambda: float(_compute_fid(*moments)),
    }


def serve(path: str) -> None:
    """Answers each name of a method on standard input with its distance."""
    methods = peer_methods(path)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(methods[line.strip()]()), flush=True)


class Peer:
    """The same script in another environment."""

    def __init__(self, python: str, path: Path) -> None:
        command = [python, __file__, "--serve", str(path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answer()

    def answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                "the peers stopped, see above; --peer-python must be an environment with "
                "torch-fidelity, torchmetrics and a fitting torchvision"
            )
        return json.loads(line)

    def ask(self, method: str) -> float:
        self.process.stdin.write(f"{method}\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(dimension: int, count: int, repeats: int, python: str) -> list[dict[str, Any]]:
    """One row for each method."""
    from pipeline.evaluation.frechet import FeatureStatistics, frechet_distance

    sets = make_features(dimension, count)
    terms = [mean_and_covariance(s) for s in sets]
    statistics = [FeatureStatistics(dimension) for _ in sets]
    for mine, features in zip(statistics, sets, strict=True):
        mine.add(features)
    reference = statistics[0].finish()
    values: dict[str, float] = {}

    def keeping(name: str, compute: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            values[name] = compute()

        return call

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npz"
        np.savez(path, first=sets[0], second=sets[1])
        peer = Peer(python, path)
    calls = {
        OURS: lambda: frechet_distance(*(s.finish() for s in statistics)).value,
        KEPT: lambda: frechet_distance(reference, statistics[1].finish()).value,
        SQRTM: lambda: by_matrix_root(*terms),
        "torch-fidelity": lambda: peer.ask("torch-fidelity"),
        "torchmetrics": lambda: peer.ask("torchmetrics"),
    }
    seconds = time_alternating(
        {name: keeping(name, call) for name, call in calls.items()},
        repeats,
        warm_up=dimension < 1000,
    )
    peer.close()
    return [
        {
            "dimension": dimension,
            "samples": count,
            "method": name,
            "seconds": seconds[name]["median"],
            "seconds_best": seconds[name]["best"],
            "times_ours": seconds[name]["median"] / seconds[OURS]["median"],
            "distance": values[name],
            "relative_difference": abs(values[name] / values[OURS] - 1),
        }
        for name in calls
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", default=sys.executable, help="Python of the peers")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--serve", metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    # The record of the command is read on other machines.
    sys.argv = ["OTHER/bin/python" if a == arguments.peer_python else a for a in sys.argv]
    described = machine()
    described["peers"] = versions(
        arguments.peer_python, ["torch-fidelity", "torchmetrics", "torch", "numpy"], "--peer-python"
    )
    rows = []
    for dimension in arguments.dimensions:
        found = compare(dimension, 3 * dimension, arguments.repeats, arguments.peer_python)
        columns = ("dimension", "method", "seconds", "times_ours", "relative_difference")
        print_table(found, columns)
        rows += found
    ratio = {(r["dimension"], r["method"]): r["times_ours"] for r in rows}
    headline = {
        f"speedup_vs_{method.replace('-', '_')}_d{dimension}": ratio[dimension, method]
        for dimension in sorted(arguments.dimensions, reverse=True)
        for method in (SQRTM, *PEERS)
    }
    headline["max_relative_error"] = max(r["relative_difference"] for r in rows)
    write_results("fidelity", rows, headline, described)


if __name__ == "__main__":
    main()
