"""A tiny project whose jobs run in processes that are killed, stopped or failed at named points.

    python -m tests.faults.attack FOLDER ACTION TARGET ...
    python -m tests.faults.attack FOLDER ghosts ROUNDS
    python -m tests.faults.attack FOLDER flips store|artefacts|state

The first attacks each TARGET (a kind of job, or `stage NAME`) with ACTION at the first point, in
the state as if it was never begun, runs it again, and goes on with the second point until there are
no more. ACTION is `kill` or an error such as `ENOSPC` at the points of `store.files.fault`;
`once kill` at the first point of each kind; or `every ENOSPC` at each call that changes a file, if
refuse.c is preloaded. `flips` flips one bit in each kind of file. What happened is printed as JSON.
Processes are forked from this one, which has imported all they need.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch._dynamo

from pipeline.errors import UserError, system_message
from pipeline.store import circumstances, files
from pipeline.store import entry as stores
from stages import (
    analyse,
    cli,
    consistency,
    encode,
    evaluate,
    fanout,
    features,
    merge,
    pair,
    prepare,
    sample,
    train,
)
from stages import job as jobs
from stages.cli import stage_named
from stages.job import run_here
from stages.workspace import Workspace

if __name__ == "__main__":  # and not in the process of whoever imports the rest of this
    os.environ["TSPACE_CHECKPOINT_SECONDS"] = "0"  # after every batch; read when torch is imported

with contextlib.suppress(ImportError):  # where it is installed, pyarrow imports it late
    import pandas  # noqa: F401

PARAMS = """\
seed: 0
data: {source: digits, limit: 120, holdout: 16}
latent: {encoder: autoencoder, channels: 2, downsample: 2, width: 8, images: 96, batch: 32}
features: {extractor: classifier, images: 96, batch: 32, dimension: 8, channels: 8}
evaluate: {samples: 16, batch: 8, consistency: {recipes: [base, forked], samples: 16, states: 2}}
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
  fitted:
    schedule: {kind: fitted, states: 4, source: pilot, pilot_images: 32}
    partition: {kind: optimal-denoiser, method: matrix, draws: 50, nodes: 6, eta: 0.05}
    training: {images: 32, milestones: []}
    sampling: {steps: 2}
  clustered:
    schedule: {kind: log-snr, states: 4}
    partition: {kind: data, clusters: 2, router: {channels: 8, images: 32, batch: 16}}
    training: {images: 32, milestones: []}
    sampling: {steps: 2}
