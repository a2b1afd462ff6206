"""A prepared dataset as the jobs read it: first the rows that are trained on, then the held-out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline import rows

BLOCK = 4096  # images that are read at once


class Split:
    """A dataset in which the rows that are kept from training (`data.holdout`) come last.

    They are a fair sample of it (`rows.cut`), in the dataset's order as the others are. `info` is
    the dataset's own; `len` counts all rows, `trained` those that are trained on.
    """

    def __init__(self, dataset: Any, held_out: int = 0):
        """dataset: from `dataset.open_dataset`. ValueError for more held-out rows than it has."""
        self.info = dataset.info
        self.trained = len(dataset) - held_out
        self._dataset = dataset
        self._order = None
        if held_out:
            labels = dataset.labels(0, len(dataset))
            self._order = rows.cut(len(dataset), held_out, labels)
            self._labels = None if labels is None else labels[self._order]

    def __len__(self) -> int:
        return len(self._dataset)

    def images(self, start: int, stop: int) -> np.ndarray:
        """uint8 [n, C, H, W]."""
        if self._order is None:
            return self._dataset.images(start, stop)
        side, channels = self.info.resolution, self.info.channels
        found = np.empty((stop - start, channels, side, side), np.uint8)
        done = 0
        # The two parts are ascending, and what is asked for may lie in both.
        for low, high in ((start, min(stop, self.trained)), (max(start, self.trained), stop)):
            for images in self._gathered(self._order[low:high]):
                found[done : done + len(images)] = images
                done += len(images)
        return found

    def labels(self, start: int, stop: int) -> np.ndarray | None:
        """int64 [n], or None for a dataset without labels."""
        if self._order is None:
            return self._dataset.labels(start, stop)
        return None if self._labels is None else self._labels[start:stop]

    def blocks(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Images and labels of rows `start` .. `stop` - 1, some at a time."""
        for first in range(start, stop, BLOCK):
            last = min(first + BLOCK, stop)
            yield self.images(first, last), self.labels(first, last)

    def some(self, count: int) -> np.ndarray:
        """A fair sample of the rows that are trained on: int64 [count], ascending."""
        return rows.spread(count, self.trained, self.labels(0, self.trained))

    def labels_of(self, which: np.ndarray) -> np.ndarray | None:
        """Labels of some rows that are trained on, int64 [n]; None without labels."""
        labels = self.labels(0, self.trained)
        return None if labels is None else labels[which]

    def chosen(self, which: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some rows that are trained on (int64, ascending) with their images, some at a time."""
        done = 0
        for images in self._gathered(which if self._order is None else self._order[which]):
            yield which[done : done + len(images)], images
            done += len(images)

    def _gathered(self, which: np.ndarray) -> Iterator[np.ndarray]:
        """Images of the dataset's own rows `which`, ascending, some at a time."""
        place = 0
        while place < len(which):
            start = int(which[place])
            end = int(np.searchsorted(which, start + BLOCK))
            mine = which[place:end] - start
            yield self._dataset.images(start, start + int(mine[-1]) + 1)[mine]
            place = end
