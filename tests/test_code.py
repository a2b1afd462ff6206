"""The table of what each kind of job is made by names all that its runner uses."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipeline.identity import code_digest
from pipeline.plan.job import CODE, QUIET
from stages import jobs

# What a runner may use of `pipeline` that makes no number: how it is stopped.
APART = {"pipeline.run:Interrupted"}


def used_by(runner: str) -> set[str]:
    """`module:name` of all that a function of stages/jobs.py uses, with its helpers there."""
    tree = ast.parse(Path(jobs.__file__).read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    shared = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    found: set[str] = set()
    pending, seen = [runner], set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        nodes = list(ast.walk(functions[name]))
        imports = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in [*shared, *nodes]
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "pipeline"
            for alias in node.names
        }
        for node in nodes:
            owner = getattr(getattr(node, "value", None), "id", None)
            if isinstance(node, ast.Attribute) and owner in imports:
                module, name = imports[owner]
                path = Path(jobs.__file__).parent.parent / module.replace(".", "/") / f"{name}.py"
                found.add(f"{module}.{name}:{node.attr}" if path.exists() else f"{module}:{name}")
            elif isinstance(node, ast.Name) and node.id in functions:
                pending.append(node.id)
            elif isinstance(node, ast.Name) and node.id in imports:
                found.add("{}:{}".format(*imports[node.id]))
    return {use for use in found - APART if use.partition(":")[0] not in (*QUIET, "pipeline")}


@pytest.mark.parametrize("kind", jobs.RUNNERS)
def test_all_that_a_runner_uses_is_in_its_digest(kind):
    assert used_by(jobs.RUNNERS[kind].__name__) == set(CODE[kind])


def test_every_kind_has_a_digest():
    assert set(CODE) == set(jobs.RUNNERS)
    assert len({code_digest(*roots, apart=QUIET) for roots in CODE.values()}) == len(CODE)
