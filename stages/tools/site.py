"""A SLURM site against a Snakemake profile: what `tspace doctor` finds of it."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stages.tools.finding import Finding, run
from stages.workspace import Workspace

NODE_SECONDS = 300.0  # to start and end a job of one task
PLUGIN_INIT_SECONDS = 40  # the executor plugin's default before its first look at jobs
STATUS_COMMAND, INIT_SECONDS = "slurm-status-command", "slurm-init-seconds-before-status-checks"
UNLIMITED = float("inf")

# --- reading what SLURM's commands print


def parse_config(text: str) -> dict[str, str]:
    """`scontrol show config`: its `Key = value` lines."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and " " not in key.strip():
            found.setdefault(key.strip(), value.strip())
    return found


def parse_partitions(text: str) -> dict[str, dict[str, str]]:
    """`scontrol show partition --oneliner`: fields of each partition by its name."""
    found = {}
    for line in text.splitlines():
        fields = dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))
        if "PartitionName" in fields:
            found[fields["PartitionName"]] = fields
    return found


def parse_gres(text: str) -> dict[str, set[str]]:
    """`sinfo --noheader --format '%R %G'`: generic resources by partition."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        name, _, gres = line.strip().partition(" ")
        # Types and counts, without what the sockets say: gpu:a100:4(S:0-1)
        kinds = re.sub(r"\([^()]*\)", "", gres).split(",")
        found.setdefault(name, set()).update(k.strip() for k in kinds if k.strip())
    return found


def seconds_of(text: str) -> int | None:
    """`300 sec`, `5 min`, `1h` or `3600` in seconds; None for anything else."""
    match = re.match(r"(\d+)\s*(\w*)", text)
    units = {"": 1, "s": 1, "m": 60, "h": 3600}
    if not match or match[2][:1] not in units:
        return None
    return int(match[1]) * units[match[2][:1]]


def minutes_of(text: str) -> float | None:
    """`1-12:00:00`, `30:00`, `UNLIMITED` in minutes; None for `NONE` and the like."""
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return UNLIMITED
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


# --- the site against a profile


def check_slurm(settings: dict[str, Any], run: Callable = run) -> Iterator[Finding]:
    """The cluster, asked by its own commands, against a profile's settings."""
    absent = [c for c in ("sbatch", "squeue", "scontrol") if shutil.which(c) is None]
    if absent:
        text = f"no {', '.join(absent)} on PATH; run on a login node, or use profiles/default"
        yield Finding("fail", "slurm", text)
        return
    pinged, text = run("scontrol", "ping")
    if not pinged or " UP" not in text:
        yield Finding("fail", "slurmctld", f"does not answer ({text}); try later or ask the site")
        return
    told, text = run("scontrol", "show", "config")
    if not told:
        yield Finding("fail", "slurm", f"`scontrol show config`: {text}")
        return
    config = parse_config(text)
    yield Finding("ok", "slurm", f"{config.get('SLURM_VERSION', '?')}, slurmctld answers")
    yield from check_options(settings)
    yield from check_status(settings, config, lambda: run("sacct", "--allocations", "--noheader"))
    told, text = run("scontrol", "show", "partition", "--oneliner")
    partitions = parse_partitions(text) if told else {}
    listed, text = run("sinfo", "--noheader", "--format", "%R %G")
    yield from check_partitions(settings, config, partitions, parse_gres(text) if listed else {})


def check_options(settings: dict[str, Any]) -> Iterator[Finding]:
    """Settings that are known not to work."""
    if settings.get("slurm-array-jobs"):
        text = "on: the plugin mixes up the states of an array's tasks; remove it"
        yield Finding("fail", "slurm-array-jobs", text)
    if settings.get("group-components") or settings.get("groups"):
        text = "groups sum their jobs' resources; use training.experts_per_job in params.yaml"
        yield Finding("warn", "groups", text)
    if "--signal" in str(settings):
        text = "also reaches the Snakemake that wraps a job, which then dies; remove it"
        yield Finding("fail", "--signal", text)
    if not settings.get("retries"):
        text = "none: a job that runs out of time fails the run; write `retries: 2`"
        yield Finding("warn", "retries", text)
    if not settings.get("keep-going"):
        yield Finding("warn", "keep-going", "off: one failed job stops all; write `true`")


