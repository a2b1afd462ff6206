"""What a section of the page is: data for its template, tables, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stages.numbers import fixed, known, short
from stages.report.figures import Drawing


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading: `templates/<key>.j2` with `data`.

    figures: also for files, by their path in results/ without a suffix: figures/ for what is the
    same wherever it runs, costs/ for seconds.
    """

    key: str
    title: str
    data: Mapping[str, Any]
    figures: Mapping[str, Sequence[Drawing]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table; the columns called `words` are text, the others numbers. label: what it is."""

    label: str
    head: Sequence[Any]
    lines: Sequence[Sequence[Any]]
    words: Sequence[str] = ()
    kind: str = ""  # its class in the style sheet


def table(label: str, columns: Mapping[str, Sequence[Any]], words: Sequence[str] = ()) -> Table:
    """A table of columns by their titles."""
    return Table(label, list(columns), list(zip(*columns.values(), strict=True)), words)


class Cell(NamedTuple):
    """A number with what stands below it; mark: the cell's class in the style sheet."""

    text: str
    below: str = ""
    mark: str = ""


class Codes(NamedTuple):
    """Names of entries, and how many more there are."""

    names: Sequence[str]
    more: int = 0


def aligned(lines: Sequence[Sequence[Any]], most: Sequence[int]) -> list[list[str]]:
    """Rows of numbers as text, each column with equally many decimals, at most so many."""
    if not lines:
        return []
    columns = [fixed(c, most=m) for c, m in zip(zip(*lines, strict=True), most, strict=True)]
    return [list(line) for line in zip(*columns, strict=True)]


def scaled(value: Any, factor: float) -> Any:
    return value * factor if known(value) else value


def listed(values: Sequence[float], most: int = 8) -> str:
    """Numbers in a sentence; of many, the first ones."""
    shown = ", ".join(short(v, 3) for v in values[:most])
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown or "–"


def interval(told: Mapping[str, float]) -> Cell:
    """An estimate with its interval below."""
    value, low, high = fixed([told[key] for key in ("value", "low", "high")])
    return Cell(value, f"{low}..{high}")
