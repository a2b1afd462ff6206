"""Code to give away: the definitions that some names reach, as one small package."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.store.identity import Source, imported, reachable, rows_of, source_of, used, within

FREE = sys.stdlib_module_names | {"torch", "safetensors"}  # what a bundle may import
_BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def bundle(
    entry: str, *roots: str, apart: tuple[str, ...] = (), instead: Mapping[str, str] | None = None
) -> dict[str, str]:
    """A package that needs torch and safetensors alone: file name -> text.

    entry: the module that becomes the package itself, whole; roots: `module:name` of what it looks
    up by name. Of the other modules it has the definitions that are reached, as they stand, with
    their comments, each in a file of its module's last name. apart: modules that only types of
    arguments name. instead: texts of definitions (`module:name`) that would need more.
    ValueError for code that needs another package at import, or two modules of one last name.
    """
    kept: dict[str, set[int]] = defaultdict(set)
    for module, number in sorted(reachable(entry, *roots, apart=apart)):
        kept[module].add(number)
    files = {module: module.rpartition(".")[2] for module in kept} | {entry: "__init__"}
    if len(set(files.values())) < len(files):
        raise ValueError(f"two modules of one last name among {', '.join(sorted(files))}")
    modules = {module: _Module(source_of(module), kept, instead or {}) for module in kept}
    while any([module.keep_types() for module in modules.values()]):
        pass
    return {f"{files[name]}.py": module.text(files) for name, module in modules.items()}


class _Module:
    """A module of the package, and what is kept of it."""

    def __init__(self, source: Source, kept: Mapping[str, set[int]], instead: Mapping[str, str]):
        self.source, self.kept = source, kept
        self.instead = {
            name: text
            for place, text in instead.items()
            for module, _, name in [place.partition(":")]
            if module == source.module
        }
        text = Path(importlib.util.find_spec(source.module).origin).read_text(encoding="utf-8")
        self.lines, self.tree = text.splitlines(), ast.parse(text)

    def keep_types(self) -> bool:
        """Keep what annotations name and is but another name of a type; whether any was new."""
        new = False
        for name in self._written(self._nodes()):
            module, wanted = self.source.imports.get(name, (self.source.module, name))
            for number in source_of(module).defining.get(wanted, ()) if module in self.kept else ():
                if number not in self.kept[module] and _alias(module, number):
                    self.kept[module].add(number)
                    new = True
        return new

    def text(self, files: Mapping[str, str]) -> str:
        """The module as a file of the bundle, whose modules have these names there."""
        nodes, said = self._nodes(), self.tree.body[0]
        parts = ["\n".join(self.lines[: said.end_lineno]) + "\n"]
        parts += ["from __future__ import annotations", *self._imports(nodes, files)]
        before = None
        for node in nodes:
            row, own = self._own(node, files)
            apart = isinstance(node, _BLOCKS) or isinstance(before, _BLOCKS)
            blank = before is None or not self.lines[row - 2].strip()
            parts.append("\n" * (2 if apart else 1 if blank else 0) + own)
            before = node
        return "\n".join(parts) + "\n"

    def _nodes(self) -> list[ast.stmt]:
        rows = {self.source.statements[number].rows for number in self.kept[self.source.module]}
        return [node for node in self.tree.body if rows_of(node) in rows and not _idle(node)]

    def _own(self, node: ast.stmt, files: Mapping[str, str]) -> tuple[int, str]:
        """The first row of a statement, comments above it included, and its text."""
        first, last = rows_of(node)
        if text := self.instead.get(getattr(node, "name", "")):
            return first, text.strip("\n")
        while first > 1 and self.lines[first - 2].startswith("#"):
            first -= 1
        lines = self.lines[first - 1 : last]
        inner = [one for one in within(node) if isinstance(one, ast.ImportFrom) and self._ours(one)]
        for one in sorted(inner, key=lambda one: -one.lineno):
            blanks = " " * one.col_offset
            rows = slice(one.lineno - first, one.end_lineno - first + 1)
            lines[rows] = [blanks + line for line in self._relative([one], files)]
        return first, "\n".join(lines)

    def _imports(self, nodes: list[ast.stmt], files: Mapping[str, str]) -> Iterator[str]:
        nodes = [node for node in nodes if getattr(node, "name", "") not in self.instead]
        run = {name for node in nodes for name in _run(node)}
        written = self._written(nodes)
        above = [node for node in self.tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        ours = [node for node in above if self._ours(node)]
        others = [node for node in above if not self._ours(node) and not _future(node)]
        plain = sorted(self._plain(others, run, written), key=lambda line: (line[0] == "f", line))
        standard = [line for line in plain if _root(line) in sys.stdlib_module_names]
        third = [line for line in plain if line not in standard]
        types = {name for name in written if self._aliased(name)}
        for group in (standard, third, list(self._relative(ours, files, run | types))):
            if group:
                yield "\n" + "\n".join(group)

    def _plain(self, nodes: list[ast.stmt], run: set[str], written: set[str]) -> Iterator[str]:
        """Imports from elsewhere: of names that are run, and of those in annotations if free."""
        for node in nodes:
            start = f"from {node.module} import " if isinstance(node, ast.ImportFrom) else "import "
            free = _root(f"{start}{node.names[0].name}") in FREE
            names = []
            for alias in node.names:
                bound = alias.asname or alias.name.split(".")[0]
                if bound in run and not free:
                    raise ValueError(f"{self.source.module} needs {alias.name}")
                if bound in (run | written if free else run):
                    names.append(alias.name + (f" as {alias.asname}" if alias.asname else ""))
            if names:
                yield start + ", ".join(names)

    def _ours(self, node: ast.stmt) -> bool:
        """Whether a statement imports from the package itself."""
        named = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        return (named or "").split(".")[0] == self.source.module.split(".")[0]

    def _relative(
        self, nodes: list[ast.stmt], files: Mapping[str, str], wanted: set[str] | None = None
    ) -> Iterator[str]:
        """Imports from the package itself, of the names that are wanted (None: of all)."""
        package, found = self.source.module.split(".")[0], defaultdict(list)
        for bound, (module, name) in imported(nodes, package).items():
            if wanted is not None and bound not in wanted:
                continue
            if module not in files:
                raise ValueError(f"{self.source.module} needs {module}")
            place, given = (f".{files[module]}", name) if name else (".", files[module])
            found[place].append(given + (f" as {bound}" if bound != given else ""))
        for place in sorted(found):
            yield f"from {place} import {', '.join(sorted(found[place]))}"

    def _written(self, nodes: Iterable[ast.stmt]) -> set[str]:
        """Names that are written in some statements, in annotations, too."""
        return {one.id for node in nodes for one in ast.walk(node) if isinstance(one, ast.Name)}

    def _aliased(self, name: str) -> bool:
        """Whether a name is imported and another name of a type, which is kept."""
        module, wanted = self.source.imports.get(name, ("", ""))
        if module not in self.kept:
            return False
        numbers = source_of(module).defining.get(wanted, ())
        return any(n in self.kept[module] and _alias(module, n) for n in numbers)


@functools.cache
def _alias(module: str, number: int) -> bool:
    """Whether a statement names a type, such as `Clip = tuple[float, float]`, or a variable one."""
    text = source_of(module).statements[number].text
    if text.startswith(("def ", "class ", "@", "async ")):
        return False
    statement = ast.parse(text).body[0]
    value = statement.value if isinstance(statement, ast.Assign) else None
    variable = isinstance(value, ast.Call) and getattr(value.func, "id", "") == "TypeVar"
    return variable or isinstance(value, ast.Subscript | ast.BinOp)


def _run(node: ast.stmt) -> set[str]:
    names, attributes = used(node)
    return set(names) | {name for name, _ in attributes}


def _idle(node: ast.stmt) -> bool:
    """Whether a statement is for readers or type checkers alone."""
    for_types = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    return for_types or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _root(line: str) -> str:
    return line.split()[1].split(".")[0]
