"""What was compared, on what, and how far apart chance alone brings two scores."""

from __future__ import annotations

from collections.abc import Sequence

from stages.markup import Html, count, counted, el, fixed, join
from stages.sections.parts import Findings, Section, code, paragraph


def title(found: Findings) -> str:
    recipes = counted(len(found.units), "recipe")
    return f"{recipes} on {found.workspace.params.data.source}"


def opening(found: Findings, sections: Sequence[Section]) -> Html:
    """The head of the page, with the addresses of its sections."""
    facts, reference = found.facts, found.reference
    names = [unit.name for unit in found.units]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    channels = {1: "grey", 3: "RGB"}.get(facts.channels, f"{facts.channels} channels")
    classes = counted(facts.classes, "class", "classes") if facts.classes else "no labels"
    samples = sorted({scores["samples"] for scores in found.metrics.values()})
    drawn = (
        count(samples[0]) if len(samples) == 1 else f"{count(samples[0])} to {count(samples[-1])}"
    )
    floor, size = reference["floor"], facts.resolution
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
                el("strong", f"The floor is FID {fixed([floor['fid']])[0]}"),
                f": what one half of the real images scores against the other "
                f"({count(floor['samples'])} each), so what chance alone leaves.",
                kind="lead",
            ),
            el(
                "nav",
                *(el("a", section.title, href=f"#{section.key}") for section in sections),
                aria_label="Contents",
            ),
        ]
    )
