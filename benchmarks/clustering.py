"""Bounds of the intervals from the data: how long it takes for 50,000 rows, and how firm they are.

    python benchmarks/clustering.py

Rows are the stand-in for CIFAR-10 of `benchmarks/pairing.py` (3 x 32 x 32, image-like spectrum and
contrast, unit average variance); as they are made, not photographs, the bounds here are no
recommendation. The schedule is `linear` with 1000 states.

- `two anchors`: the multi-stage paper's algorithm 1, three intervals; with half and a tenth of the
  rows too, and for `sensitivity` with other alpha and eta and with fewer draws (mean and standard
  deviation over disjoint runs of draws). eta costs nothing: all are measured on the same draws.
- `matrix`: similarities of all pairs of nodes, and the best 2 to 5 intervals from them,
  counting each node; and 4 intervals counting each interval once, as the authors' code does.
- `naive`: the same posterior means as `two anchors`, one at a time in float64, for a few draws.
"""

import argparse
import math
import time

import numpy as np
from common import machine, print_table, write_results
from pairing import DIM, make_rows

from pipeline.levels import optimal_denoiser, partition, schedule
from pipeline.levels.params import LinearSchedule, OptimalDenoiserPartition
from pipeline.noise import philox

KEY = philox.derive_key("benchmark", "clustering")
DEFAULTS = OptimalDenoiserPartition(kind="optimal-denoiser")
ETAS = (1 / 256, 2 / 256, 4 / 256, 8 / 256)
ALPHAS = (0.8, 0.9, 0.95)


def bounds_row(part, bounds, **more):
    cuts = [round(float(c) / 1000, 3) for c in bounds.first_states]
    return {
        "part": part,
        **more,
        "time": cuts,
        "log_snr": [round(float(b), 2) for b in bounds.log_snr],
    }


def two_anchors(x, log_snr, draws):
    rows, curves = [], None
    for count in (len(x), len(x) // 2, len(x) // 10):
        start = time.perf_counter()
        made = optimal_denoiser.measure_curves(
            lambda i: x[i], count, log_snr, key=KEY, draws=draws, etas=ETAS
        )
        seconds = time.perf_counter() - start
        curves = curves or made
        table = optimal_denoiser.sensitivity(made, (DEFAULTS.alpha,), (draws,))
        row = next(row for row in table if row["eta"] == DEFAULTS.eta)
        rows.append({"part": "two anchors", "n": count, "seconds": seconds, **row})
    print_table(rows, ["part", "n", "draws", "seconds", "time_1", "time_2", "log_snr_1"])
    return rows, curves


def naive_seconds(x, log_snr, draws):
    """Seconds a draw: the definition, for one draw after the other."""
    y = x.astype(np.float64)
    taken = []
    for k in range(draws):
        level = log_snr[(2 * k + 1) * len(log_snr) // (2 * draws)]
        alpha2 = 1 / (1 + math.exp(-level))
        eps = philox.normal(KEY, 9, np.array([k]), (DIM,))[0]
        sample = math.sqrt(alpha2) * y[k] + math.sqrt(1 - alpha2) * eps
        start = time.perf_counter()
        score = np.empty(len(y))
        for i in range(0, len(y), 4096):
            difference = sample - math.sqrt(alpha2) * y[i : i + 4096]
            score[i : i + 4096] = -(difference**2).sum(axis=1) / (2 * (1 - alpha2))
        weight = np.exp(score - score.max())
        expected = weight @ y / weight.sum()
        taken.append(time.perf_counter() - start)
        found = optimal_denoiser.optimal_denoiser(lambda i: x[i], len(x), sample[None], level)[0]
        assert np.abs(found - expected).max() < 1e-3
    return float(np.median(taken))


def matrix(x, log_snr, nodes, draws):
    start = time.perf_counter()
    similarity = optimal_denoiser.similarity_matrix(
        lambda i: x[i], len(x), log_snr, key=KEY, nodes=nodes, draws=draws, eta=DEFAULTS.eta
    )
    seconds = time.perf_counter() - start
    rows = [{"part": "matrix", "n": len(x), "draws": draws, "nodes": nodes, "seconds": seconds}]
    for intervals in (2, 3, 4, 5):
        found = partition.affinity_bounds(log_snr, similarity, intervals)
        rows.append(bounds_row("matrix bounds", found, intervals=intervals, method="each node"))
    # What the authors' code maximises, for comparison.
    each_interval = partition.affinity_values(similarity)
    edge = np.arange(nodes + 1)
    each_interval /= np.maximum(edge - edge[:, None], 1)
    time_of = (partition.best_cuts(each_interval, 4) / nodes).round(3).tolist()
    rows.append(
        {"part": "matrix bounds", "intervals": 4, "method": "each interval", "time": time_of}
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=50_000, help="rows of the dataset")
    parser.add_argument("--draws", type=int, default=5000, help="of the two anchors")
    parser.add_argument("--nodes", type=int, default=40)
    parser.add_argument("--matrix-draws", type=int, default=256)
    parser.add_argument("--naive-draws", type=int, default=5)
    options = parser.parse_args()
    described = machine()

    log_snr = schedule.build(LinearSchedule(kind="linear"), 1000)
    x = make_rows(options.rows)
    measured, curves = two_anchors(x, log_snr, options.draws)
    runs = sorted({max(1, options.draws // share) for share in (1, 4, 16)}, reverse=True)
    sensitive = [
        {"part": "sensitivity", **row} for row in optimal_denoiser.sensitivity(curves, ALPHAS, runs)
    ]
    print_table(
        sensitive,
        ["eta", "alpha", "draws", "repeats", "usable", "time_1", "std_1", "time_2", "std_2"],
    )
    binned = curves.binned(DEFAULTS.eta, 25)
    curve = [
        {
            "part": "curve",
            **{name: float(v[i]) for name, v in binned.items() if not math.isnan(v[i])},
        }
        for i in range(25)
    ]
    print_table(curve, ["time", "log_snr", "s0", "s1"])
    similar = matrix(x, log_snr, options.nodes, options.matrix_draws)
    controls = [
        bounds_row("control", make(log_snr, 3), method=name, intervals=3)
        for name, make in (
            ("uniform", partition.uniform_bounds),
            ("snr", partition.snr_bounds),
        )
    ]
    print_table(
        similar + controls,
        ["part", "method", "nodes", "seconds", "intervals", "time", "log_snr"],
    )
    naive = naive_seconds(x, log_snr, options.naive_draws)

    draw_seconds = measured[0]["seconds"] / options.draws
    headline = {
        "seconds_50k": measured[0]["seconds"],
        "draws": options.draws,
        "matrix_seconds_50k": similar[0]["seconds"],
        "matrix_nodes": options.nodes,
        "matrix_draws": options.matrix_draws,
        "ms_per_draw": 1e3 * draw_seconds,
        "naive_ms_per_draw": 1e3 * naive,
        "speedup_vs_naive": naive / draw_seconds,
        "time_1": measured[0]["time_1"],
        "time_2": measured[0]["time_2"],
        "log_snr_1": measured[0]["log_snr_1"],
        "log_snr_2": measured[0]["log_snr_2"],
    }
    rows = measured + sensitive + curve + similar + controls
    write_results("clustering", rows, headline, described)


if __name__ == "__main__":
    main()
