"""What the report's sections are made of, and what they are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.plan import DatasetFacts, Expert, RecipePlan, spectrum
from stages import charts, costs
from stages.groups import Unit, units
from stages.markup import Html, el, fixed, join, known, short
from stages.workspace import Workspace

Metrics = dict[str, dict[str, Any]]


class Section(NamedTuple):
    """A part of the page with a heading; `key` is its address in the page."""

    key: str
    title: str
    body: Html


@dataclass(frozen=True)
class Findings:
    """All that the page is made from.

    metrics: of each recipe, with its `milestones` and with `costs.times`; reference: what the
    features job reported; pictures: a PNG of samples of each recipe; reconstruction: scores of the
    decoded latents; classes: their names by label; real: a PNG of images of the dataset.
    """

    workspace: Workspace
    facts: DatasetFacts
    recipes: dict[str, RecipePlan]
    metrics: Metrics
    reference: dict[str, Any]
    pictures: dict[str, Path]
    reconstruction: dict[str, Any] | None = None
    classes: tuple[str, ...] = ()
    real: Path | None = None
    units: list[Unit] = field(init=False)
    styles: dict[str, int] = field(init=False)  # of units, and of their members

    def __post_init__(self) -> None:
        found = units({name: recipe.recipe for name, recipe in self.recipes.items()})
        styles = {}
        for number, unit in enumerate(found):
            styles |= dict.fromkeys((unit.name, *unit.members), number)
        object.__setattr__(self, "units", found)
        object.__setattr__(self, "styles", styles)

    def plan(self, unit: Unit) -> RecipePlan:
        """A unit's recipe, with its first seed."""
        return self.recipes[unit.members[0]]

    def name(self, name: str) -> Html:
        """A recipe's or unit's sign and name."""
        return join([charts.swatch(self.styles[name]), " ", el("span", name, class_="recipe")])

    def heading(self, unit: Unit) -> Html:
        """The same with the number of seeds."""
        seeds = el("span", f" {len(unit.members)} seeds", class_="seeds") if unit.several else None
        return join([self.name(unit.name), seeds])

    def class_name(self, label: int | str) -> str:
        """A class by its name, or by its number where names are unknown."""
        return self.classes[int(label)] if self.classes else f"class {label}"

    @property
    def spectrum(self) -> list[float]:
        """Principal variances of the scaled latents. UserError if they were not measured yet."""
        name = spectrum(self.workspace.params, self.facts).name
        if name not in self.facts.analyses:
            raise UserError(f"{name}: not measured yet; run `dvc repro`")
        return self.facts.analyses[name]["spectrum"]


@dataclass(frozen=True)
class Trained:
    """One expert of a recipe with what its training left."""

    expert: Expert
    seconds: float | None  # to the end of its budget; None where unknown
    record: dict[str, Any]
    curve: list[list[float]]  # [images, mean loss]


def trained(workspace: Workspace, recipe: RecipePlan) -> list[Trained]:
    """A recipe's experts. UserError if a record or a curve is missing or damaged."""
    found = []
    for expert in recipe.experts:
        entry = workspace.store.entry(expert.job.name)
        record = entry.load_json("record.json")
        images = expert.snapshots[recipe.milestones[-1]]
        seconds = costs.snapshot(workspace, expert.job, images).seconds
        found.append(Trained(expert, seconds, record, entry.load_json("curve.json")))
    return found


def paragraph(*content: Any, kind: str | None = None) -> Html:
    return el("p", *content, class_=kind)


def warning(*content: Any) -> Html:
    """What a reader must not miss."""
    return el("p", el("strong", "Warning. "), *content, class_="warning", role="note")


def code(value: str) -> Html:
    return el("code", value)


def scroll(label: str, table: Html) -> Html:
    """A wide table in a box of its own that scrolls, by keyboard too."""
    return el("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def details(title: Any, *content: Any) -> Html:
    return el("details", el("summary", title), *content)


def rows(head: Sequence[Any], lines: Sequence[Sequence[Any]], words: Sequence[str] = ()) -> Html:
    """A plain table; the columns called `words` are text, the others numbers."""
    kinds = ["word" if title in words else None for title in head]
    titles = [el("th", t, class_=k, scope="col") for t, k in zip(head, kinds, strict=True)]
    body = [
        el("tr", *(el("td", cell, class_=k) for cell, k in zip(line, kinds, strict=True)))
        for line in lines
    ]
    return el("table", el("thead", el("tr", *titles)), el("tbody", *body))


def aligned(lines: Sequence[Sequence[Any]], most: Sequence[int]) -> list[list[str]]:
    """Rows of numbers as text, each column with equally many decimals, at most so many."""
    if not lines:
        return []
    columns = [fixed(c, most=m) for c, m in zip(zip(*lines, strict=True), most, strict=True)]
    return [list(line) for line in zip(*columns, strict=True)]


def pairs(found: Sequence[tuple[Any, Any]], kind: str | None = None) -> Html:
    """Terms with what belongs to each."""
    return el("dl", *(join([el("dt", k), el("dd", v)]) for k, v in found), class_=kind)


def scaled(value: Any, factor: float) -> Any:
    return value * factor if known(value) else value


def listed(values: Sequence[float], most: int = 8) -> str:
    """Numbers in a sentence; of many, the first ones."""
    shown = ", ".join(short(v, 3) for v in values[:most])
    return f"{shown} and {len(values) - most} more" if len(values) > most else shown or "–"
