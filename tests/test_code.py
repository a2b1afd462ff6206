"""What each kind of job is made by: held to the functions that its runner uses."""

from __future__ import annotations

import ast

import pytest

from pipeline.plan.job import CODE, QUIET
from pipeline.store.identity import code_digest, reachable
from stages import job as jobs
from tests.runners import Runner

# What a runner may use of `pipeline` that makes no number: how it ends before its time, and names.
APART = {"pipeline.training.group:Parted", "pipeline.training.run:Interrupted"}
APART |= {"pipeline.devices:named"}
# What would choose rows or noises outside of `pipeline`, where no digest covers it.
CHOOSING = {"linspace", "permutation", "spread", "some", "cut", "label_sequence", "sort", "choice"}
CHOOSING |= {"randint", "normal", "uniform", "integers", "default_rng", "Generator", "manual_seed"}


@pytest.fixture(params=jobs.RUNNERS)
def kind(request):
    return request.param


def runner(kind):
    function = jobs.RUNNERS[kind]
    return Runner(function.__module__, function.__name__)


def test_all_that_a_runner_uses_is_in_its_digest(kind):
    used = {use for use in runner(kind).uses if use.partition(":")[0] not in QUIET}
    assert used - APART == set(CODE[kind])


def test_no_number_or_choice_that_changes_a_result_is_outside_the_digests(kind):
    """Numbers other than -1, 0 and 1, choices of rows, and ranges of anything but a whole."""
    found = []
    for module, function in runner(kind).functions:
        for node in ast.walk(function):
            if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
                if node.value not in (0, 1):
                    found.append(f"{module}:{node.lineno}: {node.value}")
            elif isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                first = getattr(node.args[0], "func", None) if node.args else None
                whole = getattr(first, "id", "") == "len"
                if name in CHOOSING or (name == "arange" and not whole):
                    found.append(f"{module}:{node.lineno}: {name}")
    assert found == []


def test_the_code_that_chooses_rows_is_in_the_digest_of_every_kind_that_uses_it():
    kinds = {
        kind
        for kind, roots in CODE.items()
        if any(module == "pipeline.rows" for module, _ in reachable(*roots, apart=QUIET))
    }
    assert kinds == set(CODE) - {"expert", "router"}


def test_every_kind_has_a_digest():
    assert set(CODE) == set(jobs.RUNNERS)
    assert len({code_digest(*roots, apart=QUIET) for roots in CODE.values()}) == len(CODE)
