"""`tspace sweep`: the best settings of a recipe, found by runs of the pipeline on one store.

A step tries some options of settings, each a recipe. All train for the images of the first rung,
the best of them for those of the next, and so on (successive halving, Jamieson & Talwalkar 2016);
what is best at the last rung is what the next step starts from. A rung is a run of its own, not the
beginning of a longer one, so that its learning rate falls to its end.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field, JsonValue, model_validator

from pipeline.block import Block, Finite, Images, Positive, Seed, Share, Text
from pipeline.errors import UserError
from pipeline.noise import philox
from pipeline.params.document import NotReadable, read
from pipeline.params.load import merge, resolve
from pipeline.params.mistakes import nearest, refusal, validate
from pipeline.store.files import write_json, write_text
from stages.numbers import counted
from stages.workspace import Workspace

FOLDER = "sweeps"
# What a project's folder has of its own, or of one run.
OWN = ("artefacts", "results", "store", "params.yaml", "dvc.lock", FOLDER)
LONGEST = 32  # characters of a recipe's name, before its seed's
HIGHEST = ("precision", "recall", "density", "coverage")  # scores of which more is better

Blocks = dict[str, Any]
# Recipes by name and images -> the score of each, lower is better.
Score = Callable[[Mapping[str, Blocks], int], Mapping[str, float]]


class Range(Block):
    """Numbers from which one is drawn, evenly or (`log`) evenly in their logarithm."""

    low: Finite
    high: Finite
    log: bool = False
    whole: bool = False
    """Rounded to a whole number."""

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and above 0 with log")
        return self

    def at(self, u: float) -> float | int:
        low, high = (math.log(v) if self.log else v for v in (self.low, self.high))
        value = low + u * (high - low)
        value = math.exp(value) if self.log else value
        return round(value) if self.whole else float(f"{value:.4g}")


class Step(Block):
    """Options of which the best is kept: named ones, all of a grid, or some drawn from ranges."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,15}$")]
    """How its recipes begin."""
    options: dict[Text, dict[str, JsonValue]] = Field(default_factory=dict)
    """A recipe's blocks by name; `{}` is what the step starts from."""
    grid: dict[Text, list[JsonValue]] = Field(default_factory=dict)
    """Values of keys such as `training.batch`: every combination is tried."""
    random: dict[Text, Range] = Field(default_factory=dict)
    """Ranges of keys, from which `trials` combinations are drawn, always the same."""
    trials: Positive = 8

    @model_validator(mode="after")
    def _one_form(self) -> Step:
        if sum(map(bool, (self.options, self.grid, self.random))) != 1:
            raise ValueError("give one of options, grid and random")
        if len(set(map(_plain, self.options))) < len(self.options):
            raise ValueError("options: two names are the same in lower case, cut after 15")
        return self

    def tried(self) -> dict[str, Blocks]:
        """What is tried: blocks of a recipe by name."""
        if self.options:
            return {f"{self.name}-{_plain(name)}": own for name, own in self.options.items()}
        if self.grid:
            values = itertools.product(*self.grid.values())
            combinations = [dict(zip(self.grid, each, strict=True)) for each in values]
        else:
            key = philox.derive_key("sweep", self.name)
            u = philox.uniform(key, 0, np.arange(self.trials), (len(self.random),))
            combinations = [
                {
                    name: r.at(float(x))
                    for (name, r), x in zip(self.random.items(), row, strict=True)
                }
                for row in u
            ]
        return {f"{self.name}-{n}": _nested(each) for n, each in enumerate(combinations)}


class Sweep(Block):
    """What is searched: the content of a sweep's file."""

    recipe: Text
    """The recipe of params.yaml that the search starts from."""
    rungs: Annotated[list[Images], Field(min_length=1, max_length=20)]
    """`training.images` of each rung, ascending."""
    keep: Annotated[Share, Field(gt=0)] = 0.34
    """Share of the recipes of a rung that go on to the next."""
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=100)] = Field(
        default_factory=lambda: [0]
    )
    """Of every run; scores are means over them."""
    score: Literal["fid", "kid", "precision", "recall", "density", "coverage"] = "fid"
    search: Annotated[list[Step], Field(min_length=1, max_length=100)]
    """Steps, one after the other."""

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        if any(a >= b for a, b in itertools.pairwise(self.rungs)):
            raise ValueError("rungs: must be ascending")
        names = [step.name for step in self.search]
        if len(set(names)) < len(names):
            raise ValueError("search: two steps have one name")
        return self


def search(
    steps: Iterable[tuple[str, Mapping[str, Blocks]]],
    rungs: Sequence[int],
    keep: float,
    score: Score,
    start: Blocks | None = None,
) -> tuple[Blocks, list[dict[str, Any]]]:
    """The best recipe found, and a row for every run: step, option, images, score.

    steps: each a name and blocks of a recipe by their own. A recipe of a score that is not a number
    is worse than all others.
    """
    best, rows = start or {}, []
    for step, options in steps:
        tried = {name: merge(best, own) for name, own in options.items()}
        for images in rungs:
            found = score(tried, images)
            rows += [
                {"search": step, "option": name, "images": images, "score": found[name]}
                for name in tried
            ]
            order = sorted(tried, key=lambda name: (math.isnan(found[name]), found[name]))
            kept = 1 if images == rungs[-1] else math.ceil(keep * len(tried))
            tried = {name: tried[name] for name in order[:kept]}
        [best] = tried.values()
    return best, rows


