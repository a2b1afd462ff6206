"""The best denoisers of a finite dataset, if noise is independent of the rows and if it is not.

At x = alpha z + sigma eps the posterior weight of row z_i is proportional to the density of
eps_i = (x - alpha z_i) / sigma as the noise of that row. For independent noise that is phi, the
normal density; where a trick picks noises it is phi(eps_i) p_i(eps_i), a `Law`. What a perfect
network would learn is the mean of the rows by these weights. `explanations.py` measures with them.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from pipeline.noise import philox
from pipeline.noise.process import alpha_sigma
from pipeline.sampling.routing import mixed

RADII = 1024  # of a table
CUT = 40.0  # log of the weight, below the largest one's, from which on chances are not counted


class Posterior:
    """Of the rows [N, d] at x [n, d], in the floats of the rows. law: None for independent noise.

    A law is log p_i(eps_i), up to a constant, as [n, N]: a function of this posterior, x, the
    products <x, z_i>, the squares |eps_i|^2, alpha and sigma.
    """

    def __init__(self, rows: np.ndarray, law: Callable[..., np.ndarray] | None = None):
        self.rows, self.law = rows, law
        self.gram = rows @ rows.T

    def weights(self, x: np.ndarray, log_snr: float) -> np.ndarray:
        """Posterior weights of the rows, [n, N]; the sum of a line is 1."""
        x = x.astype(self.rows.dtype)
        alpha, sigma = alpha_sigma(log_snr)
        inner = x @ self.rows.T
        square = np.diag(self.gram) * alpha**2 + np.einsum("nd,nd->n", x, x)[:, None]
        square -= 2 * alpha * inner
        square /= sigma**2
        score = square / -2
        if self.law is not None:
            score += self.law(self, x, inner, square, alpha, sigma)
        score -= score.max(1, keepdims=True)
        np.exp(score, out=score)
        score /= score.sum(1, keepdims=True)
        return score

    def answer(self, x: np.ndarray, log_snr: float) -> np.ndarray:
        return self.weights(x, log_snr) @ self.rows

    def __call__(self, x: np.ndarray, log_snr: float) -> np.ndarray:
        """Posterior means [n, d]."""
        parts = np.array_split(x, math.ceil(len(x) / 64))  # which stay in the processor's cache
        return np.concatenate([self.answer(part, log_snr) for part in parts])


class Mixture(Posterior):
    """The exact denoisers of clusters, mixed by their exact posterior; the `top` likeliest answer.

    which: the cluster of each row, int64 [N].
    """

    def __init__(self, rows: np.ndarray, which: np.ndarray, top: int):
        super().__init__(rows)
        self.top, self.member = top, np.eye(which.max() + 1, dtype=rows.dtype)[which]

    def chances(self, x: np.ndarray, log_snr: float) -> np.ndarray:
        """Probability of each cluster, [n, k]."""
        return self.weights(x, log_snr) @ self.member

    def answer(self, x: np.ndarray, log_snr: float) -> np.ndarray:
        weights = self.weights(x, log_snr)

        def expert(cluster: int, kept: torch.Tensor) -> torch.Tensor:
            own = weights[kept.numpy()] * self.member[:, cluster]
            # One of chance 0 may be asked as well, and counts for nothing.
            own /= np.maximum(own.sum(1, keepdims=True), np.finfo(own.dtype).tiny)
            return torch.from_numpy(own @ self.rows)

        return mixed(torch.from_numpy(weights @ self.member), self.top, expert).numpy()


class Nearest:
    """Law of KNN selection: of k noises a row takes the nearest to it, or to it less `centre` [d].

    p_i(eps) = k (1 - F(|eps - c_i|^2))^(k - 1): the k - 1 others lie farther from c_i = z_i -
    centre, and |eps - c_i|^2 of a normal eps has the noncentral chi-square distribution F of d
    degrees of freedom and noncentrality |c_i|^2.
    """

    def __init__(self, rows: np.ndarray, k: int, centre: np.ndarray):
        from scipy.interpolate import RectBivariateSpline
        from scipy.stats import ncx2

        self.k, self.centre, self.aims = k, centre, rows - centre
        self.length = np.linalg.norm(self.aims, axis=1)
        # log(1 - F) is smooth in the roots of distance and noncentrality: the spline of a coarse
        # grid fills a table of each row. Beyond its end no noise is met.
        far = math.sqrt(rows.shape[1]) + self.length.max() + 8
        lengths = np.linspace(0.9 * self.length.min(), 1.1 * self.length.max(), 24)
        radii = np.linspace(0, far, 160)
        spline = RectBivariateSpline(
            lengths, radii, ncx2.logsf(radii**2, rows.shape[1], lengths[:, None] ** 2)
        )
        order = np.argsort(self.length)
        self.step = far / (RADII - 1)
        self.table = np.empty((len(rows), RADII), np.float32)
        self.table[order] = spline(self.length[order], np.linspace(0, far, RADII))

    def tail(self, distance: np.ndarray) -> np.ndarray:
        """log(1 - F) at the distances |eps_i - c_i| [n, N], from each row's table."""
        place = np.minimum(distance / self.step, RADII - 1.01).astype(np.float32)
        low = place.astype(np.int32)
        at = low + np.arange(len(self.table), dtype=np.int32) * RADII
        below, above = self.table.take(at), self.table.take(at + 1)
        return below + (place - low) * (above - below)

    def __call__(self, posterior, x, inner, square, alpha, sigma):
        own = np.einsum("nd,nd->n", posterior.rows, self.aims)
        along = (inner - (x @ self.centre)[:, None] - alpha * own) / sigma  # <eps_i, c_i>
        distance = np.sqrt(np.maximum(square - 2 * along + self.length**2, 0))
        return (self.k - 1) * self.tail(distance)


