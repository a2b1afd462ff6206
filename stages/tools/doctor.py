"""`tspace doctor`: checks of the installation, of the store and of a SLURM site.

Each finding is one line: `ok | warn | fail  what: finding; what to change`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.errors import UserError
from stages.numbers import counted
from stages.report.fresh import stale
from stages.tools.verify import cache_folder
from stages.workspace import Workspace

COMMAND_SECONDS = 20.0  # SLURM's own commands give up later than a person
NODE_SECONDS = 300.0  # to start and end a job of one task
SKEW_SECONDS = 5.0
FREE_BYTES = 1 << 30
PLUGIN_INIT_SECONDS = 40  # the executor plugin's default before its first look at jobs
STATUS_COMMAND, INIT_SECONDS = "slurm-status-command", "slurm-init-seconds-before-status-checks"
UNLIMITED = float("inf")


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fail` makes the command's exit status 1."""

    level: Literal["ok", "warn", "fail"]
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what}: {self.text}"


def examine(workspace: Workspace, profile: Path | None, node: bool) -> int:
    """Print all findings as they come; 1 if one of them is a failure, else 0."""
    failed = 0
    for finding in findings(workspace, profile, node):
        failed += finding.level == "fail"
        print(finding, flush=True)
    return int(failed > 0)


def findings(workspace: Workspace, profile: Path | None, node: bool) -> Iterator[Finding]:
    """Every check, the cheap ones first. UserError for a profile that cannot be read."""
    where = profile or Path(os.environ.get("SNAKEMAKE_PROFILE") or "profiles/default")
    settings = read_profile(workspace.root / where)
    yield from check_versions(workspace)
    yield from check_torch()
    yield from check_store(workspace)
    yield from check_dvc(workspace)
    yield from check_data(workspace)
    yield from check_report(workspace)
    yield Finding("ok", "profile", f"{where}, {settings.get('executor', 'local')} executor")
    if settings.get("executor") != "slurm":
        if node:
            raise UserError("--node: needs a profile with `executor: slurm`; name it by --profile")
        return
    yield from check_slurm(settings)
    if node:
        yield check_node(workspace, settings)


def read_profile(folder: Path) -> dict[str, Any]:
    """A profile's settings, templates unfilled."""
    path = folder / "config.yaml"
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); --profile names a folder") from e
    except yaml.YAMLError as e:
        raise UserError(f"{path}: is not YAML ({' '.join(str(e).split())})") from e
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no settings")
    return found


# --- the installation


def check_versions(workspace: Workspace) -> Iterator[Finding]:
    """Python and the packages against the ranges of pyproject.toml."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    project = tomllib.loads((workspace.root / "pyproject.toml").read_text())["project"]
    python, wanted = ".".join(map(str, sys.version_info[:3])), project["requires-python"]
    if python in SpecifierSet(wanted):
        yield Finding("ok", "python", f"{python} at {sys.executable}")
    else:
        yield Finding("fail", "python", f"{python}, needs {wanted}; make .venv with a newer one")
    wrong = []
    for requirement in map(Requirement, project["dependencies"]):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, needs {requirement.specifier}")
    for text in wrong:
        yield Finding("fail", "packages", f"{text}; `pip install -c constraints.txt -e .`")
    if not wrong:
        count = len(project["dependencies"])
        yield Finding("ok", "packages", f"{counted(count, 'requirement')} of pyproject.toml hold")


def check_torch() -> Iterator[Finding]:
    """Torch's threads and devices."""
    import torch

    cpus, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    about = f"{torch.__version__}, {counted(threads, 'thread')} on {counted(cpus, 'usable CPU')}"
    if threads > cpus:
        yield Finding("warn", "torch", f"{about}; set OMP_NUM_THREADS to {cpus} at most")
    else:
        yield Finding("ok", "torch", about)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("ok", "gpu", ", ".join(names))
    elif shutil.which("nvidia-smi") and run("nvidia-smi", "-L")[0]:
        built = torch.version.cuda or "no CUDA"
        yield Finding(
            "warn",
            "gpu",
            f"this machine has one that torch (built with {built}) cannot use; install the build "
            "of torch for the driver that `nvidia-smi` shows",
        )
    else:
        yield Finding("ok", "gpu", "none here; jobs on this machine use the CPU")


# --- the store


def check_store(workspace: Workspace) -> Iterator[Finding]:
    """What the store's promises rest on, tried in a scratch entry of it."""
    root = workspace.store.root
    change = "set TSPACE_STORE to a folder that you can write"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".doctor.{uuid.uuid4().hex}"
        probe.mkdir()
    except OSError as e:
        yield Finding("fail", "store", f"{root} cannot be written ({e.strerror}); {change}")
        return
    try:
        yield from _probe(workspace, probe)
    except OSError as e:
        yield Finding("fail", "store", f"{root}: {e}; {change}, on a file system with all of POSIX")
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    free = shutil.disk_usage(root).free
    level = "ok" if free > FREE_BYTES else "warn"
    more = "" if free > FREE_BYTES else "; make room before a run"
    yield Finding(level, "disk", f"{free / 1e9:.1f} GB free for the store{more}")


