"""One bit flipped in each kind of file that is read back: it is healed, or refused by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.store import files
from stages import facts, fanout, merge, sample
from stages.cli import stage_named
from stages.job import RUNNERS, run_here, run_job
from stages.workspace import Workspace
from tests.faults.attack import contents, flip, named, restore, unmade, whole
from tests.workflow import ROOT, environment


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("flips") / "tiny"
    command = [sys.executable, "-m", "tests.faults.attack", str(root), "kill"]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True)
    return root


@pytest.fixture
def workspace(made, monkeypatch):
    monkeypatch.delenv("TSPACE_STORE", raising=False)
    monkeypatch.setattr(fanout, "_run", run_here)
    workspace = Workspace(made)
    restore(workspace)
    return workspace


def file_of(workspace: Workspace, place: str, kind: str, name: str) -> Path:
    """A file of the first entry of a kind, in the store or in artefacts/."""
    entry = workspace.store.entry(named(workspace, kind))
    if place == "store":
        return entry.path / name
    (folder,) = (workspace.root / "artefacts").glob(f"*/{entry.digest}")
    return folder / name


HEALED = [  # the file, and the stage that DVC runs as its output changed
    ("expert", "weights-48.safetensors", "train"),
    ("expert", "curve.json", "train"),
    ("expert", "DONE", "train"),
    ("expert", "spec.json", "train"),
    ("merged", "weights.safetensors", "train"),
    ("spectrum", "analysis.json", "analyse"),
    ("spectrum", "means.safetensors", "analyse"),
    ("encoder", "encoder.json", "encode"),
    ("latents", "latents.arrow", "encode"),
    ("pairing", "pairing.arrow", "pair"),
    ("features", "features.npy", "features"),
    ("samples", "samples.arrow", "sample"),
    ("scores", "scores.json", "evaluate"),
]


@pytest.mark.parametrize(("kind", "name", "stage"), HEALED)
def test_damaged_artefacts_are_restored_from_the_store(workspace, kind, name, stage, capsys):
    path = file_of(workspace, "artefacts", kind, name)
    stage_named(stage)(workspace)  # all of it was read once
    flip(path)
    stage_named(stage)(workspace)
    assert "restored from the store" in capsys.readouterr().out
    assert contents(workspace.root / "artefacts") == contents(whole(workspace.root) / "artefacts")


OUTPUTS = {
    "analyses": "analyse",
    "experts": "train",
    "latents": "encode",
    "pairings": "pair",
    "features": "features",
    "samples": "sample",
    "scores": "evaluate",
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_damaged_manifest_is_made_again(workspace, output):
    flip(workspace.artefacts(output) / "manifest.json")
    stage_named(OUTPUTS[output])(workspace)
    assert contents(workspace.root / "artefacts") == contents(whole(workspace.root) / "artefacts")


@pytest.mark.parametrize("stage", ["train", "sample"])
def test_without_the_store_a_damaged_artefact_is_refused(workspace, stage):
    """As `dvc checkout` brings it from a damaged cache: DVC trusts its own files."""
    path = file_of(workspace, "artefacts", "expert", "weights-48.safetensors")
    shutil.rmtree(workspace.store.root)
    flip(path)
    with pytest.raises(UserError, match=f"{path.name}: damaged .checksum differs.; delete"):
        stage_named(stage)(workspace)


def test_analyses_are_read_as_their_manifest_has_them(workspace):
    path = file_of(workspace, "artefacts", "spectrum", "analysis.json")
    before = facts.facts_of(workspace)
    flip(path)
    assert facts.facts_of(workspace) == before  # from the store
    shutil.rmtree(workspace.store.root)
    with pytest.raises(UserError, match=r"analysis\.json: damaged or missing; delete"):
        facts.facts_of(workspace)


def test_a_merge_reads_the_encoder_that_its_manifest_has(workspace):
    flip(file_of(workspace, "artefacts", "encoder", "encoder.json"))
    merge.merge(workspace)
    assert contents(workspace.artefacts("mixtures")) == contents(
        whole(workspace.root) / "artefacts" / "mixtures"
    )


@pytest.mark.parametrize(
    ("old", "new"), [('"scale": ', '"scale": 2'), ('"images": 48', '"images": 49')]
)
def test_a_changed_mixture_is_refused_until_it_is_merged_again(workspace, old, new):
    path = workspace.artefacts("mixtures") / "base.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"base\.json: damaged; delete it and run"):
        sample.sample(workspace)
    merge.merge(workspace)
    sample.sample(workspace)
    assert path.read_text() == text


READ_BY = [  # a finished result in the store, and a job that reads it
    ("encoder", "encoder.safetensors", "latents"),
    ("encoder", "encoder.json", "latents"),
    ("latents", "latents.arrow", "expert"),
    ("pairing", "pairing.arrow", "expert"),
    ("expert", "weights-48.safetensors", "samples base at 48"),
    ("features", "extractor.safetensors", "scores"),
    ("features", "features.npy", "scores"),
    ("features", "reference.safetensors", "scores"),
    ("samples", "samples.arrow", "scores"),
]


@pytest.mark.parametrize(("kind", "name", "reader"), READ_BY)
def test_a_damaged_result_in_the_store_is_refused_by_name(workspace, kind, name, reader):
    flip(file_of(workspace, "store", kind, name))
    entry = workspace.store.entry(named(workspace, reader))
    unmade(workspace, entry.path)
    assert not run_job(workspace, workspace.store, entry.name)
    said = (entry.path / "error.txt").read_text()
    assert f"{name}: damaged" in said and said.count("\n") == 1


@pytest.mark.parametrize("kind", RUNNERS)
def test_every_result_is_renamed_into_place(workspace, monkeypatch, kind):
    """Else a ghost could write to it, or a kill leave a part of it."""
    entry = workspace.store.entry(named(workspace, kind))
    results, renamed = set(entry.files()), set()
    unmade(workspace, entry.path)

    def passed(point: str, path: Path) -> None:
        if point == "renamed":
            renamed.add(path.name)

    monkeypatch.setattr(files, "fault", passed)
    assert run_job(workspace, workspace.store, entry.name)
    assert set(entry.files()) == results and results <= renamed


@pytest.mark.exhaustive
@pytest.mark.parametrize(("place", "at_least"), [("artefacts", 60), ("store", 60), ("state", 30)])
def test_a_flipped_bit_in_any_kind_of_file_is_healed_or_refused_by_name(attack, place, at_least):
    found = attack("flips", place)
    print(f"{place}: {len(found)} kinds of files")
    for flipped in found:
        print(f"  {flipped['file']}: {flipped['outcome']}")
        assert flipped["code"] == 0 and flipped["equal"], flipped  # after what was said, if any
        assert flipped["outcome"] == "healed" or flipped["named"], flipped
        assert not flipped.get("trace") and not flipped.get("tools"), flipped
    assert len(found) >= at_least


def test_a_damaged_dataset_is_refused_by_name(workspace):
    flip(workspace.dataset)
    entry = workspace.store.entry(named(workspace, "encoder"))
    unmade(workspace, entry.path)
    assert not run_job(workspace, workspace.store, entry.name)
    said = (entry.path / "error.txt").read_text()
    assert str(workspace.dataset) in said and "damaged" in said and said.count("\n") == 1