def check_status(
    settings: dict[str, Any], config: dict[str, str], sacct: Callable[[], tuple[bool, str]]
) -> Iterator[Finding]:
    """How the plugin learns of finished jobs: accounting, or squeue within MinJobAge."""
    storage = config.get("AccountingStorageType", "(null)")
    accounting, why = False, f"off (AccountingStorageType is {storage})"
    if not storage.endswith(("/none", "(null)")):
        accounting, said = sacct()
        why = "sacct answers" if accounting else f"sacct fails ({said})"
    yield Finding("ok", "accounting", why)
    age = seconds_of(config.get("MinJobAge", ""))
    first = settings.get(INIT_SECONDS, PLUGIN_INIT_SECONDS)
    command = settings.get(STATUS_COMMAND)
    # The plugin trusts squeue only if finished jobs stay for three of its waits.
    squeue = age is not None and age >= 3 * first
    least = "unknown" if age is None else f"{age} s"
    rule = f"MinJobAge {least}, three times {INIT_SECONDS} is {3 * first} s"
    if command == "squeue" and squeue:
        yield Finding("ok", STATUS_COMMAND, f"squeue ({rule})")
    elif command == "sacct" and accounting:
        yield Finding("ok", STATUS_COMMAND, "sacct")
    elif command is None and accounting:
        yield Finding("ok", STATUS_COMMAND, "unset, which is sacct where accounting is on")
    elif command == "squeue" and accounting:
        text = f"squeue forgets jobs too early ({rule}); write `{STATUS_COMMAND}: sacct`"
        yield Finding("warn", STATUS_COMMAND, text)
    elif squeue:
        text = f"`{command or 'sacct (the default)'}` would wait for ever, accounting is {why}"
        yield Finding("fail", STATUS_COMMAND, f"{text}; write `{STATUS_COMMAND}: squeue`")
    else:
        lower = (
            f"`{INIT_SECONDS}: {age // 3}` or less" if age and age >= 3 else "a larger MinJobAge"
        )
        text = f"finished jobs would be missed ({rule}, no accounting)"
        ask = "write" if age and age >= 3 else "ask the site for"
        yield Finding(
            "fail", STATUS_COMMAND, f"{text}; {ask} {lower}, with `{STATUS_COMMAND}: squeue`"
        )


def check_partitions(
    settings: dict[str, Any],
    config: dict[str, str],
    partitions: dict[str, dict[str, str]],
    gres: dict[str, set[str]],
) -> Iterator[Finding]:
    """Each kind of job's partition: that it exists, its limits, GPUs and preemption."""
    if not partitions:
        yield Finding("fail", "partitions", "none that you may see; ask the site")
        return
    shared = _resources(settings.get("default-resources"))
    kinds = {kind: _resources(own) for kind, own in (settings.get("set-resources") or {}).items()}
    default = next((n for n, p in partitions.items() if p.get("Default") == "YES"), None)
    for kind, own in {"all jobs": shared, **kinds}.items():
        for key in [key for key, value in own.items() if _by_job(value)]:
            yield Finding("ok", f"{key} ({kind})", f"not checked, differs by job: {own.pop(key)}")
    told = set()
    for kind, own in {"all jobs": {}, **kinds}.items():
        wanted = {**shared, **own}
        # What a kind shares with all jobs is said of them.
        time_of = kind if own.keys() & {"runtime", "slurm_partition"} else "all jobs"
        gpus_of = kind if own.keys() & {"gres", "gpu", "slurm_partition"} else "all jobs"
        trains = kind == ("expert" if "expert" in kinds else "all jobs")
        for name in str(wanted.get("slurm_partition") or default or "").split(","):
            found = [*_check_partition(time_of, name, wanted, settings, config, partitions)]
            if name in partitions:
                gpus = sorted(g for g in gres.get(name, ()) if g.startswith("gpu"))
                found += _check_gpus(gpus_of, name, wanted, gpus, trains)
            for finding in found:
                if finding not in told:
                    told.add(finding)
                    yield finding


def _resources(given: Any) -> dict[str, Any]:
    """Resources as a profile may give them: a mapping, or a list of `key=value`."""
    if isinstance(given, list):
        return dict(str(item).partition("=")[::2] for item in given)
    return dict(given or {})


def _by_job(value: Any) -> bool:
    """Whether a resource is an expression that differs by job, such as by recipe."""
    return "wildcards" in str(value)


def _check_partition(
    kind: str,
    name: str,
    wanted: dict[str, Any],
    settings: dict[str, Any],
    config: dict[str, str],
    partitions: dict[str, dict[str, str]],
) -> Iterator[Finding]:
    known = ", ".join(sorted(partitions))
    if not name:
        text = f"the cluster has no default one; write slurm_partition, one of: {known}"
        yield Finding("fail", "partition", text)
        return
    what = f"partition {name}"
    if name not in partitions:
        text = f"no such partition; write another slurm_partition ({kind}), one of: {known}"
        yield Finding("fail", what, text)
        return
    partition = partitions[name]
    if partition.get("State", "UP") != "UP":
        yield Finding("warn", what, f"is {partition['State']}: jobs wait; name another meanwhile")
    default, most = partition.get("DefaultTime", "NONE"), partition.get("MaxTime", "UNLIMITED")
    about = f"{partition.get('TotalNodes', '?')} nodes, time limit {most}, default {default}"
    yield Finding("ok", what, about)
    asked, limit = _runtime(wanted.get("runtime")), minutes_of(most)
    if asked is None and "runtime" not in wanted and minutes_of(default) is None:
        yield Finding("ok", f"runtime ({kind})", f"unset: jobs get the limit of {name}, {most}")
    elif asked is None and "runtime" not in wanted:
        text = f"unset: jobs are cut off after {default}; write `runtime: 60 * attempt`"
        yield Finding("warn", f"runtime ({kind})", text)
    elif asked is not None and limit is not None:
        last = asked[0] * ((settings.get("retries") or 0) + 1 if asked[1] else 1)
        if last > limit:
            text = f"{last:g} min at the last attempt, {name} allows {limit:g}; ask for less"
            yield Finding("fail" if asked[0] > limit else "warn", f"runtime ({kind})", text)
    yield from _check_preemption(what, partition, settings, config)


