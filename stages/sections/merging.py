"""How experts became one network."""

from __future__ import annotations

from typing import Any

from stages import costs
from stages.markup import MISSING, Html, count, fixed, join, known, short
from stages.sections.parts import Findings, Section, code, details, listed, paragraph, rows, scroll


def merging(found: Findings) -> Section | None:
    """None where every recipe routes."""
    merged = [name for name, recipe in found.recipes.items() if recipe.merged]
    if not merged:
        return None
    told = [
        (name, milestone, job, found.workspace.store.entry(job.name).load_json("report.json"))
        for name in merged
        for milestone, job in found.recipes[name].merged.items()
    ]
    reports = [report for *_, report in told]
    losses = fixed([r.get("loss") for r in reports])
    average = fixed([r.get("loss_of_average") for r in reports])
    fids = fixed([min((v for _, v in r.get("fid", [])), default=None) for r in reports])
    seconds = fixed([costs.whole(found.workspace, job).seconds for _, _, job, _ in told], most=1)
    conflict = fixed([r.get("sign_conflict") for r in reports])
    lines = []
    for (name, milestone, job, report), loss, mean, fid, took, sign in zip(
        told, losses, average, fids, seconds, conflict, strict=True
    ):
        lines.append(
            [
                found.name(name),
                count(milestone),
                found.recipes[name].recipe.merge.method,
                _weights(report),
                loss,
                mean,
                count(report.get("evaluations")),
                fid,
                took,
                sign,
                _cosine(report),
                code(job.name),
            ]
        )
    head = ["recipe", "images", "method", "weights", "loss", "of the average", "evaluations"]
    head += ["FID of few samples", "s", "sign conflict", "mean cosine", "entry"]
    words = ("recipe", "method", "weights", "entry")
    body = [
        paragraph(
            "Experts that started from one parent differ from it by their task vectors; one "
            "network is made of the parent and a weighted sum of them, or of the snapshots of one "
            "run. Loss: on held-out images, the sum over the experts' ranges of states of the loss "
            "over the parent's, so a network as good as the parent has as many as there are "
            "ranges, and less is better; beside it that of the plain average. Where a search is "
            "confirmed, the candidate with the lowest FID of a few samples is taken: a number that "
            "orders candidates, and compares with no other FID here. A sign conflict is a "
            "weight that one expert raises and another lowers: of experts that moved "
            "independently, half of them for two and three quarters for three."
        ),
        scroll("Merging", rows(head, lines, words)),
        *(_agreement(found, name) for name in merged),
    ]
    return Section("merging", "Merging", join(body))


def _weights(report: dict[str, Any]) -> Html | str:
    weights = report.get("weights")
    if isinstance(weights, dict):  # by the beginning of a layer's name
        return "; ".join(f"{prefix or 'others'}: {listed(own)}" for prefix, own in weights.items())
    return MISSING if weights is None else listed(weights)


def _cosine(report: dict[str, Any]) -> str:
    matrix = report.get("cosines", [])
    values = [v for i, line in enumerate(matrix) for v in line[:i] if known(v)]
    return fixed([sum(values) / len(values)])[0] if values else MISSING


def _agreement(found: Findings, name: str) -> Html | None:
    """How far each expert moved, and the cosine of each two."""
    recipe = found.recipes[name]
    job = recipe.merged[recipe.milestones[-1]]
    report = found.workspace.store.entry(job.name).load_json("report.json")
    if "relative_norms" not in report:
        return None
    norms, cosines = report["relative_norms"], report["cosines"]
    head = [
        "expert",
        "moved, of the parent's norm",
        *(f"cosine with {i + 1}" for i in range(len(norms))),
    ]
    lines = [
        [f"{i + 1}", short(norm, 3), *fixed(line, most=3)]
        for i, (norm, line) in enumerate(zip(norms, cosines, strict=True))
    ]
    title = join([found.name(name), ": how the experts moved"])
    return details(title, scroll(f"Task vectors of {name}", rows(head, lines, ("expert",))))
