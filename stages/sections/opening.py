"""What was compared, on what, and how far apart chance alone brings two scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.scores import useless_features
from stages.markup import Html, count, counted, el, fixed, join
from stages.sections.parts import Findings, Section, code, paragraph, warning


def title(found: Findings) -> str:
    recipes = counted(len(found.units), "recipe")
    return f"{recipes} on {found.workspace.params.data.source}"


def _floor(floor: dict[str, Any] | None) -> list[Html | str]:
    if floor is None:
        return ["There are too few real images for the floor, what chance alone leaves of the FID."]
    measured = floor["measured"]
    return [
        el("strong", f"The floor is FID {fixed([floor['fid']])[0]}"),
        f": what chance alone leaves, {count(floor['samples'])} real images in the samples' place. "
        f"Measured were {count(measured['samples'])} of them against the other "
        f"{count(measured['reference_samples'])}, which score {fixed([measured['fid']])[0]}; the "
        "distance of n images to m falls as 1/n + 1/m.",
    ]


def opening(found: Findings, sections: Sequence[Section]) -> Html:
    """The head of the page, with the addresses of its sections."""
    facts, reference = found.facts, found.reference
    useless = useless_features(reference)
    names = [unit.name for unit in found.units]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    channels = {1: "grey", 3: "RGB"}.get(facts.channels, f"{facts.channels} channels")
    classes = counted(facts.classes, "class", "classes") if facts.classes else "no labels"
    samples = sorted({scores["samples"] for scores in found.metrics.values()})
    drawn = (
        count(samples[0]) if len(samples) == 1 else f"{count(samples[0])} to {count(samples[-1])}"
    )
    size = facts.resolution
    return join(
        [
            el("h1", title(found)),
            paragraph(
                f"{counted(facts.rows, 'image')} of {size} × {size} pixels, {channels}, {classes} "
                "(dataset digest ",
                code(facts.digest[:16]),
                f"). {counted(len(found.units), 'recipe')}: {shown}. Each is scored with {drawn} "
                f"samples against all images, in the {count(reference['dimension'])} features of "
                f"the extractor {reference['extractor']}. ",
                *_floor(reference["floor"]),
                kind="lead",
            ),
            useless and warning(f"{useless[0].upper()}{useless[1:]}."),
            el(
                "nav",
                *(el("a", section.title, href=f"#{section.key}") for section in sections),
                aria_label="Contents",
            ),
        ]
    )
