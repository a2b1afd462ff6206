"""`import tspace`: parts for a training loop of one's own (`pipeline.interface`), and the command.

An editable install points at one checkout. A git worktree, a clone, or the copy that
`dvc exp run --temp` makes must run its own code, or results would be recorded under code that did
not make them. So the command runs the code of the checkout one stands in.
"""

import sys
from pathlib import Path
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_"):  # what Python asks every module for
        raise AttributeError(name)
    from pipeline import interface  # only now: the command needs no torch for most of its work

    if name not in interface.__all__:
        raise AttributeError(f"tspace has no {name}; one of: {', '.join(interface.__all__)}")
    return getattr(interface, name)


def main() -> None:
    here = Path.cwd()
    if (here / "stages" / "cli.py").exists() and (here / "pipeline").is_dir():
        sys.path.insert(0, str(here))
    from stages.cli import main as command_line

    command_line()
