"""Recipes that differ in their seed alone: shown as one, with the mean over seeds and its range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.params.recipe import Recipe
from stages.numbers import known


@dataclass(frozen=True)
class Unit:
    """One row of a table, one line of a chart: a recipe, or all seeds of one."""

    name: str
    members: tuple[str, ...]

    @property
    def several(self) -> bool:
        return len(self.members) > 1


def stem(name: str, seed: int | None) -> str:
    """What `params.yaml` calls a recipe that `seeds` was expanded to: its name without the seed."""
    return name.removesuffix(f"-seed{seed}")


def units(recipes: Mapping[str, Recipe]) -> list[Unit]:
    """The recipes in their order, with two or more seeds of one as one unit."""
    together: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        own = stem(name, recipe.seed)
        together.setdefault(own if own not in recipes else name, []).append(name)
    return [
        Unit(own if len(members) > 1 else members[0], tuple(members))
        for own, members in together.items()
    ]


def units_of(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[Unit]:
    """The same from what `results/summary.json` holds: its recipes and its `groups`."""
    owner = {name: own for own, members in groups.items() for name in members}
    found = {owner.get(name, name): None for name in names}
    return [Unit(own, tuple(groups.get(own, [own]))) for own in found]


def mean(values: Sequence[Any]) -> float | None:
    """The mean; None where a value is missing."""
    if not all(known(value) for value in values):
        return None
    return sum(values) / len(values)
