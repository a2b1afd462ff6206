"""What a check of `tspace doctor` says, and how one asks a command of the system."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

COMMAND_SECONDS = 20.0  # SLURM's own commands give up later than a person


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fail` makes the command's exit status 1."""

    level: Literal["ok", "warn", "fail"]
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what}: {self.text}"


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
