"""params.yaml read: recipes merged over the defaults, and everything checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.block import TAGS
from pipeline.errors import UserError
from pipeline.params.checks import (
    contradictions,
    runs_of,
    same_names,
    strange_guide,
    strange_parent,
    strange_sections,
    too_many,
    without_holdout,
    without_pixels,
)
from pipeline.params.document import NotReadable, read
from pipeline.params.mistakes import nearest, refusal, shown, validate
from pipeline.params.recipe import Params, Recipe

NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
SECTIONS = ("seed", "data", "latent", "features", "evaluate", "defaults", "recipes")


def load(path: Path) -> Params:
    """Read, resolve and check a params.yaml. UserError listing all that is wrong with it."""
    source = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    try:
        raw = read(path.read_bytes())
    except FileNotFoundError as e:
        raise UserError(f"{source}: not found; run in the project's folder") from e
    except OSError as e:
        raise UserError(f"{source}: cannot be read ({e.strerror})") from e
    except NotReadable as e:
        raise UserError(f"{source}: {e}") from e
    return resolve(raw, source, SECTIONS)


def resolve(raw: Any, source: str = "params.yaml", required: Sequence[str] = ()) -> Params:
    """Params from a parsed YAML document. UserError listing all that is wrong with it.

    required: sections that DVC tracks by name, so an empty one must stand there.
    """
    if not isinstance(raw, dict):
        raise UserError(
            f"{source}: expected keys such as `data` and `recipes`, found "
            f"{'nothing' if raw is None else shown(raw)}"
        )
    problems = [
        f"{key}: missing; `{key}: {0 if key == 'seed' else '{}'}` is enough"
        for key in required
        if key not in raw and key != "recipes"
    ]
    shared = dict(raw)
    defaults = shared.pop("defaults", None)
    defaults = {} if defaults is None else defaults
    recipes = shared.pop("recipes", None)
    if not isinstance(recipes, dict) or not recipes:
        given = "" if not recipes else f", found {shown(recipes)}"
        problems.append(
            f"recipes: at least one recipe is needed, by name, as `recipes: {{ddpm: {{}}}}`{given}"
        )
        recipes = {}

    top = validate(Params, {**shared, "recipes": {}}, (), problems, Recipe, Params)
    before = len(problems)
    validate(Recipe, defaults, ("defaults",), problems, Recipe, Params)
    defaults_bad = len(problems) > before
    resolved: dict[str, Recipe] = {}
    for name, own in recipes.items():
        path = ("recipes", name)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            problems.append(
                f"recipes.{str(name)[:60]}: a recipe's name is lower-case letters, digits, - and "
                "_, beginning with a letter, at most 40 long"
            )
            continue
        own = {} if own is None else own
        if not isinstance(own, dict):
            problems.append(f"recipes.{name}: expected keys such as `schedule`, found {shown(own)}")
            continue
        if defaults_bad:  # the recipe is checked alone, so that each mistake is told once
            alone: list[str] = []
            validate(Recipe, own, path, alone, Recipe, Params)
            problems.extend(p for p in alone if "missing" not in p)
            continue
        recipe = validate(Recipe, merge(defaults, own), path, problems, Recipe, Params)
        if recipe is not None:
            found = list(contradictions(recipe))
            problems.extend(f"{'.'.join(path)}.{key}: {text}" for key, text in found)
            resolved[name] = recipe
    for name in resolved:
        for key, text in (*strange_parent(name, resolved), *strange_guide(name, resolved)):
            problems.append(f"recipes.{name}.{key}: {text}")
    problems.extend(same_names(resolved))
    if top is not None:
        problems.extend(strange_sections(top))
    if top is not None and not problems:
        problems.extend(without_holdout(top, resolved))
        problems.extend(without_pixels(top, resolved))
        problems.extend(too_many(top, resolved))
    compared: list[str] = []
    if top is not None and top.evaluate.consistency is not None and len(resolved) == len(recipes):
        compared = _compared(top.evaluate.consistency.recipes, resolved, problems)
    if problems:
        raise refusal(source, problems)
    assert top is not None
    evaluate = top.evaluate
    if evaluate.consistency is not None:
        block = evaluate.consistency.model_copy(update={"recipes": compared})
        evaluate = evaluate.model_copy(update={"consistency": block})
    return top.model_copy(update={"recipes": _by_seed(resolved), "evaluate": evaluate})


def _compared(names: list[str], recipes: dict[str, Recipe], problems: list[str]) -> list[str]:
    """The runs that `evaluate.consistency.recipes` stands for, each once."""
    path = "evaluate.consistency.recipes"
    runs = {name: runs_of(name, recipe) for name, recipe in recipes.items()}
    known = {**{run: [run] for own in runs.values() for run in own}, **runs}
    before = len(problems)
    for i, name in enumerate(names):
        if name not in known:
            problems.append(f"{path}.{i}: {name!r} is no recipe; {nearest(name, list(known))}")
    found = list(dict.fromkeys(run for name in names for run in known.get(name, [])))
    if len(problems) == before and len(found) < 2:
        problems.append(
            f"{path}: two or more models can be compared, {', '.join(found) or 'none'} given; name "
            "another recipe, or give this one `seeds`"
        )
    return found


def _by_seed(recipes: dict[str, Recipe]) -> dict[str, Recipe]:
    """Every recipe with `seeds` as one recipe a seed; parent and guide are those of its seed."""
    each: dict[str, Recipe] = {}
    for name, recipe in recipes.items():
        parent = recipe.training.parent
        for run, seed in zip(runs_of(name, recipe), recipe.seeds or [recipe.seed], strict=True):
            own = recipe.model_copy(update={"seed": seed, "seeds": []})
            if parent is not None and recipes[parent].seeds:
                training = recipe.training.model_copy(update={"parent": f"{parent}-seed{seed}"})
                own = own.model_copy(update={"training": training})
            guide = own.sampling.guide
            if guide is not None and guide.recipe is not None and recipes[guide.recipe].seeds:
                guide = guide.model_copy(update={"recipe": f"{guide.recipe}-seed{seed}"})
                sampling = own.sampling.model_copy(update={"guide": guide})
                own = own.model_copy(update={"sampling": sampling})
            each[run] = own
    return each


def merge(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A recipe's blocks over the defaults, key by key.

    A block of another form (`kind: cosine` over `kind: linear`) replaces the default block whole,
    since the keys of the one mean nothing to the other.
    """
    merged = dict(defaults)
    for key, value in own.items():
        default = defaults.get(key)
        same_form = (
            isinstance(value, dict)
            and isinstance(default, dict)
            and all(value.get(tag, default.get(tag)) == default.get(tag) for tag in TAGS)
        )
        merged[key] = {**default, **value} if same_form else value
    return merged
