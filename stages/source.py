"""The stage `source`: the fingerprint of the raw data, on which `prepare` depends, and checksums of
the other files that params.yaml names, on which the stages that read them do.

DVC runs it every time, whatever it has cached: only so are images noticed that were added, removed
or edited since, wherever `data.path` is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.fingerprint import Fingerprint, fingerprint
from pipeline.data.params import Data
from pipeline.data.raw import raw_files
from pipeline.errors import UserError, shown
from pipeline.store.files import write_json, write_text
from pipeline.store.identity import digest, file_digest
from stages.installed import write_code_digests
from stages.numbers import counted
from stages.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.data.dataset import DatasetInfo

CHEAP_BYTES = 2**28  # read at most where an answer is only good to know


def raw_path(workspace: Workspace) -> Path | None:
    """What `data.path` names; None for a source's own place. UserError for a home of nobody."""
    path = workspace.params.data.path
    if path is None:
        return None
    try:
        return workspace.root / Path(path).expanduser()
    except RuntimeError as e:
        raise UserError(f"data.path: {path}: there is no such home folder") from e


def source(workspace: Workspace) -> None:
    """Write artefacts/files.json and source.json, or keep a pulled one of images not here.

    Where tspace is installed and no checkout, also artefacts/code/ (see `stages.installed`).
    """
    files = {"features": extractor_files(workspace), "recipes": recipe_files(workspace)}
    if reference := reference_file(workspace):
        files["evaluate"] = {"reference": reference}
    workspace.source.parent.mkdir(parents=True, exist_ok=True)
    write_json(workspace.source.with_name("files.json"), files)
    write_code_digests(workspace)
    data, path = workspace.params.data, raw_path(workspace)
    if path is not None and not path.exists():
        _without_images(workspace, data, path)
        return
    found = _fingerprint(workspace, path)
    write_text(workspace.source, _text(data, found))
    print(f"source: {counted(found.files, 'file')}, {counted(found.bytes, 'byte')}")


def extractor_files(workspace: Workspace) -> dict[str, str]:
    """Checksums of the files that params.yaml names for the extractor; UserError without one."""
    settings = workspace.params.features.model_dump()
    named = {
        "module": (settings.get("module") or "").rpartition(":")[0],
        "weights": settings.get("weights"),
    }
    return {
        key: _digest_of(workspace, f"features.{key}", path) for key, path in named.items() if path
    }


def recipe_files(workspace: Workspace) -> dict[str, str]:
    """Checksums of the files that recipes name, by path; UserError without one."""
    files: dict[str, str] = {}
    for name, recipe in workspace.params.recipes.items():
        for key, path in recipe.files.items():
            if path not in files:
                files[path] = _digest_of(workspace, f"recipes.{name}.{key}", path)
    return files


def reference_file(workspace: Workspace) -> str | None:
    """Checksum of `evaluate.reference`; None without one. UserError if it cannot be read."""
    path = workspace.params.evaluate.reference
    return path and _digest_of(workspace, "evaluate.reference", path)


def _digest_of(workspace: Workspace, key: str, path: str) -> str:
    try:
        return file_digest(workspace.root / path)
    except OSError as e:
        way = "; name a file in it" if (workspace.root / path).is_dir() else ""
        raise UserError(f"{key}: {path}: cannot be read ({e.strerror}{way})") from e


def _without_images(workspace: Workspace, data: Data, path: Path) -> None:
    ways = _way_to_images(workspace, data.path, path)
    if _settings_of(workspace.source) != _settings(data):
        raise UserError(f"data.path: {shown(path)} does not exist; {ways}")
    print(
        f"source: {shown(data.path)} is not here, so the dataset is used as it was prepared last; "
        f"to look at the images again, {ways}"
    )


def require_images(workspace: Workspace, why: str) -> None:
    """UserError unless the raw images are here. why: they are needed, in words."""
    path = raw_path(workspace)
    if path is not None and not path.exists() and workspace.params.data.source != "digits":
        ways = _way_to_images(workspace, workspace.params.data.path, path)
        raise UserError(f"data.path: {shown(path)} does not exist, and {why}; {ways}")


