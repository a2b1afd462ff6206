"""tspace as an installed package: the files of a project, and what stands for the code there.

In a checkout, stages of dvc.yaml depend on the code itself. Where tspace is installed, its code is
no file of the project, so `tspace source` writes a digest of each stage's code to artefacts/code/,
and the dvc.yaml that `tspace init` writes depends on these: another version makes stages check, and
the digests of jobs decide what really reruns, as everywhere.
"""

from __future__ import annotations

import importlib.metadata
import io
import tomllib
from pathlib import Path
from typing import Any

import yaml

import pipeline
from pipeline.errors import UserError
from pipeline.store.files import write_text
from pipeline.store.identity import digest, file_digest
from stages.workspace import Workspace

CODE = "artefacts/code"  # a file a stage
SHARE = "share/tspace"  # where an installation keeps the files of a project
ROOT = Path(__file__).parent.parent  # of the code: a checkout, or where packages are
NEEDED = "dvc.yaml"
ENVIRONMENT = "envs/tspace.yaml"
HEAD = """\
Written by `tspace init` of tspace {version}.
DVC decides which stages to check, the store which jobs are missing, Snakemake where they run.
Outputs of fan-out stages are `persist`: they hold exactly what the plan names.
{code}/STAGE is a digest of the code of a stage, which is installed elsewhere.
"""


def project_files() -> dict[str, Path]:
    """The files of a new project by their path in it: of this checkout, or installed.

    UserError where an installation lacks them.
    """
    found: dict[str, Path] = {}
    if (ROOT / "pyproject.toml").exists():
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        for patterns in settings["tool"]["setuptools"]["data-files"].values():
            paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
            found |= {path.relative_to(ROOT).as_posix(): path for path in paths}
    else:
        for file in importlib.metadata.files("tspace") or ():
            _, inside, name = file.as_posix().partition(f"{SHARE}/")
            if inside:
                found[name] = Path(str(file.locate())).resolve()
    if NEEDED not in found or not found[NEEDED].exists():
        raise UserError(f"{ROOT}: tspace is installed without {SHARE}; install its wheel again")
    return found


def pipeline_of_project() -> str:
    """dvc.yaml for a folder without the code."""
    from ruamel.yaml import YAML

    round_trip = YAML()
    round_trip.width = 160
    round_trip.indent(mapping=2, sequence=4, offset=2)
    document = round_trip.load(project_files()[NEEDED].read_text(encoding="utf-8"))
    for name, stage in document["stages"].items():
        deps = stage.get("deps", [])
        code = [number for number, dep in enumerate(deps) if _is_code(dep)]
        if code:
            deps[code[-1]] = f"{CODE}/{name}"  # in its place, which may hold a comment
            for number in reversed(code[:-1]):
                del deps[number]
    document["stages"]["source"]["outs"].append({CODE: {"persist": True}})
    document.yaml_set_start_comment(HEAD.format(version=pipeline.__version__, code=CODE))
    text = io.StringIO()
    round_trip.dump(document, text)
    return text.getvalue()


def environment_of_project() -> str:
    """envs/tspace.yaml for a folder without the code: from a wheel beside it, not from an index."""
    text = project_files()[ENVIRONMENT].read_text(encoding="utf-8")
    note = "# Put the wheel that this tspace was installed from beside this file.\n"
    wheel = f"./tspace-{pipeline.__version__}-py3-none-any.whl"
    return note + text.replace("--editable=..", wheel)


def _is_code(dep: Any) -> bool:
    return str(dep).split("/")[0] in ("pipeline", "stages")


def write_code_digests(workspace: Workspace) -> None:
    """Write artefacts/code/ where the project's dvc.yaml names it."""
    path = workspace.root / NEEDED
    if not path.exists() or CODE not in path.read_text(encoding="utf-8"):
        return
    stages = yaml.safe_load(project_files()[NEEDED].read_text(encoding="utf-8"))["stages"]
    folder = workspace.root / CODE
    folder.mkdir(parents=True, exist_ok=True)
    for name, stage in stages.items():
        if deps := list(filter(_is_code, stage.get("deps", []))):
            write_text(folder / name, f"{code_of(deps)}\n")


def code_of(deps: list[str]) -> str:
    """A digest of the files of the code that these paths name."""
    files = [
        path
        for dep in deps
        for path in ([ROOT / dep] if (ROOT / dep).is_file() else (ROOT / dep).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return digest({path.relative_to(ROOT).as_posix(): file_digest(path) for path in files})
