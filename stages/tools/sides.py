"""What `tspace compare` compares: recipes of the run here, or of a git revision or experiment."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import plan
from pipeline.block import Block
from pipeline.errors import UserError
from pipeline.params.document import NotReadable, read
from pipeline.params.load import resolve
from pipeline.params.mistakes import nearest
from pipeline.params.recipe import Params
from pipeline.specs import SamplesSpec
from pipeline.store.files import sealed
from pipeline.store.identity import canonical_json
from stages import evaluate, merge
from stages import sample as sampling
from stages.cache import Listing, cached, cached_listing
from stages.facts import facts_of
from stages.fanout import adopt
from stages.report import costs
from stages.report.fresh import COSTS
from stages.report.groups import Unit, units, units_of
from stages.report.write import recipe_metrics
from stages.tools.verify import git, recorded
from stages.workspace import Workspace

HERE = "this run"
# Sections of params.yaml beside the recipes: equal for all recipes of one run.
SHARED = ("seed", "data", "latent", "features", "evaluate")


@dataclass(frozen=True)
class Drawn:
    """Samples of a recipe: how they were drawn, and the checksum of each shard."""

    spec: SamplesSpec
    checksums: tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a recipe, or all seeds of one.

    runs: the names of its seeds; settings: by dotted key, None where they cannot be read (`unread`
    says why); metrics: of each run, with seconds where these are known; floor: as in summary.json;
    mixtures: the digest of each run; drawn: each run's samples, None where not known; bring: takes
    an entry that its networks are in into the store, UserError if it is nowhere here.
    """

    name: str
    place: str
    runs: tuple[str, ...]
    settings: dict[str, Any] | None
    unread: str
    metrics: tuple[dict[str, Any], ...]
    floor: dict[str, Any] | None
    mixtures: tuple[str, ...]
    drawn: tuple[Drawn | None, ...]
    bring: Callable[[str], None]

    @property
    def title(self) -> str:
        return self.name if self.place == HERE else f"{self.place}:{self.name}"


def sides(
    workspace: Workspace, first: str, second: str | None
) -> tuple[list[tuple[Side, Side]], list[str]]:
    """What two texts name, in pairs: one pair of recipes, or each recipe that two runs have.

    Second: the recipes that only one of two runs has.

    first, second: RECIPE of the run here, REV:RECIPE, or REV, all of its recipes; second None is
    the run here. A revision beside a recipe stands for its recipe of the same name. UserError for
    what does not exist, is not finished, or is not known here.
    """
    places = [_named(workspace, text) for text in (first, second) if text is not None]
    if second is None:
        if places[0][1] is not None and places[0][0] == HERE:
            raise UserError(f"compare {first}: with what? name a second recipe, or a revision")
        places.append((HERE, None))
    (a, of_a), (b, of_b) = places
    runs = [Here(workspace) if place == HERE else Revision(workspace, place) for place in (a, b)]
    alone: list[str] = []
    if of_a is None and of_b is None:
        alone = sorted({*runs[0].names} ^ {*runs[1].names})
        names = [name for name in runs[0].names if name in runs[1].names]
        if not names:
            raise UserError(f"compare: {a} and {b} have no recipe in common; name one of each")
        pairs = [(name, name) for name in names]
    else:
        pairs = [(of_a or of_b, of_b or of_a)]
    return [(runs[0].side(one), runs[1].side(other)) for one, other in pairs], alone


def _named(workspace: Workspace, text: str) -> tuple[str, str | None]:
    """The place that a text names, and the recipe there; None: all of them."""
    recipes = workspace.params.recipes
    known = [unit.name for unit in units(recipes)]
    if text in known or text in recipes:
        return HERE, text
    rev, colon, recipe = text.partition(":")
    if rev and _commit(workspace, rev) is not None:
        return rev, recipe if colon else None
    if colon:
        raise UserError(f"compare {text}: git and DVC know no revision or experiment {rev!r}")
    raise UserError(
        f"compare {text}: no recipe of params.yaml, and no revision or experiment; "
        f"{nearest(text, known)}"
    )


