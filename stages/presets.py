"""Ready-made params.yaml for larger work."""

from __future__ import annotations

import shutil
import subprocess

from pipeline.errors import UserError
from pipeline.identity import file_digest
from pipeline.store import write_text
from stages.workspace import Workspace


def names(workspace: Workspace) -> list[str]:
    return sorted(path.stem for path in (workspace.root / "presets").glob("*.yaml"))


def write_preset(workspace: Workspace, name: str, force: bool) -> None:
    """Make a preset the params.yaml. An edited one is replaced only with `force`, and kept beside.

    UserError for an unknown preset, or when params.yaml has been edited.
    """
    known = names(workspace)
    if name not in known:
        raise UserError(f"preset {name}: unknown; one of: {', '.join(known)}")
    source, target = workspace.root / "presets" / f"{name}.yaml", workspace.root / "params.yaml"
    if target.exists() and not _unedited(workspace):
        if not force:
            raise UserError(
                "params.yaml has been edited; commit it first, or use --force (a copy is kept as "
                "params.yaml.before)"
            )
        shutil.copyfile(target, target.with_name("params.yaml.before"))
    write_text(target, source.read_text())
    print(f"params.yaml is now the preset {name}; run `dvc repro`")


def _unedited(workspace: Workspace) -> bool:
    """Whether params.yaml is as git has it, or is one of the presets to the letter."""
    own = file_digest(workspace.root / "params.yaml")
    if any(own == file_digest(path) for path in (workspace.root / "presets").glob("*.yaml")):
        return True
    command = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml"]
    return subprocess.run(command, cwd=workspace.root, capture_output=True).returncode == 0
