"""From settings to jobs: every recipe resolved to experts, samples and scores, each with a digest.

A job's spec holds all that determines its bits and nothing else: its own states and not how many
experts there are, what it reads (by name, and names are digests), the code that makes the numbers
and the precision. Host, executor, worker count and log options stay out. Nothing is read or run
here, and torch is not imported.
"""

from pipeline.plan.analyses import FROM_DATA, NotMeasured, analyses, states_of
from pipeline.plan.expert import Weights
from pipeline.plan.inputs import (
    DatasetFacts,
    LatentFacts,
    encoder,
    facts,
    features,
    held_out,
    latent_facts,
    latents,
    spectrum,
)
from pipeline.plan.job import CODE, Job, code_of
from pipeline.plan.merges import Expert, RecipePlan
from pipeline.plan.outputs import (
    asked_at,
    class_counts,
    consistency,
    errors,
    led_of,
    reconstructions,
    samples,
    scores,
    shared_levels,
)
from pipeline.plan.recipes import check, experts, pairings

__all__ = [
    "CODE",
    "FROM_DATA",
    "DatasetFacts",
    "Expert",
    "Job",
    "LatentFacts",
    "NotMeasured",
    "RecipePlan",
    "Weights",
    "analyses",
    "asked_at",
    "check",
    "class_counts",
    "code_of",
    "consistency",
    "encoder",
    "errors",
    "experts",
    "facts",
    "features",
    "held_out",
    "latent_facts",
    "latents",
    "led_of",
    "pairings",
    "reconstructions",
    "samples",
    "scores",
    "shared_levels",
    "spectrum",
    "states_of",
]
