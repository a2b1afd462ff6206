"""Experts that were fine-tuned from one parent become one network again, by their weights alone.

Decouple-then-merge (DeMe, arXiv 2410.06664): N copies of a network are trained further, each on an
interval of its own, and merged as

    theta = theta_0 + sum_i w_i tau_i,    tau_i = theta_i - theta_0    (its equation 8)

with one w_i for each expert, which need not sum to one. The paper finds them by grid search, N
weights in 11 levels being 11^N evaluations. Along the task vectors tau_i a held-out loss is smooth,
so here a quadratic in w is fitted to (N + 1)(N + 2) / 2 evaluations and minimised exactly.

Networks are never evaluated here: `evaluate` of the searches comes from the caller, who may cache
it. Weights are dictionaries by parameter name; sums are in float64, results in their own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from pipeline.errors import UserError
from pipeline.training.ema import Weights, combine


def average(
    parent: Mapping[str, torch.Tensor], experts: Sequence[Mapping[str, torch.Tensor]]
) -> Weights:
    """The mean of the experts' weights."""
    return combine(experts, [1 / len(experts)] * len(experts))


def task_vector(
    parent: Mapping[str, torch.Tensor],
    experts: Sequence[Mapping[str, torch.Tensor]],
    *,
    weights: Sequence[float] | Mapping[str, Sequence[float]],
) -> Weights:
    """parent + sum_i w_i (expert_i - parent).

    weights: N numbers, or a mapping from layer-name prefixes to N numbers each. A prefix stands for
    whole parts of a name (`down.1` holds `down.1.conv.weight`, not `down.10.conv.weight`), "" for
    all; the longest that fits counts. All w_i = 1 / N is the average; w_i = 1 and others 0 is
    expert i. Raises UserError for a weight or prefix that does not fit.
    """
    by_prefix = weights if isinstance(weights, Mapping) else {"": weights}
    for prefix, values in by_prefix.items():
        if len(values) != len(experts) or not all(math.isfinite(w) for w in values):
            where = f" of {prefix!r}" if prefix else ""
            raise UserError(
                f"merge weights{where}: need {len(experts)} finite numbers, one for each expert, "
                f"not {list(values)}"
            )
    merged, used = {}, set()
    for name in parent:
        prefix = _prefix_of(name, by_prefix)
        used.add(prefix)
        w = [float(x) for x in by_prefix[prefix]]
        # The parent's own share, rather than differences: a weight of 1 gives the expert's bits.
        shares = [1 - math.fsum(w), *w]
        merged |= combine([{name: source[name]} for source in (parent, *experts)], shares)
    unused = [prefix for prefix in by_prefix if prefix not in used]
    if unused:
        raise UserError(
            f"merge weights: no tensor takes those of {unused[0]!r}; layer names start with "
            f"{', '.join(sorted({name.split('.')[0] for name in parent}))}"
        )
    return merged


def _prefix_of(name: str, prefixes: Iterable[str]) -> str:
    fitting = [p for p in prefixes if p == "" or name == p or name.startswith(p + ".")]
    if not fitting:
        raise UserError(f'merge weights: none for {name}; give the prefix "" for all other layers')
    return max(fitting, key=len)


def ties(
    parent: Mapping[str, torch.Tensor],
    experts: Sequence[Mapping[str, torch.Tensor]],
    *,
    density: float,
    scale: float,
) -> Weights:
    """TIES (Yadav et al. 2023, arXiv 2306.01708).

    Of each task vector keep the share `density` of largest magnitudes over the whole network; elect
    each coordinate's sign by the sum of what is kept; parent + `scale` * the mean of the kept
    entries with that sign. Magnitudes equal to the smallest kept one are all kept, so no order of
    layers matters. A coordinate whose sum is exactly zero stays the parent's, as sgn(0) = 0 in the
    paper (its code gives such a coordinate the sign most coordinates have).
    """
    thresholds = [_trim_threshold(parent, expert, density) for expert in experts]
    merged = {}
    for name, start in parent.items():
        origin = start.to(torch.float64)
        kept = []
        for expert, threshold in zip(experts, thresholds, strict=True):
            task = expert[name].to(torch.float64) - origin
            kept.append(torch.where(task.abs() >= threshold, task, 0.0))
        # Python's sum adds in the order of the experts, so that exact cancellation is well defined.
        elected = sum(kept).sign()
        agreeing = [torch.where(task.sign() == elected, task, 0.0) for task in kept]
        count = sum((task != 0).to(torch.float64) for task in agreeing)
        mean = sum(agreeing) / count.clamp(min=1)
        merged[name] = (origin + scale * mean).to(start.dtype)
    return merged