def sweep(workspace: Workspace, path: Path, only_plan: bool = False) -> None:
    """Search as a file says, below `sweeps/<its name>/`; print what was found.

    UserError for a file that is none, and for options that params.yaml would refuse, before any
    of them is trained.
    """
    asked, raw = read_sweep(path), _read(workspace.root / "params.yaml")
    base = _recipe(raw, asked.recipe)
    steps = [(step.name, step.tried()) for step in asked.search]
    for step, options in steps:  # a later step may start from another recipe: as far as is known
        for name, own in options.items():
            _check(_params(raw, {name: merge(base, own)}, asked.rungs[-1], asked.seeds), path, step)
    runs, images = _size([len(options) for _, options in steps], asked)
    print(f"{path}: {counted(runs, 'run')}, {images:,} images")
    if only_plan:
        return
    folder = workspace.root / FOLDER / path.stem
    sign = -1.0 if asked.score in HIGHEST else 1.0

    def score(recipes: Mapping[str, Blocks], images: int) -> dict[str, float]:
        _run(workspace, folder, _params(raw, recipes, images, asked.seeds))
        found = {name: sign * _mean(folder, name, asked) for name in recipes}
        if all(map(math.isnan, found.values())):
            raise UserError(
                f"{folder / 'results' / 'report.html'}: says why none has a {asked.score}"
            )
        return found

    best, rows = search(steps, asked.rungs, asked.keep, score, base)
    for row in rows:
        row["score"] *= sign
        print(f"{row['option']:<{LONGEST}}  {row['images']:>12,} images  {row['score']:.4g}")
    write_json(folder / "sweep.json", {"score": asked.score, "rows": rows, "best": best})
    text = yaml.safe_dump({f"{asked.recipe}-best": best}, sort_keys=False)
    write_text(folder / "best.yaml", text)
    print(f"best, also in {folder / 'best.yaml'}; put it below `recipes` of params.yaml:\n{text}")


def read_sweep(path: Path) -> Sweep:
    """A sweep's file. UserError listing all that is wrong with it."""
    raw, problems = _read(path), []
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys such as `recipe` and `search`")
    found = validate(Sweep, raw, (), problems, Step, Sweep)
    if problems:
        raise refusal(str(path), problems)
    return found


def _read(path: Path) -> Any:
    try:
        return read(path.read_bytes())
    except FileNotFoundError as e:
        raise UserError(f"{path}: not found") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except NotReadable as e:
        raise UserError(f"{path}: {e}") from e


def _recipe(raw: Mapping[str, Any], name: str) -> Blocks:
    recipes = raw.get("recipes") or {}
    if name not in recipes:
        raise UserError(f"recipe: {name}: no such recipe; {nearest(name, list(recipes))}")
    return {key: value for key, value in (recipes[name] or {}).items() if key != "seeds"}


def _params(
    raw: Mapping[str, Any], recipes: Mapping[str, Blocks], images: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """params.yaml with these recipes, each for so many images and with no milestone before."""
    shared = {key: value for key, value in raw.items() if key != "recipes"}
    evaluate = {k: v for k, v in (raw.get("evaluate") or {}).items() if k != "consistency"}
    found = {}
    for name, own in recipes.items():
        training = dict(own.get("training") or {}) | {"images": images, "milestones": []}
        found[name] = own | {"training": training, "seeds": list(seeds)}
    return shared | {"evaluate": evaluate, "recipes": found}


def _check(params: dict[str, Any], path: Path, step: str) -> None:
    try:
        resolve(params)
    except UserError as e:
        raise UserError(f"{path}: search, step {step}: {e}") from e


def _size(options: Sequence[int], asked: Sweep) -> tuple[int, int]:
    """Runs of all rungs, and their images."""
    runs = images = 0
    for count in options:
        for rung in asked.rungs:
            runs += count * len(asked.seeds)
            images += count * len(asked.seeds) * rung
            count = math.ceil(asked.keep * count)
    return runs, images


def _run(workspace: Workspace, folder: Path, params: dict[str, Any]) -> None:
    """Every stage in a folder of its own, with the project's files and store."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in workspace.root.iterdir():
        link = folder / entry.name
        if entry.name not in OWN and entry.name[0] != "." and not link.is_symlink():
            link.symlink_to(Path("..", "..", entry.name))
    write_text(folder / "params.yaml", yaml.safe_dump(params, sort_keys=False))
    stages = _read(workspace.root / "dvc.yaml")["stages"]
    environment = os.environ | {"TSPACE_STORE": str(workspace.store.root)}
    for stage in stages.values():
        command = [sys.executable, "-m", "stages.cli", *stage["cmd"].split()[1:]]
        process = subprocess.Popen(command, cwd=folder, env=environment)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal interrupted it as well: its jobs keep their checkpoints
            raise
        if code:
            raise UserError(
                f"{folder}: `tspace {' '.join(command[3:])}` failed, see above; what is finished "
                "is kept, run the same command again"
            )


def _mean(folder: Path, name: str, asked: Sweep) -> float:
    """The mean score over seeds; NaN where one has none."""
    below, found = folder / "results" / "recipes", []
    for seed in asked.seeds:
        metrics = json.loads((below / f"{name}-seed{seed}" / "metrics.json").read_text())
        found.append(math.nan if metrics[asked.score] is None else metrics[asked.score])
    return float(np.mean(found))


def _nested(values: Mapping[str, Any]) -> Blocks:
    """Blocks of keys such as `training.batch`."""
    found: Blocks = {}
    for key, value in values.items():
        *above, last = key.split(".")
        place = found
        for name in above:
            place = place.setdefault(name, {})
        place[last] = value
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "_", name.lower())[:15]