"""
STAGES = (
    *(prepare.prepare, encode.encode, analyse.analyse, features.features, pair.pair, train.train),
    *(merge.merge, sample.sample, evaluate.evaluate, consistency.consistency),
)


OUTPUTS = (
    *("latents", "features", "pairings", "experts", "analyses"),
    *("samples", "scores", "consistency"),
)


def create(root: Path) -> Workspace:
    """The project with everything made, and a copy of it beside, `root`.whole."""
    root.mkdir(parents=True)
    (root / "params.yaml").write_text(PARAMS)
    workspace = Workspace(root)

    code, said = child(lambda: everything(workspace), root)
    assert code == 0, said
    shutil.copytree(root, whole(root))
    return workspace


def everything(workspace: Workspace) -> None:
    for stage in STAGES:
        stage(workspace)


def whole(root: Path) -> Path:
    return root.with_name(f"{root.name}.whole")


def child(work: Callable[[], object], root: Path, fault: str = "") -> tuple[int, str]:
    """Run `work` in a process of its own: exit status (256 less a signal's number) and words."""
    output = root.with_name(f"{root.name}.output")
    status = os.waitpid(begin(work, root, output, fault), 0)[1]
    return os.waitstatus_to_exitcode(status) % 256, output.read_text()


def begin(work: Callable[[], object], root: Path, output: Path, fault: str) -> int:
    """Start a process that runs `work` as the command line does; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        handle = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if fault.startswith("every "):  # call of the system: refuse.c, which is preloaded
            os.environ["TSPACE_REFUSE"] = f"{fault.removeprefix('every ')}:{root}/"
        else:
            os.environ["TSPACE_FAULT"] = fault
        torch.set_num_threads(1)
        circumstances.SAMPLE_SECONDS = 3600  # points are counted: none may come by the clock
        fanout._run = run_here
        code = 0 if work() is not False else 1
    except SystemExit as e:
        code = int(e.code or 0)
    except UserError as e:
        print(e)
        code = 2
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
    working = {"log.txt", "progress.json", "circumstances.json", "error.txt", "state", "lease"}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not working & set(path.relative_to(folder).parts)
    }


def target_of(workspace: Workspace, target: str) -> tuple[Callable[[], object], list[Path]]:
    """What to call, and the folders that it makes."""
    kind, _, name = target.partition(" ")
    if kind == "stage":
        folders = {"merge": "mixtures", "pair": "pairings", "train": "experts"}
        return lambda: stage_named(name)(workspace), [workspace.artefacts(folders[name])]
    entry = workspace.store.entry(named(workspace, target))
    return lambda: jobs.run_job(workspace, workspace.store, entry.name), [entry.path]


def named(workspace: Workspace, label: str) -> str:
    """Name of the first entry of a kind, or `kind label`."""
    kind, _, wanted = label.partition(" ")
    for output in OUTPUTS:
        for item in workspace.manifest(output):
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
    numbers: Iterable[int] = itertools.count(1)
    if action.startswith("once "):
        action = action.removeprefix("once ")
        for folder in folders:
            unmade(workspace, folder)
        numbers = one_of_each(points(work, workspace.root, action))
    found = []
    for number in numbers:
        for folder in folders:
            unmade(workspace, folder)
        code, said = child(work, workspace.root, f"{action}:{number}")
        if "fault: " not in said:
            assert code == 0, said
            break
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
    return found


def points(work: Callable[[], object], root: Path, action: str = "kill") -> list[tuple[str, str]]:
    """The points that `work` passes, in order: where it is, and the file."""

    def recorded() -> object:
        files.fault = stores.fault = lambda point, path: print("point:", point, path.name)
        return work()

    _, said = child(recorded, root)
    found = [line.split(" ", 2)[1:] for line in said.splitlines() if line.startswith("point: ")]
    passed = ("renamed", "leased")  # where nothing is left that could be refused
    return [(point, name) for point, name in found if action == "kill" or point not in passed]


def one_of_each(passed: list[tuple[str, str]]) -> list[int]:
    """Numbers, from 1, of the first point of each kind: where, and in which kind of file."""
    kinds = [(point, Path(name).suffix) for point, name in passed]
    return [n for n, kind in enumerate(kinds, 1) if kind not in kinds[: n - 1]]


def flip(path: Path) -> None:
    """One bit in the middle of a file, whose bytes other names of it keep."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def restore(workspace: Workspace) -> None:
    shutil.rmtree(workspace.root)
    shutil.copytree(whole(workspace.root), workspace.root)


def flips(workspace: Workspace, place: str) -> list[dict]:
    """Each kind of finished file in a place, flipped in turn, and how everything runs then.

    A flipped store is found without artefacts/, as a clone shares it. What is refused is deleted,
    as the message says, and all runs again.
    """
    restore(workspace)
    found, root = [], workspace.root
    original = contents(whole(root) / "artefacts")
    kinds = {path.name: path.parent.name for path in workspace.store.root.glob("*/*")}
    seen = set()
    for path in sorted((root / place).rglob("*")):
        kind = kinds.get(path.parent.name, path.parent.name), re.sub(r"\d+", "0", path.name)
        if not path.is_file() or not path.stat().st_size or kind in seen:
            continue
        seen.add(kind)
        restore(workspace)
        flip(path)
        flipped = path.read_bytes()
        if place == "store":
            shutil.rmtree(workspace.artefacts(""))
            shutil.rmtree(workspace.scratch)
        code, said = child(lambda: everything(workspace), root)
        code_of_tools, also = child(lambda: tools(workspace), root)
        last = said.splitlines()[-1]
        outcome = "healed" if code == 0 else "refused"
        if code and (delete := re.search(r"delete (\S+?)[,;]? ", last)):
            shutil.rmtree(delete[1]) if Path(delete[1]).is_dir() else Path(delete[1]).unlink()
            code, also = child(lambda: everything(workspace), root)
        found.append(
            {
                "file": "/".join((place, *kind)),
                "outcome": outcome,
                "named": str(path.parent) in last,
                "said": last if outcome == "refused" else "",
                "trace": "Traceback" in said + also,
                "code": code,
                "tools": code_of_tools,
                "equal": contents(root / "artefacts") == original,
                "left": path.is_file() and path.read_bytes() == flipped,
            }
        )
    return found


def tools(workspace: Workspace) -> None:
    """What looks at all of it, and must not stumble over any."""
    from click.testing import CliRunner

    os.chdir(workspace.root)
    for name in ("Snakefile", "dvc.yaml"):
        Path(name).touch()
    for command in ("plan", "status"):
        result = CliRunner().invoke(cli.main, [command])
        print(result.output)
        if result.exit_code not in (0, 2) or not isinstance(result.exception, SystemExit | None):
            traceback.print_exception(result.exception)
            raise SystemExit(1)


def flips_of_state(workspace: Workspace) -> list[dict]:
    """Each kind of file of unfinished work flipped in turn, and how the work goes on."""
    found = []
    for target in ("encoder", "features", "expert", "merged"):
        work, (folder,) = target_of(workspace, target)
        original = contents(whole(workspace.root) / folder.relative_to(workspace.root))
        unmade(workspace, folder)
        last = points(work, workspace.root).index(("open", "DONE")) + 1
        unmade(workspace, folder)
        child(work, workspace.root, f"kill:{last}")
        half = folder.with_name("half")
        shutil.rmtree(half, ignore_errors=True)
        folder.rename(half)
        for path in sorted(half.rglob("*")):
            if path.is_file() and path.stat().st_size and path.name != "spec.json":
                shutil.copytree(half, folder, dirs_exist_ok=True)
                flip(folder / path.relative_to(half))
                if path.parent.name == "lease":  # else it is waited for, as long as for any
                    os.utime(folder / path.relative_to(half), (1, 1))
                code, said = child(work, workspace.root)
                found.append(
                    {
                        "file": f"state/{target}/{path.relative_to(half)}",
                        "outcome": "healed",
                        "code": code,
                        "said": said.splitlines(),
                        "equal": contents(folder) == original,
                    }
                )
                shutil.rmtree(folder)
        shutil.rmtree(half)
        restore(workspace)
    return found


def ghosts(workspace: Workspace, rounds: int) -> list[dict]:
    """Stop a training, let another take it over and be killed, and wake the first up again."""
    work, (folder,) = target_of(workspace, "expert")
    original = contents(whole(workspace.root) / folder.relative_to(workspace.root))
    output = workspace.root.with_name("ghost.output")
    found = []
    for number in range(rounds):
        unmade(workspace, folder)
        ghost = begin(work, workspace.root, output, f"stop:{7 + number}")
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
    elif action == "flips":
        state = targets == ["state"]
        print(json.dumps(flips_of_state(workspace) if state else flips(workspace, *targets)))
    else:
        print(json.dumps({target: attacks(workspace, action, target) for target in targets}))


if __name__ == "__main__":
    main()
