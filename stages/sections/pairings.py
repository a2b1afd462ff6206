"""What pairing noise with images does to the noise."""

from __future__ import annotations

import math
from typing import Any

from pipeline import pairing, plan
from stages.groups import Unit
from stages.markup import MISSING, Html, fixed, join, known, short
from stages.sections.parts import Findings, Section, pairs, paragraph, rows, scroll, warning

# Deviations of the measured norm from 1 beyond chance: so many standard errors, and at least this.
ERRORS, LEAST = 5.0, 0.005


def pairings(found: Findings) -> Section | None:
    """None where every recipe has independent, whole noise."""
    diagnosed = [(unit, _diagnosis(unit, found)) for unit in found.units]
    paired = [(unit, told) for unit, told in diagnosed if told is not None]
    shrunk = [unit for unit in found.units if found.plan(unit).recipe.pairing.scale != 1]
    if not paired and not shrunk:
        return None
    warnings = [_marginal(unit, told, found) for unit, told in paired]
    warnings += [_scale(unit, found) for unit in shrunk]
    body: list[Html | None] = [
        paragraph(
            "Each image is trained with a noise that was chosen for it, so that fewer paths from "
            "noise to image cross. Sampling starts from N(0, 1) all the same: what is chosen must "
            "still be N(0, 1) over all images, or training and sampling disagree."
        ),
        *warnings,
    ]
    if paired:
        body += [scroll("Pairings", _table(paired, found)), _words()]
    return Section("pairings", "Pairings", join(body))


def _diagnosis(unit: Unit, found: Findings) -> dict[str, Any] | None:
    """Of the first pass of the recipe's first pairing job; None for independent noise."""
    jobs = found.plan(unit).experts[0].pairings
    if not jobs:
        return None
    return found.workspace.store.entry(jobs[0].name).load_json("diagnostics.json")


def _table(paired: list[tuple[Unit, dict[str, Any]]], found: Findings) -> Html:
    told = [diagnosis for _, diagnosis in paired]
    columns = [
        fixed([d["cost"] for d in told], most=2),
        fixed([d["distance_cut_percent"] for d in told], most=1),
        fixed([d["alignment_percent"] for d in told], most=1),
        fixed([d["noise_std"] for d in told], most=4),
        fixed([d["noise_mean"] for d in told], most=3),
        [", ".join(fixed(d.get("component_variance", []), most=2)) or MISSING for d in told],
        [", ".join(fixed(d.get("component_correlation", []), most=2)) or MISSING for d in told],
        [_leak(d) for d in told],
    ]
    lines = []
    for (unit, _), numbers in zip(paired, zip(*columns, strict=True), strict=True):
        block = found.plan(unit).recipe.pairing
        after = [f"{key} {short(v, 3)}" for key, v in _afterwards(block).items()]
        lines.append([found.heading(unit), block.method, *numbers, ", ".join(after) or "nothing"])
    head = ["recipe", "method", "cost", "cut, %", "by alignment, %", "noise std", "mean"]
    head += ["variance along components", "correlation along components", "class leak", "afterward"]
    return rows(head, lines, ("recipe", "method", "afterward"))


def _leak(told: dict[str, Any]) -> str:
    if "class_leak" not in told:
        return MISSING
    leak, chance = fixed([told["class_leak"], told["class_chance"]], most=3)
    return f"{leak} (chance {chance})"


def _afterwards(block: Any) -> dict[str, float]:
    """What is done to the paired noise before training: settings that change it."""
    neutral = {"keep": None, "refresh": 0.0, "scale": 1.0}
    found = {key: getattr(block, key, value) for key, value in neutral.items()}
    return {key: value for key, value in found.items() if value != neutral[key]}


def _words() -> Html:
    return pairs(
        [
            ("cost", "mean squared distance of an image and its noise, in the latents' scale"),
            ("cut", "how much lower that is than unpaired; by alignment: the part of it that is "
             "alignment, the rest is noise of a smaller norm"),
            ("noise std", "root mean square of the chosen noises; 1 for N(0, 1)"),
            ("mean", "of the chosen noises along the mean image, in standard deviations; 0 for "
             "N(0, 1)"),
            ("variance", "of the chosen noise along the data's first components; 1 for N(0, 1)"),
            ("correlation", "of image and noise along them; 0 if unpaired"),
            ("class leak", "share of noises from which alone the image's class is told right"),
            ("afterward", "what is done to the paired noise before training; the other columns "
             "are of the noise before that, in the first pass"),
        ]
    )  # fmt: skip


