"""Do exact denoisers bear out what is said of why three tricks help or harm?

    python benchmarks/explanations.py

No network is trained. Of a finite dataset it is known what a perfect network would learn, with
independent noise and with each trick's (`exact.py`):

- `nearest of k`: KNN selection, by distance to the row, or to it less the mean image (`centred`);
- `top t of 4 clusters`: experts over the clusters that the pipeline finds, with an ideal router;
- `assigned (256)`: 256 rows, a fair sample, to 256 noises at once, beside `independent (256)`.

Data are scikit-learn's digits and Fashion-MNIST brought to 8x8. Noises are those that the
pipeline's pairing chooses, samples those of its DDIM in 16 steps. In the table of the results

error_7      mean squared error of v, a value, at log-SNR -7 (and so on) on independent noise
own_7        the same on the noise that the trick trains with
fd           Frechet distance in pixels from the rows to samples that start from N(0, I)
fd_shifted   the same, from N(0, I) about the mean of the trick's noise
fd_own       the same, from the x that the trick trains with at the noisiest state
noise_mean   of the trick's noise along the mean image, in standard deviations
noise_variance   of a value of the trick's noise

and a distance is of three sets of starts: mean, lowest and highest.
"""

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, write_results
from exact import Assigned, Mixture, Nearest, Posterior
from experiment import summarise

from pipeline.data.dataset import open_dataset, prepare
from pipeline.data.latents import Latents, write_shard
from pipeline.evaluation.frechet import frechet_distance, moments
from pipeline.levels.clusters import clusters
from pipeline.noise import philox
from pipeline.noise.assignment import noise_ids, pair_slot, principal_components
from pipeline.noise.diagnostics import diagnose
from pipeline.noise.process import alpha_sigma
from pipeline.rows import spread
from pipeline.sampling.samplers import ddim

DATASETS = {"digits": None, "fashion-mnist": 1500}  # rows at most
LEVELS = (-7, -5, -3, -1)  # log-SNR
STATES = np.linspace(7, -7, 16).tolist()
SAMPLES, STARTS = 1000, 3
CLUSTERS = 4
FEW = 256  # rows of an assignment
SETS = 16  # of noises, over which its chances are counted
KEY = philox.derive_key("benchmark", "explanations")

Pairs = tuple[np.ndarray, np.ndarray]


def load(name: str, folder: Path) -> Latents:
    """A dataset at 8x8, as the pipeline prepares and scales it."""
    file, shard = folder / f"{name}.parquet", folder / f"{name}.arrow"
    info = prepare(file, source=name, resolution=8, limit=DATASETS[name])
    data = open_dataset(file)
    batch = data.images(0, info.rows), data.labels(0, info.rows)
    write_shard(shard, [batch], (1, 8, 8), info.mean, info.std[0])
    return Latents([shard])


def pairs(rows: np.ndarray, aims: np.ndarray, method: str, **settings: int) -> Pairs:
    """Rows and the noises that the pipeline pairs them with: [n, d] each, n at least SAMPLES.

    aims: what the rows choose by, [N, d].
    """
    key, count = philox.derive_key(KEY, "pairs"), len(rows)
    slots, noises = range(math.ceil(SAMPLES / count)), []
    for slot in slots:
        found = pair_slot(method, lambda i: aims[i], count, key=key, slot=slot, **settings)
        ids = noise_ids(method, found, np.arange(count), settings.get("candidates", 0))
        noises.append(philox.normal(key, slot, ids, rows.shape[1:]))
    return np.tile(rows, (len(slots), 1)), np.concatenate(noises)


def noised(z: np.ndarray, eps: np.ndarray, log_snr: float) -> np.ndarray:
    alpha, sigma = alpha_sigma(log_snr)
    return alpha * z + sigma * eps


def errors(denoise: Callable, z: np.ndarray, eps: np.ndarray, name: str) -> dict[str, float]:
    """Mean squared error of v = (alpha x - z) / sigma, a value, at each of LEVELS."""
    squares = {v: (denoise(noised(z, eps, v), v) - z) ** 2 for v in LEVELS}
    return {f"{name}_{-v}": float(s.mean() / alpha_sigma(v)[1] ** 2) for v, s in squares.items()}


def distances(denoise: Callable, rows: np.ndarray, starts: list[np.ndarray]) -> dict[str, Any]:
    """Frechet distance in pixels from the rows to samples drawn from each of the starts."""

    def asked(x: torch.Tensor, log_snr: float) -> torch.Tensor:
        return torch.from_numpy(denoise(x.numpy(), log_snr))

    known, draw = moments(rows), ddim(eta=0.0)
    drawn = [draw(asked, torch.from_numpy(start), STATES).numpy() for start in starts]
    return summarise([frechet_distance(known, moments(samples)).value for samples in drawn])


