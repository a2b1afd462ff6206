"""What the time of a job follows from: kinds of work, each with the amount that there is of it.

Work is alike where it takes as long, whatever the images, seeds and budgets: so what was measured
of some is told of other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline import plan
from pipeline.noise.params import Semidiscrete
from pipeline.params.recipe import Params
from pipeline.specs import ExpertSpec, PairingSpec
from pipeline.store.identity import canonical_json
from stages.tools.forecast import training_of


class Work(NamedTuple):
    """Some work. kind: equal for alike work; amount: of images, rows, evaluations ..."""

    kind: str
    amount: float


class Works:
    """The work of jobs, of params.yaml on a dataset."""

    def __init__(self, params: Params, facts: plan.DatasetFacts):
        self.params, self.facts = params, facts
        seen = plan.latent_facts(params, facts)
        self._rows = seen.rows
        self._image = [facts.channels, facts.resolution]
        self._latent = [seen.channels, seen.resolution]
        self._extractor = params.features.model_dump(exclude={"images", "learning_rate"})
        self._codec = params.latent.model_dump(
            exclude={"images", "learning_rate", "flips", "shard"}
        )

    def prepared(self) -> list[Work]:
        """Of the stage `prepare`."""
        keys = {"source", "side", "resolution", "channels", "crop", "duplicates"}
        how = self.params.data.model_dump(include=keys)
        return [_work("prepare", self.facts.rows + self.facts.held_out, how, self._image)]

    def of(self, job: plan.Job) -> list[Work] | None:
        """Of a job; None where it cannot be told beforehand, as of a search."""
        make = getattr(self, f"_of_{job.kind}", None)
        return None if make is None else make(job.spec)

    def _of_encoder(self, spec: Any) -> list[Work] | None:
        if spec.settings.encoder != "autoencoder":  # a download
            return None
        return [_work("encoder", spec.settings.images, self._codec, self._image)]

    def _of_latents(self, spec: Any) -> list[Work]:
        return [_work("latents", spec.last - spec.first, self._codec, self._image)]

    def _of_reconstructions(self, spec: Any) -> list[Work]:
        # Decoding takes about as long as encoding.
        return [_work("latents", 2 * spec.count, self._codec, self._image)]

    def _of_spectrum(self, _: Any) -> list[Work]:
        return [_work("spectrum", self._rows, self._latent)]

    def _of_features(self, spec: Any) -> list[Work]:
        trained = getattr(spec.settings, "images", 0)
        first = [_work("classifier", trained, self._extractor, self._image)] if trained else []
        return [*first, self._extracted(self.facts.rows)]

    def _extracted(self, images: int) -> Work:
        return _work("extract", images, self._extractor, self._image)

    def _of_pairing(self, spec: PairingSpec) -> list[Work]:
        settings = spec.settings.model_dump()
        passes = spec.slots[1] - spec.slots[0]
        if isinstance(spec.settings, Semidiscrete):  # each noise is compared with all rows
            learnt = spec.settings.noises if spec.potential is None else 0
            amount = (passes + learnt) * self._rows**2
            del settings["noises"]
        else:
            amount = passes * self._rows
        if "block" in settings:
            settings["block"] = min(settings["block"], self._rows)
        return [_work("pairing", amount, settings, bool(spec.classes), self._latent)]

    def _of_expert(self, spec: ExpertSpec) -> list[Work]:
        return [Work(training_of(spec.as_json()), spec.images)]

    def _of_merged(self, spec: Any) -> list[Work] | None:
        return None if spec.latents else []  # a search, or sums of some weights

    def scored(self, samples: int) -> list[Work]:
        """Of the scores of so many samples."""
        from pipeline.evaluation.scores import MANIFOLD_IMAGES

        settings = [self.params.evaluate.neighbours, self._extractor]
        pairs = samples * min(self.facts.rows, MANIFOLD_IMAGES)
        return [self._extracted(samples), _work("scores", pairs, settings)]


def _work(what: str, amount: float, *likeness: Any) -> Work:
    return Work(f"{what} {canonical_json(list(likeness))}", amount)
