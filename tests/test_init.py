"""`tspace init`: an installed wheel makes a project's folder, in which the pipeline runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

import pipeline
from pipeline.errors import UserError
from stages import installed
from stages.tools.init import init
from stages.workspace import Workspace
from tests.workflow import ROOT, environment, jobs_run, stages_run

PARAMS = """\
seed: 0
data: {source: digits, limit: 100}
latent: {encoder: pixels}
features: {extractor: classifier, images: 1000, dimension: 8, channels: 8}
evaluate: {samples: 32}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  training: {images: 64, batch: 16}
  schedule: {kind: log-snr, states: 4}
recipes:
  plain: {}
"""


def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_a_project_has_all_that_a_checkout_has_but_code():
    folders = (".dvc/", "data/", "envs/", "presets/", "profiles/")
    beside = {"dvc.yaml", "Snakefile", "params.yaml", ".gitignore", ".dvcignore"}
    wanted = {name for name in tracked() if name.startswith(folders)} | beside
    assert set(installed.project_files()) == wanted


def test_its_stages_depend_on_the_code_by_digest(tmp_path):
    init(tmp_path / "project")
    ours = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    theirs = yaml.safe_load((tmp_path / "project" / "dvc.yaml").read_text())
    text = (tmp_path / "project" / "dvc.yaml").read_text()
    assert f"tspace {pipeline.__version__}" in text and "# What an identical run" in text
    for name, stage in ours["stages"].items():
        deps = stage.get("deps", [])
        kept = [dep for dep in deps if not dep.startswith(("pipeline", "stages"))]
        code = [f"artefacts/code/{name}"] if kept != deps else []
        other = theirs["stages"][name]
        assert other.get("deps", []) == kept + code
        same = ("cmd", "params", *(["outs"] if name != "source" else []))
        assert all(stage.get(key) == other.get(key) for key in same)
    conda = yaml.safe_load((tmp_path / "project" / "envs" / "tspace.yaml").read_text())
    assert conda["dependencies"][-1] == {
        "pip": [f"./tspace-{pipeline.__version__}-py3-none-any.whl"]
    }
    assert {k: v for k, v in ours.items() if k != "stages"} == {
        k: v for k, v in theirs.items() if k != "stages"
    }


def test_digests_of_code_follow_its_files(tmp_path, monkeypatch):
    init(tmp_path / "project")
    workspace = Workspace(tmp_path / "project")
    installed.write_code_digests(workspace)
    folder = workspace.root / "artefacts" / "code"
    first = {path.name: path.read_text() for path in folder.iterdir()}
    code = tmp_path / "code"
    for part in ("pipeline", "stages"):
        shutil.copytree(ROOT / part, code / part, ignore=shutil.ignore_patterns("__pycache__"))
    files = installed.project_files()
    monkeypatch.setattr(installed, "project_files", lambda: files)
    monkeypatch.setattr(installed, "ROOT", code)

    def changed():
        installed.write_code_digests(workspace)
        return {path.name for path in folder.iterdir() if path.read_text() != first[path.name]}

    assert changed() == set()
    (code / "stages" / "report" / "style.css").write_text("")
    assert changed() == {"report"}
    with open(code / "pipeline" / "rows.py", "a") as f:
        f.write("\n")
    assert changed() == set(first)
    assert "prepare" in first and "source" not in first


def test_a_checkout_has_no_such_digests(tmp_path):
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    installed.write_code_digests(Workspace(tmp_path))
    assert not (tmp_path / "artefacts").exists()


def test_what_is_there_is_kept(tmp_path, capsys):
    (tmp_path / "params.yaml").write_text("mine: 1\n")
    init(tmp_path)
    assert (tmp_path / "params.yaml").read_text() == "mine: 1\n"
    assert "kept as they are: params.yaml" in capsys.readouterr().out
    with pytest.raises(UserError, match="is a checkout of tspace already"):
        init(ROOT)
    with pytest.raises(UserError, match="is a file"):
        init(tmp_path / "params.yaml")


def test_an_installation_without_the_files_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(installed, "ROOT", tmp_path)
    monkeypatch.setattr(installed.importlib.metadata, "files", lambda _: [])
    with pytest.raises(UserError, match="installed without share/tspace"):
        installed.project_files()


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree, built in a copy, without network."""
    copy = folder / "source"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(copy)], check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_runs_a_pipeline_outside_of_a_checkout(tmp_path):
    wheel, venv = build_wheel(tmp_path), tmp_path / "venv"
    assert wheel.name == f"tspace-{pipeline.__version__}-py3-none-any.whl"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    # The other packages are those of this environment, of which a path alone makes no editable one.
    own = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    (own / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    variables = environment()
    variables["PATH"] = f"{venv / 'bin'}{os.pathsep}{variables['PATH']}"
    variables.pop("PYTHONPATH", None)

    def run(*command, cwd=tmp_path, check=True):
        done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    code = "import stages, pipeline, tspace; print(stages.__file__); tspace.schedule"
    assert run(str(python), "-c", code).stdout.startswith(str(venv))
    outside = run("tspace", "plan", check=False)
    assert outside.returncode == 2 and "make one with `tspace init DIR`" in outside.stderr
    run("tspace", "init", "project")
    project = tmp_path / "project"
    assert run("tspace", "preset", cwd=project).stdout.splitlines()[0] == "celeba64"
    (project / "params.yaml").write_text(PARAMS)
    run("git", "init", "--quiet", cwd=project)
    assert jobs_run(run("dvc", "repro", cwd=project).stdout)["experts"] == 1
    summary = json.loads((project / "results" / "summary.json").read_text())
    assert summary["recipes"]["plain"]["images_seen"] == 64
    assert (project / "results" / "report.html").exists()
    assert stages_run(run("dvc", "repro", cwd=project).stdout) == ["source"]
    run("tspace", "sample", "--recipe", "plain", "-n", "4", "--out", "a.png", cwd=project)

    doctor = run("tspace", "doctor", cwd=project).stdout
    assert re.search(r"packages: \d+ requirements of tspace hold", doctor), doctor

    # Another version: every stage that the edit may touch is checked, and no job runs again.
    style = next((own / "stages" / "report").glob("style.css"))
    style.write_text(style.read_text() + "\n")
    assert stages_run(run("dvc", "repro", cwd=project).stdout) == ["source", "report"]
    with open(own / "pipeline" / "rows.py", "a") as f:
        f.write("\n# a comment\n")
    again = run("dvc", "repro", cwd=project).stdout
    assert {"prepare", "train"} <= set(stages_run(again)) and jobs_run(again) == {}
