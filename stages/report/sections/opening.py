"""What was compared, on what, and how far apart chance alone brings two scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.evaluation.scores import features_warning
from stages.numbers import count, counted
from stages.report.results import Results


def data(results: Results) -> dict[str, Any]:
    facts = results.facts
    names = [unit.name for unit in results.units]
    samples = sorted({scores["samples"] for scores in results.metrics.values()})
    return {
        "title": f"{counted(len(names), 'recipe')} on {source(results)}",
        "facts": facts,
        "channels": {1: "grey", 3: "RGB"}.get(facts.channels, f"{facts.channels} channels"),
        "recipes": len(names),
        "names": ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else ""),
        "samples": " to ".join(map(count, dict.fromkeys((samples[0], samples[-1])))),
        "reference": results.reference,
        "useless": features_warning(results.reference),
        "written": results.written,
        "processors": sorted({h for m in results.metrics.values() for h in m.get("hosts", [])}),
    }


def source(results: Results) -> str:
    """The dataset as a reader knows it: images of one's own by their file or folder."""
    own = results.params.data
    return f"{Path(own.path).name} ({own.source})" if own.path else own.source
