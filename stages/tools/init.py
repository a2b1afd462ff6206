"""`tspace init`: a folder in which `dvc repro` runs with an installed tspace."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.errors import UserError
from pipeline.store.files import replacing, write_text
from stages.installed import (
    ENVIRONMENT,
    NEEDED,
    environment_of_project,
    pipeline_of_project,
    project_files,
)

# Files that name the code, which is not in a project's folder.
CHANGED = {NEEDED: pipeline_of_project, ENVIRONMENT: environment_of_project}


def init(folder: Path) -> None:
    """Write the files of a project that `folder` does not have yet.

    UserError for a folder that is a checkout of tspace, whose code would not be the installed one.
    """
    if (folder / "stages" / "cli.py").exists():
        raise UserError(f"{folder}: is a checkout of tspace already; run `make repro` in it")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    written, kept = 0, []
    for name, source in project_files().items():
        target = folder / name
        if target.exists():
            kept.append(name)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in CHANGED:
            write_text(target, CHANGED[name]())
        else:
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)
        written += 1
    if kept:
        print(f"kept as they are: {', '.join(kept)}")
    git = "" if (folder / ".git").exists() else "git init && "
    print(f"{folder}: {written} files written; `cd {folder} && {git}dvc repro` runs it")
