"""The gradient of a batch as a sum of equal parts, the same bits on any number of processes.

Sums of floating-point numbers depend on their order, and that of a ring on how many processes stand
in it. So a batch is cut into `training.shards` parts by position, and their gradients are summed in
one order, a balanced tree: ((g0 + g1) + (g2 + g3)) + ... One process works on all shards, one after
the other, which is gradient accumulation; of P processes each works on a subtree, and what they
come to meets in the rest of the tree.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from pipeline.errors import one_line


class Parted(Exception):
    """Another process of the group ended, or cannot be reached."""


class Group:
    """Processes that train one expert together, or one alone.

    rank: of this process; the one with 0 keeps the results. size: how many there are, a power of
    two. store: a `torch.distributed` store of their own where they meet; backend: theirs, too.

    Raises Parted, here and in its methods, where another process cannot be reached.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        store: torch.distributed.Store | None = None,
        backend: str = "gloo",
    ):
        self.rank, self.size, self._store = rank, size, store
        if size > 1:
            with _reached():
                torch.distributed.init_process_group(
                    backend, store=store, rank=rank, world_size=size
                )

    def total(self, vector: Tensor) -> None:
        """Sum a vector over the processes, in place; its length is a multiple of `size`.

        Each sums a slice of it in the order of the tree, and all collect these. That moves
        2 (size - 1) / size of the vector, as a ring does.
        """
        if self.size == 1:
            return
        parts = torch.empty_like(vector)
        with _reached():
            torch.distributed.all_to_all_single(parts, vector)
            parts = parts.view(self.size, -1)
            while len(parts) > 1:
                parts = parts[0::2] + parts[1::2]
            torch.distributed.all_gather([*vector.view(self.size, -1)], parts[0])

    def agree(self, text: str) -> str:
        """What the process of rank 0 says."""
        if self.size == 1:
            return text
        with _reached():
            if self.rank == 0:
                self._store.set("agreed", text)
            return self._store.get("agreed").decode()

    def close(self) -> None:
        if self.size > 1:
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Makes an error of `torch.distributed` Parted."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as e:
        raise Parted(one_line(e)) from e


def ranges(count: int, shards: int, group: Group) -> Iterator[tuple[int, int]]:
    """First and last + 1 of the images in each shard that this process has of a batch of `count`.

    A run's last batch may be short: its shards differ in size by one, and may be empty.
    """
    own = shards // group.size
    for shard in range(group.rank * own, (group.rank + 1) * own):
        yield shard * count // shards, (shard + 1) * count // shards


class ShardSum:
    """Gradients and loss of one batch after the other, each the sum of its shards'.

    A sum is one vector: the gradients of all parameters, each in its parameter's order in memory,
    the number of shards in which each had one, and the loss.
    """

    def __init__(self, parameters: Iterable[Tensor], shards: int, group: Group):
        self.parameters, self.group = list(parameters), group
        self._counts = sum(p.numel() for p in self.parameters)
        length = self._counts + len(self.parameters) + 1
        self._length = -(-length // shards) * shards
        self._waiting: list[tuple[int, Tensor]] = []  # subtrees, the largest first, with heights
        self._free: list[Tensor] = []
        self._all_present = True

    def add(self, loss: Tensor | None) -> None:
        """Take the gradients of the next shard from its parameters; no loss for an empty one."""
        vector = self._free.pop() if self._free else self.parameters[0].new_empty(self._length)
        vector.zero_()
        for number, (view, p) in enumerate(zip(self._views(vector), self.parameters, strict=True)):
            if p.grad is None:
                self._all_present = False
            else:
                view.copy_(p.grad)
                vector[self._counts + number].fill_(1)
                p.grad = None
        if loss is not None:
            vector[-1].copy_(loss)
        height = 0
        while self._waiting and self._waiting[-1][0] == height:
            _, left = self._waiting.pop()
            left += vector
            self._free.append(vector)
            vector, height = left, height + 1
        self._waiting.append((height, vector))

    def total(self) -> Tensor:
        """Give the parameters the gradients of the whole batch; its loss.

        A parameter that had none in any shard has none. Raises Parted.
        """
        ((_, vector),) = self._waiting
        self.group.total(vector)
        present = [True] * len(self.parameters)
        if not self._all_present:
            first = self._counts
            present = vector[first : first + len(self.parameters)].tolist()
        for view, p, found in zip(self._views(vector), self.parameters, present, strict=True):
            p.grad = view if found else None
        self._waiting.clear()
        self._free.append(vector)
        self._all_present = True
        return vector[-1]

    def _views(self, vector: Tensor) -> Iterator[Tensor]:
        first = 0
        for p in self.parameters:
            yield vector.as_strided(p.shape, p.stride(), first)
            first += p.numel()
