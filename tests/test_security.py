"""The claims of docs/security.md: what comes from elsewhere is data, and runs nothing."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.store.entry import Store, copy_entry
from pipeline.store.files import keep, sealed, write_sealed
from pipeline.training.run import Run
from stages import fanout
from stages.workspace import Workspace
from tests.workflow import ROOT

SOURCES = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]


def calls(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Every call in a file: what is called, and its keywords."""
    return [
        (ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg})
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def test_nothing_that_can_run_code_is_used_to_read_files():
    found = {(path.name, *call) for path in SOURCES for call in map(_frozen, calls(path))}
    named = {name: [dict(k) for _, n, k in found if n == name] for _, name, _ in found}
    assert named["torch.load"] and all(k["weights_only"] == "True" for k in named["torch.load"])
    assert not any(k.get("allow_pickle") == "True" for k in named["np.load"])
    assert all("SafeLoader" in k.get("Loader", "") for k in named["yaml.load"])
    for name in ("pickle.load", "pickle.loads", "yaml.unsafe_load", "eval"):
        assert name not in named, name
    # What is executed besides the checkout's own code: features.module and network.module.
    assert {file for file, name, _ in found if "exec" in name.split(".")[-1]} == {"module.py"}


def _frozen(call: tuple[str, dict[str, str]]) -> tuple[str, tuple[tuple[str, str], ...]]:
    return call[0], tuple(sorted(call[1].items()))


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_planted_checkpoint_runs_nothing(tmp_path):
    state = {"files": {}, "images": Evil(tmp_path / "ran")}
    keep(tmp_path / "state", "checkpoint.pt", 16, lambda path: torch.save(state, path))
    with pytest.raises(UserError, match="not a checkpoint of this run"):
        Run(tmp_path, {}, torch.device("cpu")).resume()
    assert not (tmp_path / "ran").exists()


def test_a_planted_array_runs_nothing(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Evil(tmp_path / "ran")]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "a.npy")
    assert not (tmp_path / "ran").exists()


def test_of_a_pulled_entry_only_what_it_lists_is_taken_and_as_data(tmp_path):
    store = Store(tmp_path / "store")
    entry = store.plan("expert", {"a": 1})
    (entry.path / "weights").write_text("w")
    entry.finish()
    copy_entry(entry, tmp_path / "pulled")
    (tmp_path / "pulled" / "sitecustomize.py").write_text("raise SystemExit")
    taken = Store(tmp_path / "other").adopt(tmp_path / "pulled", entry.name)
    assert sorted(os.listdir(taken.path)) == ["DONE", "spec.json", "weights"]
    assert not any(p.stat().st_mode & 0o111 for p in taken.path.iterdir())


@pytest.mark.parametrize("name", ["expert/../../planted", "../planted", "expert/", "expert/.x"])
def test_a_pulled_manifest_cannot_name_what_lies_elsewhere(tmp_path, name):
    workspace = Workspace(tmp_path)
    folder = workspace.artefacts("experts")
    folder.mkdir(parents=True)
    write_sealed(folder / "manifest.json", {"entries": [{"name": name, "files": {}}]})
    with pytest.raises(UserError, match="not the name of an entry"):
        fanout.adopt(workspace, "experts")


@pytest.mark.parametrize("text", ["[]", "{}", "1", '{"a": 1}', '{"a": 1, "digest": "x"}'])
def test_what_is_not_sealed_is_refused(text):
    with pytest.raises(ValueError, match="digest does not match"):
        sealed(text)


def test_what_is_sealed_is_read_as_it_was_written(tmp_path):
    write_sealed(tmp_path / "a.json", {"a": [1.5, None]})
    assert sealed((tmp_path / "a.json").read_text()) == {"a": [1.5, None]}
    assert set(json.loads((tmp_path / "a.json").read_text())) == {"a", "digest"}