def _marginal(unit: Unit, told: dict[str, Any], found: Findings) -> Html | None:
    """A warning if the chosen noises are not N(0, 1) any more."""
    recipe = found.plan(unit).recipe
    block, std = recipe.pairing, told["noise_std"]
    seen = plan.latent_facts(found.workspace.params, found.facts)
    dim = seen.channels * seen.resolution**2
    rows_diagnosed = min(seen.rows, _diagnosed_rows())
    chance = max(ERRORS / math.sqrt(2 * rows_diagnosed * dim), LEAST)
    variances = [v for v in told.get("component_variance", []) if known(v)]
    stretch = max(variances, key=lambda v: abs(v - 1), default=1.0)
    wide = abs(stretch - 1) > ERRORS * math.sqrt(2 / rows_diagnosed)
    moved = abs(told["noise_mean"]) > ERRORS * told["noise_mean_error"]
    chosen = block.method.startswith("knn")
    if not chosen and abs(std - 1) <= chance and not wide and not moved:
        return None
    parts = [f"{unit.name}: {block.method} leaves N(0, 1). "]
    if abs(std - 1) > chance:
        longer = "shorter" if std < 1 else "longer"
        parts.append(
            f"Its noise has standard deviation {short(std, 4)} instead of 1, "
            f"{abs(100 * (1 - std)):.1f} % {longer} than what sampling starts from"
        )
        if block.method == "knn-l2" and block.components is None:
            square = _row_square(told, dim) * (1 - block.center * told["mean_share"])
            bias = pairing.knn_bias(block.candidates, dim, square)
            parts.append(
                f" (expected of the shortest of {block.candidates} distances in {dim} values: "
                f"{short(bias['noise_std'], 4)})"
            )
        if block.method == "knn-l2":
            fall = told["distance_cut_percent"] - told["alignment_percent"]
            parts.append(
                f". Of the cost's cut of {told['distance_cut_percent']:.1f} %, {fall:.1f} % is "
                f"that short noise and only {told['alignment_percent']:.1f} % alignment"
            )
        parts.append(". ")
    if wide:
        parts.append(
            f"Along the data's first components its variance is up to {short(stretch, 3)} "
            "instead of 1. "
        )
    if moved:
        parts.append(
            f"Its mean lies {short(told['noise_mean'], 2)} standard deviations along the mean "
            f"image, which is {100 * told['mean_share']:.0f} % of the images' square: training "
            "sees noise around there, and sampling starts from 0. "
        )
        if not getattr(block, "center", True):
            parts.append("pairing.center: true removes that. ")
    if getattr(block, "refresh", 0):
        std_used = math.sqrt((1 - block.refresh) * std**2 + block.refresh)
        parts.append(
            f"With a share of {short(block.refresh, 3)} drawn anew, training sees "
            f"{short(std_used, 4)}. "
        )
    parts.append(
        "Its control is independent noise of the same norm (pairing.scale)."
        if std < 1 - chance
        else "knn-dot keeps the norm to first order; assignment leaves N(0, 1) as it is."
    )
    return warning("".join(parts))


def _diagnosed_rows() -> int:
    from pipeline.pairing import DIAGNOSED_ROWS

    return DIAGNOSED_ROWS


def _row_square(told: dict[str, Any], dim: int) -> float:
    """Mean |x|^2 of the rows: the cost without pairing is that and `dim`."""
    return told["cost"] / (1 - told["distance_cut_percent"] / 100) - dim


def _scale(unit: Unit, found: Findings) -> Html:
    scale = found.plan(unit).recipe.pairing.scale
    return warning(
        f"{unit.name}: its noise is multiplied by {short(scale, 4)} in training (pairing.scale), "
        "while sampling starts from N(0, 1). That is meant as the control of a method that "
        "chooses short noise, not as a recipe of its own."
    )
