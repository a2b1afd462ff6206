"""What became of a few samples from milestone to milestone."""

from __future__ import annotations

from stages.report.results import Results
from stages.report.section import Section


def section(results: Results) -> Section | None:
    films = results.pictures.films
    first = [unit.members[0] for unit in results.units]
    shown = [(results.named(name), films[name]) for name in first if name in films]
    return Section("film", "Milestone by milestone", {"films": shown}) if shown else None
