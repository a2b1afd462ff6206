"""The film of a recipe: a few samples at every milestone so far, drawn while it still trains.

A snapshot is renamed into its expert's folder once it is whole, long before the expert is finished,
and it has the bits that the finished one lists. A mixture names its weights by their checksums; so
a frame, which is known by what it is drawn from and how, is never taken for one of other weights.

No job knows of it, and no result is made of it: it reads snapshots, keeps frames below .tspace/ and
writes results/now/. The film beside the results (`pictures.film`) shows samples that were scored.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import plan
from pipeline.errors import UserError
from pipeline.levels.schedule import subset
from pipeline.specs import SamplesSpec
from pipeline.store.files import sweep
from pipeline.store.identity import digest, file_digest
from stages.facts import facts_of
from stages.fanout import adopt
from stages.inputs import mixture_of, save_array
from stages.merge import mixture_at, what_mixtures_share
from stages.numbers import counted
from stages.workspace import Workspace

STATES = 25  # that they visit at most, evenly among those of the recipe's own sampling
LOOK_SECONDS = 2.0
BEGIN_SECONDS = 15.0  # a shorter training is over before its film would be looked at
NICE = 5  # it has so little to do that lower would only make it late on a full machine
OFF = "TSPACE_FILM"  # set to 0: no film is drawn beside a training


class Absent(Exception):
    """A snapshot is not there yet."""


class Films:
    """The films of all recipes, as the snapshots in the store allow.

    UserError if the dataset or what recipes are fitted to is not made yet.
    """

    def __init__(self, workspace: Workspace):
        for stage in ("latents", "analyses", "experts"):
            adopt(workspace, stage)
        self.workspace = workspace
        self.facts = facts_of(workspace)
        self.recipes = plan.experts(workspace.params, self.facts)
        self._shared = what_mixtures_share(workspace, self.facts)
        self._known: dict[tuple[int, ...], str] = {}  # checksums of snapshots, by their stat
        self._tried: set[str] = set()
        self._drawn: dict[str, dict[int, Path]] = {name: {} for name in self.recipes}

    @property
    def _kept(self) -> Path:
        return self.workspace.scratch / "film"

    def path(self, name: str) -> Path:
        """Where the film of a recipe is, once it has a frame."""
        return now(self.workspace) / "recipes" / name / "film.png"

    def frames(self, name: str) -> dict[int, Path]:
        """Frames of a recipe that are drawn, uint8 [n, C, H, W] as .npy, by milestone."""
        return dict(sorted(self._drawn[name].items()))

    @property
    def complete(self) -> bool:
        return all(len(self._drawn[n]) == len(r.milestones) for n, r in self.recipes.items())

    def look(self, draw: bool = True) -> Iterator[tuple[str, int]]:
        """Draw each frame that can be drawn and is not, and the film with it; which it was.

        draw: False to find those that somebody else drew. UserError for a frame that cannot be
        drawn; one may go on looking.
        """
        for name, recipe in self.recipes.items():
            for milestone in recipe.milestones:
                if milestone in self._drawn[name]:
                    continue
                try:
                    spec = self._spec(name, milestone)
                except Absent:
                    continue
                path = self._kept / f"{digest(spec.as_json())}.npy"
                if not path.exists():
                    if not draw or path.name in self._tried:
                        continue
                    self._tried.add(path.name)
                    self._kept.mkdir(parents=True, exist_ok=True)
                    save_array(path, self._draw(spec))
                self._drawn[name][milestone] = path
                if draw:
                    self._write(name)
                yield name, milestone

    def _spec(self, name: str, milestone: int) -> SamplesSpec:
        """What a frame is drawn from, and how. Raises Absent."""
        from stages import pictures

        recipe = self.recipes[name]
        asked = recipe.recipe.sampling.guide
        guide = None
        if asked is not None and recipe.guided(milestone):
            other = self.recipes[asked.recipe or name]
            guide = self._mixture(other, asked.milestone or other.milestones[-1])
        mixture = self._mixture(recipe, milestone)
        params = self.workspace.params
        spec = plan.samples(params, self.facts, recipe, mixture, name, guide)[0].spec
        states, last = spec.states, min(pictures.FILMED, params.evaluate.samples)
        if len(states) > STATES:
            states = [states[i] for i in subset(len(states), STATES)]
        return spec.model_copy(update={"states": states, "first": 0, "last": last})

    def _mixture(self, recipe: plan.RecipePlan, milestone: int) -> dict[str, Any]:
        return mixture_at(recipe, milestone, self._shared, self._part)

    def _part(self, weights: plan.Weights) -> dict[str, str]:
        """A file of weights as a mixture names it, finished or a snapshot. Raises Absent."""
        entry = self.workspace.store.entry(weights.job.name)
        if entry.done:
            seal = entry.files()[weights.file]["sha256"]
        elif weights.job.kind == "expert":
            seal = self._seal(entry.path / weights.file)
        else:  # a merged network is not whole before its entry is finished
            raise Absent
        return {"entry": entry.name, "file": weights.file, "sha256": seal}

    def _seal(self, path: Path) -> str:
        try:
            stat = path.stat()
            key = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if key not in self._known:
                self._known[key] = file_digest(path)
        except FileNotFoundError as e:
            raise Absent from e
        return self._known[key]

    def _find(self, part: dict[str, Any]) -> Path:
        path = self.workspace.store.entry(part["entry"]).path / part["file"]
        if not path.exists() or file_digest(path) != part["sha256"]:
            raise UserError(f"{path}: damaged, or replaced at this moment")
        return path

    def _draw(self, spec: SamplesSpec) -> Any:
        from pipeline.sampling.mixture import draw

        images, _ = draw(
            mixture_of(spec.mixture, self.workspace.store, self.workspace, spec.led, self._find),
            spec.states,
            range(spec.first, spec.last),
            seed=spec.seed,
            sampling=spec.sampling,
            batch=spec.batch,
            class_counts=spec.class_counts,
        )
        return images

    def _write(self, name: str) -> None:
        import numpy as np

        from stages import pictures

        frames = {m: np.load(p, allow_pickle=False) for m, p in self.frames(name).items()}
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        pictures.save(pictures.film(frames), self.path(name))


def now(workspace: Workspace) -> Path:
    """What is written of an unfinished run; the report of a finished one takes its place."""
    return workspace.results / "now"


def film(workspace: Workspace, watch: bool) -> None:
    """Draw the films of all recipes as far as they can be; `watch`: until they are complete."""
    films = Films(workspace)
    while True:
        seen = {name: len(films.frames(name)) for name in films.recipes}
        try:
            for _ in films.look():
                pass
        except UserError as e:
            if not watch:
                raise
            print(f"tspace: {e}", file=sys.stderr, flush=True)
        for name, recipe in films.recipes.items():
            if (reached := len(films.frames(name))) > seen[name]:
                path = films.path(name).relative_to(workspace.root)
                told = f"{reached} of {counted(len(recipe.milestones), 'milestone')}"
                print(f"{name}: {told}: {path}", flush=True)
        if not watch or films.complete:
            break
        time.sleep(LOOK_SECONDS)
    if not any(films.frames(name) for name in films.recipes):
        print("no film yet: no recipe has reached a milestone")


# --- beside a training


@contextlib.contextmanager
def drawn_beside(workspace: Workspace) -> Iterator[None]:
    """Within, a process of low priority draws the films, on one core and on no GPU.

    It ends with the block, and with this process however that ends.
    """
    started: list[subprocess.Popen] = []

    def start() -> None:
        folder = workspace.scratch / "film"
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "stages.cli", "film", "--watch", "--beside"]
        # A GPU's memory belongs to the training, and so do all cores but what one leaves over.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        with open(folder / "log.txt", "w") as log:
            started.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=workspace.root,
                    process_group=0,  # Ctrl-C is for the training, which ends it
                )
            )

    timer = threading.Timer(BEGIN_SECONDS, start)
    timer.daemon = True
    if os.environ.get(OFF) != "0":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if timer.is_alive():
            timer.join()
        for process in started:
            process.stdin.close()
            process.wait()
            for folder in (workspace.scratch / "film", *now(workspace).glob("recipes/*")):
                sweep(folder)


def beside() -> None:
    """Make this process one that costs a training next to nothing and ends with its input."""

    def wait() -> None:
        while os.read(0, 1024):  # sys.stdin would be locked when this process ends by itself
            pass
        os._exit(0)  # what it was writing stays under a name that is swept away

    os.nice(NICE)
    threading.Thread(target=wait, daemon=True).start()
