"""Ready-made params.yaml for larger work."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable

from pipeline.errors import UserError
from pipeline.store.files import write_text
from pipeline.store.identity import file_digest
from stages.workspace import Workspace

# What `--scale` multiplies, and the least that it leaves of each.
COUNTS = {
    "images": 64,
    "milestones": 64,
    "milestone": 64,
    "reference_images": 64,
    "pilot_images": 64,
    "holdout": 64,
    "samples": 64,
    "draws": 256,
    "steps": 8,
    "warmup": 1,
    "ema_halflife": 1,
    "every": 64,
}
WIDTHS = ("channels", "decoder_channels", "width")  # what `--width` multiplies, above the least
LEAST_WIDTH = 8
LEAST_HEADS = 2  # that every multiple of the least width has
LEAST_STEPS = 8  # of the shortest run: a larger batch is lowered


def names(workspace: Workspace) -> list[str]:
    return sorted(path.stem for path in (workspace.root / "presets").glob("*.yaml"))


def write_preset(
    workspace: Workspace, name: str, force: bool, scale: float = 1.0, width: float = 1.0
) -> None:
    """Make a preset the params.yaml. An edited one is replaced only with `force`, and kept beside.

    scale, width: for a rehearsal, see `rehearsal`. UserError for an unknown preset, or when
    params.yaml has been edited.
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
    text, cut = source.read_text(), ""
    if scale < 1 or width < 1:
        text = rehearsal(text, scale, width)
        cut = f", with {scale:g} of its budget and {width:g} of its width"
    write_text(target, text)
    print(f"params.yaml is now the preset {name}{cut}; run `dvc repro`")


def rehearsal(text: str, scale: float, width: float) -> str:
    """The text of a preset with the same recipes at a part of their cost, comments and all.

    scale: factor on what counts images, samples and sampling steps, down to the floors of `COUNTS`;
    no batch stays above an eighth of the shortest run, and scores of few samples are allowed.
    width: factor on the networks' widths, to a multiple of 8, and on their blocks (a level).
    Presets write a key and its value, a number or a list of them, on one line.
    """

    def count(key: str, value: int) -> int:
        return min(value, max(COUNTS[key], round(value * scale)))

    def base_width(_: str, value: int) -> int:
        return min(value, max(LEAST_WIDTH, round(value * width / LEAST_WIDTH) * LEAST_WIDTH))

    text = _each(text, WIDTHS, base_width)
    text = _each(text, ("blocks", "depth"), lambda _, value: max(1, round(value * width)))
    if width < 1:
        text = _each(text, ("heads",), lambda _, value: min(value, LEAST_HEADS))
    if scale == 1:
        return text
    budgets: list[int] = []
    _each(text, ("images",), lambda key, value: budgets.append(count(key, value)) or value)
    text = _each(text, tuple(COUNTS), count)
    largest = max(1, min(budgets) // LEAST_STEPS)
    text = _each(text, ("batch",), lambda _, value: min(value, largest))
    return re.sub(r"^evaluate:\n", "evaluate:\n  allow_few: true\n", text, flags=re.MULTILINE)


def _each(text: str, keys: tuple[str, ...], change: Callable[[str, int], int]) -> str:
    """YAML with the numbers under some keys changed; equal milestones become one."""

    def one(match: re.Match[str]) -> str:
        head, key, value = match.groups()
        if not value.startswith("["):
            return f"{head}{change(key, int(value))}"
        found = [change(key, int(part)) for part in value.strip("[]").split(",") if part.strip()]
        if key == "milestones":
            found = list(dict.fromkeys(found))
        return f"{head}[{', '.join(map(str, found))}]"

    pattern = re.compile(rf"(\b({'|'.join(keys)}): )(\d+|\[[\d, ]*\])(?=[\s,}}]|$)")
    lines = (line.partition("#") for line in text.splitlines(keepends=True))
    return "".join(pattern.sub(one, code) + mark + comment for code, mark, comment in lines)


def _unedited(workspace: Workspace) -> bool:
    """Whether params.yaml is as git has it, or is one of the presets to the letter."""
    own = file_digest(workspace.root / "params.yaml")
    if any(own == file_digest(path) for path in (workspace.root / "presets").glob("*.yaml")):
        return True
    command = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml"]
    return subprocess.run(command, cwd=workspace.root, capture_output=True).returncode == 0
