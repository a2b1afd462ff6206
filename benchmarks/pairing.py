"""Pairing side by side: one batch, one slot of a whole dataset, and what it does to the noise.

    python benchmarks/pairing.py

Rows are a stated stand-in for CIFAR-10 (3 x 32 x 32): Gaussian in a cosine basis with the variances
of CIFAR-10's principal components (29, 11, 7, 4, 4 % for the first five, then a power law that
holds 90 % within the first 99), times a log-normal contrast a row (sigma 0.45), of unit
average variance. Noises are the same for all methods and are not part of a batch's time; they are
part of a slot's.

The paper's recipe (Immiscible Diffusion's published code) is |x - eps| of inputs scaled by 0.1,
in half precision, given to scipy. `paper as written` forms all differences, as the code does on a
GPU; `paper` reaches the same cost with one matrix product, and is what speed is compared with.
`ms_solver` is scipy's share, what is left on the processor where a GPU makes the costs.
"""

import argparse
import functools
import importlib.util
import math
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.fft
import torch
from common import machine, print_table, time_alternating, write_results
from scipy.optimize import linear_sum_assignment
from threadpoolctl import threadpool_limits

from pipeline.networks.build import network_of
from pipeline.networks.params import UNet
from pipeline.noise import assignment, diagnostics, pairing, philox, semidiscrete
from pipeline.noise.params import Semidiscrete
from pipeline.params.load import load
from pipeline.specs import NetworkSpec

SHAPE = (3, 32, 32)
DIM = math.prod(SHAPE)
KEY = philox.derive_key("benchmark", "pairing")
NOISES = Semidiscrete(method="semidiscrete").noises  # for each row, of a potential


def spectrum() -> np.ndarray:
    """Variances of the stand-in's components, decreasing, mean 1: [DIM]."""
    lead = np.array([0.29, 0.11, 0.07, 0.04, 0.04])
    ranks = np.arange(len(lead) + 1, DIM + 1)
    low, high = 1.0, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = ranks**-middle
        within = tail[: 99 - len(lead)].sum() / tail.sum()
        low, high = (
            (middle, high) if within < (0.9 - lead.sum()) / (1 - lead.sum()) else (low, middle)
        )
    return np.concatenate([lead, tail * (1 - lead.sum()) / tail.sum()]) * DIM


def make_rows(count: int, contrast: float = 0.45) -> np.ndarray:
    """Image-like rows, float32 [count, DIM]."""
    u, v, c = np.meshgrid(*(np.arange(s) for s in (32, 32, 3)), indexing="ij")
    order = np.argsort(((u**2 + v**2 + 1) * np.array([1, 8, 20])[c]).ravel(), kind="stable")
    deviations = np.sqrt(spectrum()).astype(np.float32)
    x = np.empty((count, DIM), np.float32)
    for start in range(0, count, 4096):
        index = np.arange(start, min(start + 4096, count))
        level = philox.normal(KEY, 1, index, (1,))
        drawn = philox.normal(KEY, 2, index, (DIM,)) * deviations
        drawn *= np.exp(contrast * level - contrast**2)
        placed = np.empty_like(drawn)
        placed[:, order] = drawn
        images = scipy.fft.idctn(placed.reshape(-1, 32, 32, 3), axes=(1, 2), norm="ortho")
        x[index] = images.transpose(0, 3, 1, 2).reshape(len(index), DIM)
    return x


# --- one batch ------------------------------------------------------------------------------------


def squared_distances(x, eps):
    cost = x @ eps.T
    cost *= -2
    cost += (x**2).sum(axis=1)[:, None]
    cost += (eps**2).sum(axis=1)
    return cost


def paper_cost(x, eps):
    x, eps = ((0.1 * a.astype(np.float16)).astype(np.float32) for a in (x, eps))
    return np.sqrt(np.maximum(squared_distances(x, eps), 0)).astype(np.float16)


def paper_cost_as_written(x, eps):
    x, eps = (0.1 * torch.from_numpy(a).half() for a in (x, eps))
    # In parts, as the whole difference has 2 * n^2 * DIM bytes.
    parts = [torch.linalg.vector_norm(p[:, None] - eps[None], dim=2) for p in x.split(16)]
    return torch.cat(parts).numpy()


def scipy_solve(cost):
    return linear_sum_assignment(cost)[1]


