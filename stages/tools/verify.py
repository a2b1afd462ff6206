"""`tspace verify`: are the results here those that a commit's dvc.lock recorded?

Reads files, git and DVC's cache; changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError, one_line
from stages.cache import Listing, cached_listing, md5_of
from stages.numbers import counted
from stages.report.fresh import stale
from stages.workspace import Workspace

SHOWN_FILES = 20  # of a stage's files that differ


def verify(workspace: Workspace, rev: str) -> bool:
    """Print, for each stage, whether its outputs are those of a commit; whether all are.

    UserError if the commit has no dvc.lock, or if nothing was made here yet.
    """
    stages = recorded(workspace, rev)
    found = {
        stage: [(out, *compare(workspace, out)) for out in outs] for stage, outs in stages.items()
    }
    states = [state for outs in found.values() for _, state, _ in outs]
    if all(state == "missing" for state in states):
        raise UserError(f"{workspace.root}: nothing was made here; {workspace.way_to_artefacts}")
    if git(workspace, "diff", "--name-only", rev, "--", "params.yaml").strip():
        print(f"params.yaml is not that of {rev}, so results may well differ")
    width = max(map(len, stages))
    for stage, outs in found.items():
        other = [(out["path"], state, details) for out, state, details in outs if state != "equal"]
        if not other:
            print(f"{stage:<{width}}  equal")
        for path, state, details in other:
            print(f"{stage:<{width}}  {state}: {path}")
            for line in details[:SHOWN_FILES]:
                print(f"{'':<{width}}    {line}")
            if len(details) > SHOWN_FILES:
                print(f"{'':<{width}}    and {len(details) - SHOWN_FILES} more")
    pulled = _pulled(workspace, stages)
    if pulled:
        print(
            f"{counted(pulled, 'entry', 'entries')} came with DVC and were not made in this store"
        )
    if wrong := stale(workspace):
        print(f"{wrong}; run `tspace report`")
    other = len(states) - states.count("equal")
    if other:
        print(f"{counted(other, 'output')} not as dvc.lock of {rev} records")
    else:
        print(f"the same results as dvc.lock of {rev} records")
    return not other


def recorded(workspace: Workspace, rev: str) -> dict[str, list[dict[str, Any]]]:
    """The outputs of each stage as a commit's dvc.lock has them, in the order of dvc.yaml.

    UserError if it has none.
    """
    try:
        lock = yaml.safe_load(git(workspace, "show", f"{rev}:./dvc.lock"))["stages"]
        names = sorted(lock, key=_place_in(workspace.root / "dvc.yaml"))
        return {name: lock[name]["outs"] for name in names if "outs" in lock[name]}
    except (yaml.YAMLError, KeyError, TypeError) as e:
        raise UserError(f"{rev}:dvc.lock: not what DVC writes ({one_line(e)})") from e


def _place_in(pipeline: Path) -> Callable[[str], int]:
    """The number of a stage in dvc.yaml; what it does not have comes last."""
    stages = yaml.safe_load(pipeline.read_text())["stages"] if pipeline.exists() else {}
    number = {name: i for i, name in enumerate(stages)}
    return lambda name: number.get(name, len(number))


def git(workspace: Workspace, *arguments: str) -> str:
    """What a git command says. UserError with git's reason if it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=workspace.root, capture_output=True, text=True, check=True
        )
    except FileNotFoundError as e:
        raise UserError("git: not found; install it") from e
    except subprocess.CalledProcessError as e:
        raise UserError(f"git {' '.join(arguments)}: {e.stderr.strip()}") from e
    return done.stdout


def compare(workspace: Workspace, out: dict[str, Any]) -> tuple[str, list[str]]:
    """`equal`, `differs` or `missing`, and in which files."""
    path = workspace.root / out["path"]
    if not path.exists():
        return "missing", []
    if not path.is_dir():
        return ("equal" if md5_of(path) == out["md5"] else "differs"), []
    here = listing(path)
    if listing_md5(here) == out["md5"]:
        return "equal", []
    there = cached_listing(workspace.root, out["md5"])
    if there is None:
        way = "; `dvc fetch` brings it" if workspace.has_remote else ""
        return "differs", [f"in which files is not known: DVC's cache has no list of them{way}"]
    return "differs", list(_differences(here, there, _labels(path)))


def listing(folder: Path) -> Listing:
    """Every file below a folder with its md5."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): md5_of(path) for path in files}


def listing_md5(files: Listing) -> str:
    """What DVC knows a folder by: the md5 of its list of files."""
    items = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(items, sort_keys=True).encode()).hexdigest() + ".dir"


def _differences(here: Listing, there: Listing, labels: dict[str, str]) -> Iterator[str]:
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) == there.get(name) or name == "manifest.json":
            continue
        state = "" if name in here and name in there else " (new)" if name in here else " (gone)"
        label = labels.get(name.partition("/")[0])
        yield f"{f'{label}: ' if label else ''}{name}{state}"


def _labels(folder: Path) -> dict[str, str]:
    """Names for people of a fan-out stage's entries, which begin with the recipe's."""
    try:
        items = json.loads((folder / "manifest.json").read_text())["entries"]
        return {item["name"].partition("/")[2]: item["label"] for item in items}
    except (OSError, ValueError, KeyError):
        return {}


def _pulled(workspace: Workspace, stages: dict[str, list[dict[str, Any]]]) -> int:
    names = {
        item["name"]
        for outs in stages.values()
        for out in outs
        if (path := workspace.root / out["path"] / "manifest.json").is_file()
        for item in workspace.read_json(path)["entries"]
    }
    return sum(not workspace.store.entry(name).circumstances() for name in names)
