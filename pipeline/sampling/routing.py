"""The answers of several models as one, each sample's by how probable they are for it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def mixed(chances: Tensor, top: int, answer: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The mean of the `top` most probable models' answers, by their probabilities: [N, ...].

    chances [N, k]; answer(model, rows) is that of one model for the samples `rows`, int64 [n]. A
    model is asked for the samples that it counts for alone.
    """
    shares, chosen = chances.topk(top, dim=1)
    shares = shares / shares.sum(1, keepdim=True)
    found: Tensor | None = None
    for model in range(chances.shape[1]):
        rows, places = (chosen == model).nonzero(as_tuple=True)
        if len(rows) == 0:
            continue
        given = answer(model, rows)
        share = shares[rows, places].to(given.dtype).reshape(-1, *[1] * (given.dim() - 1))
        if found is None:
            found = given.new_zeros(len(chances), *given.shape[1:])
        found[rows] += share * given
    return found
