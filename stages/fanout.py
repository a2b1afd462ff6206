"""A fan-out stage: plan, run what the store lacks through Snakemake, collect.

Snakemake only places jobs. Which of them are missing is decided here, by the store, so neither its
metadata nor file times matter, and an interrupted or killed run is simply started again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.devices import cores
from pipeline.errors import UserError
from pipeline.plan import Job
from pipeline.store.entry import Entry, copy_entry
from pipeline.store.files import reached, sweep, write_json, write_sealed
from pipeline.store.identity import file_digest
from stages.intact import Record
from stages.numbers import counted, speed
from stages.ranks import processes_of
from stages.reporter import LINE_SECONDS
from stages.workspace import Workspace

POLL_SECONDS = 0.5
FINAL = ".final"  # beside an error.txt that another try would only bring about again
NO_RECIPE = "-"  # of jobs that recipes share: encoder, latents and the like


def fan_out(
    workspace: Workspace, stage: str, plan: Callable[[], list[Job]], inputs: Iterable[str] = ()
) -> dict[str, Entry]:
    """Make the stage's output hold exactly what `plan()` names; returns the entries by name.

    inputs: stages whose artefacts the jobs read. UserError if jobs failed, or if the plan changed
    while they ran (somebody edited params.yaml or the code): everything finished is kept.
    """
    jobs = {job.name: job for job in plan()}
    for other in inputs:
        adopt(workspace, other)
    if drop_damaged(workspace, stage):
        for name in jobs:  # these it may hold, whatever its manifest said
            _adopt(workspace, stage, name)
    adopt(workspace, stage)
    absent = {
        need
        for job in jobs.values()
        for need in job.needs
        if need not in jobs and not workspace.store.entry(need).done
    }
    if absent:
        raise UserError(
            f"{stage}: {len(absent)} of its inputs are not made yet, or params.yaml or the code "
            "changed since they were; run `dvc repro`"
        )
    entries = {
        name: workspace.store.plan(job.kind, job.spec.as_json()) for name, job in jobs.items()
    }
    missing = [job for name, job in jobs.items() if not entries[name].done]
    done = len(jobs) - len(missing)
    print(f"{stage}: {counted(len(jobs), 'job')}, {done} of them in the store", flush=True)
    if missing:
        (workspace.run or _run)(workspace, stage, missing, entries)
    if list(jobs) != [job.name for job in {job.name: job for job in plan()}.values()]:
        raise UserError(
            f"{stage}: params.yaml or the code changed while its jobs ran; run again "
            "(what is finished is kept)"
        )
    _collect(workspace, stage, jobs, entries)
    return entries


def adopt(workspace: Workspace, stage: str) -> None:
    """Take into the store what DVC checked out as the output of a stage."""
    if (workspace.artefacts(stage) / "manifest.json").exists():
        for item in workspace.manifest(stage):
            _adopt(workspace, stage, item["name"])


def _adopt(workspace: Workspace, stage: str, name: str) -> None:
    source = workspace.artefacts(stage) / workspace.store.entry(name).digest
    if (source / "DONE").exists():
        workspace.store.adopt(source, name)


def drop_damaged(workspace: Workspace, stage: str) -> bool:
    """Delete the manifest of a stage's output, which the stage makes again, if it is damaged."""
    path = workspace.artefacts(stage) / "manifest.json"
    try:
        workspace.manifest(stage)
    except UserError as e:
        if path.exists():
            print(f"{stage}: {e}: it is made again", flush=True)
            path.unlink()
            return True
    return False


def _collect(
    workspace: Workspace, stage: str, jobs: dict[str, Job], entries: dict[str, Entry]
) -> None:
    folder = workspace.artefacts(stage)
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(workspace.scratch / "intact" / f"{stage}.json")
    manifest, healed = [], 0
    for name, job in jobs.items():
        entry = entries[name]
        target = folder / entry.digest
        files = entry.files()
        seals = {file: known["sha256"] for file, known in files.items()}
        seals |= {file: file_digest(entry.path / file) for file in ("spec.json", "DONE")}
        if not all([record.intact(target / file, seal) for file, seal in seals.items()]):
            healed += (target / "DONE").exists()
            copy_entry(entry, target)
            for file, seal in seals.items():
                record.intact(target / file, seal)
        manifest.append({"name": name, "label": job.label, "files": files})
    if healed:
        print(f"{stage}: {healed} damaged entries of {folder} restored from the store", flush=True)
    kept = {entry.digest for entry in entries.values()}
    sweep(folder)
    for path in folder.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path)
        elif path.is_dir():
            sweep(path)
    write_sealed(folder / "manifest.json", {"entries": manifest})
    record.save()