def _trim_threshold(parent, expert, density: float) -> float:
    """The smallest magnitude that is kept of a task vector."""
    magnitudes = torch.cat(
        [
            (expert[name].to(torch.float64) - start.to(torch.float64)).abs().flatten()
            for name, start in parent.items()
        ]
    )
    keep = max(1, round(density * len(magnitudes)))
    return magnitudes.kthvalue(len(magnitudes) - keep + 1).values.item()


def combine_snapshots(
    snapshots: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]
) -> Weights:
    """sum_i weights_i snapshot_i over snapshots of one run (LCSC, arXiv 2404.02241).

    Weights may be negative and need not sum to one. Raises UserError naming the first tensor that
    differs, ValueError for another number of weights than snapshots.
    """
    if snapshots:
        _require_alike(snapshots[0], snapshots[1:], "snapshot", "the first", first=2)
    return combine(snapshots, weights)


def _require_alike(reference, others, word: str, of: str, first: int = 1) -> None:
    for name, tensor in reference.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: weights of {tensor.dtype} cannot be averaged")
    for number, other in enumerate(others, first):
        for name, tensor in reference.items():
            if name not in other:
                problem = "is missing"
            elif other[name].shape != tensor.shape:
                problem = f"has shape {tuple(other[name].shape)}, in {of} {tuple(tensor.shape)}"
            elif other[name].dtype != tensor.dtype:
                problem = f"is {other[name].dtype}, in {of} {tensor.dtype}"
            else:
                continue
            break
        else:
            extra = [name for name in other if name not in reference]
            if not extra:
                continue
            name, problem = extra[0], f"is not in {of}"
        raise UserError(f"{word} {number}: {name} {problem}; only equal networks can be merged")


def agreement(
    parent: Mapping[str, torch.Tensor], experts: Sequence[Mapping[str, torch.Tensor]]
) -> dict[str, object]:
    """How far the experts moved, and whether in the same direction; plain numbers, for a report.

    relative_norms [N]: |tau_i| / |parent|. cosines [N][N]: of tau_i and tau_j, None where one is
    zero. sign_conflict: the share of coordinates, among those any expert moved, that one expert
    raises and another lowers (None if nothing moved); 1 - 2^(1 - N) for independent signs.
    Raises UserError naming the first tensor that differs in presence, shape or dtype; ValueError
    for weights that are not floating-point, and for a parent that is all zero.
    """
    _require_alike(parent, experts, "expert", "the parent")
    count = len(experts)
    inner = torch.zeros(count, count, dtype=torch.float64)
    square, moved, conflicts = 0.0, 0, 0
    for name, start in parent.items():
        origin = start.to(torch.float64).flatten()
        tasks = torch.stack([e[name].to(torch.float64).flatten() - origin for e in experts])
        inner += tasks @ tasks.T
        square += (origin @ origin).item()
        raised, lowered = (tasks > 0).any(dim=0), (tasks < 0).any(dim=0)
        moved += int((raised | lowered).sum())
        conflicts += int((raised & lowered).sum())
    if square == 0:
        raise ValueError("the parent's weights are all zero")
    norms = inner.diagonal().sqrt().tolist()
    cosines = [
        [inner[i, j].item() / (a * b) if a and b else None for j, b in enumerate(norms)]
        for i, a in enumerate(norms)
    ]
    return {
        "relative_norms": [norm / math.sqrt(square) for norm in norms],
        "cosines": cosines,
        "sign_conflict": conflicts / moved if moved else None,
    }
