"""Killed at every point at which a file is written, or stopped and woken again: nothing is lost."""

from __future__ import annotations

import pytest

from stages.job import RUNNERS
from tests.faults.conftest import every


def killed(found: dict, at_least: dict[str, int]) -> None:
    every(found, at_least)
    for points in found.values():
        assert all(point["code"] == 256 - 9 for point in points)


def test_killed_at_every_kind_of_point_a_rerun_gives_the_same_bits(attack):
    """Leases, results, state, working files, and what a stage collects."""
    at_least = {"expert": 18, "stage pair": 12, "stage merge": 4}
    killed(attack("once kill", *at_least), at_least)


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", [*RUNNERS, "stage train", "stage merge"])
def test_every_kind_of_job_survives_every_kill(attack, target):
    killed(attack("kill", target), {"stage merge": 8})


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_a_ghost_ends_by_itself_and_leaves_its_successor_alone(attack, rounds):
    found = attack("ghosts", str(rounds))
    assert sum(ghost["killed"] for ghost in found) >= 3  # where little is left, it finishes instead
    for ghost in found:
        assert ghost["ended"] == 1, ghost
        assert (
            ghost["said"][-1].split(": ")[1].startswith(("taken over by process", "finished by"))
        ), ghost
        assert not any("Traceback" in line for line in ghost["said"]), ghost
        assert ghost["untouched"] and ghost["again"] == 0 and ghost["equal"], ghost