class Assigned:
    """Law of the best assignment of N noises to the rows [N, d], counted over `sets` of noises.

    p_i(eps) / N is the chance that row i gets eps beside N - 1 fresh noises. Given these, the row
    of largest <z_i, eps> - price_i gets it. As chances are counted, the denoiser is nearly the best
    one, and its error is an upper bound of the best one's.
    """

    def __init__(self, rows: np.ndarray, sets: int, key: int):
        n, d = rows.shape
        drawn = (philox.normal(key, number, np.arange(n - 1), (d,)) for number in range(sets))
        self.prices = np.stack([prices(rows, noises) for noises in drawn]).astype(rows.dtype)

    def chances(self, products: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Chance [n] that row own[i] gets the noise whose products with all rows are [n, N].

        One more set counts as if noise were independent, so that no chance is 0.
        """
        worth = products - self.prices[:, None]
        gets = worth[:, np.arange(len(own)), own] >= worth.max(2)
        return (gets.sum(0) + 1 / products.shape[1]) / (len(self.prices) + 1)

    def __call__(self, posterior, x, inner, square, alpha, sigma):
        found = np.full_like(inner, -np.inf)
        for products, near, out in zip(inner, square, found, strict=True):
            own = np.flatnonzero(near < near.min() + 2 * CUT)
            out[own] = np.log(self.chances((products - alpha * posterior.gram[own]) / sigma, own))
        return found


def prices(rows: np.ndarray, noises: np.ndarray) -> np.ndarray:
    """What the best assignment of noises [n - 1, d] to rows [n, d] loses if a row must take none.

    float64 [n], 0 for the row that has none: any other may leave its noise to a second row, which
    leaves its own to a third, and so on, up to the row that has none. The cheapest such way counts.
    """
    from scipy.optimize import linear_sum_assignment

    cost = -rows.astype(np.float64) @ noises.T
    holders, held = linear_sum_assignment(cost)
    # step[a, b]: the cost of row b taking what row a holds.
    step = np.full((len(rows), len(rows)), np.inf)
    step[holders] = cost[:, held].T - cost[holders, held][:, None]
    price = np.full(len(rows), np.inf)
    price[np.setdiff1d(np.arange(len(rows)), holders)] = 0
    for _ in rows:  # no cheapest way has more steps
        price = np.minimum(price, (step + price).min(1))
    return price
