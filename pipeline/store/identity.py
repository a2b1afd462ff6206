"""What makes two pieces of work the same: digests of settings, of code and of files."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIGEST_LENGTH = 32  # hex digits, i.e. 128 bits


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, shortest floats; NaN is a ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Hex digest of a JSON-like value; equal values have equal digests on every machine."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:DIGEST_LENGTH]


def file_digest(path: Path) -> str:
    """Full sha256 of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@functools.cache
def code_digest(*roots: str, apart: tuple[str, ...] = ()) -> str:
    """Digest of the definitions that `roots` use, directly or not, within their own package.

    roots: `module` for all of one, `module:name` for a function, class or constant. What counts is
    the text of each definition (a statement at the top of its module) that can be reached by name,
    and every statement beside these that runs when their modules are imported. Comments,
    docstrings, blank lines, imports and the names of modules do not count: rewording, moving and
    adding code changes nothing for those who do not use it. apart: modules that do not count. The
    modules are read, never imported. Equal on all versions of Python. ValueError for a root that
    does not exist.
    """
    return digest(sorted(_text(*place) for place in reachable(*roots, apart=apart)))


@functools.cache
def reachable(*roots: str, apart: tuple[str, ...] = ()) -> frozenset[tuple[str, int]]:
    """The statements that count for `code_digest`: (module, number of the statement in it)."""
    pending: list[tuple[str, int]] = []
    for root in roots:
        module, _, name = root.partition(":")
        source = source_of(module)
        numbers = source.defining.get(name, ()) if name else range(len(source.statements))
        if name and not numbers:
            raise ValueError(f"{module} has no {name}")
        pending += [(module, number) for number in numbers]
    found: set[tuple[str, int]] = set()
    while pending:
        place = pending.pop()
        if place in found or place[0] in apart:
            continue
        found.add(place)
        source = source_of(place[0])
        pending += [(place[0], number) for number in source.effects]
        pending += source.uses(place[1])
    return frozenset(found)


def _text(module: str, number: int) -> str:
    return source_of(module).statements[number].text


@dataclass(frozen=True)
class _Statement:
    """A statement at the top of a module: its text, and what it may mean by a name."""

    text: str
    rows: tuple[int, int]  # of the file, from 1: its first and last one
    names: frozenset[str]  # used by themselves
    attributes: frozenset[tuple[str, str]]  # used as `name.attribute`
    imports: dict[str, tuple[str, str]]  # bound within it: name -> (module, name there or "")


@dataclass(frozen=True)
class Source:
    """A module of the package: its statements, and where its names come from."""

    module: str
    statements: tuple[_Statement, ...]
    defining: dict[str, list[int]]  # name -> the statements that bind it
    imports: dict[str, tuple[str, str]]
    effects: tuple[int, ...]  # statements that define nothing: they run at import

    def uses(self, number: int) -> Iterator[tuple[str, int]]:
        """The statements that one refers to, in this module and in others."""
        statement = self.statements[number]
        for name in statement.names:
            yield from self._resolved(statement, name, None)
        for name, attribute in statement.attributes:
            yield from self._resolved(statement, name, attribute)

    def _resolved(
        self, statement: _Statement, name: str, attribute: str | None
    ) -> Iterator[tuple[str, int]]:
        if name in statement.imports or name in self.imports:
            module, original = statement.imports.get(name) or self.imports[name]
            wanted = original or attribute
            source = source_of(module)
            if wanted is None or wanted not in source.defining:
                # A module that is passed around, or what it imported itself: all of it.
                yield from ((module, other) for other in range(len(source.statements)))
            else:
                yield from ((module, other) for other in source.defining[wanted])
        for other in self.defining.get(name, ()):
            yield self.module, other


@functools.cache
def source_of(module: str) -> Source:
    """A module of the package as its statements. ValueError if there is none of this name."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"no module named {module}")
    text = Path(spec.origin).read_text(encoding="utf-8")
    tree, package = ast.parse(text), module.partition(".")[0]
    below = {node: list(within(node)) for node in tree.body}
    lines = _without_comments(text, [tree, *(n for nodes in below.values() for n in nodes)])
    statements: list[_Statement] = []
    defining: dict[str, list[int]] = {}
    imports: dict[str, tuple[str, str]] = {}
    effects = []
    for node, nodes in below.items():
        own = "\n".join(line for line in lines[rows_of(node)[0] - 1 : node.end_lineno] if line)
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= imported(nodes, package)
        elif own:
            bound = _bound(node, nodes)
            for name in bound:
                defining.setdefault(name, []).append(len(statements))
            if not (bound and isinstance(node, _DEFINITIONS)):
                effects.append(len(statements))
            statements.append(_Statement(own, rows_of(node), *used(node), imported(nodes, package)))
    return Source(module, tuple(statements), defining, imports, tuple(effects))


def within(tree: ast.AST) -> Iterator[ast.AST]:
    """A statement and those within it, at any depth: a tenth of a syntax tree's nodes."""
    yield tree
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        below = getattr(tree, name, ())
        for node in below if isinstance(below, list) else ():  # a lambda's body is an expression
            yield from within(node)


_DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


def _bound(node: ast.stmt, nodes: list[ast.AST]) -> set[str]:
    """Names that a statement at the top of a module binds; `nodes` are those within it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    return {
        one.id
        for statement in nodes
        for one in ast.walk(statement)
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
    } | {one.name for one in nodes if isinstance(one, ast.FunctionDef | ast.ClassDef)}


def rows_of(node: ast.stmt) -> tuple[int, int]:
    """First and last row of a statement, its decorators included, from 1."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    return first, node.end_lineno


def used(node: ast.stmt) -> tuple[frozenset[str], frozenset[tuple[str, str]]]:
    """Names that a statement uses, by themselves and as `name.attribute`."""
    names: set[str] = set()
    attributes: set[tuple[str, str]] = set()
    pending: list[ast.AST] = [node]
    while pending:
        one = pending.pop()
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name):
            attributes.add((one.value.id, one.attr))
            continue
        if isinstance(one, ast.Name):
            names.add(one.id)
        # What a function says of its arguments' types changes no number.
        quiet = [one.annotation] if isinstance(one, ast.arg) else []
        quiet += [one.returns] if isinstance(one, ast.FunctionDef) else []
        pending += [below for below in ast.iter_child_nodes(one) if below not in quiet]
    return frozenset(names), frozenset(attributes)


def imported(nodes: list[ast.AST], package: str) -> dict[str, tuple[str, str]]:
    """What imports among some statements bind: name -> (module, name there; "" for the module)."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == package:
                    if alias.asname is None and "." in alias.name:
                        raise ValueError(f"import {alias.name}: write `from ... import ...`")
                    found[alias.asname or alias.name] = (alias.name, "")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            for alias in node.names:
                # `from pipeline.noise import philox as noise` names a module, not an object.
                name = f"{node.module}.{alias.name}"
                is_module = _is_package(node.module) and importlib.util.find_spec(name) is not None
                place = (name, "") if is_module else (node.module, alias.name)
                found[alias.asname or alias.name] = place
    return found


@functools.cache
def _is_package(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.submodule_search_locations is not None


# A string of any form, or a comment. A quote behind a backslash ends no string, a raw one neither;
# and those of a string within an f-string are not its own, as everywhere before Python 3.12.
_STRING_OR_COMMENT = re.compile(
    r'''"""(?:\\.|[^\\])*?"""|'{3}(?:\\.|[^\\])*?'{3}'''
    r"""|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|(?P<comment>#[^\n]*)""",
    re.DOTALL,
)


def _without_comments(text: str, nodes: list[ast.AST]) -> list[str]:
    """The lines of a module, empty where they hold no code; `nodes` are all its statements."""
    lines = _STRING_OR_COMMENT.sub(lambda m: "" if m["comment"] else m[0], text).splitlines()
    for node in nodes:
        quiet: list[ast.stmt] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            quiet = [node]
        elif (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            quiet = node.body[:1]
        for one in quiet:
            for row in range(one.lineno - 1, one.end_lineno):
                lines[row] = ""
    return [line.rstrip() for line in lines]