def pot_solve(cost):
    import ot

    uniform = np.full(len(cost), 1 / len(cost))
    return ot.emd(uniform, uniform, cost.astype(np.float64)).argmax(axis=1)


METHODS = {
    "ours": (assignment.integer_cost, lambda cost: assignment.solve(cost, 10)),
    "paper": (paper_cost, scipy_solve),
    "scipy L2^2": (squared_distances, scipy_solve),
    "scipy -xe": (lambda x, eps: -(x @ eps.T), scipy_solve),
}
if importlib.util.find_spec("ot"):
    METHODS["POT L2^2"] = (squared_distances, pot_solve)
AS_WRITTEN = {"paper as written": (paper_cost_as_written, scipy_solve)}


def quality(x, eps):
    squares = ((x - eps) ** 2).sum(axis=1, dtype=np.float64)
    baseline = (x**2).sum(axis=1, dtype=np.float64).mean() + DIM
    return {
        "cost": float(squares.mean()),
        "mean_distance": float(np.sqrt(squares).mean()),
        "distance_cut_percent": float(100 * (1 - squares.mean() / baseline)),
    }


def compare(x, eps, methods, repeats, warm_up):
    """One row a method: times of the whole and of the solver, and the quality of the answer."""
    n = len(x)
    chosen, solver = {}, {name: [] for name in methods}

    def run(name):
        cost, solve = methods[name]
        made = cost(x, eps)
        start = time.perf_counter()
        chosen[name] = solve(made)
        solver[name].append(time.perf_counter() - start)

    calls = {name: functools.partial(run, name) for name in methods}
    return [
        {
            "part": "batch",
            "method": name,
            "n": n,
            "ms_best": 1e3 * seconds["best"],
            "ms_median": 1e3 * seconds["median"],
            "ms_solver": 1e3 * min(solver[name]),
            **quality(x, eps[chosen[name]]),
        }
        for name, seconds in time_alternating(calls, repeats, warm_up).items()
    ]


