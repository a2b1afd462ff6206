"""`tspace doctor`: checks of the installation, of the store and of a SLURM site.

Each finding is one line: `ok | warn | fail  what: finding; what to change`.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import time
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.devices import cores
from pipeline.errors import UserError
from stages.cache import cache_folder
from stages.numbers import counted
from stages.report.fresh import stale
from stages.tools.finding import Finding, run
from stages.tools.site import check_node, check_slurm
from stages.workspace import Workspace

SKEW_SECONDS = 5.0
FREE_BYTES = 1 << 30


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


def required(workspace: Workspace) -> tuple[str, list[str], str]:
    """Of Python, of packages, and how to get them, as the checkout or the installation says."""
    path = workspace.root / "pyproject.toml"
    if path.exists():
        project = tomllib.loads(path.read_text())["project"]
        way = "`pip install -c constraints.txt -e .`"
        return project["requires-python"], project["dependencies"], way
    about = importlib.metadata.metadata("tspace")
    needed = [text for text in about.get_all("Requires-Dist") or [] if "extra ==" not in text]
    return about["Requires-Python"], needed, "install the wheel of tspace again"


def check_versions(workspace: Workspace) -> Iterator[Finding]:
    """Python and the packages against the ranges that tspace needs."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    wanted, needed, way = required(workspace)
    python = ".".join(map(str, sys.version_info[:3]))
    if python in SpecifierSet(wanted):
        yield Finding("ok", "python", f"{python} at {sys.executable}")
    else:
        yield Finding("fail", "python", f"{python}, needs {wanted}; make .venv with a newer one")
    wrong = []
    for requirement in map(Requirement, needed):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, needs {requirement.specifier}")
    for text in wrong:
        yield Finding("fail", "packages", f"{text}; {way}")
    if not wrong:
        yield Finding("ok", "packages", f"{counted(len(needed), 'requirement')} of tspace hold")


def check_torch() -> Iterator[Finding]:
    """Torch's threads and devices."""
    import torch

    cpus, threads = cores(), torch.get_num_threads()
    about = f"{torch.__version__}, {counted(threads, 'thread')} on {counted(cpus, 'usable CPU')}"
    if threads > cpus:
        yield Finding("warn", "torch", f"{about}; set OMP_NUM_THREADS to {cpus} at most")
    else:
        yield Finding("ok", "torch", about)
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = [f"{each.name}, {each.total_memory / 2**30:.0f} GiB" for each in found]
        versions = f"torch for CUDA {torch.version.cuda}, driver {driver() or 'unknown'}"
        yield Finding("ok", "gpu", f"{'; '.join(names)} ({versions})")
    elif shutil.which("nvidia-smi") and run("nvidia-smi", "-L")[0]:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        yield Finding(
            "warn",
            "gpu",
            f"this machine has one that torch (built with {built}, driver {driver()}) cannot use; "
            "install the build of torch for that driver",
        )
    else:
        yield Finding("ok", "gpu", "none here; jobs on this machine use the CPU")


def driver() -> str:
    """The version of the driver of this machine's GPUs; empty if it does not say."""
    done, said = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said.splitlines()[0] if done and said else ""


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
