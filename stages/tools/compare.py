"""`tspace compare`: two recipes side by side, in settings, scores, costs, bits and samples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from stages.inputs import mixture_of
from stages.numbers import MISSING, counted, known
from stages.pictures import pairs, save
from stages.report.groups import mean
from stages.report.section import scaled
from stages.report.sections.scores import COLUMNS, Column
from stages.report.write import floor_text
from stages.tools.sides import Drawn, Side, sides
from stages.workspace import Workspace

NORMAL_95 = 1.96  # standard errors to either side that hold 95 %
# Standard errors of scores that have no interval. KID's is of one subset, so too wide if anything.
ERRORS = {"fid_infinity": "fid_infinity_error", "kid": "kid_std"}
SCORES = ("fid", "fid_infinity", "fid_published", "kid", "precision", "recall", "coverage")
# What must be equal for scores to be comparable, in words.
GROUNDS = {
    "samples": "numbers of samples",
    "reference_samples": "numbers of real images",
    "extractor_digest": "feature extractors",
}
CHANCE = (
    "Intervals (95 %) hold the chance in which samples were drawn, not that of training: only "
    "several `seeds` tell that."
)
SEEDS = "Means over seeds with (lowest..highest); a difference's interval (95 %) is Welch's t."
COLUMNS_OF_PAIRS = 8  # of the picture
SHOWN_DIGEST = 12


def compare(
    workspace: Workspace,
    first: str,
    second: str | None,
    out: Path | None = None,
    number: int = 32,
    seed: int = 0,
) -> None:
    """Print how two recipes differ, or each recipe of two runs (see `sides`).

    out: a PNG with `number` samples of each from equal noise, drawn now. UserError for what cannot
    be compared.
    """
    if out is not None and (out.suffix.lower() != ".png" or out.is_dir()):
        raise UserError(f"--out {out}: give a .png file")
    found, alone = sides(workspace, first, second)
    if out is not None and len(found) > 1:
        raise UserError(
            f"--out {out}: {counted(len(found), 'recipe')} are compared; name one, as REV:recipe"
        )
    for pair in found:
        print("\n".join(lines(*pair)))
    if alone:
        print(f"on one side only: {', '.join(alone)}")
    if out is not None:
        _draw(workspace, *found[0], out, number, seed)


def lines(a: Side, b: Side) -> Iterator[str]:
    """What is printed of a pair."""
    yield f"A: {a.title}    B: {b.title}"
    yield from _settings(a, b)
    apart = _apart(a, b)
    rows = [["", "A", "B", "B - A", ""]]
    rows += [row for column in COLUMNS if (row := _row(column, a, b, bool(apart)))]
    yield from _table(rows)
    if apart:
        yield f"WARNING: other {apart}, so the scores must not be compared"
    else:
        yield SEEDS if len(a.runs) > 1 and len(b.runs) > 1 else CHANCE
    yield from floor_text(a.floor)
    yield from _bits(a, b)
    yield ""


def _settings(a: Side, b: Side) -> Iterator[str]:
    if unread := a.unread or b.unread:
        yield f"settings: not compared ({unread})"
        return
    assert a.settings is not None and b.settings is not None
    keys = list(dict.fromkeys([*a.settings, *b.settings]))
    told = [(_value(a.settings, key), _value(b.settings, key)) for key in keys]
    rows = [[key, *pair] for key, pair in zip(keys, told, strict=True) if pair[0] != pair[1]]
    if not rows:
        yield "settings: all equal"
    else:
        yield from _table([["setting", "A", "B"], *rows])


def _value(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return MISSING
    value = settings[key]
    return value if isinstance(value, str) else json.dumps(value)


def _apart(a: Side, b: Side) -> str:
    """On what grounds scores are not comparable; empty if they are."""
    return " and ".join(
        words for key, words in GROUNDS.items() if a.metrics[0].get(key) != b.metrics[0].get(key)
    )


def _row(column: Column, a: Side, b: Side, apart: bool) -> list[str] | None:
    """Title, both values with their intervals, their difference, and what it means."""
    own = [
        [[scaled(run.get(key), column.factor) for run in side.metrics] for side in (a, b)]
        for key in column.keys
    ]
    if column.optional and not any(map(known, [*own[0][0], *own[0][1]])):
        return None
    means = [[mean(values) for values in part] for part in own]
    around = [_around(column, side, values) for side, values in zip((a, b), own[0], strict=True)]
    texts = column.show([*means[0], *(end for ends in around if ends for end in ends)])
    shown = [" / ".join(each) for each in zip(texts[:2], *map(column.show, means[1:]), strict=True)]
    row, rest = [column.title.format(unit="compute")], iter(texts[2:])
    for text, ends in zip(shown, around, strict=True):
        row.append(f"{text} ({next(rest)}..{next(rest)})" if ends else text)
    low, high = means[0]
    if not (known(low) and known(high)):
        return [*row, MISSING, ""]
    if low == high or column.keys[0] not in SCORES:
        return [*row, _ratio(low, high), ""]
    return [*row, *_verdict(column, a, b, own[0], apart)]


def _around(column: Column, side: Side, values: Sequence[Any]) -> tuple[float, float] | None:
    """What stands beside a value: the interval of a single run, the range of several seeds."""
    if len(values) == 1:
        return interval_of(column, side.metrics[0])
    if column.keys[0] in SCORES and all(map(known, values)):
        return min(values), max(values)
    return None


def _ratio(a: float, b: float) -> str:
    """What B takes of A's."""
    if a == b:
        return "equal"
    return f"{b / a:.3g} times" if a else MISSING


