"""A real checkout in a temporary folder, with tiny budgets, driven as a user drives it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages import fanout
from stages.cli import stage_named
from stages.job import run_here
from stages.report.write import report
from stages.workspace import Workspace

ROOT = Path(__file__).parent.parent

PARAMS = """\
seed: 0
data: {source: digits, limit: 200}
latent: {encoder: pixels}
features: {extractor: classifier, images: 4000, dimension: 16, channels: 16}
evaluate: {samples: 64}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1, 2], blocks: 1}
  training: {images: 640, batch: 16, milestones: [320]}
recipes:
  ddpm:
    schedule: {kind: linear, states: 100}
    sampling: {steps: 4}
  few-state:
    schedule: {kind: log-snr, states: 4}
    training: {learning_rate: 0.001}
  disentangled:
    schedule: {kind: log-snr, states: 4}
    partition: {kind: per-state}
    training: {experts_per_job: 2}
"""


def environment(**extra: str) -> dict[str, str]:
    """The process environment in which the project's own commands are found first."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TSPACE_STORE", "SNAKEMAKE_PROFILE")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "OMP_NUM_THREADS": "1", **extra}


class Checkout:
    """A git checkout of the project on which commands are run."""

    def __init__(self, root: Path):
        self.root = root

    @classmethod
    def create(cls, root: Path, params: str = PARAMS) -> Checkout:
        """A fresh repository of the files that git would keep, committed."""
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        ).stdout.decode()
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/")):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        (root / "dvc.lock").unlink(missing_ok=True)
        (root / "params.yaml").write_text(params)
        checkout = cls(root)
        checkout.run("git", "init", "--quiet", "--initial-branch", "main")
        checkout.commit("start")
        return checkout

    def run(self, *command: str, check: bool = True, **env: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command,
            cwd=self.root,
            env=environment(**env),
            capture_output=True,
            text=True,
            timeout=600,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} failed:\n{done.stdout}\n{done.stderr}")
        return done

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        self.run("git", *who, "commit", "--quiet", "--allow-empty", "-m", message)

    def edit(self, old: str, new: str) -> None:
        """Replace a text that occurs in params.yaml."""
        path = self.root / "params.yaml"
        text = path.read_text()
        assert old in text, old
        path.write_text(text.replace(old, new))

    def repro(self, *stages: str, **env: str) -> dict[str, int]:
        """`dvc repro`: the number of jobs that each fan-out stage really ran."""
        return jobs_run(self.run("dvc", "repro", *stages, **env).stdout)

    def mixtures(self) -> dict[str, list[str]]:
        """Digest of each recipe's mixture at each milestone."""
        return {
            path.stem: [m["mixture"]["digest"] for m in json.loads(path.read_text())["milestones"]]
            for path in sorted((self.root / "artefacts" / "mixtures").iterdir())
        }

    def summary(self) -> dict:
        return json.loads((self.root / "results" / "summary.json").read_text())


def jobs_run(output: str) -> dict[str, int]:
    """Jobs that ran, by stage, from what `dvc repro` printed; stages that ran none are left out."""
    found = {}
    for stage, jobs, kept in re.findall(
        r"^(\w+): (\d+) jobs?, (\d+) of them", output, re.MULTILINE
    ):
        if int(jobs) > int(kept):
            found[stage] = int(jobs) - int(kept)
    return found


def stages_run(output: str) -> list[str]:
    """Stages that `dvc repro` ran, from what it printed; `source` is one at every time."""
    return re.findall(r"^Running stage '(\w+)'", output, re.MULTILINE)


def trained_on_digits(
    folder: Path, recipes: dict[str, Any], *, flips: bool = False, **defaults: Any
) -> Workspace:
    """Recipes of small networks on 200 digits, through all stages. defaults: blocks of theirs."""
    params = {
        "seed": 0,
        "data": {"source": "digits", "limit": 200},
        "latent": {"encoder": "pixels", "flips": flips},
        "features": {"extractor": "classifier", "images": 300},
        "evaluate": {"samples": 80},
        "defaults": {
            "network": {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1},
            "training": {"images": 300, "batch": 32},
            "sampling": {"kind": "ddim", "steps": 4},
        }
        | defaults,
        "recipes": recipes,
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    workspace = Workspace(folder)
    run_stages(workspace)
    return workspace


def run_stages(workspace: Workspace) -> None:
    """Every stage of dvc.yaml in its order, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TSPACE_STORE", raising=False)
        patch.setattr(fanout, "_run", run_here)
        for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]:
            (report if stage == "report" else stage_named(stage))(workspace)