def _run(workspace: Workspace, stage: str, missing: list[Job], entries: dict[str, Entry]) -> None:
    settings = profile_settings(workspace)
    if settings.get("executor") == "slurm":
        check_submittable(workspace.root, Path(sys.executable).parent)
    if warning := crowded(settings, missing):
        print(f"WARNING: {warning}", flush=True)
    run = workspace.scratch / "runs" / stage
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    groups: dict[str, list[Job]] = {}
    for job in missing:
        groups.setdefault(f"{job.kind} {job.group or job.name}", []).append(job)
    ids = {job.name: _id(members) for members in groups.values() for job in members}
    # The largest first, so that the last workers do not wait for one that started late.
    order = sorted(groups.values(), key=lambda members: -sum(job.weight for job in members))
    plan = {
        "stage": stage,
        "root": str(workspace.root),
        "store": str(workspace.store.root),
        "run": str(run.relative_to(workspace.root)),
        "tspace": str(Path(sys.executable).parent / "tspace"),
        "jobs": {
            ids[members[0].name]: {
                "kind": members[0].kind,
                "recipe": members[0].recipe or NO_RECIPE,
                "names": [job.name for job in members],
                "label": members[0].group or members[0].label,
                "needs": sorted(
                    {ids[n] for job in members for n in job.needs if n in ids}
                    - {ids[members[0].name]}
                ),
                "threads": max(cores_of(job) for job in members),
                "priority": len(order) - rank,
            }
            for rank, members in enumerate(order)
        },
    }
    for job in missing:
        for name in ("error.txt", FINAL):
            (entries[job.name].path / name).unlink(missing_ok=True)
        if not entries[job.name].leased():
            (entries[job.name].path / "progress.json").unlink(missing_ok=True)
    write_json(run / "plan.json", plan)
    log = run / "snakemake.log"
    environment = {**os.environ, "SNAKEMAKE_PROFILE": profile_name(), "PYTHONUNBUFFERED": "1"}
    # Snakemake parses what it is given: as YAML, as a pattern of files or as wildcards. So it is
    # given relative paths alone, which hold nothing of the checkout's own name.
    command = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile"]
    command += ["--config", f"plan={(run / 'plan.json').relative_to(workspace.root)}"]
    # DVC already keeps two runs in one checkout apart; a stale lock would outlive a killed run.
    command += [
        "--workflow-profile",
        "none",
        "--nolock",
        "--rerun-incomplete",
        "--rerun-triggers",
        "mtime",
    ]
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=workspace.root,
            process_group=0,  # with its jobs, so that all of them can be stopped at once
        )
        try:
            with _leash(process):
                _watch(stage, process, missing, entries)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_interrupted(stage, missing, entries)) from None
    if process.returncode:
        raise UserError(_failures(workspace, stage, plan["jobs"], missing, entries))


# Waits for the end of its input, which is that of the process that started it; a line before this
# end says that there is nothing to stop. An interrupt is what Snakemake stops its jobs at; in a
# script's background it is ignored. What is left has as long as a large checkpoint takes.
STOP_WITH_PARENT = """\
read -r _ && exit
kill -s INT -- "-$1"
for second in 1 2 3 4 5; do
    sleep 1
    kill -s 0 -- "-$1" || exit
done
kill -s TERM -- "-$1"
second=0
while [ "$second" -lt 60 ]; do
    sleep 1
    kill -s 0 -- "-$1" || exit
    second=$((second + 1))
done
"""


