"""`tspace gc`: deletes entries of the store that nothing names any more."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from pipeline.errors import UserError
from pipeline.store.entry import Entry
from stages.cache import cached, cached_listing
from stages.numbers import counted, si
from stages.tools.status import needed_jobs
from stages.tools.verify import git, recorded
from stages.workspace import Workspace

RECENT_SECONDS = 86_400  # what changed since may be of a run that no plan shows yet
REFS = ("refs/heads", "refs/remotes", "refs/tags", "refs/exps", "refs/stash")


@dataclass
class Found:
    """What the store holds: entries to delete, and of those kept how many for which reason."""

    unneeded: list[Entry] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    unknown: int = 0  # outputs in a lock whose list of entries is not in DVC's cache


def gc(workspace: Workspace, dry_run: bool, yes: bool) -> None:
    """Print what nothing needs, with sizes, and delete it once that is agreed to.

    UserError where the current params cannot be planned to the end.
    """
    found = look(workspace)
    for reason, number in found.kept.items():
        print(f"kept: {counted(number, 'entry', 'entries')} {reason}")
    if found.unknown:
        way = ""
        if workspace.has_remote:
            way = "; `dvc fetch --all-commits` before this keeps such entries"
        print(
            f"not known: what {counted(found.unknown, 'recorded output')} named, as DVC's cache "
            f"has no list of it{way}"
        )
    if workspace.store.root != workspace.root / "store":
        print(f"not known: what other checkouts need of the shared store {workspace.store.root}")
    if not found.unneeded:
        print("nothing to delete")
        return
    freed = shared = 0
    for kind in sorted({entry.kind for entry in found.unneeded}):
        entries = [entry for entry in found.unneeded if entry.kind == kind]
        sizes = [_bytes(entry.path) for entry in entries]
        own, linked = (sum(column) for column in zip(*sizes, strict=True))
        freed, shared = freed + own, shared + linked
        print(f"to delete: {counted(len(entries), 'entry', 'entries')} of {kind}, {_size(own)}")
    if shared:
        print(f"{_size(shared)} more are linked from DVC's cache, too, and go with `dvc gc`")
    if dry_run:
        return
    if not yes and not click.confirm(f"delete these and free {_size(freed)}?"):
        return
    deleted = sum(_delete(entry) for entry in found.unneeded)
    print(f"deleted {counted(deleted, 'entry', 'entries')}")


def look(workspace: Workspace) -> Found:
    """Sort the store's entries into needed and unneeded ones."""
    reasons, unknown = _needed(workspace)
    found = Found(unknown=unknown)
    for path in sorted(workspace.store.root.glob("*/*")):
        entry = Entry(path)
        if entry.name in reasons:
            found.kept[reasons[entry.name]] += 1
        elif _in_use(entry):
            found.kept["in use, or changed in the last 24 hours"] += 1
        elif not path.name.startswith("."):
            found.unneeded.append(entry)
    return found


def _needed(workspace: Workspace) -> tuple[dict[str, str], int]:
    """Entry -> why it is needed, the nearest reason first; and how many lists are not known."""
    reasons: dict[str, str] = {}
    for part in needed_jobs(workspace):
        if part.later:
            raise UserError(
                f"gc: what params.yaml needs is not all known yet ({part.stage}: {part.later}); "
                "run `dvc repro` first"
            )
        reasons |= {name: "that params.yaml names" for name, _ in part.jobs}
    for manifest in sorted(workspace.root.glob("artefacts/*/manifest.json")):
        for name in _names(manifest):
            reasons.setdefault(name, "that artefacts/ names")
    unknown = set()
    refs = git(workspace, "for-each-ref", "--format=%(objectname)", *REFS).split()
    for commit in dict.fromkeys([git(workspace, "rev-parse", "HEAD").strip(), *refs]):
        for md5 in _folders(workspace, commit):
            files = cached_listing(workspace.root, md5)
            if files is not None and "manifest.json" not in files:
                continue  # mixtures, results: they hold no entries
            manifest = files and cached(workspace.root, files["manifest.json"])
            if not (manifest and manifest.exists()):
                unknown.add(md5)
                continue
            for name in _names(manifest):
                reasons.setdefault(name, "that a branch, tag or experiment names")
    return reasons, len(unknown)


def _folders(workspace: Workspace, commit: str) -> Iterator[str]:
    """The folders in a commit's dvc.lock; none where it has no lock."""
    with contextlib.suppress(UserError):
        for outs in recorded(workspace, commit).values():
            yield from (out["md5"] for out in outs if out["md5"].endswith(".dir"))


def _names(manifest: Path) -> list[str]:
    try:
        return [item["name"] for item in json.loads(manifest.read_text())["entries"]]
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"{manifest}: damaged, so what it needs is not known; delete it") from e


def _in_use(entry: Entry) -> bool:
    newest = max((p.lstat().st_mtime for p in (entry.path, *entry.path.rglob("*"))), default=0.0)
    return time.time() - newest < RECENT_SECONDS or entry.leased()


def _bytes(folder: Path) -> tuple[int, int]:
    """Bytes that only this folder holds, and those that have another name, too."""
    stats = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    linked = sum(s.st_size for s in stats if s.st_nlink > 1)
    return sum(s.st_size for s in stats) - linked, linked


def _delete(entry: Entry) -> bool:
    if _in_use(entry):  # since it was looked at
        return False
    # Renamed first: half an entry never looks like a finished one.
    away = entry.path.with_name(f".deleted.{uuid.uuid4().hex}")
    os.rename(entry.path, away)
    shutil.rmtree(away)
    return True


def _size(number: int) -> str:
    return si(number, "B").replace("\u202f", " ")
