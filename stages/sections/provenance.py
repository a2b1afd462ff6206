"""From every number on the page to the entry of the store that it was read from."""

from __future__ import annotations

import importlib.metadata
import io
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

import pipeline
from pipeline import plan
from stages import costs, steps
from stages.markup import MISSING, Html, count, el, fixed, join, known, short
from stages.sections.parts import (
    Findings,
    Section,
    Trained,
    code,
    details,
    pairs,
    paragraph,
    rows,
    scaled,
    scroll,
)
from stages.workspace import Workspace

MACHINES = {"device": "devices", "processor": "hosts", "cores": "cores", "threads": "threads"}
MAX_SHARDS = 3  # sample shards named in a row


@dataclass(frozen=True)
class Origin:
    """The entries that the scores of a recipe at a milestone come from."""

    mixture: str
    samples: list[str]
    scores: str


def origins_of(found: Findings) -> dict[tuple[str, int], Origin]:
    """Of each recipe and milestone."""
    workspace, params = found.workspace, found.workspace.params
    reference = plan.features(params, found.facts)
    origins = {}
    for name, recipe in found.recipes.items():
        for item in steps.milestones_of(workspace, name):
            mixture = item["mixture"]
            shards = plan.samples(params, found.facts, recipe, mixture, name)
            origins[name, item["images"]] = Origin(
                f"mixture/{mixture['digest']}",
                [job.name for job in shards],
                plan.scores(params, shards, reference, name).name,
            )
    return origins


def params_file(workspace: Workspace) -> str:
    return (workspace.root / "params.yaml").read_text(encoding="utf-8")


def as_yaml(value: dict[str, Any], width: int = 90) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # the innermost level on one line, as in params.yaml
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = width
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue().rstrip()


def provenance(
    found: Findings,
    trained: dict[str, list[Trained]],
    origins: dict[tuple[str, int], Origin],
) -> Section:
    workspace, facts, metrics = found.workspace, found.facts, found.metrics
    params = workspace.params
    shards = [job.name for job in plan.latents(params, facts)]
    entries = [
        ("dataset", code(facts.digest)),
        ("latents", _listed(shards)),
        ("features of the real images", code(plan.features(params, facts).name)),
        ("feature extractor", _extractor(found.reference)),
    ]
    versions = [
        ("tspace", pipeline.__version__),
        ("Python", platform.python_version()),
        *((name, _version(name)) for name in ("torch", "numpy", "scipy")),
        *((title, _all(found, key)) for title, key in MACHINES.items()),
    ]
    digests = [(f"code of {kind}", code(plan.code_of(kind))) for kind in plan.CODE]
    keys = ("fid", "kid", "compute_seconds", "seconds_critical")
    each = [
        (name, milestone, metrics[name]["milestones"][str(milestone)])
        for name, recipe in found.recipes.items()
        for milestone in recipe.milestones
    ]
    columns = [
        fixed([scaled(m.get(key), 1e3 if key == "kid" else 1) for _, _, m in each], most=most)
        for key, most in zip(keys, (3, 3, 1, 1), strict=True)
    ]
    lines = [
        [
            name,
            count(milestone),
            *numbers,
            code(origins[name, milestone].scores),
            _listed(origins[name, milestone].samples),
            code(origins[name, milestone].mixture),
        ]
        for (name, milestone, _), numbers in zip(each, zip(*columns, strict=True), strict=True)
    ]
    head = ["recipe", "images", "FID", "KID ×10³"]
    head += [f"{costs.compute_unit(metrics)}-seconds", "seconds critical path"]
    head += ["scores", "samples", "mixture"]
    table = rows(head, lines, words=("recipe", "scores", "samples", "mixture"))
    resolved = as_yaml(params.model_dump(mode="json"))
    body = [
        paragraph(
            "Every number on this page is read from an entry of the store, which is named by the "
            "digest of everything that determines it: scores from the scores entries below, "
            "FLOPs and losses from the expert entries listed under Training. Seconds and machines "
            "are circumstances, which an entry has only where it was made. ",
            f"Everything random follows from seed {params.seed}"
            + (" or a recipe's own; " if any(unit.several for unit in found.units) else "; ")
            + f"samples are drawn with seed {params.evaluate.seed}.",
        ),
        details(
            "Scores at every milestone, with their entries",
            scroll("Scores at every milestone", table),
        ),
        details("Data, versions and code", pairs([*entries, *versions, *digests])),
        details("params.yaml", el("pre", params_file(workspace).rstrip())),
        details("params.yaml resolved: every recipe in full", el("pre", resolved)),
    ]
    return Section("provenance", "What was run", join(body))


def _all(found: Findings, key: str) -> str:
    """What all recipes were trained on, or with."""
    values = {value for own in found.metrics.values() for value in own[key]}
    return ", ".join(map(str, sorted(values))) or MISSING


def _extractor(reference: dict[str, Any]) -> str:
    """Name of the feature extractor and what its training reported."""
    known_facts = [
        f"{key} {short(value) if known(value) else value}"
        for key, value in reference.items()
        if key not in ("extractor", "floor") and not isinstance(value, dict | list)
    ]
    return ", ".join([str(reference["extractor"]), *known_facts])


def _listed(names: Sequence[str]) -> Html:
    more = len(names) - MAX_SHARDS
    parts = [el("span", code(name)) for name in names[:MAX_SHARDS]]
    if more > 0:
        parts.append(el("span", f"and {more:,} more"))
    return el("span", *parts, class_="listed")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING
