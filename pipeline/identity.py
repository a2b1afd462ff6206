"""What makes two pieces of work the same: digests of settings, of code and of files."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import io
import json
import tokenize
from collections.abc import Iterator
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
def code_digest(*modules: str) -> str:
    """Digest of the source of `modules` and of all they import from the same package, transitively.

    Comments, docstrings and blank lines do not count, so rewording them retrains nothing. The
    modules are read, never imported. Equal on all versions of Python.
    """
    sources: dict[str, str] = {}
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name in sources:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ValueError(f"no module named {name}")
        text = Path(spec.origin).read_text(encoding="utf-8")
        sources[name], imported = _parsed(text, name.split(".")[0])
        pending.extend(imported)
    return digest(sources)


@functools.cache  # most modules count for several kinds of work
def _parsed(text: str, package: str) -> tuple[str, frozenset[str]]:
    tree = ast.parse(text)
    return _without_comments(text, tree), frozenset(_imports(tree, package))


def _imports(tree: ast.Module, package: str) -> set[str]:
    """Modules of `package` that a syntax tree imports (absolute imports, the only form here)."""
    found = set()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names if a.name.split(".")[0] == package)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            folders = importlib.util.find_spec(node.module).submodule_search_locations or []
            for alias in node.names:  # `from pipeline import noise` names a module, not an object
                is_module = any((Path(folder) / f"{alias.name}.py").exists() for folder in folders)
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """A syntax tree's statements, at any depth: a tenth of its nodes."""
    yield tree
    for name in ("body", "handlers", "orelse", "finalbody", "cases"):
        below = getattr(tree, name, ())
        for node in below if isinstance(below, list) else ():  # a lambda's body is an expression
            yield from _statements(node)


def _without_comments(text: str, tree: ast.Module) -> str:
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in _statements(tree):
        documented = isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        )
        if documented and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            for row in range(first.lineno - 1, first.end_lineno):
                lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())
