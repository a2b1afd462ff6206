"""Where things are: the one place that knows the project's layout."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import Damaged, UserError
from pipeline.params.load import load
from pipeline.params.mistakes import nearest
from pipeline.params.recipe import Params
from pipeline.store.entry import Store
from pipeline.store.files import sealed


@dataclass(frozen=True)
class Workspace:
    """A checkout of the project with its artefacts and its store.

    run: what does the missing jobs of a stage in place of Snakemake, see `job.run_here`.
    """

    root: Path
    run: Callable[..., None] | None = None

    @classmethod
    def here(cls) -> Workspace:
        """The workspace that the current folder is the root of.

        UserError if it is none, or if its path has what DVC cannot work with.
        """
        root = Path.cwd()
        if not str(root).isprintable() or set("{}") & set(str(root)):
            raise UserError(
                f"{str(root)!r}: DVC cannot work in a folder whose path has braces, line breaks or "
                "control characters; rename it"
            )
        for needed in ("Snakefile", "dvc.yaml"):
            if not (root / needed).exists():
                raise UserError(
                    f"{root}: has no {needed}; run tspace in the project's folder, or make one "
                    "with `tspace init DIR`"
                )
        return cls(root)

    @functools.cached_property
    def params(self) -> Params:
        return load(self.root / "params.yaml")

    def with_recipes(self, names: Iterable[str]) -> Workspace:
        """The same, as if params.yaml had no other recipes."""
        other = Workspace(self.root)
        recipes = {name: self.params.recipes[name] for name in names}
        other.__dict__["params"] = self.params.model_copy(update={"recipes": recipes})
        return other

    def known_recipe(self, name: str) -> None:
        """UserError where --recipe names no recipe, or one that stands for a run for each seed."""
        recipes = self.params.recipes
        runs = [own for own, recipe in recipes.items() if own == f"{name}-seed{recipe.seed}"]
        if name not in recipes and runs:
            raise UserError(
                f"--recipe {name}: has `seeds`; name one of its runs: {', '.join(runs)}"
            )
        if name not in recipes:
            raise UserError(f"--recipe {name}: no such recipe; {nearest(name, list(recipes))}")

    @functools.cached_property
    def store(self) -> Store:
        """Shared between clones when TSPACE_STORE names a folder; empty is unset."""
        return Store(
            Path(os.environ.get("TSPACE_STORE") or self.root / "store").expanduser().absolute()
        )

    @property
    def source(self) -> Path:
        """The fingerprint of the raw data."""
        return self.root / "artefacts" / "source.json"

    @property
    def dataset(self) -> Path:
        return self.root / "artefacts" / "dataset"

    def artefacts(self, stage: str) -> Path:
        """The output folder of a stage, which DVC owns."""
        return self.root / "artefacts" / stage

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def scratch(self) -> Path:
        """Plans and logs of this checkout; may be deleted at any time."""
        return self.root / ".tspace"

    @functools.cached_property
    def has_remote(self) -> bool:
        """Whether DVC knows a place that `dvc pull` could bring things from."""
        files = (self.root / ".dvc" / name for name in ("config", "config.local"))
        return any(file.is_file() and "remote " in file.read_text() for file in files)

    @property
    def way_to_artefacts(self) -> str:
        return f"run `dvc repro`{' (or `dvc pull`)' if self.has_remote else ''} first"

    def read_sealed(self, path: Path) -> dict[str, Any]:
        """A JSON artefact with its digest inside. UserError if it is missing or damaged."""
        return self.read_json(path, sealed)

    def manifest(self, stage: str) -> list[dict[str, Any]]:
        """The entries of a stage's output: `name`, `label` and `files`. UserError as above."""
        entries = self.read_sealed(self.artefacts(stage) / "manifest.json")["entries"]
        for item in entries:
            self.store.entry(item["name"])  # refuses a name that leads elsewhere
        return entries

    def read_json(self, path: Path, parse: Callable[[str], Any] = json.loads) -> Any:
        """A JSON artefact. UserError that names the stage to run if it is missing or damaged."""
        try:
            return parse(path.read_text())
        except FileNotFoundError as e:
            raise UserError(f"{path}: missing; {self.way_to_artefacts}") from e
        except ValueError as e:
            raise Damaged(path, "damaged; delete it and run `dvc repro`") from e
