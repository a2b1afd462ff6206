"""A file system that refuses one write after the other: one line each, and nothing is lost."""

from __future__ import annotations

import pytest

from stages.job import RUNNERS
from tests.faults.conftest import every

TEXTS = {
    "ENOSPC": "the disk is full",
    "EIO": "the disk or the network failed",
    "EROFS": "may not be written or read",
}


def refused(points: list[dict], text: str) -> None:
    """Every refused write is one line, or nothing where the work could do without it."""
    for point in points:
        # `also` is what the run afterwards says, which nothing refuses.
        said = [x for x in point["said"] if not x.startswith("fault: ") and x not in point["also"]]
        assert (point["code"] == 0 and not said) or (len(said) == 1 and text in said[0]), point


@pytest.mark.parametrize("error", TEXTS)
def test_a_refused_write_is_one_line_and_a_rerun_heals(attack, error):
    found = attack(f"once {error}", "expert")
    every(found, {"expert": 13})
    refused(found["expert"], TEXTS[error])


@pytest.mark.exhaustive
@pytest.mark.parametrize("error", TEXTS)
def test_every_call_that_changes_a_file_may_be_refused(attack, error):
    found = attack(f"every {error}", "expert", "stage merge")
    every(found, {"expert": 100, "stage merge": 15})
    for points in found.values():
        refused(points, TEXTS[error])


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", [kind for kind in RUNNERS if kind != "expert"])
def test_in_every_kind_of_job_every_call_may_be_refused(attack, target):
    found = attack("every EIO", target)
    every(found, {})
    refused(found[target], TEXTS["EIO"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("error", ["ENOSPC", "EROFS"])
@pytest.mark.parametrize("target", [kind for kind in RUNNERS if kind != "expert"])
def test_every_kind_of_job_says_in_one_line_what_refused_it(attack, target, error):
    found = attack(f"once {error}", target)
    every(found, {target: 4})
    refused(found[target], TEXTS[error])
