"""What pairing noise with images does to the noise."""

from __future__ import annotations

import math
from typing import Any

from pipeline import plan
from pipeline.noise import diagnostics
from stages.numbers import MISSING, fixed, known, short
from stages.report.groups import Unit
from stages.report.results import Results
from stages.report.section import Section, Table, table

# Deviations of the measured norm from 1 beyond chance: so many standard errors, and at least this.
ERRORS, LEAST = 5.0, 0.005


def section(results: Results) -> Section | None:
    """None where every recipe has independent, whole noise."""
    diagnosed = [(unit, results.pairings[unit.members[0]]) for unit in results.units]
    paired = [(unit, told) for unit, told in diagnosed if told is not None]
    scales = {u.name: results.plan(u).recipe.pairing.scale for u in results.units}
    shrunk = {name: scale for name, scale in scales.items() if scale != 1}
    if not paired and not shrunk:
        return None
    data = {
        "leaving": [own for u, t in paired if (own := _leaving(u, t, results)) is not None],
        "shrunk": shrunk,
        "table": _table(paired, results) if paired else None,
    }
    return Section("pairings", "Pairings", data)


def _table(paired: list[tuple[Unit, dict[str, Any]]], results: Results) -> Table:
    told = [diagnosis for _, diagnosis in paired]
    blocks = [results.plan(unit).recipe.pairing for unit, _ in paired]
    columns = {
        "recipe": [results.heading(unit) for unit, _ in paired],
        "method": [block.method for block in blocks],
        "cost": fixed([d["cost"] for d in told], most=2),
        "cut, %": fixed([d["distance_cut_percent"] for d in told], most=1),
        "by alignment, %": fixed([d["alignment_percent"] for d in told], most=1),
        "noise std": fixed([d["noise_std"] for d in told], most=4),
        "mean": fixed([d["noise_mean"] for d in told], most=3),
        "variance along components": [_components(d, "component_variance") for d in told],
        "correlation along components": [_components(d, "component_correlation") for d in told],
        "class leak": [_leak(d) for d in told],
        "unevenness": fixed([d.get("unevenness") for d in told], most=3),
        "afterward": [_afterwards(block) for block in blocks],
    }
    if not any("unevenness" in d for d in told):
        columns.pop("unevenness")
    wrapped = ("variance along components", "correlation along components", "class leak")
    words = ("recipe", "method", *wrapped, "afterward")
    return table("Pairings", columns, words)


def _components(told: dict[str, Any], key: str) -> str:
    return ", ".join(fixed(told.get(key, []), most=2)) or MISSING


def _leak(told: dict[str, Any]) -> str:
    if "class_leak" not in told:
        return MISSING
    leak, chance = fixed([told["class_leak"], told["class_chance"]], most=3)
    return f"{leak} (chance {chance})"


def _afterwards(block: Any) -> str:
    """What is done to the paired noise before training: settings that change it."""
    neutral = {"keep": None, "refresh": 0.0, "scale": 1.0}
    found = {key: getattr(block, key, value) for key, value in neutral.items()}
    told = [f"{key} {short(v, 3)}" for key, v in found.items() if v != neutral[key]]
    return ", ".join(told) or "nothing"


def _leaving(unit: Unit, told: dict[str, Any], results: Results) -> dict[str, Any] | None:
    """In what the chosen noises are not N(0, 1) any more; None if they are."""
    block, std = results.plan(unit).recipe.pairing, told["noise_std"]
    seen = plan.latent_facts(results.params, results.facts)
    dim = seen.channels * seen.resolution**2
    diagnosed = min(seen.rows, diagnostics.DIAGNOSED_ROWS)
    chance = max(ERRORS / math.sqrt(2 * diagnosed * dim), LEAST)
    variances = [v for v in told.get("component_variance", []) if known(v)]
    stretch = max(variances, key=lambda v: abs(v - 1), default=1.0)
    found = {
        "scaled": abs(std - 1) > chance,
        "wide": abs(stretch - 1) > ERRORS * math.sqrt(2 / diagnosed),
        "moved": abs(told["noise_mean"]) > ERRORS * told["noise_mean_error"],
    }
    if not block.method.startswith("knn") and not any(found.values()):
        return None
    expected = None
    if block.method == "knn-l2" and block.components is None:
        square = _row_square(told, dim) * (1 - block.center * told["mean_share"])
        expected = diagnostics.knn_bias(block.candidates, dim, square)["noise_std"]
    refresh = getattr(block, "refresh", 0)
    return found | {
        "name": unit.name,
        "block": block,
        "told": told,
        "std": std,
        "expected": expected,
        "dim": dim,
        "stretch": stretch,
        "refresh": refresh,
        "std_used": math.sqrt((1 - refresh) * std**2 + refresh),
        "shrunk": std < 1 - chance,
    }


def _row_square(told: dict[str, Any], dim: int) -> float:
    """Mean |x|^2 of the rows: the cost without pairing is that and `dim`."""
    return told["cost"] / (1 - told["distance_cut_percent"] / 100) - dim
