"""A tiny project whose jobs run in processes that are killed, stopped or failed at named points.

    python -m tests.faults.attack FOLDER ACTION TARGET ...
    python -m tests.faults.attack FOLDER ghosts ROUNDS

The first attacks each TARGET (a kind of job, or `stage NAME`) with ACTION (`kill`, `ENOSPC` ...) at
the first point at which `pipeline.files` lets it, in the state as if it was never begun, runs it
again, and goes on with the second point until there are no more. It prints, as JSON, each point
with what happened. Processes are forked from this one, which has imported all they need.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # and not in the process of whoever imports the rest of this
    os.environ["TSPACE_CHECKPOINT_SECONDS"] = "0"  # after every batch; read when torch is imported

import pyarrow.compute  # noqa: F401
import torch

from pipeline import autoencoder, plan, selection, training  # noqa: F401
from pipeline.errors import system_message
from stages import fanout, jobs, steps
from stages.workspace import Workspace
from tests.workflow import run_here

with contextlib.suppress(ImportError):  # where it is installed, pyarrow imports it late
    import pandas  # noqa: F401

PARAMS = """\
seed: 0
data: {source: digits, limit: 120, holdout: 16}
latent: {encoder: autoencoder, channels: 2, downsample: 2, width: 8, images: 96, batch: 32}
features: {extractor: classifier, images: 100, dimension: 8, channels: 8}
evaluate: {samples: 16, batch: 8}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  training: {images: 48, batch: 16, milestones: [16]}
recipes:
  base:
    schedule: {kind: log-snr, states: 4}
    pairing: {method: assignment}
    sampling: {steps: 2}
  forked:
    schedule: {kind: log-snr, states: 4}
    partition: {kind: uniform, intervals: 2}
    training: {parent: base, images: 32, milestones: []}
    merge: {method: task-vector, search: random, evaluations: 2, images: 16}
    sampling: {steps: 2}
"""
STAGES = ("encode", "analyse", "features", "pair", "train", "merge", "sample", "evaluate")


def create(root: Path) -> Workspace:
    """The project with everything made, and a copy of it beside, `root`.whole."""
    root.mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS)
    workspace = Workspace(root)

    def everything() -> None:
        steps.prepare(workspace)
        for stage in STAGES:
            getattr(steps, stage)(workspace)

    code, said = child(everything, root)
    assert code == 0, said
    shutil.copytree(root, whole(root))
    return workspace


def whole(root: Path) -> Path:
    return root.with_name(f"{root.name}.whole")


def child(work: Callable[[], object], root: Path, fault: str = "") -> tuple[int, str]:
    """Run `work` in a process of its own: exit status (256 less a signal's number) and words."""
    output = root.with_name(f"{root.name}.output")
    status = os.waitpid(begin(work, output, fault), 0)[1]
    return os.waitstatus_to_exitcode(status) % 256, output.read_text()


def begin(work: Callable[[], object], output: Path, fault: str) -> int:
    """Start a process that runs `work` as the command line does; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        handle = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ["TSPACE_FAULT"] = fault
        torch.set_num_threads(1)
        fanout._run = run_here
        code = 0 if work() is not False else 1
    except SystemExit as e:
        code = int(e.code or 0)
    except OSError as e:
        print(system_message(e, Path.cwd()) or traceback.format_exc())
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def contents(folder: Path) -> dict[str, str]:
    """Checksum of every file below a folder that is a result, by relative path."""
    working = {"log.txt", "progress.json", "circumstances.json", "state", "lease"}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not working & set(path.relative_to(folder).parts)
    }


def target_of(workspace: Workspace, target: str) -> tuple[Callable[[], object], list[Path]]:
    """What to call, and the folders that it makes."""
    kind, _, name = target.partition(" ")
    if kind == "stage":
        folders = {"merge": "mixtures", "train": "experts"}
        return lambda: getattr(steps, name)(workspace), [workspace.artefacts(folders[name])]
    entry = workspace.store.entry(named(workspace, target))
    return lambda: jobs.run_job(workspace, workspace.store, entry.name), [entry.path]


def named(workspace: Workspace, label: str) -> str:
    """Name of the first entry of a kind, or `kind label`."""
    kind, _, wanted = label.partition(" ")
    for stage in ("latents", "analyses", "features", "pairings", "experts", "samples", "scores"):
        for item in workspace.manifest(stage):
            if item["name"].startswith(f"{kind}/") and wanted in item["label"]:
                return item["name"]
    raise ValueError(f"no job {label}")


def unmade(workspace: Workspace, folder: Path) -> None:
    """Bring a folder to the state before it was begun."""
    spec = folder / "spec.json"
    kept = spec.read_bytes() if spec.exists() else None
    shutil.rmtree(folder, ignore_errors=True)
    if kept is not None:
        folder.mkdir()
        spec.write_bytes(kept)


def attacks(workspace: Workspace, action: str, target: str) -> list[dict]:
    """Every point with what happened there: see the module."""
    work, folders = target_of(workspace, target)
    original = {f: contents(whole(workspace.root) / f.relative_to(workspace.root)) for f in folders}
    found = []
    while True:
        for folder in folders:
            unmade(workspace, folder)
        code, said = child(work, workspace.root, f"{action}:{len(found) + 1}")
        if "fault: " not in said:
            assert code == 0, said
            return found
        again, also = child(work, workspace.root)
        found.append(
            {
                "point": said.partition("fault: ")[2].splitlines()[0],
                "code": code,
                "said": said.splitlines(),
                "again": again,
                "also": also.splitlines(),
                "equal": all(contents(f) == whole for f, whole in original.items()),
            }
        )


def ghosts(workspace: Workspace, rounds: int) -> list[dict]:
    """Stop a training, let another take it over and be killed, and wake the first up again."""
    work, (folder,) = target_of(workspace, "expert")
    original = contents(whole(workspace.root) / folder.relative_to(workspace.root))
    output = workspace.root.with_name("ghost.output")
    found = []
    for number in range(rounds):
        unmade(workspace, folder)
        ghost = begin(work, output, f"stop:{7 + number}")
        os.waitpid(ghost, os.WUNTRACED)
        os.utime(folder / "lease" / "1", (1, 1))  # its heart has stopped for long enough
        code, _ = child(work, workspace.root, f"kill:{20 + number}")
        before = contents(folder / "state") | contents(folder)
        os.kill(ghost, signal.SIGCONT)
        ended = os.waitstatus_to_exitcode(os.waitpid(ghost, 0)[1])
        after = contents(folder / "state") | contents(folder)
        again, _ = child(work, workspace.root)
        found.append(
            {
                "killed": code == 256 - signal.SIGKILL,
                "ended": ended,
                "said": output.read_text().splitlines(),
                "untouched": before == after,
                "again": again,
                "equal": contents(folder) == original,
            }
        )
    return found


def main() -> None:
    root, action, *targets = sys.argv[1:]
    workspace = create(Path(root)) if not Path(root).exists() else Workspace(Path(root))
    if action == "ghosts":
        print(json.dumps(ghosts(workspace, int(targets[0]))))
    else:
        print(json.dumps({target: attacks(workspace, action, target) for target in targets}))


if __name__ == "__main__":
    main()
