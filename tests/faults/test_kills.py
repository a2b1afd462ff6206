"""Killed, or refused a write, at every point at which a file is written: nothing is ever lost."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.workflow import ROOT, environment


@pytest.fixture(scope="module")
def attack(tmp_path_factory):
    """What `tests.faults.attack` finds, by target; the project is made once."""
    root = tmp_path_factory.mktemp("faults") / "tiny"

    def run(action: str, *targets: str):
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.attack", str(root), action, *targets],
            cwd=ROOT,
            env=environment(MKL_NUM_THREADS="1"),
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


ALL = [
    "stage train",
    "encoder",
    "latents",
    "spectrum",
    "pairing",
    "features",
    "merged",
    "samples",
    "scores",
]


def every(found: dict, at_least: dict[str, int]) -> None:
    """Each target was hit so often at least, and made again with the same bits every time."""
    for target, points in found.items():
        assert len(points) >= at_least.get(target, 10), target
        for point in points:
            assert point["again"] == 0 and point["equal"], (target, point)


def test_killed_at_any_point_a_rerun_gives_the_same_bits(attack):
    found = attack("kill", "expert", "stage merge")
    every(found, {"expert": 35, "stage merge": 8})
    for points in found.values():
        assert all(point["code"] == 256 - 9 for point in points)


def refused(points: list[dict], text: str) -> None:
    """Every refused write is one line, or nothing where the work could do without it."""
    for point in points:
        said = [line for line in point["said"] if not line.startswith("fault: ")]
        assert (point["code"] == 0 and not said) or (len(said) == 1 and text in said[0]), point


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("ENOSPC", "the disk is full"),
        pytest.param("EIO", "the disk or the network failed", marks=pytest.mark.slow),
        pytest.param("EROFS", "may not be written or read", marks=pytest.mark.slow),
    ],
)
def test_a_refused_write_is_one_line_and_a_rerun_heals(attack, error, text):
    found = attack(error, "expert")
    every(found, {"expert": 25})
    refused(found["expert"], text)


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", ALL)
def test_every_kind_of_job_survives_every_kill(attack, target):
    every(attack("kill", target), {})


@pytest.mark.exhaustive
def test_every_kind_of_job_survives_a_full_disk(attack):
    found = attack("ENOSPC", *ALL[1:])
    every(found, {})
    for points in found.values():
        refused(points, "the disk is full")


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
