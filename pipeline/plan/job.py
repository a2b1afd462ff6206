"""What a unit of planned work is, and the code that makes its numbers."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from pipeline.block import Form
from pipeline.specs import Spec
from pipeline.store.identity import code_digest, digest

# Folders that hold a block of params.yaml, or several, in their `params.py`.
BLOCKS = ("data", "evaluation", "levels", "merging", "networks", "noise", "sampling", "training")
# What each kind of job is made by: the names of `pipeline` that its runner uses.
# A test holds the two together.
_LATENTS = ("pipeline.data.latents:Latents",)
_DATASET = ("pipeline.data.dataset:open_dataset", "pipeline.data.split:Split")
_EXTRACTOR = (
    "pipeline.evaluation.features:load_extractor",
    "pipeline.evaluation.features:module_extractor",
    "pipeline.evaluation.features:torch_fidelity_extractor",
    "pipeline.evaluation.frechet:Moments",
)
_MIXTURE = ("pipeline.sampling.mixture:Mixture", "pipeline.sampling.mixture:draw")
CODE = {
    "encoder": (
        *_DATASET,
        "pipeline.data.codec:fetch_diffusers",
        "pipeline.data.codec:load_codec",
        "pipeline.training.autoencoder:train_autoencoder",
    ),
    "latents": (
        *_DATASET,
        "pipeline.data.codec:load_codec",
        "pipeline.data.latents:encoded",
        "pipeline.data.latents:write_shard",
    ),
    "spectrum": (*_LATENTS, "pipeline.levels.spectrum:means", "pipeline.levels.spectrum:spectrum"),
    "bounds": (*_LATENTS, "pipeline.levels.optimal_denoiser:analyse"),
    "clusters": (
        *_LATENTS,
        "pipeline.levels.clusters:clusters",
        "pipeline.levels.clusters:write_clusters",
    ),
    "pilot": (*_LATENTS, "pipeline.networks.build:network_of", "pipeline.levels.pilot:error_curve"),
    "features": (
        *_DATASET,
        "pipeline.evaluation.features:classifier_extractor",
        "pipeline.evaluation.features:module_extractor",
        "pipeline.evaluation.features:save_extractor",
        "pipeline.evaluation.features:torch_fidelity_extractor",
        "pipeline.evaluation.frechet:moments",
        "pipeline.training.classifier:train_classifier",
    ),
    "pairing": (
        *_LATENTS,
        "pipeline.noise.assignment:centred",
        "pipeline.noise.diagnostics:diagnose_slot",
        "pipeline.noise.assignment:pair_slot",
        "pipeline.noise.assignment:principal_components",
        "pipeline.noise.pairing:write_components",
        "pipeline.noise.pairing:write_pairing",
        "pipeline.levels.spectrum:means",
    ),
    "expert": (
        *_LATENTS,
        "pipeline.levels.clusters:rows_of",
        "pipeline.noise.pairing:read_components",
        "pipeline.noise.pairing:read_pairing",
        "pipeline.training.group:Group",
        "pipeline.training.train:train",
    ),
    "router": (
        *_LATENTS,
        "pipeline.levels.clusters:read_clusters",
        "pipeline.noise.pairing:read_components",
        "pipeline.noise.pairing:read_pairing",
        "pipeline.training.router:train_router",
    ),
    "merged": (
        *_LATENTS,
        *_DATASET,
        *_EXTRACTOR,
        "pipeline.data.codec:load_codec",
        "pipeline.evaluation.scores:useless_features",
        "pipeline.merging.select:SmallSampleFid",
        "pipeline.merging.select:merge_experts",
    ),
    "samples": (*_MIXTURE, "pipeline.data.latents:write_shard"),
    "reconstructions": (
        *_DATASET,
        "pipeline.data.codec:load_codec",
        "pipeline.data.codec:reconstructions",
        "pipeline.data.latents:write_shard",
    ),
    "scores": (
        *_LATENTS,
        *_EXTRACTOR,
        "pipeline.evaluation.scores:score",
        "pipeline.evaluation.scores:useless_features",
    ),
    "errors": (
        *_LATENTS,
        "pipeline.evaluation.errors:held_out_errors",
        "pipeline.sampling.mixture:Mixture",
    ),
    "outputs": (
        *_LATENTS,
        *_DATASET,
        *_EXTRACTOR,
        *_MIXTURE,
        "pipeline.evaluation.consistency:estimates",
        "pipeline.evaluation.consistency:nearest_training",
    ),
    "consistency": (
        "pipeline.evaluation.consistency:Outputs",
        "pipeline.evaluation.consistency:compare",
    ),
}
# Modules that only say, keep or time what was made, or what was asked for (which specs hold, key by
# key): no number follows from them.
QUIET = (
    *(f"pipeline.{block}.params" for block in BLOCKS),
    "pipeline.block",
    "pipeline.errors",
    "pipeline.specs",
    "pipeline.store.circumstances",
    "pipeline.store.entry",
    "pipeline.store.files",
    "pipeline.store.identity",
)


@dataclass(frozen=True)
class Job:
    """One entry of the store to be made. `label` is for people, and not part of the identity."""

    kind: str
    spec: Spec
    label: str
    needs: tuple[str, ...] = ()  # names of entries that must be finished first
    weight: float = 1.0  # rough cost relative to others of its kind, for ordering
    threads: int = 1
    group: str = ""  # jobs of one group run in one process, one after the other
    recipe: str = ""  # one that needs it, where recipes have such jobs of their own

    @functools.cached_property
    def name(self) -> str:
        return f"{self.kind}/{digest(self.spec.as_json())}"


def code_of(kind: str, *forms: Form) -> str:
    """Digest of the code that makes the numbers of a kind of job, with these forms of blocks."""
    makers = [maker for form in forms for maker in form.makers]
    return code_digest(*CODE[kind], *makers, apart=QUIET)