def _way_to_images(workspace: Workspace, name: str, path: Path) -> str:
    name = shown(name)
    copied = ".dvc" in workspace.root.parts  # where DVC runs experiments
    if path.with_name(f"{path.name}.dvc").exists():
        way = f"`dvc checkout {name}` (or `dvc pull`) them"
        return f"name no stage, so that DVC gets them, or {way}" if copied else way
    if copied:
        return (
            "let the experiment see them, which runs in a copy without what git ignores (--temp, "
            f"--queue): `dvc add {name}`, or an absolute data.path"
        )
    way = "put the images there, or correct data.path in params.yaml"
    if not workspace.dataset.exists() and workspace.has_remote:
        return f"`dvc pull` the dataset as it was prepared last, or {way}"
    return way


def _fingerprint(
    workspace: Workspace, path: Path | None, most_bytes: int | None = None
) -> Fingerprint | None:
    data = workspace.params.data
    root, names = raw_files(data.source, path, data.split)
    table = workspace.scratch / "source" / digest([str(root.absolute()), _settings(data)])
    return fingerprint(root, names, table, most_bytes)


def _settings(data: Data) -> dict[str, Any]:
    """What decides which files are read."""
    return data.model_dump(include={"source", "path", "split"})


def _settings_of(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())["settings"]
    except (OSError, ValueError, KeyError):
        return None


def _text(data: Data, found: Fingerprint) -> str:
    about = {"settings": _settings(data), **dataclasses.asdict(found)}
    return json.dumps(about, indent=1) + "\n"


MOVED = "many files moved since the last look; `dvc repro` compares their contents"


def edited(workspace: Workspace, info: DatasetInfo) -> str | None:
    """One line if a dataset was prepared with other settings than params.yaml has now."""
    before, path = info.settings, raw_path(workspace)
    now = workspace.params.data.model_dump(exclude={"holdout"})
    now["path"] = None if path is None else path.name
    keys = [key for key in now if key in before and before[key] != now[key]]
    if not keys:
        return None
    said = ", ".join(f"data.{key} ({_word(before[key])} -> {_word(now[key])})" for key in keys)
    return f"{said} changed since the dataset was prepared; `dvc repro` prepares it again"


def _word(value: Any) -> str:
    return "null" if value is None else str(value)


def changes(workspace: Workspace) -> str | None:
    """One line if the dataset is not that of params.yaml and the raw data; `MOVED` if unsure.

    None if it is, or if there is nothing to compare: never prepared, or no raw data here.
    """
    from pipeline.data.dataset import open_dataset

    prepared = workspace.dataset.exists()
    if prepared and (found := edited(workspace, open_dataset(workspace.dataset).info)):
        return found
    recorded = _recorded(workspace)
    path = raw_path(workspace)
    if recorded is None or (path is not None and not path.exists()):
        return None
    data = workspace.params.data
    if _settings_of(workspace.source) not in (None, _settings(data)):
        return "data.source, data.path or data.split changed since the dataset was prepared"
    found = _fingerprint(workspace, path, CHEAP_BYTES)
    if found is None:
        return MOVED
    if hashlib.md5(_text(data, found).encode(), usedforsecurity=False).hexdigest() == recorded:
        return None
    return "the images changed since the dataset was prepared; `dvc repro` prepares it again"


def _recorded(workspace: Workspace) -> str | None:
    """The checksum of artefacts/source.json that `prepare` last ran with."""
    import yaml

    try:
        lock = (workspace.root / "dvc.lock").read_text()
        # In C where it is to be had: every command reads this file.
        locked = yaml.load(lock, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        deps = locked["stages"]["prepare"]["deps"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    name = workspace.source.relative_to(workspace.root).as_posix()
    return next((dep.get("md5") for dep in deps if dep.get("path") == name), None)
