"""The work of a plan, each kind of it once and cut short, to see how long it takes here.

What runs is what will run: the jobs' own runners, by specs that ask for less. What they make is of
no use to anybody.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline import plan
from pipeline.errors import UserError
from pipeline.noise.params import Independent, Semidiscrete
from pipeline.params.recipe import Params
from pipeline.sampling.mixture import describe, member
from pipeline.specs import ExpertSpec, ScoresSpec, Spec, as_states
from pipeline.store.entry import Entry, Store
from stages.inputs import dataset_of, device
from stages.job import run_job
from stages.tools.clock import timed
from stages.tools.forecast import (
    DRAWING,
    Rate,
    counted_cost,
    drawing_key,
    evaluations_of,
    training_of,
)
from stages.tools.hardware import without_measurements
from stages.tools.work import Works
from stages.workspace import Workspace

SECONDS = 1.5  # that the longest of some measurements of a kind of work should take
STEP_SECONDS = 3.0  # what would take longer at once is cut, and counted by its images
GUESSED = 0.05  # of the speed of a matrix product: so slow is hardly a network
FEW = 32  # images for extractors that are not trained here
PASSES = 8  # that a job of `pair` has at most
CODE = "rehearsal"  # in the specs, which name entries of no store that is kept


def fitted(run: Callable[[int], float], least: int, most: int, seconds: float = SECONDS) -> Rate:
    """The rate of some work of which `run` does an amount and says in how many seconds.

    The first run also loads what the work needs; of the same amount again and of more follows how
    long each part takes. `most`: that there is.
    """
    first = run(least)
    again = first if first > 4 * seconds else min(first, run(least))
    amount, took = least, again
    # How much of the first amount's time grows with it is not known before there is another.
    more = again
    while amount < most and again < seconds and more < seconds / 2:
        amount = min(most, amount * (8 if more < seconds / 8 else 2))
        took = run(amount)
        more = took - again
    each = again / least if amount == least else max(took - again, 0.0) / (amount - least)
    return Rate(max(first - each * least, 0.0), each)


class Rehearsal:
    """Work of params.yaml on the dataset of a workspace, of these facts, in a store of its own.

    rates: seconds of what was measured so far, by kind of work; flops: of training an image.
    """

    def __init__(self, workspace: Workspace, store: Store, facts: plan.DatasetFacts):
        self.workspace, self.store = workspace, store
        self.params, self.facts = rehearsed(workspace.params), facts
        self.works = Works(self.params, self.facts)
        self.recipes = plan.experts(self.params, self.facts)
        self.rates: dict[str, Rate] = {}
        self.flops: dict[str, float] = {}

    def parts(self, known: frozenset[str]) -> list[tuple[str, Callable[[], None]]]:
        """What each measurement is of that is not known by kind of work, and what makes it."""
        found: dict[str, tuple[str, Callable[[], None]]] = {}
        for name, recipe in self.recipes.items():
            for expert in recipe.experts:
                spec = expert.job.spec
                kind = training_of(spec.as_json())
                measure = functools.partial(self._train, kind, spec)
                found.setdefault(kind, (f"training of {name}", measure))
                for job in expert.pairings:
                    [work] = self.works.of(job)
                    measure = functools.partial(self._pair, job)
                    found.setdefault(work.kind, (f"pairing of {name}", measure))
            for guided in {recipe.guided(milestone) for milestone in recipe.milestones}:
                kind = f"{DRAWING} {drawing_key(recipe, self._guide(recipe), guided)}"
                measure = functools.partial(self._draw, kind, recipe, guided)
                found.setdefault(kind, (f"samples of {name}", measure))
        job = plan.features(self.params, self.facts)
        score = ("features and scores", functools.partial(self._score, job))
        for work in (*self.works.of(job), *self.works.scored(1)):
            found[work.kind] = score
        codec, spectrum = self._codec, plan.spectrum(self.params, self.facts)
        if codec is not None and (works := self.works.of(codec)):
            found[works[0].kind] = (codec.label, functools.partial(self._encode, works[0].kind))
        [work] = self.works.of(spectrum)
        found[work.kind] = (spectrum.label, functools.partial(self._analyse, work.kind))
        [work] = self.works.of(plan.latents(self.params, self.facts)[0])
        found[work.kind] = ("latents", lambda: self._latents)
        return list(dict.fromkeys(part for kind, part in found.items() if kind not in known))

    # --- one kind of work each

    def _train(self, kind: str, spec: ExpertSpec) -> None:
        flops, _ = counted_cost(spec, self.workspace.root)
        batch = self._at_once(flops, spec.training.batch)
        self.flops[kind] = flops
        self.rates[kind] = fitted(
            lambda images: self._run("expert", self._short(spec, images)),
            batch,
            max(spec.images, batch),
        )

    def _short(self, spec: ExpertSpec, images: int) -> ExpertSpec:
        """An expert's spec with its own network and batch, alone and for so many images."""
        training = spec.training.without("parent", "initial", "stop")
        if getattr(training.auxiliary, "kind", "") == "repa":  # little work, but it needs features
            training = training.without("auxiliary")
        flops, _ = counted_cost(spec, self.workspace.root)
        if (batch := self._at_once(flops, training.batch)) < training.batch:
            training = training.without("shards").model_copy(update={"batch": batch})
        alone: dict[str, Any] = {"pairings": [], "pairing": Independent(), "parent": None}
        alone |= {"initial": None, "train": "all", "decouple": None, "held_out": []}
        alone["features"] = None
        alone |= {"latents": self._latents, "training": training}
        return spec.model_copy(update=alone | {"images": images, "snapshots": [images]})

    def _draw(self, kind: str, recipe: plan.RecipePlan, guided: bool) -> None:
        mixture = self._mixture(recipe)
        guide = self._guide(recipe)
        led = self._mixture(guide) if guide and guided else None
        [job, *_] = plan.samples(self.params, self.facts, recipe, mixture, "", led)
        flops, _ = counted_cost(recipe.experts[0].job.spec, self.workspace.root)
        states = recipe.sampling_states
        interval = recipe.recipe.sampling.guidance_interval
        # Two states at least, of a forward pass each: a third of training.
        most = min(self.params.evaluate.samples, self.params.evaluate.batch)
        count = self._at_once(2 * flops / 3, most)

        def some(number: int) -> list[float]:
            return [states[i] for i in np.linspace(0, len(states) - 1, number).round().astype(int)]

        def evaluations(number: int) -> int:
            asked = evaluations_of(some(number), job.spec.sampling, interval)
            return max(count * sum(asked), 1)

        def run(number: int) -> float:
            short = {"first": 0, "last": count, "states": as_states(some(number))}
            return self._run("samples", job.spec.model_copy(update=short))

        least = min(2, len(states))
        rate = fitted(run, least, len(states))
        self.rates[kind] = Rate(rate.fixed, rate.each * len(states) / evaluations(len(states)))

    def _guide(self, recipe: plan.RecipePlan) -> plan.RecipePlan | None:
        guide = recipe.recipe.sampling.guide
        return guide and self.recipes[guide.recipe or recipe.name]

    def _mixture(self, recipe: plan.RecipePlan) -> dict[str, Any]:
        """The experts of a recipe as one model, all those alike with the same weights."""
        members = []
        for expert in recipe.experts:
            spec = expert.job.spec
            members.append(member(self._weights(spec), spec, expert.first, expert.last))
        if self._codec is None:
            spec = plan.latents(self.params, self.facts)[0].spec
            shift, scale, decoder = spec.shift, spec.scale, None
        else:
            about = self.store.entry(self._encoder).load_json("encoder.json")
            shift, scale = about["shift"], about["scale"]
            decoder = self._file(self._encoder, "encoder.json")
        terminal = None
        if not np.isfinite(recipe.log_snr[-1]):
            terminal = self._file(self._spectrum[0], "means.safetensors")
        first, states = recipe.experts[0].job.spec, [float(v) for v in recipe.log_snr]
        return describe(first, states, members, shift, scale, decoder, terminal)

    def _weights(self, spec: ExpertSpec) -> dict[str, str]:
        """Those of a batch's training, of an expert like this one."""
        kind = training_of(spec.as_json())
        if kind not in self._trained:
            short = self._short(spec, 1).model_copy(update={"code": CODE})
            self._run("expert", short)
            self._trained[kind] = self._entry("expert", short).name
        return self._file(self._trained[kind], "weights-1.safetensors")

    @functools.cached_property
    def _trained(self) -> dict[str, str]:
        return {}

    def _file(self, name: str, file: str) -> dict[str, str]:
        sha256 = self.store.entry(name).files()[file]["sha256"]
        return {"entry": name, "file": file, "sha256": sha256}

    def _score(self, job: plan.Job) -> None:
        from pipeline.data.latents import write_shard
        from stages.features import extractor_of

        *trained, extracted = self.works.of(job)
        rows = self.facts.rows if trained else min(self.facts.rows, FEW)
        few = job.spec.images.model_copy(update={"rows": rows})
        spec, rate = job.spec.model_copy(update={"images": few}), None
        if trained:
            batch = min(spec.settings.batch, spec.settings.images)
            rate = fitted(
                lambda images: self._run("features", _trained_on(spec, images)),
                batch,
                spec.settings.images,
            )
            spec = _trained_on(spec, batch)
        else:
            self._run("features", spec)
        reference = self._entry("features", spec)
        extractor, _ = extractor_of(reference, self.workspace)
        images = dataset_of(self.workspace, spec.images).images(0, rows)
        with timed() as took:
            extractor.features(images)
        each = took[0] / rows
        self.rates[extracted.kind] = Rate(0.0, each)
        if rate is not None:
            own = Rate(max(rate.fixed - each * rows, 0.0), rate.each)
            self.rates[trained[0].kind] = own
        count = min(self.params.evaluate.samples, rows)
        samples = self.store.plan("samples", {"rehearsal": count})
        shape = images.shape[1:]
        labels = dataset_of(self.workspace, spec.images).labels(0, count)
        batches = [(images[:count], labels)]
        write_shard(samples.path / "samples.arrow", batches, shape, [0.0] * shape[0], 1.0)
        samples.finish()
        wanted = ScoresSpec(
            samples=[samples.name],
            features=reference.name,
            seed=0,
            neighbours=self.params.evaluate.neighbours,
            allow_few=True,
            code=CODE,
        )
        seconds = self._run("scores", wanted) - each * count
        own = self.works.scored(count)[1]
        self.rates[own.kind] = Rate(0.0, max(seconds, 0.0) / (count * rows))

    def _pair(self, job: plan.Job) -> None:
        def run(passes: int) -> float:
            less = {"slots": [0, passes], "latents": self._latents, "potential": None}
            return self._run("pairing", job.spec.model_copy(update=less))

        one = dataclasses.replace(job, spec=job.spec.model_copy(update={"slots": [0, 1]}))
        [work] = self.works.of(one)
        if isinstance(job.spec.settings, Semidiscrete):  # what it learns first is most of it
            self.rates[work.kind] = Rate(0.0, run(1) / work.amount)
            return
        rate = fitted(run, 1, PASSES)
        self.rates[work.kind] = Rate(rate.fixed, rate.each / work.amount)

    def _encode(self, kind: str) -> None:
        spec = self._codec.spec
        batch = min(spec.settings.batch, spec.settings.images)
        self.rates[kind] = fitted(
            lambda images: self._run("encoder", _trained_on(spec, images)),
            batch,
            spec.settings.images,
        )

    def _analyse(self, kind: str) -> None:
        _, seconds = self._spectrum
        self.rates[kind] = Rate(0.0, seconds / self._rows)

    # --- what several of them need

    @functools.cached_property
    def _codec(self) -> plan.Job | None:
        return plan.encoder(self.params, self.facts)

    @functools.cached_property
    def _encoder(self) -> str:
        """An encoder that was trained on a batch."""
        spec = self._codec.spec
        if hasattr(spec.settings, "images"):
            spec = _trained_on(spec, spec.settings.batch)
        self._run("encoder", spec)
        return self._entry("encoder", spec).name

    @functools.cached_property
    def _latents(self) -> list[str]:
        """The shards that are trained on; how long they take is measured here."""
        names = []
        for job in plan.latents(self.params, self.facts):
            [work] = self.works.of(job)
            own = {} if self._codec is None else {"encoder": self._encoder}
            spec = job.spec.model_copy(update=own)
            self.rates[work.kind] = Rate(0.0, self._run("latents", spec) / work.amount)
            names.append(self._entry("latents", spec).name)
        return names

    @functools.cached_property
    def _spectrum(self) -> tuple[str, float]:
        """The entry, and the seconds that it took."""
        spec = plan.spectrum(self.params, self.facts).spec
        spec = spec.model_copy(update={"latents": self._latents})
        seconds = self._run("spectrum", spec)
        return self._entry("spectrum", spec).name, seconds

    @property
    def _rows(self) -> int:
        return plan.latent_facts(self.params, self.facts).rows

    def _at_once(self, flops: float, most: int) -> int:
        """So many images, of so many FLOPs each, that they take no more than STEP_SECONDS."""
        return max(1, min(most, int(STEP_SECONDS * GUESSED * self._product / flops)))

    @functools.cached_property
    def _product(self) -> float:
        """FLOP/s of a matrix product."""
        import torch

        side = 1024
        a = torch.rand(side, side, device=device())
        for _ in range(3):
            with timed() as took:
                float((a @ a).sum())
        return 2 * side**3 / took[0]

    def _entry(self, kind: str, spec: Spec) -> Entry:
        return self.store.plan(kind, spec.as_json())

    def _run(self, kind: str, spec: Spec) -> float:
        """Seconds of a job that is done anew. UserError if it fails."""
        shutil.rmtree(self._entry(kind, spec).path)
        entry = self._entry(kind, spec)
        with timed() as took:
            finished = run_job(self.workspace, self.store, entry.name)
        if not finished:
            raise UserError((entry.path / "error.txt").read_text().strip())
        return took[0]


def _trained_on(spec: Any, images: int) -> Any:
    """The spec of an encoder or of features, that is trained on so many images."""
    settings = spec.settings.model_copy(update={"images": images})
    return spec.model_copy(update={"settings": settings})


def rehearsed(params: Params) -> Params:
    """The same with nothing that must be measured on the data, or be kept from training."""
    data = params.data.without("holdout")
    return without_measurements(params).model_copy(update={"data": data})
