"""From every number on the page to the entry of the store that it was read from."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import pipeline
from pipeline import plan
from stages.numbers import MISSING, count, fixed, known, short
from stages.report import costs
from stages.report.results import Results, as_yaml
from stages.report.section import Codes, Section, Table, scaled, table

MACHINES = {"device": "devices", "processor": "hosts", "cores": "cores", "threads": "threads"}
MAX_SHARDS = 3  # sample shards named in a row


def section(results: Results) -> Section:
    params, facts = results.params, results.facts
    versions = {
        "tspace": pipeline.__version__,
        "Python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy", "scipy")},
    }
    entries = {
        "dataset": Codes([facts.digest]),
        "latents": _listed([job.name for job in plan.latents(params, facts)]),
        "features of the real images": Codes([plan.features(params, facts).name]),
        "feature extractor": _extractor(results.reference),
        "page": _written(results),
        **versions,
        **{title: _all(results, key) for title, key in MACHINES.items()},
        **{f"code of {kind}": Codes([plan.code_of(kind)]) for kind in plan.CODE},
    }
    data = {
        "seed": params.seed,
        "sample_seed": params.evaluate.seed,
        "several": any(unit.several for unit in results.units),
        "table": _scores(results),
        "entries": entries,
        "params": results.params_text.rstrip(),
        "resolved": as_yaml(params.model_dump(mode="json")),
    }
    return Section("provenance", "What was run", data)


def _scores(results: Results) -> Table:
    """Scores at every milestone, with the entries they come from."""
    each = [
        (name, milestone, results.metrics[name]["milestones"][str(milestone)])
        for name, recipe in results.recipes.items()
        for milestone in recipe.milestones
    ]
    origins = [results.origins[name, milestone] for name, milestone, _ in each]
    found = [m for _, _, m in each]
    columns: dict[str, Any] = {
        "recipe": [name for name, _, _ in each],
        "images": [count(milestone) for _, milestone, _ in each],
        "FID": fixed([m.get("fid") for m in found]),
        "KID ×10³": fixed([scaled(m.get("kid"), 1e3) for m in found]),
        f"{costs.compute_unit(results.metrics)}-seconds": fixed(
            [m.get("compute_seconds") for m in found], most=1
        ),
        "seconds critical path": fixed([m.get("seconds_critical") for m in found], most=1),
        "scores": [Codes([origin.scores]) for origin in origins],
        "samples": [_listed(origin.samples) for origin in origins],
        "mixture": [Codes([origin.mixture]) for origin in origins],
    }
    words = ("recipe", "scores", "samples", "mixture")
    return table("Scores at every milestone", columns, words)


def _written(results: Results) -> str:
    written = results.written
    commit = f", commit {written.commit}" if written.commit else ""
    return f"{written.date}{commit}, {written.processor}"


def _all(results: Results, key: str) -> str:
    """What all recipes were trained on, or with."""
    values = {value for own in results.metrics.values() for value in own[key]}
    return ", ".join(map(str, sorted(values))) or MISSING


def _extractor(reference: dict[str, Any]) -> str:
    """Name of the feature extractor and what its training reported."""
    facts = [
        f"{key} {short(value) if known(value) else value}"
        for key, value in reference.items()
        if key not in ("extractor", "floor") and not isinstance(value, dict | list)
    ]
    return ", ".join([str(reference["extractor"]), *facts])


def _listed(names: list[str]) -> Codes:
    return Codes(names[:MAX_SHARDS], max(len(names) - MAX_SHARDS, 0))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING
