"""Entry point of the `tspace` command: runs the code of the checkout one stands in.

An editable install points at one checkout. A git worktree, a clone, or the copy that
`dvc exp run --temp` makes must run its own code, or results would be recorded under code that did
not make them.
"""

import sys
from pathlib import Path


def main() -> None:
    here = Path.cwd()
    if (here / "stages" / "cli.py").exists() and (here / "pipeline").is_dir():
        sys.path.insert(0, str(here))
    from stages.cli import main as command_line

    command_line()
