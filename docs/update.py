"""Writes what the docs show of results: `python docs/update.py`.

The README's table and picture come from the last `make repro`, its list of benchmarks from
benchmarks/results/*.json. Without results/, only the latter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

sys.path.insert(0, str(ROOT / "benchmarks"))

from common import machine  # noqa: E402
from experiment import makespan  # noqa: E402

from stages.drawing import save  # noqa: E402
from stages.groups import units_of  # noqa: E402
from stages.report import samples_text, table_rows  # noqa: E402

README = ROOT / "README.md"
MEASURED = ROOT / "docs" / "benchmarks.md"
HEADLINES = 6  # figures of a benchmark that the README shows


def main() -> None:
    results = {
        path.stem: json.loads(path.read_text())
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    }
    replace(README, "benchmarks", headlines(results))
    for name, found in results.items():
        arms = [row for row in found["rows"] if "arm" in row]
        if arms:
            replace(MEASURED, name, arms_table(found, arms))
    if "disentangled" in results:
        draw_wall_clock(results["disentangled"])
    if (ROOT / "results" / "summary.json").exists():
        show_results()


def replace(path: Path, block: str, lines: list[str]) -> None:
    """Put lines between the markers of a block."""
    text = path.read_text()
    begin, end = f"<!-- {block}:begin -->", f"<!-- {block}:end -->"
    start, stop = text.index(begin) + len(begin), text.index(end)
    path.write_text(text[:start] + "\n" + "\n".join(lines) + "\n" + text[stop:])


def headlines(results: dict[str, dict]) -> list[str]:
    """A row for each committed result: its first headline figures, and what made it."""
    lines = ["| benchmark | headline | measured |", "|---|---|---|"]
    for name, found in results.items():
        kept = list(found["headline"].items())[:HEADLINES]
        shown = ", ".join(f"{key} {number(value)}" for key, value in kept)
        more = ", ..." if len(found["headline"]) > HEADLINES else ""
        link = f"[{name}](benchmarks/results/{name}.json)"
        lines.append(f"| {link} | {shown}{more} | `{found['command']}`, {found['date']} |")
    return lines


def arms_table(found: dict, arms: list[dict]) -> list[str]:
    """The arms of a training benchmark: mean (lowest to highest) over its seeds."""
    columns = list(dict.fromkeys(key for row in arms for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in arms:
        cells = [spread(row.get(key)) for key in columns]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(f"\n`{found['command']}`, {found['date']}, commit {found['commit']}.")
    return lines


def spread(value: object) -> str:
    if not isinstance(value, dict):
        return "" if value is None else str(value)
    if value["mean"] is None:
        return f"not reached ({value['n']} of {value['of']})"
    low, high = number(value["min"]), number(value["max"])
    return number(value["mean"]) if low == high else f"{number(value['mean'])} ({low} to {high})"


WORKERS = {"shared-16": (1,), "experts": (1, 8, 16), "data-parallel": (16,)}
NAMES = {"shared-16": "one network", "experts": "16 experts", "data-parallel": "one network"}


def draw_wall_clock(found: dict) -> None:
    """FID over the seconds that training takes on 1, 8 and 16 workers, from the measured jobs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=110)
    for colour, (arm, numbers) in zip(("C0", "C1", "C2"), WORKERS.items(), strict=True):
        for style, workers in zip(("-", "--", ":"), numbers, strict=False):
            points: dict[int, list[tuple[float, float]]] = {}
            for row in found["rows"]:
                if row.get("recipe") == arm:
                    seconds = makespan(row["expert_seconds"], workers)
                    if arm == "data-parallel":  # its batch is spread over the workers for nothing
                        seconds /= workers
                    points.setdefault(row["milestone"], []).append((seconds, row["fid"]))
            runs = np.array([points[milestone] for milestone in sorted(points)])
            seconds, fid = runs.mean(axis=1).T
            parallel = ", its batch on" if arm == "data-parallel" else " on"
            several = f"{workers} workers (computed)" if workers > 2 else "1 worker (measured)"
            label = f"{NAMES[arm]}{parallel} {several}"
            axes.plot(seconds, fid, style, marker="o", markersize=3, color=colour, label=label)
            axes.fill_between(
                seconds, *np.quantile(runs[..., 1], (0, 1), axis=1), color=colour, alpha=0.12
            )
    axes.set(xscale="log", yscale="log", xlabel="seconds of training, log", ylabel="FID, log")
    axes.set_title("Mean of three seeds; band: lowest to highest", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "disentangled.png", metadata={"Software": None})
    pyplot.close(figure)


def number(value: object) -> str:
    if value is None:
        return "not reached"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def show_results() -> None:
    summary = json.loads((ROOT / "results" / "summary.json").read_text())
    (ROOT / "docs" / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    recipes, groups = summary["recipes"], summary["groups"]
    head, *rows = table_rows(recipes, groups)
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    floor = summary["reference"]["floor"]
    lines.append(
        f"\n{samples_text(recipes)} against all real images; one half of the real images against "
        f"the other ({floor['samples']:,} each) scores FID {floor['fid']:.3f}. "
        f"{seeds(recipes, groups)} Measured with `make repro` on {describe(machine())}; numbers in "
        "[docs/results.json](docs/results.json)."
    )
    replace(README, "results", lines)
    draw_samples({unit.name: unit.members[0] for unit in units_of(list(recipes), groups)})


def seeds(recipes: dict, groups: dict) -> str:
    """How often each row was trained."""
    if not groups:
        return "One seed."
    alone = len(recipes) - sum(len(members) for members in groups.values())
    return "Of several seeds: mean (lowest..highest)." + (" The others: one seed." if alone else "")


def describe(found: dict) -> str:
    return f"{found['cores']} cores of {found['processor']}, torch {found['torch']}"


def draw_samples(shown: dict[str, str]) -> None:
    """The grids of recipes side by side, each under the name it is shown by."""
    grids = [Image.open(ROOT / "results" / name / "samples.png") for name in shown.values()]
    width, height = sum(g.width + 12 for g in grids), grids[0].height + 24
    sheet = Image.new("RGB", (width, height), "white")
    left = 0
    for name, grid in zip(shown, grids, strict=True):
        ImageDraw.Draw(sheet).text((left + 4, 6), name, fill="black")
        sheet.paste(grid, (left, 24))
        left += grid.width + 12
    save(sheet, ROOT / "docs" / "samples.png")


if __name__ == "__main__":
    main()