def _commit(workspace: Workspace, rev: str) -> str | None:
    """The commit of a git revision or of an experiment of DVC; None if there is none."""
    try:
        return git(workspace, "rev-parse", "--verify", "--quiet", f"{rev}^{{commit}}").strip()
    except UserError:
        pass
    try:
        lines = git(workspace, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps")
    except UserError:  # no git here
        return None
    refs = dict(line.split() for line in lines.splitlines())
    return next((commit for ref, commit in refs.items() if ref.rpartition("/")[2] == rev), None)


def settings_of(params: Params, name: str) -> dict[str, Any]:
    """All that params.yaml says of a recipe, resolved, by dotted key."""
    shared = {key: getattr(params, key) for key in SHARED}
    own = dict(flat(params.recipes[name]))
    own["seed"] = params.seed if own["seed"] is None else own["seed"]
    del own["seeds"], shared["seed"]
    return {**own, **{k: v for key, block in shared.items() for k, v in flat(block, key)}}


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a block and of those in it, by dotted key; a list is one value."""
    if not isinstance(value, Block):
        yield path, value
        return
    for key in type(value).model_fields:
        yield from flat(getattr(value, key), f"{path}.{key}" if path else key)


class Here:
    """The run of the checkout, from its plan and its store."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace

    @property
    def names(self) -> list[str]:
        return [unit.name for unit in units(self._workspace.params.recipes)]

    def side(self, name: str) -> Side:
        """UserError if it is not finished, or params.yaml or the code changed since it was."""
        workspace, recipes = self._workspace, self._workspace.params.recipes
        runs = _runs(name, units(recipes), list(recipes), HERE)
        facts = facts_of(workspace)
        for stage in ("latents", "analyses", "experts", "features", "samples", "scores"):
            adopt(workspace, stage)
        plans = plan.experts(workspace.params, facts)
        found = [self._run(facts, plans[run]) for run in runs]
        return Side(
            name,
            HERE,
            runs,
            settings_of(workspace.params, runs[0]),
            "",
            tuple(metrics for metrics, _, _ in found),
            found[0][0]["floor"],
            tuple(mixture for _, mixture, _ in found),
            tuple(drawn for _, _, drawn in found),
            workspace.store.entry,  # whatever was sampled here is there
        )

    def _run(
        self, facts: plan.DatasetFacts, recipe: plan.RecipePlan
    ) -> tuple[dict[str, Any], str, Drawn]:
        workspace, alone, last = self._workspace, {recipe.name: recipe}, recipe.milestones[-1]
        scored = evaluate.score_jobs(workspace, workspace.params, facts, alone)
        drawn = sampling.sample_jobs(workspace, workspace.params, facts, alone)[recipe.name, last]
        jobs = [*scored.values(), *drawn, *recipe.trainings]
        if not all(workspace.store.entry(job.name).done for job in jobs):
            raise UserError(
                f"compare {recipe.name}: not scored yet, or params.yaml or the code changed since; "
                "run `dvc repro`"
            )
        metrics = recipe_metrics(workspace, facts, recipe, scored)
        metrics |= costs.times(workspace, facts, recipe, last)
        files = [workspace.store.entry(job.name).files()["samples.arrow"] for job in drawn]
        mixture = merge.milestones_of(workspace, recipe.name)[-1]["mixture"]["digest"]
        checksums = tuple(file["sha256"] for file in files)
        return metrics, mixture, Drawn(drawn[0].spec, checksums)


class Revision:
    """A commit or experiment: what git has of it, and DVC's cache of what its dvc.lock names."""

    def __init__(self, workspace: Workspace, rev: str):
        self._workspace, self._rev = workspace, rev
        self._commit = _commit(workspace, rev)
        try:
            outs = [out for outs in recorded(workspace, self._commit).values() for out in outs]
        except UserError as e:
            raise UserError(f"compare {rev}: has no results ({e}); name another") from e
        self._locked = {out["path"]: out["md5"] for out in outs}

    @functools.cached_property
    def _summary(self) -> dict[str, Any]:
        return json.loads(self._text("results/summary.json"))

    @property
    def names(self) -> list[str]:
        return [unit.name for unit in self._units]

    @property
    def _units(self) -> list[Unit]:
        return units_of(list(self._summary["recipes"]), self._summary.get("groups", {}))

    def side(self, name: str) -> Side:
        """UserError if the revision has no such recipe, or DVC's cache not what it recorded."""
        recipes = self._summary["recipes"]
        runs = _runs(name, self._units, list(recipes), self._rev)
        settings, unread = self._settings(runs[0])
        mixtures = [self._mixture(run) for run in runs]
        seconds = self._seconds()
        return Side(
            name,
            self._rev,
            runs,
            settings,
            unread,
            tuple({**recipes[run], **seconds.get(run, {})} for run in runs),
            self._summary["reference"].get("floor"),
            tuple(mixture["digest"] for mixture in mixtures),
            tuple(self._drawn(run, m["digest"]) for run, m in zip(runs, mixtures, strict=True)),
            self._bring,
        )

    def _settings(self, run: str) -> tuple[dict[str, Any] | None, str]:
        """Or why this version of tspace cannot read them."""
        source = f"{self._rev}:params.yaml"
        text = git(self._workspace, "show", f"{self._commit}:./params.yaml")
        try:
            return settings_of(resolve(read(text.encode()), source), run), ""
        except (UserError, NotReadable, KeyError) as e:
            return None, str(e).splitlines()[0]

    def _mixture(self, run: str) -> dict[str, Any]:
        return sealed(self._text(f"artefacts/mixtures/{run}.json"))["milestones"][-1]["mixture"]

    def _seconds(self) -> dict[str, dict[str, Any]]:
        """By run, where the costs beside the results here are of this revision's."""
        path = self._workspace.results / COSTS
        if not path.exists():
            return {}
        found = self._workspace.read_json(path)
        wanted = hashlib.sha256(self._text("results/summary.json").encode()).hexdigest()
        return found["recipes"] if found["summary"] == wanted else {}

    def _drawn(self, run: str, mixture: str) -> Drawn | None:
        """What the entries say whose mixture and label are the run's; None if they cannot be told.

        Two recipes may share samples, which then have the label of one of them.
        """
        listing = self._listing("artefacts/samples")
        items = json.loads(self._file("artefacts/samples", listing["manifest.json"]))["entries"]
        found = []
        for item in items:
            kind, _, entry = item["name"].partition("/")
            if kind == "samples":
                spec = json.loads(self._file("artefacts/samples", listing[f"{entry}/spec.json"]))
                if spec["mixture"]["digest"] == mixture:
                    found.append((spec, item))
        found = [pair for pair in found if pair[1]["label"].startswith(f"{run} at ")] or found
        ways = {
            canonical_json({k: v for k, v in spec.items() if k not in ("first", "last")})
            for spec, _ in found
        }
        if len(ways) != 1:
            return None
        found.sort(key=lambda pair: pair[0]["first"])
        try:
            spec = SamplesSpec.model_validate_json(json.dumps(found[0][0]))
        except ValueError:  # of another version of tspace
            return None
        return Drawn(spec, tuple(item["files"]["samples.arrow"]["sha256"] for _, item in found))

    def _bring(self, name: str) -> None:
        """Take an entry into the store, from DVC's cache where the store does not have it."""
        entry, folders = self._workspace.store.entry(name), ("experts", "latents", "analyses")
        for folder in [] if entry.done else (f"artefacts/{stage}" for stage in folders):
            listing = self._listing(folder)
            files = [file for file in listing if file.startswith(f"{entry.digest}/")]
            if not files:
                continue
            with tempfile.TemporaryDirectory(dir=self._scratch()) as scratch:
                for file in files:
                    source, target = self._cached(folder, listing[file]), Path(scratch) / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, target)
                self._workspace.store.adopt(Path(scratch) / entry.digest, name)
        if not entry.done:
            raise self._unknown(name)

    def _scratch(self) -> Path:
        self._workspace.scratch.mkdir(parents=True, exist_ok=True)
        return self._workspace.scratch

    def _text(self, path: str) -> str:
        """An output, or a file of a folder that is one."""
        if path in self._locked:
            return self._file(path, self._locked[path])
        folder, _, name = path.rpartition("/")
        listing = self._listing(folder)
        if name not in listing:
            raise UserError(f"{self._rev}: its {folder} holds no {name}")
        return self._file(path, listing[name])

    def _listing(self, folder: str) -> Listing:
        if folder not in self._locked:
            raise UserError(f"{self._rev}: its dvc.lock has no {folder}; compare finished runs")
        found = cached_listing(self._workspace.root, self._locked[folder])
        if found is None:
            raise self._unknown(folder)
        return found

    def _file(self, path: str, md5: str) -> str:
        return self._cached(path, md5).read_text(encoding="utf-8")

    def _cached(self, path: str, md5: str) -> Path:
        found = cached(self._workspace.root, md5)
        if not found.is_file():
            raise self._unknown(path)
        return found

    def _unknown(self, path: str) -> UserError:
        way = (
            "run `dvc fetch --all-commits`"
            if self._workspace.has_remote
            else ("check the revision out and run `dvc repro` there")
        )
        return UserError(f"{self._rev}: DVC's cache does not have its {path}; {way}")


def _runs(name: str, known: Sequence[Unit], runs: Sequence[str], place: str) -> tuple[str, ...]:
    """The runs of a recipe, or the one run of this name."""
    for unit in known:
        if unit.name == name:
            return unit.members
    if name in runs:
        return (name,)
    names = [unit.name for unit in known]
    raise UserError(f"compare: {place} has no recipe {name!r}; {nearest(name, names)}")
