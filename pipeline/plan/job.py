"""What a unit of planned work is, and the code that makes its numbers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pipeline.identity import code_digest, digest

# The modules in which each kind of job makes its numbers (with all they import).
CODE = {
    "encoder": ("pipeline.autoencoder", "pipeline.split"),
    "latents": ("pipeline.latents", "pipeline.split"),
    "spectrum": ("pipeline.spectrum",),
    "bounds": ("pipeline.clustering", "pipeline.latents"),
    "pilot": ("pipeline.pilot",),
    "features": (
        "pipeline.features",
        "pipeline.networks.classifier",
        "pipeline.fidelity:moments",
        "pipeline.split",
    ),
    "pairing": ("pipeline.pairing", "pipeline.latents", "pipeline.spectrum"),
    "expert": ("pipeline.training",),
    "merged": ("pipeline.merging", "pipeline.selection", "pipeline.features", "pipeline.split"),
    "samples": ("pipeline.mixture", "pipeline.sampling"),
    "reconstructions": ("pipeline.autoencoder", "pipeline.latents", "pipeline.split"),
    "scores": ("pipeline.scores",),
    "outputs": (
        "pipeline.mixture",
        "pipeline.sampling",
        "pipeline.consistency",
        "pipeline.latents",
        "pipeline.split",
    ),
    "consistency": ("pipeline.consistency",),
}


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
    return code_digest(*CODE[kind])