def interval_of(column: Column, metrics: dict[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of a single run's score; None where there is none."""
    key = column.keys[0]
    if column.interval and metrics.get(column.interval):
        return tuple(value * column.factor for value in metrics[column.interval])
    error = metrics.get(ERRORS.get(key, ""))
    if not (known(error) and known(metrics.get(key))):
        return None
    reach = NORMAL_95 * error
    return (metrics[key] - reach) * column.factor, (metrics[key] + reach) * column.factor


def _verdict(
    column: Column, a: Side, b: Side, values: Sequence[Sequence[float]], apart: bool
) -> tuple[str, str]:
    """A score's difference, and in words whether it exceeds chance."""
    several = [len(side.runs) > 1 for side in (a, b)]
    ends = None
    if all(several):
        ends = welch(*values)
    elif not any(several):
        around = [interval_of(column, side.metrics[0]) for side in (a, b)]
        ends = difference(values[0][0], around[0], values[1][0], around[1])
    change = mean(values[1]) - mean(values[0])
    text, *told = column.show([change, *(ends or ())])
    text = text if change < 0 else f"+{text}"
    if apart:
        return text, ""
    if ends is None:
        return text, "one run beside several" if any(several) else "no interval"
    if ends[0] <= 0 <= ends[1]:
        return text, f"within chance ({'..'.join(told)})"
    better = "B" if (ends[0] > 0) == (column.better == "higher") else "A"
    return text, f"more than chance ({'..'.join(told)}): {better} is better"


def difference(
    a: float, around_a: tuple[float, float] | None, b: float, around_b: tuple[float, float] | None
) -> tuple[float, float] | None:
    """An interval of b - a from those of a and b, as if they were independent (MOVER: Zou and
    Donner 2008). Samples of equal noise are not, so it is too wide if anything."""
    if around_a is None or around_b is None:
        return None
    down = math.hypot(b - around_b[0], around_a[1] - a)
    up = math.hypot(around_b[1] - b, a - around_a[0])
    return b - a - down, b - a + up


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of mean(b) - mean(a) of two samples of unequal variance (Welch 1947)."""
    from scipy.stats import ttest_ind

    if len({*a}) == len({*b}) == 1:
        return b[0] - a[0], b[0] - a[0]
    return tuple(map(float, ttest_ind(b, a, equal_var=False).confidence_interval(0.95)))


def _bits(a: Side, b: Side) -> Iterator[str]:
    """Whether the models, and the samples drawn of them for scoring, are the same bits."""
    if len(a.runs) != len(b.runs):
        yield f"bits: {len(a.runs)} and {len(b.runs)} runs, not compared"
        return
    pairs_of = list(zip(a.mixtures, b.mixtures, strict=True))
    yield f"models: {_same([one == other for one, other in pairs_of])}" + (
        f" ({pairs_of[0][0][:SHOWN_DIGEST]} and {pairs_of[0][1][:SHOWN_DIGEST]})"
        if len(pairs_of) == 1 and pairs_of[0][0] != pairs_of[0][1]
        else ""
    )
    drawn = list(zip(a.drawn, b.drawn, strict=True))
    if any(None in pair for pair in drawn):
        yield "samples: checksums not known"
    else:
        yield f"samples: {_same([one.checksums == other.checksums for one, other in drawn])}"


def _same(equal: Sequence[bool]) -> str:
    if all(equal):
        return "the same bits"
    if not any(equal):
        return "other bits"
    return f"the same bits in {sum(equal)} of {len(equal)} runs"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()


def _draw(workspace: Workspace, a: Side, b: Side, out: Path, number: int, seed: int) -> None:
    """Samples of both from equal noise: A above B, row by row."""
    from pipeline.sampling.mixture import draw

    drawn = [_drawable(side) for side in (a, b)]
    shapes = [[d.spec.mixture[key] for key in ("channels", "resolution")] for d in drawn]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"--out {out}: networks that see {' and '.join(map(str, shapes))} (channels, "
            "resolution) have no noise in common"
        )
    images = []
    for spec in (d.spec for d in drawn):
        mixture = mixture_of(spec.mixture, workspace.store, workspace, spec.led)
        options = {key: getattr(spec, key) for key in ("sampling", "batch", "class_counts")}
        images.append(draw(mixture, spec.states, range(number), seed=seed, **options)[0])
    out.parent.mkdir(parents=True, exist_ok=True)
    save(pairs(*images, COLUMNS_OF_PAIRS), out)
    alike = np.mean([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(*images, strict=True)])
    print(
        f"{counted(number, 'sample')} of each from equal noise, A above B: {out} (mean correlation "
        f"of two images {alike:.2f})"
    )


def _drawable(side: Side) -> Drawn:
    """How to draw from a side, whose networks are then in the store; of several seeds the first."""
    from pipeline.sampling.exported import members

    drawn = side.drawn[0]
    if drawn is None:
        raise UserError(f"--out: how {side.title} was sampled is not known")
    guide = drawn.spec.led and drawn.spec.led.guide
    for mixture in filter(None, (drawn.spec.mixture, guide)):
        for _, member, _ in members(mixture):
            side.bring(member["entry"])
    return drawn