def _runtime(value: Any) -> tuple[float, bool] | None:
    """Minutes of the first attempt, and whether each further one asks for as much again."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(\*\s*attempt)?\s*", str(value))
    return (float(match[1]), bool(match[2])) if match else None


def _check_gpus(
    kind: str, name: str, wanted: dict[str, Any], gpus: list[str], trains: bool
) -> Iterator[Finding]:
    asked = str(wanted.get("gres") or "")
    asks = asked.startswith("gpu") or bool(wanted.get("gpu"))
    what = f"gpu ({kind})"
    if asks and not gpus:
        text = f"asked for ({asked or 'gpu'}), but {name} has none; name another partition"
        yield Finding("fail", what, text)
    elif asked.count(":") == 2:
        model = asked.split(":")[1]
        if not any(g.split(":")[1:2] == [model] for g in gpus):
            text = f"{asked} asked for, {name} has {', '.join(gpus)}; write one of these"
            yield Finding("fail", what, text)
    elif gpus and trains and not asks:
        text = f"{name} has {', '.join(gpus)}, the profile asks for none: experts train on CPUs"
        yield Finding("warn", what, text + '; write `gres: "gpu:1"` under set-resources: expert')
    elif trains and not gpus:
        yield Finding("ok", what, f"{name} has none: experts train on CPUs")


def _check_preemption(
    what: str, partition: dict[str, str], settings: dict[str, Any], config: dict[str, str]
) -> Iterator[Finding]:
    if config.get("PreemptType", "preempt/none").endswith(("/none", "(null)")):
        return
    mode = partition.get("PreemptMode") or config.get("PreemptMode", "OFF")
    if "REQUEUE" in mode.upper() and not settings.get("slurm-requeue"):
        text = "preempted jobs are requeued by SLURM only with `slurm-requeue: true`; write it"
        yield Finding("warn", what, text)
    elif "CANCEL" in mode.upper() and not settings.get("retries"):
        text = "preempted jobs are cancelled; write `retries: 5`, they resume where they were"
        yield Finding("warn", what, text)
    elif mode.upper() != "OFF":
        yield Finding("ok", what, f"preemption by {mode}; jobs go on from their checkpoints")


# --- a node


def check_node(workspace: Workspace, settings: dict[str, Any], run: Callable = run) -> Finding:
    """A job of one task reads a file of the store on a node and writes another."""
    root = workspace.store.root
    root.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    ask, answer = root / f".doctor.{token}.ask", root / f".doctor.{token}.answer"
    wanted = _resources(settings.get("default-resources"))
    options = ["--ntasks=1", "--cpus-per-task=1", "--time=5", "--job-name=tspace-doctor", "--quiet"]
    for key, option in (
        ("slurm_partition", "partition"),
        ("slurm_account", "account"),
        ("qos", "qos"),
        ("constraint", "constraint"),
    ):
        if wanted.get(key) and not _by_job(wanted[key]):
            options.append(f"--{option}={wanted[key]}")
    ask_, answer_, python, snakefile = (
        shlex.quote(str(p)) for p in (ask, answer, sys.executable, workspace.root / "Snakefile")
    )
    script = f"cat {ask_} > {answer_} && test -x {python} && test -e {snakefile} && uname -n"
    try:
        ask.write_text(token)
        # Beside the job's own folder: a node may not have the one that we are in.
        done, said = run("srun", *options, "--chdir=/", "sh", "-c", script, seconds=NODE_SECONDS)
        if not done:
            where = f"{root}, {workspace.root} and {sys.executable}"
            text = f"the job failed ({said}); all nodes must see {where}, and a job must start"
            return Finding("fail", "node", f"{text} within {NODE_SECONDS:.0f} s")
        waits = float(settings.get("latency-wait", 5))
        seconds = _seen(answer, token, waits)
        if seconds is None:
            text = f"what {said} wrote to {root} does not show here within {waits:g} s; raise"
            return Finding("fail", "node", f"{text} latency-wait, or put the store on a share")
        return Finding("ok", "node", f"{said} reads and writes the store, seen in {seconds:.1f} s")
    finally:
        for path in (ask, answer):
            path.unlink(missing_ok=True)


def _seen(path: Path, text: str, seconds: float) -> float | None:
    started = time.monotonic()
    while True:
        with contextlib.suppress(OSError):
            if path.read_text() == text:
                return time.monotonic() - started
        if time.monotonic() - started > seconds:
            return None
        time.sleep(0.2)
