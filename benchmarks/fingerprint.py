"""What `tspace source` costs: the first look at a folder of images, a look at unchanged ones, and
one after a single file changed.

    python benchmarks/fingerprint.py

Class folders of empty files are written to a temporary folder, so the first look measures files and
not bytes: reading a real dataset takes as long as its disk does. A no-op lists folders, asks for
each file's size and times, and reads none. Processor seconds of all threads stand beside those of
the clock, for other work on the machine lengthens the latter. File systems are warm: the files were
just written.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import machine, print_table, write_results

from pipeline.data.fingerprint import SETTLED_NS, fingerprint
from pipeline.data.raw import walk

CLASSES = 1000


def write(root: Path, files: int) -> None:
    for number in range(CLASSES):
        folder = f"{root}/{number:04}"
        os.makedirs(folder)
        for file in range(number, files, CLASSES):
            open(f"{folder}/{file:07}.png", "wb").close()


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, processor seconds, and what the call gave."""
    seconds, processor = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - seconds, time.process_time() - processor, result


def measure(files: int, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root, table = Path(folder) / "images", Path(folder) / "table"
        write(root, files)
        time.sleep(1.5 * SETTLED_NS / 1e9)

        def look() -> Any:
            return fingerprint(root, walk(root), table)

        first, first_processor, expected = timed(look)
        again = [timed(look) for _ in range(repeats)]
        assert all(found == expected for _, _, found in again)
        (root / "0000" / "0000000.png").write_bytes(b"x")
        moved, moved_processor, found = timed(look)
        assert found != expected
        return {
            "files": files,
            "first_seconds": first,
            "first_cpu_seconds": first_processor,
            "noop_seconds": min(seconds for seconds, _, _ in again),
            "noop_cpu_seconds": min(processor for _, processor, _ in again),
            "one_changed_seconds": moved,
            "one_changed_cpu_seconds": moved_processor,
            "table_mb": table.stat().st_size / 1e6,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--files", type=int, nargs="+", default=[100_000, 1_300_000])
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    described = machine()
    rows = []
    for files in arguments.files:
        rows.append(measure(files, arguments.repeats))
        print_table(rows[-1:], list(rows[-1]))
    headline = {
        f"{key}_{row['files']}": row[key]
        for row in rows
        for key in ("first_cpu_seconds", "noop_cpu_seconds", "one_changed_cpu_seconds")
    }
    write_results("fingerprint", rows, headline, described)


if __name__ == "__main__":
    main()
