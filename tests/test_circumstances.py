"""What was made and how it was made are kept apart: a retrain is the same bytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.store import circumstances
from pipeline.store.entry import Store
from pipeline.store.files import write_json, write_sealed
from pipeline.training import draws
from stages import fanout, features
from stages import job as jobs
from tests.test_inspection import PARAMS, experts_of, make, small_workspace
from tests.workflow import run_here


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def interrupt(monkeypatch, at: int) -> None:
    """SIGTERM when the batch that starts at image `at` is drawn, once."""
    original = draws.Draws.draw

    def draw(self, start, *rest):
        if start == at:
            monkeypatch.setattr(draws.Draws, "draw", original)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, start, *rest)

    monkeypatch.setattr(draws.Draws, "draw", draw)


def test_an_interrupted_and_an_undisturbed_run_leave_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(fanout, "_run", run_here)
    found = []
    for name in ("calm", "stormy"):
        workspace = small_workspace(tmp_path / name, PARAMS)
        job = experts_of(workspace, "one")[0]
        entry = workspace.store.plan(job.kind, job.spec.as_json())
        if name == "stormy":
            write_json(entry.path / "error.txt", "of an earlier failure")
            interrupt(monkeypatch, at=32)
            with pytest.raises(SystemExit):
                jobs.run_job(workspace, workspace.store, entry.name)
            assert (entry.path / "error.txt").read_text().startswith("interrupted")
        assert make(workspace, [job]) == [True]
        features.features(workspace)
        folder = workspace.root / "artefacts"
        copied = Store(folder / "copied")
        copied.adopt(entry.path, entry.name)
        found.append((entry.circumstances(), contents(folder)))
        assert not (entry.path / "error.txt").exists()
    (calm, first), (stormy, second) = found
    assert first == second
    assert not [name for name in first if name.endswith(("circumstances.json", "error.txt"))]
    assert calm["interruptions"] == 0 and stormy["interruptions"] == 1
    assert list(stormy["snapshot_seconds"]) == list(stormy["snapshot_cpu_seconds"]) == ["48", "96"]
    assert stormy["device"] == "cpu" and stormy["device_seconds"] is None


def test_what_earlier_processes_spent_is_added_up(tmp_path):
    entry = Store(tmp_path).plan("expert", {})
    assert entry.circumstances() == {}
    with pytest.raises(UserError), circumstances.measured(entry):
        sum(range(200_000))
        raise UserError("stopped")
    first = entry.circumstances()
    write_sealed(entry.path / "circumstances.json", first | {"seconds": 100.0, "cpu_seconds": 90.0})
    with circumstances.measured(entry) as more:
        more["snapshot_seconds"] = {"8": 7.0}
    last = entry.circumstances()
    assert 100.0 < last["seconds"] < 110.0 and 90.0 < last["cpu_seconds"] < 100.0
    assert first["interruptions"] == 0 and last["interruptions"] == 1
    assert last["snapshot_seconds"] == {"8": 7.0}
    assert last["cores"] == os.cpu_count() and last["host"]
    # A finished entry lists none of it.
    (entry.path / "weights").write_text("w")
    entry.finish()
    assert list(entry.files()) == ["weights"]