def noise_law(rows: np.ndarray, eps: np.ndarray) -> dict[str, Any]:
    """Of noises [n, d]: along the mean image, along principal components, and of a value."""
    components = principal_components(lambda i: rows[i], len(rows), 4, key=KEY)
    z = np.tile(rows, (len(eps) // len(rows), 1))
    found = diagnose(z, eps, components, mean=rows.mean(0))
    kept = ("noise_mean", "component_mean", "component_variance")
    return {"noise_variance": float(eps.var(0).mean())} | {key: found[key] for key in kept}


def measured(rows: np.ndarray, denoise: Callable, own: Pairs | None = None) -> dict[str, Any]:
    """An arm. own: rows and noises as the trick pairs them; None if it leaves noise independent."""
    count, key = min(SAMPLES, 2 * len(rows)), philox.derive_key(KEY, "starts")
    starts = [philox.normal(key, s, np.arange(count), rows.shape[1:]) for s in range(STARTS)]
    found = errors(denoise, *pairs(rows, rows, "independent"), "error")
    found["fd"] = distances(denoise, rows, starts)
    if own is None:
        return found
    z, eps = own
    chosen = [philox.permutation(key, s, len(z))[:count] for s in range(STARTS)]
    return found | {
        **errors(denoise, z, eps, "own"),
        "fd_shifted": distances(denoise, rows, [start + eps.mean(0) for start in starts]),
        "fd_own": distances(denoise, rows, [noised(z[i], eps[i], STATES[-1]) for i in chosen]),
        **noise_law(rows, eps),
    }


def explain(latents: Latents) -> dict[str, dict[str, Any]]:
    """What is found on a dataset, by arm."""
    rows = latents.gather(np.arange(len(latents))).flatten(1).numpy()
    mean, plain = rows.mean(0), pairs(rows, rows, "independent")
    found = {"independent": measured(rows, Posterior(rows), plain)}
    for name, k, centre in (
        ("nearest of 8", 8, 0 * mean),
        ("nearest of 8, centred", 8, mean),
        ("nearest of 2", 2, 0 * mean),
    ):
        own = pairs(rows, rows - centre, "knn-l2", candidates=k)
        found[name] = measured(rows, Posterior(rows, Nearest(rows, k, centre)), own)

    which = clusters(latents, CLUSTERS, len(rows), KEY)
    for top in (1, 2, CLUSTERS):
        mixture = Mixture(rows, which, top)
        found[f"top {top} of {CLUSTERS} clusters"] = measured(rows, mixture)
    found["top 1 of 4 clusters"] |= {
        "shares": (np.bincount(which) / len(rows)).tolist(),
        "asks_largest": [
            float((mixture.chances(noised(*plain, v), v).argmax(1) == 0).mean()) for v in LEVELS
        ],
    }

    few = rows[spread(FEW, len(rows), latents.labels)]
    own = pairs(few, few, "independent")
    found["independent (256)"] = measured(few, Posterior(few), own)
    own = pairs(few, few, "assignment", block=FEW, sweeps=1)
    law = Assigned(few, SETS, philox.derive_key(KEY, "sets"))
    found["assigned (256)"] = measured(few, Posterior(few, law), own)
    return found


def headline(name: str, found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The figures that decide, of one dataset."""
    own = {arm: row["fd_own"]["mean"] for arm, row in found.items() if "fd_own" in row}
    fd = {arm: row["fd"]["mean"] for arm, row in found.items()}
    alone, all_answer = found["top 1 of 4 clusters"], found["independent"]
    few, assigned = found["independent (256)"], found["assigned (256)"]
    figures = {
        "fd": fd["independent"],
        "knn_fd": fd["nearest of 8"],
        "knn_fd_own": own["nearest of 8"],
        "knn_fd_shifted": found["nearest of 8"]["fd_shifted"]["mean"],
        "knn_centred_fd": fd["nearest of 8, centred"],
        "knn_centred_fd_own": own["nearest of 8, centred"],
        "top_1_error_ratio": alone["error_7"] / all_answer["error_7"],
        "top_1_asks_largest": alone["asks_largest"][0],
        "top_1_fd": fd["top 1 of 4 clusters"],
        "assigned_error_ratio": assigned["own_7"] / few["own_7"],
        "assigned_fd_ratio": fd["assigned (256)"] / fd["independent (256)"],
    }
    return {f"{name}_{key}": value for key, value in figures.items()}


def main() -> None:
    described = machine()
    torch.set_num_threads(1)
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in DATASETS:
            found = explain(load(name, Path(folder)))
            rows += [{"arm": f"{name}: {arm}", **row} for arm, row in found.items()]
            figures |= headline(name.split("-")[0], found)
    write_results("explanations", rows, figures, described)


if __name__ == "__main__":
    main()
