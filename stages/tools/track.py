"""`tspace track`: follows the store and writes what happens to TensorBoard, DVCLive, MLflow or W&B.

It only reads the store, so it changes no result and no job knows of it. A recipe is a run, with the
first digits of its experts' digests in the name: an edited recipe is another run.

`written.json` in the output folder says how far each series is. It is written before the points
are: a kill loses those of one look, and none is ever written twice.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import plan
from pipeline.errors import UserError
from pipeline.store.files import sealed, write_sealed
from pipeline.store.identity import digest
from stages import evaluate, pictures
from stages.curves import losses, spec_or_none
from stages.facts import facts_of
from stages.fanout import adopt
from stages.film import Films
from stages.numbers import counted, known
from stages.report.write import samples_of
from stages.tools.status import Needed, ended, inputs, look_at, merged, needed_jobs
from stages.tools.trackers import Tracker, plain_name, tracker
from stages.workspace import Workspace

LOOK_SECONDS = 5.0
COLUMNS = 4  # of a picture of samples
SCORES = ("fid", "kid", "precision", "recall", "density", "coverage")
TRAINED_INPUTS = ("encoder", "features")  # kinds of jobs that train something no recipe owns

# Of one series, by images.
Points = list[tuple[int, float]]
Frames = dict[int, Callable[[], np.ndarray]]  # what gives samples, uint8 [n, C, H, W]


def track(workspace: Workspace, tool: str, out: Path | None, once: bool) -> None:
    """Write to a tool until all jobs are done; `once`: what there is now.

    UserError for a tool that is unknown or not installed, and if nothing can be planned.
    """
    made = tracker(tool)
    out = out or workspace.scratch / "track" / tool
    out.mkdir(parents=True, exist_ok=True)
    follower = Follower(workspace, made, out)
    points = 0
    with _asked_to_stop() as stop, contextlib.closing(follower):
        while True:
            try:
                points += follower.look()
            except UserError as e:
                if once or not follower.needed:
                    raise
                print(f"tspace: {e}", file=sys.stderr, flush=True)  # params.yaml is being edited
            if once or follower.ended or stop:
                break
            wait = time.monotonic() + LOOK_SECONDS
            while time.monotonic() < wait and not stop:
                time.sleep(0.1)
    print(f"{tool}: {counted(points, 'new point')} in {out}")


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that is not empty once Ctrl-C or SIGTERM came: no look is left half written."""
    asked: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.signal(s, lambda number, _: asked.append(number)) for s in signals}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Follower:
    """What was written of a store, and what is new in it."""

    def __init__(self, workspace: Workspace, made: type[Tracker], out: Path):
        self.workspace = workspace
        self.needed: list[Needed] = []
        self.ended = False
        self._made, self._out = made, out
        self._open: dict[str, Tracker] = {}
        self._written = _read(out / "written.json")
        self._films: Films | None = None
        self._inputs: Any = None

    def look(self) -> int:
        """Write what is new; how many points. UserError if params.yaml cannot be planned."""
        seen = inputs(self.workspace)
        if seen != self._inputs:
            self.workspace = Workspace(self.workspace.root)
            for stage in ("latents", "features", "analyses", "experts", "samples", "scores"):
                adopt(self.workspace, stage)
            self.needed, self._films = needed_jobs(self.workspace), None
            self._inputs = seen
        self.ended = ended(self.needed, look_at(self.workspace, self.needed))
        return sum(self._write(*run) for run in self._runs())

    def close(self) -> None:
        for run in self._open.values():
            run.close()

    def _runs(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Points], Frames]]:
        """Each run's name, params, series and pictures of samples, as far as they are known."""
        trained = [
            (name, label)
            for part in self.needed
            for name, label in part.jobs
            if name.partition("/")[0] in TRAINED_INPUTS
        ]
        curves = {
            f"loss/{plain_name(label)}": found
            for name, label in trained
            if (found := self._losses(name))
        }
        if curves:
            yield f"inputs-{digest([name for name, _ in trained])[:8]}", {}, curves, []
        try:
            facts = facts_of(self.workspace)
            recipes = plan.experts(self.workspace.params, facts)
        except UserError:  # its states are fitted to something that is not measured yet
            return
        scored = self._scored(facts, recipes)
        frames = self._frames()
        for name, recipe in recipes.items():
            jobs = [expert.job for expert in recipe.experts]
            curves = {}
            for job in jobs:
                own = plain_name(job.label.removeprefix(name).strip())
                curves[f"loss/{own}" if own else "loss"] = self._losses(job.name)
            params = {"recipe": name, **flat(recipe.recipe.model_dump(mode="json"))}
            run = f"{name}-{digest([job.name for job in jobs])[:8]}"
            drawn = dict(frames.get(name, {}))
            for images, job in scored.get(name, {}).items():
                drawn[images] = functools.partial(_scored_samples, self.workspace, job)
            yield run, params, curves | self._scores(scored.get(name, {})), drawn

    def _losses(self, name: str) -> Points:
        entry = self.workspace.store.entry(name)
        spec = spec_or_none(entry)
        return [] if spec is None else losses(entry, spec)

    def _scored(
        self, facts: plan.DatasetFacts, recipes: dict[str, plan.RecipePlan]
    ) -> dict[str, dict[int, plan.Job]]:
        """The finished scoring jobs of each recipe, by milestone."""
        there = {n: r for n, r in recipes.items() if merged(self.workspace, n, r)}
        try:
            jobs = evaluate.score_jobs(self.workspace, self.workspace.params, facts, there)
        except UserError:  # a guide's mixtures are not there
            return {}
        found: dict[str, dict[int, plan.Job]] = {}
        for (name, images), job in sorted(jobs.items(), key=lambda item: item[0]):
            if self.workspace.store.entry(job.name).done:
                found.setdefault(name, {})[images] = job
        return found

    def _scores(self, jobs: dict[int, plan.Job]) -> dict[str, Points]:
        series: dict[str, Points] = {}
        for images, job in jobs.items():
            scores = self.workspace.store.entry(job.name).load_json("scores.json")
            for key in SCORES:
                if known(scores.get(key)):
                    series.setdefault(f"scores/{key}", []).append((images, scores[key]))
        return series

    def _frames(self) -> dict[str, Frames]:
        """Frames of films that somebody drew."""
        if self._films is None:
            try:
                self._films = Films(self.workspace)
            except UserError:  # nothing is trained yet
                return {}
        for _ in self._films.look(draw=False):
            pass
        return {
            name: {m: functools.partial(np.load, p) for m, p in self._films.frames(name).items()}
            for name in self._films.recipes
        }

    def _write(
        self, name: str, params: dict[str, Any], series: dict[str, Points], frames: Frames
    ) -> int:
        before = self._written.get(name, {})
        new = {
            key: [(images, value) for images, value in points if images > before.get(key, -1)]
            for key, points in series.items()
        }
        new = {key: points for key, points in new.items() if points}
        shown = [(m, frames[m]) for m in sorted(frames) if m > before.get("samples", -1)]
        if not new and not shown:
            return 0
        first = name not in self._written
        reached = {key: points[-1][0] for key, points in new.items()}
        reached |= {"samples": shown[-1][0]} if shown else {}
        self._written[name] = before | reached
        write_sealed(self._out / "written.json", {"runs": self._written})
        run = self._open.get(name) or self._open.setdefault(name, self._made(self._out, name))
        if first and params:
            run.params(params)
        for images, key, value in sorted((i, k, v) for k, points in new.items() for i, v in points):
            run.point(key, images, value)
        for images, samples in shown:
            run.picture("samples", images, pictures.grid(samples(), COLUMNS))
        run.flush()
        return sum(map(len, new.values()))


def _read(path: Path) -> dict[str, dict[str, int]]:
    try:
        return sealed(path.read_text())["runs"]
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise UserError(
            f"{path}: damaged, so what was written is not known; name another --out"
        ) from e


def _scored_samples(workspace: Workspace, job: plan.Job) -> np.ndarray:
    shard = samples_of(workspace, job)
    return shard.raw(np.arange(min(pictures.FILMED, len(shard))))


def flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by their full keys, `training.batch` and the like; lists as they are."""
    found: dict[str, Any] = {}
    for key, own in value.items():
        if isinstance(own, dict):
            found |= flat(own, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = own
    return found
