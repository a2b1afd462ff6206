"""profiles/slurm-apptainer: that jobs run in the image, with all that they need.

`apptainer` here is a script that notes what it is asked and runs the command without a container.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages import encode
from stages.workspace import Workspace
from tests.test_placing import prepared
from tests.workflow import ROOT

PROFILE = ROOT / "profiles" / "slurm-apptainer"
STAND_IN = """\
#!{python}
import json, os, sys
with open({record!r}, "a") as f:
    f.write(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]) + "\\n")
command = sys.argv[sys.argv.index("tspace.sif") + 1 :]
assert command[0] == "python"  # of the image
os.execv({python!r}, [{python!r}, *command[1:]])
"""
PASSED = {
    "TSPACE_CHECKPOINT_SECONDS": "7",
    "TSPACE_PROCESSES": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "SLURM_JOB_ID": "12",
}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the stand-in was asked so far: options, the job's command, environment and folder."""
    record = tmp_path / "asked.jsonl"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "apptainer"
    program.write_text(STAND_IN.format(python=sys.executable, record=str(record)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{Path(sys.executable).parent}:/usr/bin:/bin")
    for name, value in PASSED.items():
        monkeypatch.setenv(name, value)

    def found() -> list[tuple[list[str], list[str], dict[str, str], str]]:
        lines = map(json.loads, record.read_text().splitlines())
        return [
            (argv[: argv.index("tspace.sif")], argv[argv.index("python") + 1 :], env, folder)
            for argv, env, folder in lines
        ]

    return found


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The profile as it is, but for where it submits to: this machine."""
    settings = yaml.safe_load((PROFILE / "config.yaml").read_text())
    kept = {key: value for key, value in settings.items() if not key.startswith("slurm-")}
    assert kept.pop("executor") == "slurm" and kept.pop("jobs")
    kept |= {"cores": 1, "latency-wait": 1, "retries": 0}
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text(yaml.safe_dump(kept))
    monkeypatch.setenv("SNAKEMAKE_PROFILE", str(tmp_path / "profile"))


@pytest.mark.parametrize("store", ["store", "a store; elsewhere"])
def test_a_job_runs_in_the_image_with_all_that_it_needs(tmp_path, monkeypatch, asked, here, store):
    workspace = prepared(tmp_path / "my tspace")
    if store != "store":
        (tmp_path / store).mkdir()
        monkeypatch.setenv("TSPACE_STORE", str(tmp_path / store))
        workspace = Workspace(workspace.root)
    encode.encode(workspace)
    [(options, command, environment, folder)] = asked()
    root = str(workspace.root)
    assert options[:2] == ["exec", "--nv"] and folder == root
    given = list(zip(options[2::2], options[3::2], strict=True))
    bound = [place for option, place in given if option == "--bind"]
    assert ("--pwd", root) in given and root in bound
    reached = [Path(command[command.index(name) + 1]) for name in ("--root", "--store")]
    assert reached == [workspace.root, workspace.store.root]
    for path in (*reached, Path(command[0]).resolve()):
        inside = [place for place in bound if path.is_relative_to(place)]
        assert inside or path.is_relative_to(ROOT), path  # ROOT: of the tests' own environment
    assert command[0].endswith("/bin/tspace") and command[1] == "job"
    assert {name: environment.get(name) for name in PASSED} == PASSED
    assert environment.get("TSPACE_STORE") == (str(tmp_path / store) if " " in store else None)
    [entry] = (workspace.store.root / "latents").iterdir()
    assert (entry / "DONE").exists()


def test_without_apptainer_that_is_what_is_told(tmp_path, monkeypatch, here):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    if shutil.which("apptainer"):
        pytest.skip("there is one here")
    with pytest.raises(Exception, match=r"apptainer: (command )?not found"):
        encode.encode(prepared(tmp_path / "tspace"))


def test_the_profile_differs_from_that_without_an_image_by_its_launch_alone():
    own, plain = (
        yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
        for name in ("slurm-apptainer", "slurm")
    )
    del own["default-resources"]["launch"]
    assert own == plain


def test_the_image_is_built_of_files_that_install(tmp_path):
    text = (PROFILE / "tspace.def").read_text()
    files = re.search(r"^%files\n((?: +.*\n)+)", text, re.MULTILINE)[1]
    for line in files.splitlines():
        source, target = line.split()
        place = tmp_path / target.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, place)
    [install] = re.findall(r"^ +(pip install .*)$", text, re.MULTILINE)
    *_, constraints, project = shlex.split(install)
    assert f"-c {constraints} " in install and constraints.endswith("/constraints.txt")
    folder = tmp_path / project.partition("[")[0].removeprefix("/")
    assert (tmp_path / constraints.removeprefix("/")).read_text() == (
        ROOT / "constraints.txt"
    ).read_text()
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet"]
    command += ["--no-build-isolation", "--target", str(tmp_path / "site"), str(folder)]
    subprocess.run(command, check=True)
    assert (tmp_path / "site" / "tspace.py").exists()
    assert (tmp_path / "site" / "stages" / "report" / "style.css").exists()
