"""The tower of the library: imports run down it, never up and never in a circle."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up; what stands in one line may know each other. `params` are the blocks of
# params.yaml in each folder, and pipeline/params the whole of it.
TOWER = [
    {"errors", "block", "devices"},
    {"store", "params.py"},
    {"noise", "rows"},
    {"networks", "specs"},
    {"data"},
    {"levels", "evaluation"},
    {"training"},
    {"sampling"},
    {"merging"},
    {"params"},
    {"plan", "interface"},
]
FLOOR = {part: floor for floor, parts in enumerate(TOWER) for part in parts}
FILES = sorted((ROOT / "pipeline").rglob("*.py")) + sorted((ROOT / "stages").rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """Modules of the project that a file imports when it is imported or when it runs."""
    tree = ast.parse(path.read_text())
    types_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in types_only:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in MODULES else node.module)
    return {name for name in found if name in MODULES}


def part_of(module: str) -> str:
    """The part of the tower that a module of `pipeline` is in."""
    parts = module.split(".")
    return "params.py" if len(parts) == 3 and parts[-1] == "params" else parts[1]


def test_every_part_of_the_library_has_its_floor():
    parts = {part_of(module) for module in MODULES if module.startswith("pipeline.")}
    assert parts == set(FLOOR)


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("pipeline.")])
def test_imports_run_down_the_tower(module):
    for other in imports(MODULES[module]) - {"pipeline"}:
        assert other.startswith("pipeline."), f"{module} imports {other}"
        assert FLOOR[part_of(other)] <= FLOOR[part_of(module)], f"{module} imports {other}"


def test_there_is_no_circle():
    packages = {name for name in MODULES if MODULES[name].name == "__init__.py"}
    graph = {name: imports(path) - {name} - packages for name, path in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_nothing_that_says_what_is_asked_for_imports_torch():
    names = [name for name in MODULES if name.endswith(".params") or ".params." in name]
    names += ["pipeline.specs", "pipeline.plan", "pipeline.rows", "stages.cli", "stages.tools.plan"]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
