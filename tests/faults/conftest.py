"""Runs `tests.faults.attack` on a tiny project, which the tests of a module share."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow import ROOT, environment

SHIM = Path(__file__).with_name("refuse.c")


@pytest.fixture(scope="module")
def attack(tmp_path_factory):
    """What `tests.faults.attack` finds for an action and its targets; the project is made once."""
    folder = tmp_path_factory.mktemp("faults")

    def run(action: str, *targets: str):
        preload = {"LD_PRELOAD": compiled(folder)} if action.startswith("every ") else {}
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.attack", str(folder / "tiny"), action, *targets],
            cwd=ROOT,
            env=environment(MKL_NUM_THREADS="1", **preload),
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def compiled(folder: Path) -> str:
    """refuse.c as a library to preload."""
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("needs Linux and a C compiler")
    library = folder / "refuse.so"
    subprocess.run(["cc", "-O1", "-fPIC", "-shared", "-o", library, SHIM, "-ldl"], check=True)
    return str(library)


def every(found: dict, at_least: dict[str, int]) -> None:
    """Each target was hit so often at least, and made again with the same bits every time."""
    for target, points in found.items():
        assert len(points) >= at_least.get(target, 10), target
        for point in points:
            assert point["again"] == 0 and point["equal"], (target, point)
