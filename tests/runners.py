"""What the runners of jobs are made of: functions of `stages`, and what they use of `pipeline`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
# They say and place what a job does, and choose nothing of it.
AROUND = ("stages.fanout", "stages.reporter", "stages.workspace", "stages.job")


class Runner:
    """The functions that a runner calls within `stages`, itself among them.

    functions: (module, its syntax tree) of each. uses: `module:name` of all of `pipeline` in them.
    """

    def __init__(self, module: str, name: str):
        self.functions: list[tuple[str, ast.FunctionDef]] = []
        self.uses: set[str] = set()
        pending, seen = [(module, name)], set()
        while pending:
            place = pending.pop()
            if place not in seen:
                seen.add(place)
                pending += self._look(*place)

    def _look(self, module: str, name: str) -> Iterator[tuple[str, str]]:
        """Note what a function uses; gives the functions of `stages` that it calls."""
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        here = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        if name not in here:
            return
        function = here[name]
        self.functions.append((module, function))
        nodes = list(ast.walk(function))
        imports = {}
        for node in [*tree.body, *nodes]:
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    imports[alias.asname or alias.name] = (node.module, alias.name)
        for node in nodes:
            owner = getattr(getattr(node, "value", None), "id", None)
            if isinstance(node, ast.Attribute) and owner in imports:
                package, part = imports[owner]
                inner = f"{package}.{part}"
                if (ROOT / f"{inner.replace('.', '/')}.py").exists():
                    self._note(inner, node.attr)
                else:
                    self._note(package, part)
            elif isinstance(node, ast.Name) and node.id in imports:
                package, part = imports[node.id]
                if package.startswith("stages.") and package not in AROUND:
                    yield package, part
                elif not (ROOT / package.replace(".", "/") / f"{part}.py").exists():
                    self._note(package, part)
            elif isinstance(node, ast.Name) and node.id in here:
                yield module, node.id

    def _note(self, module: str, name: str) -> None:
        if module.startswith("pipeline."):
            self.uses.add(f"{module}:{name}")
