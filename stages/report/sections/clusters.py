"""Experts over clusters of the data: how large these are, and how well they are told apart."""

from __future__ import annotations

import numpy as np

from stages.numbers import counted, fixed, si
from stages.report.results import Results
from stages.report.section import Section, table

SHOWN = 12  # clusters of a recipe whose rows are listed


def section(results: Results) -> Section | None:
    """None where no recipe has any."""
    units = [unit for unit in results.units if results.plan(unit).router]
    if not units:
        return None
    plans = [results.plan(unit) for unit in units]
    rows = [np.array(plan.clusters) for plan in plans]
    shares = [each / each.sum() for each in rows]
    routers = [results.routers[unit.members[0]] for unit in units]
    head = {
        "recipe": [results.heading(unit) for unit in units],
        "clusters": [str(len(each)) for each in rows],
        "rows of each": [
            ", ".join(f"{n:,}" for n in each[:SHOWN]) + (", ..." if len(each) > SHOWN else "")
            for each in rows
        ],
        "answers for a sample": [counted(plan.recipe.sampling.top, "expert") for plan in plans],
        "router's parameters": [si(router["parameters"]) for router in routers],
        "router's FLOPs": [si(router["flops"]) for router in routers],
        "cross-entropy, nats": fixed([router["loss"] for router in routers]),
        "of a guess": fixed([float(-(share * np.log(share)).sum()) for share in shares]),
    }
    words = ("recipe", "rows of each", "answers for a sample")
    return Section("clusters", "Clusters of the data", {"table": table("Clusters", head, words)})