@contextlib.contextmanager
def _leash(process: subprocess.Popen) -> Iterator[None]:
    """Stops a process group, whose jobs keep their checkpoints, when the block does not end well.

    Also when this process is asked to stop (SIGTERM, as KeyboardInterrupt), or is killed; and when
    the process that leads the group was killed, but what it had started was not.
    """
    watcher = subprocess.Popen(
        ["sh", "-c", STOP_WITH_PARENT, "sh", str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,  # out of reach of what ends this one's
    )

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
        if not (process.wait() and _lives(process.pid)):
            watcher.stdin.write(b"\n")
    finally:
        signal.signal(signal.SIGTERM, before)
        watcher.stdin.close()
        process.wait()
        if not _lives(process.pid):
            with contextlib.suppress(ProcessLookupError):  # it has gone already
                os.killpg(watcher.pid, signal.SIGKILL)
        watcher.wait()


def _lives(group: int) -> bool:
    """Whether a process group has members."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def profile_name() -> str:
    """The Snakemake profile that places the jobs."""
    return os.environ.get("SNAKEMAKE_PROFILE") or "profiles/default"


def profile_settings(workspace: Workspace) -> dict[str, Any]:
    """Its settings; empty for one that cannot be read, of which Snakemake tells what is wrong."""
    try:
        found = yaml.safe_load((workspace.root / profile_name() / "config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def cores_of(job: Job) -> int:
    """How many cores a job keeps busy: its threads, in each of its processes."""
    return job.threads * processes_of(job.spec)


def crowded(settings: dict[str, Any], jobs: Iterable[Job]) -> str | None:
    """A warning where jobs that run on this machine ask for more threads than it has cores."""
    if settings.get("executor", "local") != "local" or "launch" in str(settings):
        return None
    most = max(jobs, key=cores_of, default=None)
    if most is None or cores_of(most) <= cores():
        return None
    key = "latent.threads" if most.kind == "encoder" else "training.threads"
    if cores_of(most) > most.threads:
        key += " times TSPACE_PROCESSES"
    return (
        f"{key}: {cores_of(most)} is more than the {counted(cores(), 'core')} of this machine, "
        f"where {most.label} will be many times slower; set it to {cores()} at most"
    )


# Snakemake's SLURM executor pastes the interpreter's path unquoted, and the checkout's with quotes
# that the shell, or SLURM's patterns of file names, still see through.
UNQUOTED, SEEN_THROUGH = r"[^\w@+=:,./-]", r"[$`\\\"%]"


def check_submittable(root: Path, python: Path) -> None:
    """UserError if SLURM jobs cannot start from this checkout with the Python in this folder."""
    for path, pattern in ((root, SEEN_THROUGH), (python, UNQUOTED)):
        if special := sorted(set(re.findall(pattern, str(path)))):
            raise UserError(
                f"{path}: Snakemake's SLURM executor cannot start jobs from a path with "
                f"{' '.join(map(repr, special))} in it; rename it, or use profiles/slurm-node"
            )


def _id(members: list[Job]) -> str:
    """What Snakemake knows a group by; a cluster shows it, so it says the recipe and states."""
    kind, _, key = members[0].name.partition("/")
    label = re.sub("[^A-Za-z0-9]+", "-", members[0].label)[:80]
    return f"{kind}-{label}{f'-and-{len(members) - 1}-more' if members[1:] else ''}-{key}"


def _watch(
    stage: str, process: subprocess.Popen, missing: list[Job], entries: dict[str, Entry]
) -> None:
    terminal = sys.stdout.isatty()
    shown = time.monotonic()
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        if terminal or time.monotonic() - shown >= LINE_SECONDS:
            shown = time.monotonic()
            line = status_line(stage, missing, entries)
            if terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r{line[:width]:<{width}}", end="", flush=True)
            else:
                print(line, flush=True)
    line = status_line(stage, missing, entries)
    print(f"\r{line}\033[K" if terminal else line, flush=True)


def status_line(stage: str, jobs: list[Job], entries: dict[str, Entry]) -> str:
    """One line: jobs done, what runs and how fast, and the time left."""
    done = sum(entries[job.name].done for job in jobs)
    running, left, rate, units = [], 0.0, 0.0, {}
    for job in jobs:
        if entries[job.name].done:
            continue
        state = entries[job.name].progress()
        if not state:
            units[job.kind] = units.get(job.kind, 0.0) + job.weight
            continue
        share = state["done"] / max(state["total"], 1)
        left += (1 - share) * job.weight
        if time.time() - state["time"] < 60:
            rate += state["rate"] * job.weight / max(state["total"], 1)
            loss = "" if state.get("loss") is None else f" loss {state['loss']:.4f}"
            pace = f" {speed(state['rate'], state['unit'])}" if state["rate"] else ""
            running.append(f"{job.label} {share:.0%}{pace}{loss}")
    left += sum(units.values())
    parts = [f"{stage}: {done}/{len(jobs)} done", *running[:3]]
    if len(running) > 3:
        parts.append(f"and {len(running) - 3} more")
    if rate and done < len(jobs):
        seconds = int(left / rate)
        parts.append(f"{seconds // 60}:{seconds % 60:02d} left")
    return " | ".join(parts)


def _interrupted(stage: str, missing: list[Job], entries: dict[str, Entry]) -> str:
    done = sum(entries[job.name].done for job in missing)
    saved = sum(bool(reached(entries[job.name].state, "checkpoint.pt")) for job in missing)
    kept = f"{done} of {counted(len(missing), 'job')} finished and kept"
    if saved:
        kept += f", {saved} of the others go on from a checkpoint"
    return f"{stage}: stopped; {kept}; run the same command again to go on"


def _failures(
    workspace: Workspace,
    stage: str,
    processes: dict[str, dict[str, Any]],
    missing: list[Job],
    entries: dict[str, Entry],
) -> str:
    """Why jobs are not finished, a line each; `processes` is how Snakemake knows them."""
    run = workspace.scratch / "runs" / stage
    labels = {job.name: job.label for job in missing}
    failed, silent = [], []
    for key, process in processes.items():
        lost = [entries[name] for name in process["names"] if not entries[name].done]
        told = [entry for entry in lost if (entry.path / "error.txt").exists()]
        for entry in told:
            message = (entry.path / "error.txt").read_text(errors="replace").strip()
            failed.append(f"  {labels[entry.name]}: {message} (log: {entry.log})")
        if lost and not told:
            # It ended without a word in the store: what its process printed last.
            log = run / process["recipe"] / f"{key}.log"
            if said := _last_line(log):
                failed.append(f"  {labels[lost[0].name]}: {said} (log: {log})")
            else:
                silent.append(labels[lost[0].name])
    if silent:
        log = run / "snakemake.log"
        label = silent[0] + (f" and {len(silent) - 1} more" if silent[1:] else "")
        why = snakemake_reason(log.read_text(errors="replace"))
        failed.append(f"  {label}: did not finish; Snakemake: {why} (log: {log})")
    lost = sum(not entry.done for entry in entries.values())
    return (
        f"{stage}: {counted(lost, 'job')} failed, {len(missing) - lost} finished and are kept; "
        "run again to try only the rest:\n" + "\n".join(failed[:20])
    )


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:  # it never began
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


# What tells why in a log of Snakemake, the most telling first: what SLURM says of a submission and
# of a job, how a process died, and what Snakemake says of the workflow and of its own options.
REASONS = (
    r"SLURM sbatch failed\. The error message was '(?:sbatch: error: )?(?P<why>[^\n']+)",
    r"(?P<why>SLURM[^\n]*status is: '[A-Z_]+')",
    r"(?P<why>died with <Signals\.SIG\w+: \d+>)",
    r"(?P<why>returned non-zero exit status \d+)",
    r"^(?P<why>\w+(?:Exception|Error)\b)[^\n]*:\n(?:Error:\n)?(?P<more>[^\n]+)",
    r"^(?:[\w.]+: )?[Ee]rror: (?P<why>[^\n]+)",
)


def snakemake_reason(log: str) -> str:
    """Why Snakemake did not run or finish jobs, in one line, from all that it printed."""
    for pattern in REASONS:
        if found := re.search(pattern, log, re.MULTILINE):
            return ": ".join(part.strip() for part in found.groups())
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "nothing")