def _probe(workspace: Workspace, probe: Path) -> Iterator[Finding]:
    from pipeline.store.entry import Entry
    from pipeline.store.files import write_text

    root = workspace.store.root
    write_text(probe / "file", "old")
    write_text(probe / "file", "new")
    entry = Entry(probe / "entry")
    entry.path.mkdir()
    with entry.lease("doctor"):
        held = entry.leased()
    if (probe / "file").read_text() != "new" or len(os.listdir(probe)) != 2:
        yield Finding("fail", "store", f"{root}: a rename onto a file does not replace it")
    elif not held or entry.leased():
        yield Finding("fail", "store", f"{root}: a lease is not seen, or stays when given back")
    else:
        yield Finding("ok", "store", f"{root} can be written, renames replace, leases hold")
    skew = (probe / "file").stat().st_mtime - time.time()
    if abs(skew) > SKEW_SECONDS:
        # Leases compare the file system's own times with each other.
        text = (
            f"the file system's is {skew:+.0f} s off this host's; harmless, leases use the former"
        )
        yield Finding("warn", "clock", text)
    else:
        yield Finding("ok", "clock", "the file system's agrees with this host's")
    yield _links(workspace, probe / "file")


def _links(workspace: Workspace, probe: Path) -> Finding:
    """Whether a result is on the disk once: in the store, artefacts/ and DVC's cache by one name.

    DVC adopts a file by a hard link only where that is its first choice of `cache.type`.
    """
    said = "store, artefacts/ and DVC's cache share files by hard links"
    artefacts, cache = workspace.root / "artefacts", cache_folder(workspace.root)
    for name, folder in (("artefacts/", artefacts), ("DVC's cache", cache)):
        target = (folder if folder.exists() else workspace.root) / f".doctor.{uuid.uuid4().hex}"
        try:
            os.link(probe, target)
        except OSError as e:
            text = f"no hard links from the store to {name} ({e.strerror}), so results are kept"
            return Finding(
                "warn", "links", f"{text} twice; put TSPACE_STORE on the checkout's file system"
            )
        finally:
            target.unlink(missing_ok=True)
    ran, kind = run(sys.executable, "-m", "dvc", "config", "cache.type", cwd=workspace.root)
    if ran and kind.strip().startswith("hardlink"):
        return Finding("ok", "links", said)
    text = "DVC's cache.type does not begin with hardlink, so results are kept two or three times"
    return Finding("warn", "links", f"{text}; run `dvc config cache.type hardlink,copy`")


# --- DVC and the data


def check_dvc(workspace: Workspace) -> Iterator[Finding]:
    """DVC's version, whether the checkout is its own, and its remote."""
    version = importlib.metadata.version("dvc")
    if not (workspace.root / ".dvc").is_dir():
        yield Finding("fail", "dvc", f"{version}, but the checkout has no .dvc; clone it by git")
        return
    done, listed = run(sys.executable, "-m", "dvc", "remote", "list", cwd=workspace.root)
    if not done:
        yield Finding("fail", "dvc", f"{version}: `dvc remote list` says: {listed}")
    elif not listed:
        text = f"{version}, no remote (only push and pull need one: `dvc remote add -d NAME URL`)"
        yield Finding("ok", "dvc", text)
    else:
        remotes = [line.split()[:2] for line in listed.splitlines()]
        yield Finding("ok", "dvc", f"{version}, remote {', '.join(' '.join(r) for r in remotes)}")
        for name, url in remotes:
            if "://" not in url and not Path(workspace.root / ".dvc", url).exists():
                text = f"{name}: the folder {url} is not there (mounted?); push and pull will fail"
                yield Finding("warn", "dvc", text)


def check_data(workspace: Workspace) -> Iterator[Finding]:
    """params.yaml, the dataset, and whether it is of the images that are there now."""
    from stages.facts import facts_of
    from stages.source import changes, raw_path

    try:
        data = workspace.params.data
        yield Finding("ok", "params.yaml", counted(len(workspace.params.recipes), "recipe"))
    except UserError as e:
        yield Finding("fail", "params.yaml", str(e))
        return
    if workspace.dataset.exists():
        try:
            facts = facts_of(workspace)
            size = f"{facts.resolution}x{facts.resolution}"
            yield Finding("ok", "dataset", f"{counted(facts.rows, 'image')} of {size}")
            if changed := changes(workspace):
                yield Finding("warn", "data", changed)
        except UserError as e:
            yield Finding("fail", "dataset", str(e))
    elif data.path is not None and not raw_path(workspace).exists():
        text = f"{data.path} is not there; put it there, or correct data.path in params.yaml"
        yield Finding("fail", "dataset", text)
    else:
        yield Finding("warn", "dataset", "not prepared yet; `dvc repro prepare`")


def check_report(workspace: Workspace) -> Iterator[Finding]:
    """Whether the page, which DVC does not track, is of the results beside it."""
    if wrong := stale(workspace):
        yield Finding("warn", "report", f"{wrong}; run `tspace report`")


# --- SLURM: reading what its commands print


def run(
    *command: str, cwd: Path | None = None, seconds: float = COMMAND_SECONDS
) -> tuple[bool, str]:
    """Whether a command succeeded, and what it printed (its last error line if it did not)."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=cwd)
    except OSError as e:
        return False, f"{command[0]}: {e.strerror}"
    except subprocess.TimeoutExpired:
        return False, f"{command[0]} gave no answer within {seconds:.0f} s"
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return False, said[-1] if said else f"exit status {done.returncode}"
    return True, done.stdout.strip()


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


# --- SLURM: the site against the profile


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