def batches(x_all, sizes):
    rows = []
    for n in sizes:
        x = x_all[:n]
        eps = philox.normal(KEY, 3, np.arange(n), (DIM,))
        rows += compare(x, eps, METHODS, max(1, min(15, 6000 // n)), warm_up=n <= 1024)
        if n <= 1024:
            rows += compare(x, eps, AS_WRITTEN, 1, warm_up=False)
    print_table(rows, list(rows[0])[1:])
    return rows


# --- one slot of a dataset ------------------------------------------------------------------------


def slot_quality(x, rows, ids):
    """The cut of a pairing's cost, %, every row counted once however often it is taken."""
    square = cost = sum(float((part**2).sum(dtype=np.float64)) for part in np.array_split(x, 32))
    for start in range(0, len(x), 2048):
        part = slice(start, start + 2048)
        eps = philox.normal(KEY, 0, ids[part].astype(np.int64), (DIM,))
        cost += (eps * (eps - 2 * x[rows[part]])).sum(dtype=np.float64)
    return 100 * (1 - cost / (square + len(x) * DIM))


def slots(x, workers, block, sweeps):
    """Whole-dataset refinement, against its first sweep and the exact solution at n = 4096."""
    rows = []
    for name, number, settings in [
        ("batch-wise, one sweep", len(x), {"block": block, "sweeps": 1}),
        ("dataset level", len(x), {"block": block, "sweeps": sweeps}),
        ("exact, n = 4096", 4096, {"block": 4096, "sweeps": 1, "cost_bits": 32}),
    ]:
        start = time.perf_counter()
        paired = assignment.pair_slot(
            "assignment", lambda i: x[i], number, key=KEY, slot=0, workers=workers, **settings
        )
        seconds = time.perf_counter() - start
        cut = slot_quality(x[:number], np.arange(number), paired)
        rows.append(
            {
                "part": "slot",
                "method": name,
                "n": number,
                **settings,
                "workers": workers,
                "seconds": seconds,
                "distance_cut_percent": cut,
            }
        )
        if name == "dataset level":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "pairing.arrow"
                header = {"method": "assignment", "settings": settings, "key": KEY, "data": "x"}
                pairing.write_pairing(path, {0: paired}, **header)
                rows[-1]["bytes_per_row"] = path.stat().st_size / number
    rows += [noises_take(x, components, workers) for components in (64, 96)]
    rows.append(noises_take(x[:4096], None, workers))
    own = [
        "seconds_potential",
        "seconds",
        "distance_cut_percent",
        "unevenness",
        "taken_square",
        "bytes_per_row",
    ]
    print_table(rows, ["method", "n", *own])
    return rows


def noises_take(x, number, workers):
    """A potential and one slot of semidiscrete pairing, in so many components (None: all)."""
    settings = {"key": KEY, "workers": workers}
    start = time.perf_counter()
    if number is not None:
        components = assignment.principal_components(lambda i: x[i], len(x), number, key=KEY)
        settings["components"] = components
    potential = semidiscrete.learn(lambda i: x[i], len(x), noises=NOISES, **settings)
    learnt = time.perf_counter()
    taken = semidiscrete.choose(lambda i: x[i], len(x), potential, slot=0, **settings)
    end = time.perf_counter()
    return {
        "part": "slot",
        "method": f"semidiscrete, {number or 'all'} components",
        "n": len(x),
        "noises": NOISES,
        "workers": workers,
        "seconds_potential": learnt - start,
        "seconds": end - learnt,
        "distance_cut_percent": slot_quality(x, taken, np.arange(len(x))),
        "unevenness": semidiscrete.unevenness(taken, len(x)),
        "taken_square": float((x[taken] ** 2).mean() / (x**2).mean()),
    }


# --- what a pairing does to the noise -------------------------------------------------------------


def marginals(x, workers):
    """Two disjoint halves of the rows, paired with the same noises."""
    half = len(x) // 2
    halves = x[:half], x[half : 2 * half]
    components = assignment.principal_components(lambda i: x[i], len(x), 64, key=KEY)
    rows = []
    for name, method, settings in [
        ("independent", "independent", {}),
        ("knn-l2 k=8", "knn-l2", {"candidates": 8}),
        ("knn-dot k=3", "knn-dot", {"candidates": 3}),
        ("assignment n=128", "assignment", {"block": 128, "sweeps": 1}),
        ("assignment n=1024", "assignment", {"block": 1024, "sweeps": 1}),
        ("assignment 16 sweeps", "assignment", {"block": 256, "sweeps": 16}),
        ("the same, 16 components", "assignment", {"block": 256, "sweeps": 16, "components": 16}),
        ("semidiscrete", "semidiscrete", {}),
        ("semidiscrete, 16 components", "semidiscrete", {"components": 16}),
    ]:
        if "components" in settings:
            top = assignment.Components(components.basis[:16], components.variances[:16])
            settings = settings | {"components": top}
        paired = []  # each half's rows and the numbers of their noises
        for h in halves:
            given = (lambda i, h=h: h[i], half)
            common = {"key": KEY, "workers": workers} | settings
            if method == "semidiscrete":
                potential = semidiscrete.learn(*given, noises=NOISES, **common)
                taken = semidiscrete.choose(*given, potential, slot=4, **common)
                paired.append((h[taken], np.arange(half)))
            else:
                found = assignment.pair_slot(method, *given, slot=4, **common)
                candidates = settings.get("candidates", 0)
                ids = assignment.noise_ids(method, found, np.arange(half), candidates)
                paired.append((h, ids.astype(np.int64)))
        (own, ids), (other, others) = paired
        eps = philox.normal(KEY, 4, ids, (DIM,))
        found = diagnostics.diagnose(own, eps, components)
        row = {
            "part": "marginal",
            "method": name,
            "n": half,
            "noise_std": found["noise_std"],
            "pc1_variance": found["component_variance"][0],
            "pc1_correlation": found["component_correlation"][0],
            "pc3_correlation": found["component_correlation"][2],
            "distance_cut_percent": found["distance_cut_percent"],
            "alignment_percent": found["alignment_percent"],
            "determinism": diagnostics.determinism(ids, own, others, other),
        }
        if method == "knn-l2":
            square = (halves[0] ** 2).sum(axis=1, dtype=np.float64).mean()
            expected = diagnostics.knn_bias(settings["candidates"], DIM, square)
            row["noise_std_predicted"] = expected["noise_std"]
        rows.append(row)
    print_table(rows, list(rows[1])[1:])
    return rows


# --- against a training step ----------------------------------------------------------------------


def noise_times():
    rows = []
    for n, shape in [(128, (1, 16, 16)), (64, (3, 32, 32))]:
        ids = torch.arange(n)
        times = time_alternating(
            {
                "noise": lambda ids=ids, shape=shape: philox.normal(KEY, 5, ids, shape),
                "torch.randn": lambda n=n, shape=shape: torch.randn(n, *shape),
            },
            repeats=50,
        )
        for name, seconds in times.items():
            row = {"part": "noise", "method": name, "n": n, "shape": "x".join(map(str, shape))}
            rows.append(row | {"us_per_image": 1e6 * seconds["best"] / n})
    print_table(rows, ["method", "n", "shape", "us_per_image"])
    return rows


SMALL = UNet(multipliers=[1, 2, 2])


def cifar_network() -> UNet:
    """The network of the preset for such rows."""
    preset = Path(__file__).parent.parent / "presets" / "cifar10.yaml"
    return load(preset).recipes["ddpm"].network


def measure_step(settings, batch):
    """Microseconds of forward, backward and AdamW for an image of a U-Net, and its size."""
    network = network_of(
        NetworkSpec(network=settings, conditioning="state", channels=3, resolution=32, classes=0)
    )
    optimiser = torch.optim.AdamW(network.parameters())
    x, log_snr = torch.randn(batch, *SHAPE), torch.zeros(batch)

    def step():
        optimiser.zero_grad()
        (network(x, log_snr) - x).square().mean().backward()
        optimiser.step()

    seconds = time_alternating({"step": step}, repeats=5)["step"]["best"]
    return 1e6 * seconds / batch, sum(p.numel() for p in network.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=50_000, help="rows of the dataset")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096], help="with 1024"
    )
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--sweeps", type=int, default=16)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    described = machine()
    torch.set_num_threads(options.workers)

    x = make_rows(options.rows)
    with threadpool_limits(options.workers):
        table = batches(x, options.sizes)
    # Blocks are solved side by side, each with one thread.
    with threadpool_limits(1):
        found_slots = slots(x, options.workers, options.block, options.sweeps)
    found_noise = noise_times()
    rows = table + found_slots + marginals(x[:8192], options.workers) + found_noise

    step, parameters = measure_step(SMALL, 32)
    large_step, large_parameters = measure_step(cifar_network(), 4)
    dataset, taken = found_slots[1], found_slots[3]
    per_image = 1e6 * dataset["seconds"] / dataset["n"]
    at = {row["method"]: row for row in table if row["n"] == 1024}
    headline = {
        "speedup_vs_paper_n1024": at["paper"]["ms_best"] / at["ours"]["ms_best"],
        "speedup_vs_paper_as_written_n1024": at["paper as written"]["ms_best"]
        / at["ours"]["ms_best"],
        "solver_speedup_vs_paper_n1024": at["paper"]["ms_solver"] / at["ours"]["ms_solver"],
        "cost_ratio_vs_paper_n1024": at["ours"]["cost"] / at["paper"]["cost"],
        "distance_ratio_vs_paper_n1024": at["ours"]["mean_distance"] / at["paper"]["mean_distance"],
        "dataset_slot_seconds_50k": dataset["seconds"],
        "distance_cut_percent_50k": dataset["distance_cut_percent"],
        "distance_cut_percent_exact_n4096": found_slots[2]["distance_cut_percent"],
        "bytes_per_row": dataset["bytes_per_row"],
        "semidiscrete_seconds_50k": taken["seconds_potential"] + taken["seconds"],
        "semidiscrete_slot_seconds_50k": taken["seconds"],
        "semidiscrete_cut_percent_50k": taken["distance_cut_percent"],
        "semidiscrete_unevenness_50k": taken["unevenness"],
        "semidiscrete_cut_percent_n4096": found_slots[5]["distance_cut_percent"],
        "pairing_us_per_image": per_image,
        "noise_us_per_image": found_noise[2]["us_per_image"],
        "step_us_per_image": step,
        "step_parameters": parameters,
        # The step of a small network, and of the one that such rows are trained with (Ho et al.).
        "step_share": per_image / step,
        "step_share_one_sweep": 1e6 * found_slots[0]["seconds"] / found_slots[0]["n"] / step,
        "cifar10_step_us_per_image": large_step,
        "cifar10_step_parameters": large_parameters,
        "cifar10_step_share": per_image / large_step,
    }
    write_results("pairing", rows, headline, described)


if __name__ == "__main__":
    main()
