"""What a job says of itself while it runs: its log and its progress."""

from __future__ import annotations

import time
from typing import Any

from pipeline.store.entry import Entry
from pipeline.store.files import ask, write_sealed
from stages.numbers import speed

LINE_SECONDS = 10.0  # between two lines of progress where lines cannot be rewritten


class Reporter:
    """What a job says while it runs: its log, and progress for whoever watches."""

    def __init__(self, entry: Entry, unit: str = "images"):
        self.entry, self.unit = entry, unit
        self._logged = 0.0
        self._started = time.monotonic()

    def log(self, text: str) -> None:
        ask(self.entry.path)
        with open(self.entry.log, "a") as f:
            f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def progress(
        self, done: int, total: int, rate: float | None = None, loss: float | None = None
    ) -> None:
        now = time.monotonic()
        if rate is None:
            rate = done / max(now - self._started, 1e-9)
        state: dict[str, Any] = {"done": done, "total": total, "rate": rate, "loss": loss}
        state |= {"unit": self.unit, "time": time.time()}
        write_sealed(self.entry.path / "progress.json", state, synced=False)
        if now - self._logged >= LINE_SECONDS or done >= total:
            self._logged = now
            seconds = int((total - done) / rate) if rate else 0
            shown = "" if loss is None else f"  loss {loss:.5f}"
            self.log(
                f"{done:,}/{total:,} {self.unit}  {speed(rate, self.unit)}{shown}"
                f"  {seconds // 60}:{seconds % 60:02d} left"
            )
