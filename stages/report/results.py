"""All that the report shows, read once: its sections look at nothing else."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from pipeline import plan
from pipeline.devices import cores
from pipeline.errors import UserError
from pipeline.params.recipe import Params
from pipeline.plan import DatasetFacts, Expert, Job, RecipePlan
from pipeline.store.circumstances import processor
from stages import merge
from stages.report import costs
from stages.report.costs import Spent
from stages.report.figures import Style
from stages.report.groups import Unit, stem, units
from stages.tools.verify import git
from stages.workspace import Workspace

Metrics = dict[str, dict[str, Any]]


class Named(NamedTuple):
    """A recipe or unit with its sign, as tables and headings show it."""

    name: str
    style: Style
    note: str = ""


@dataclass(frozen=True)
class Trained:
    """One expert of a recipe with what its training left."""

    expert: Expert
    seconds: float | None  # to the end of its budget; None where unknown
    record: dict[str, Any]
    curve: list[list[float]]  # [images, mean loss]


@dataclass(frozen=True)
class Merge:
    """How a recipe's experts became one network at a milestone."""

    milestone: int
    job: Job
    report: dict[str, Any]
    seconds: float | None


@dataclass(frozen=True)
class Encoder:
    """What made the latents, and the sizes of their shards in bytes.

    record: of its training, None where it was not trained here; made: its circumstances.
    """

    job: Job
    about: dict[str, Any]
    record: dict[str, Any] | None
    made: dict[str, Any]
    shards: list[int]


@dataclass(frozen=True)
class Origin:
    """The entries that the scores of a recipe at a milestone come from."""

    mixture: str
    samples: list[str]
    scores: str


@dataclass(frozen=True)
class Pictures:
    """PNG files: samples of each recipe, real images, what comes back of their latents, films."""

    samples: dict[str, Path]
    real: Path | None = None
    reconstructions: Path | None = None
    consistency: Path | None = None
    films: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """When and where the page was written; commit: `+` after it where code or params differ."""

    date: str
    commit: str
    processor: str
    cores: int

    @classmethod
    def now(cls, workspace: Workspace) -> Written:
        """Here and now; the commit is empty outside of git. dvc.lock changes with every run."""
        try:
            commit = git(workspace, "rev-parse", "--short=12", "HEAD").strip()
            changed = git(workspace, "diff", "--name-only", "HEAD", "--", ":(exclude)dvc.lock")
        except UserError:
            commit, changed = "", ""
        date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        commit += "+" if changed.strip() else ""
        return cls(date, commit, processor(), cores())


@dataclass(frozen=True)
class Results:
    """A run's results.

    metrics: of each recipe, with its `milestones` and with `costs.times`; summary: what
    summary.json holds, and what names it: `summary_digest`; by recipe, `before` is what was trained
    first, `analyses` what was measured, `pairings` what the first one did to the noise (None for
    independent noise), `routers` the records of the routers there are, and `words` what params.yaml
    says; consistency: what that stage found.
    """

    params: Params
    params_text: str
    facts: DatasetFacts
    recipes: dict[str, RecipePlan]
    metrics: Metrics
    summary: dict[str, Any]
    summary_digest: str
    pictures: Pictures
    written: Written
    experts: dict[str, list[Trained]]
    before: dict[str, list[tuple[str, Spent]]]
    analyses: dict[str, list[Job]]
    merges: dict[str, list[Merge]]
    routers: dict[str, dict[str, Any]]
    origins: dict[tuple[str, int], Origin]
    pairings: dict[str, dict[str, Any] | None]
    words: dict[str, str]
    encoder: Encoder | None
    consistency: dict[str, Any] | None
    units: list[Unit] = field(init=False)
    styles: dict[str, Style] = field(init=False)  # of units, and of their members

    def __post_init__(self) -> None:
        found = units({name: recipe.recipe for name, recipe in self.recipes.items()})
        styles = {}
        for number, unit in enumerate(found):
            styles |= dict.fromkeys((unit.name, *unit.members), Style(number))
        object.__setattr__(self, "units", found)
        object.__setattr__(self, "styles", styles)

    def plan(self, unit: Unit) -> RecipePlan:
        """A unit's recipe, with its first seed."""
        return self.recipes[unit.members[0]]

    def named(self, name: str) -> Named:
        return Named(name, self.styles[name])

    def heading(self, unit: Unit) -> Named:
        """A unit with the number of its seeds."""
        seeds = f"{len(unit.members)} seeds" if unit.several else ""
        return Named(unit.name, self.styles[unit.name], seeds)

    @property
    def reference(self) -> dict[str, Any]:
        """What the features job reported."""
        return self.summary["reference"]

    def class_name(self, label: int | str) -> str:
        """A class by its name, or by its number where names are unknown."""
        names = self.summary.get("classes")
        return names[int(label)] if names else f"class {label}"

    @functools.cached_property
    def spectrum(self) -> list[float]:
        """Principal variances of the scaled latents. UserError if they were not measured yet."""
        name = plan.spectrum(self.params, self.facts).name
        if name not in self.facts.analyses:
            raise UserError(f"{name}: not measured yet; run `dvc repro`")
        return self.facts.analyses[name]["spectrum"]


