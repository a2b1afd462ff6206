"""What a unit of planned work is, and the code that makes its numbers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pipeline.identity import code_digest, digest

# What each kind of job is made by: the names of `pipeline` that its runner in stages/jobs.py uses.
# A test holds the two together.
_LATENTS = ("pipeline.latents:Latents",)
_DATASET = ("pipeline.dataset:open_dataset", "pipeline.split:Split")
_EXTRACTOR = (
    "pipeline.features:load_extractor",
    "pipeline.features:module_extractor",
    "pipeline.features:torch_fidelity_extractor",
    "pipeline.fidelity:Moments",
)
_MIXTURE = ("pipeline.mixture:Mixture", "pipeline.mixture:draw")
CODE = {
    "encoder": (
        *_DATASET,
        "pipeline.autoencoder:fetch_diffusers",
        "pipeline.autoencoder:load_codec",
        "pipeline.autoencoder:train_autoencoder",
    ),
    "latents": (
        *_DATASET,
        "pipeline.autoencoder:load_codec",
        "pipeline.latents:encoded",
        "pipeline.latents:write_shard",
    ),
    "spectrum": (*_LATENTS, "pipeline.spectrum:means", "pipeline.spectrum:spectrum"),
    "bounds": (*_LATENTS, "pipeline.clustering:analyse"),
    "pilot": (*_LATENTS, "pipeline.networks.build:network_of", "pipeline.pilot:error_curve"),
    "features": (
        *_DATASET,
        "pipeline.features:classifier_extractor",
        "pipeline.features:module_extractor",
        "pipeline.features:save_extractor",
        "pipeline.features:torch_fidelity_extractor",
        "pipeline.fidelity:moments",
        "pipeline.networks.classifier:train_classifier",
    ),
    "pairing": (
        *_LATENTS,
        "pipeline.pairing:centred",
        "pipeline.pairing:diagnose_slot",
        "pipeline.pairing:pair_slot",
        "pipeline.pairing:principal_components",
        "pipeline.pairing:write_components",
        "pipeline.pairing:write_pairing",
        "pipeline.spectrum:means",
    ),
    "expert": (
        *_LATENTS,
        "pipeline.pairing:read_components",
        "pipeline.pairing:read_pairing",
        "pipeline.training:train",
    ),
    "merged": (
        *_LATENTS,
        *_DATASET,
        *_EXTRACTOR,
        "pipeline.autoencoder:load_codec",
        "pipeline.scores:useless_features",
        "pipeline.selection:SmallSampleFid",
        "pipeline.selection:merge_experts",
    ),
    "samples": (*_MIXTURE, "pipeline.latents:write_shard"),
    "reconstructions": (
        *_DATASET,
        "pipeline.autoencoder:load_codec",
        "pipeline.autoencoder:reconstructions",
        "pipeline.latents:write_shard",
    ),
    "scores": (
        *_LATENTS,
        *_EXTRACTOR,
        "pipeline.scores:score",
        "pipeline.scores:useless_features",
    ),
    "outputs": (
        *_LATENTS,
        *_DATASET,
        *_EXTRACTOR,
        *_MIXTURE,
        "pipeline.consistency:estimates",
        "pipeline.consistency:nearest_training",
    ),
    "consistency": ("pipeline.consistency:Outputs", "pipeline.consistency:compare"),
}
# Modules that only say, keep or time what was made: no number follows from them.
QUIET = (
    "pipeline.circumstances",
    "pipeline.errors",
    "pipeline.files",
    "pipeline.identity",
    "pipeline.store",
)


@dataclass(frozen=True)
class Job:
    """One entry of the store to be made. `label` is for people, and not part of the identity."""

    kind: str
    spec: dict[str, Any]
    label: str
    needs: tuple[str, ...] = ()  # names of entries that must be finished first
    weight: float = 1.0  # rough cost relative to others of its kind, for ordering
    threads: int = 1
    group: str = ""  # jobs of one group run in one process, one after the other
    recipe: str = ""  # one that needs it, where recipes have such jobs of their own

    @functools.cached_property
    def name(self) -> str:
        return f"{self.kind}/{digest(self.spec)}"


def code_of(kind: str) -> str:
    """Digest of the code that makes the numbers of a kind of job."""
    return code_digest(*CODE[kind], apart=QUIET)
