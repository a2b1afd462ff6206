"""A dataset before it is there, as params.yaml and whoever plans with it declare it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.preview import Preview
from pipeline.errors import UserError, shown
from pipeline.params.recipe import Params

# Rows of the two splits, side, channels and classes of sources that are always the same.
PUBLISHED = {
    "cifar10": ({"train": 50_000, "test": 10_000}, 32, 3, 10),
    "fashion-mnist": ({"train": 60_000, "test": 10_000}, 28, 1, 10),
}


@dataclass(frozen=True)
class Declared:
    """What is said of a dataset. rows: images in all. classes: 0 without labels. None: not said."""

    rows: int | None = None
    classes: int | None = None


def declared(params: Params, said: Declared) -> Preview | None:
    """The dataset as a look at its source would show it; None where that is not known.

    UserError if the number of images is said and something else is still missing.
    """
    data = params.data
    rows, side, channels, classes = None, data.side, None, said.classes
    if data.source in PUBLISHED:
        splits, side, channels, known = PUBLISHED[data.source]
        rows, classes = splits[data.split], known if classes is None else classes
    rows = said.rows or rows
    if rows is None:
        return None
    side, channels = data.resolution or side, data.channels or channels
    lacking = {"data.resolution": side, "data.channels": channels}
    if lacking := [key for key, value in lacking.items() if value is None]:
        raise UserError(
            f"{' and '.join(lacking)}: null, and {shown(data.path)} is not there to look at; set "
            "them, or put the images there"
        )
    if data.limit is not None:
        rows = min(rows, data.limit)
    shares = range(classes or 0)
    counts = tuple((rows * (i + 1)) // len(shares) - (rows * i) // len(shares) for i in shares)
    return Preview(rows, True, side, channels, counts)