def read(
    workspace: Workspace,
    facts: DatasetFacts,
    recipes: dict[str, RecipePlan],
    metrics: Metrics,
    summary: dict[str, Any],
    summary_digest: str,
    pictures: Pictures,
    written: Written,
) -> Results:
    """Metrics and pictures with the rest, from the store and artefacts/.

    UserError if an expert's record or curve is missing or damaged.
    """
    text = (workspace.root / "params.yaml").read_text(encoding="utf-8")
    consistency = _consistency(workspace)
    if consistency and consistency.get("grid"):
        grid = workspace.artefacts("consistency") / consistency["grid"]
        pictures = dataclasses.replace(pictures, consistency=grid)
    return Results(
        params=workspace.params,
        params_text=text,
        facts=facts,
        recipes=recipes,
        metrics=metrics,
        summary=summary,
        summary_digest=summary_digest,
        pictures=pictures,
        written=written,
        experts={name: _trained(workspace, recipe) for name, recipe in recipes.items()},
        before={n: costs.before(workspace, facts, recipe) for n, recipe in recipes.items()},
        analyses={n: costs.analyses_of(workspace, facts, recipe) for n, recipe in recipes.items()},
        merges={name: _merges(workspace, recipe) for name, recipe in recipes.items()},
        routers={n: _router(workspace, recipe) for n, recipe in recipes.items() if recipe.router},
        origins=_origins(workspace, facts, recipes),
        pairings={name: _diagnosis(workspace, recipe) for name, recipe in recipes.items()},
        words=_words(text, recipes),
        encoder=_encoder(workspace, facts),
        consistency=consistency,
    )


def _trained(workspace: Workspace, recipe: RecipePlan) -> list[Trained]:
    found = []
    for expert in recipe.experts:
        entry = workspace.store.entry(expert.job.name)
        record = entry.load_json("record.json")
        images = expert.snapshots[recipe.milestones[-1]]
        seconds = costs.spent(workspace, expert.job, images).seconds
        found.append(Trained(expert, seconds, record, entry.load_json("curve.json")))
    return found


def _merges(workspace: Workspace, recipe: RecipePlan) -> list[Merge]:
    return [
        Merge(
            milestone,
            job,
            workspace.store.entry(job.name).load_json("report.json"),
            costs.spent(workspace, job).seconds,
        )
        for milestone, job in recipe.merged.items()
    ]


def _router(workspace: Workspace, recipe: RecipePlan) -> dict[str, Any]:
    """The record of a router, with its last mean `loss`."""
    entry = workspace.store.entry(recipe.router.job.name)
    return entry.load_json("record.json") | {"loss": entry.load_json("curve.json")[-1][1]}


def _diagnosis(workspace: Workspace, recipe: RecipePlan) -> dict[str, Any] | None:
    jobs = recipe.experts[0].pairings
    return workspace.store.entry(jobs[0].name).load_json("diagnostics.json") if jobs else None


def _encoder(workspace: Workspace, facts: DatasetFacts) -> Encoder | None:
    job = plan.encoder(workspace.params, facts)
    if job is None:
        return None
    entry = workspace.store.entry(job.name)
    trained = "record.json" in entry.files()
    shards = plan.latents(workspace.params, facts)
    return Encoder(
        job,
        entry.load_json("encoder.json"),
        entry.load_json("record.json") if trained else None,
        entry.circumstances(),
        [workspace.store.entry(s.name).files()["latents.arrow"]["bytes"] for s in shards],
    )


def _consistency(workspace: Workspace) -> dict[str, Any] | None:
    """What the stage `consistency` found, if the project has one."""
    path = workspace.artefacts("consistency") / "consistency.json"
    return workspace.read_sealed(path) if path.exists() else None


def _origins(
    workspace: Workspace, facts: DatasetFacts, recipes: Mapping[str, RecipePlan]
) -> dict[tuple[str, int], Origin]:
    params = workspace.params
    reference = plan.features(params, facts)
    origins = {}
    for name, recipe in recipes.items():
        for item in merge.milestones_of(workspace, name):
            mixture = item["mixture"]
            guide = merge.guide_of(workspace, recipe, item["images"])
            shards = plan.samples(params, facts, recipe, mixture, name, guide)
            origins[name, item["images"]] = Origin(
                f"mixture/{mixture['digest']}",
                [job.name for job in shards],
                plan.scores(params, facts, shards, reference, name).name,
            )
    return origins


def _words(params_text: str, recipes: Mapping[str, RecipePlan]) -> dict[str, str]:
    """What each recipe says in params.yaml, as YAML."""
    raw: dict[str, Any] = YAML(typ="safe", pure=True).load(params_text)["recipes"]
    words = {}
    for name, recipe in recipes.items():
        own = raw[name] if name in raw else raw[stem(name, recipe.recipe.seed)]
        words[name] = as_yaml(own, 40) if own else ""
    return words


def as_yaml(value: dict[str, Any], width: int = 90) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None  # the innermost level on one line, as in params.yaml
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = width
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue().rstrip()
