"""How experts became one network."""

from __future__ import annotations

from typing import Any

from stages.numbers import MISSING, count, fixed, known, short
from stages.report.results import Results
from stages.report.section import Codes, Section, Table, listed, table


def section(results: Results) -> Section | None:
    """None where every recipe routes."""
    told = [(name, merge) for name, merges in results.merges.items() for merge in merges]
    if not told:
        return None
    reports = [merge.report for _, merge in told]
    columns = {
        "recipe": [results.named(name) for name, _ in told],
        "images": [count(merge.milestone) for _, merge in told],
        "method": [results.recipes[name].recipe.merge.method for name, _ in told],
        "weights": [_weights(report) for report in reports],
        "loss": fixed([r.get("loss") for r in reports]),
        "of the average": fixed([r.get("loss_of_average") for r in reports]),
        "evaluations": [count(r.get("evaluations")) for r in reports],
        "FID of few samples": fixed([_least_fid(report) for report in reports]),
        "s": fixed([merge.seconds for _, merge in told], most=1),
        "sign conflict": fixed([r.get("sign_conflict") for r in reports]),
        "mean cosine": [_cosine(report) for report in reports],
        "entry": [Codes([merge.job.name]) for _, merge in told],
    }
    words = ("recipe", "method", "weights", "entry")
    last = {name: merge for name, merge in told}
    data = {
        "table": table("Merging", columns, words),
        "moved": [
            (results.named(name), _moved(name, merge.report))
            for name, merge in last.items()
            if "relative_norms" in merge.report
        ],
    }
    return Section("merging", "Merging", data)


def _weights(report: dict[str, Any]) -> str:
    weights = report.get("weights")
    if isinstance(weights, dict):  # by the beginning of a layer's name
        return "; ".join(f"{prefix or 'others'}: {listed(own)}" for prefix, own in weights.items())
    return MISSING if weights is None else listed(weights)


def _least_fid(report: dict[str, Any]) -> float | None:
    return min((value for _, value in report.get("fid", [])), default=None)


def _cosine(report: dict[str, Any]) -> str:
    matrix = report.get("cosines", [])
    values = [v for i, line in enumerate(matrix) for v in line[:i] if known(v)]
    return fixed([sum(values) / len(values)])[0] if values else MISSING


def _moved(name: str, report: dict[str, Any]) -> Table:
    """How far each expert moved, and the cosine of each two."""
    norms, cosines = report["relative_norms"], report["cosines"]
    head = ["expert", "moved, of the parent's norm"]
    head += [f"cosine with {i + 1}" for i in range(len(norms))]
    lines = [
        [f"{i + 1}", short(norm, 3), *fixed(line, most=3)]
        for i, (norm, line) in enumerate(zip(norms, cosines, strict=True))
    ]
    return Table(f"Task vectors of {name}", head, lines, ("expert",))
