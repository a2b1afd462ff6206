"""docs/watching.md on a real run: its commands while it trains, and what is left after it."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import time

import psutil
import pytest
from PIL import Image

from stages import film
from tests.pages import Page, check_self_contained
from tests.test_track import of_dvclive, of_tensorboard, run_of
from tests.test_watch import ENDED, LEAVE, Terminal, drawn
from tests.workflow import ROOT, Checkout, environment

pytestmark = pytest.mark.slow

PARAMS = """\
seed: 0
data: {source: digits, limit: 200}
latent: {encoder: pixels}
features: {extractor: classifier, images: 4000, dimension: 16, channels: 16}
evaluate: {samples: 64}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1, 2], blocks: 1}
  training: {images: 400000, batch: 16, milestones: [400, 800]}
recipes:
  pair:
    schedule: {kind: log-snr, states: 4}
    partition: {kind: uniform, intervals: 2}
"""
COMMANDS = [
    line
    for block in re.findall(r"```\n(.*?)```", (ROOT / "docs/watching.md").read_text(), re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    checkout = Checkout.create(tmp_path_factory.mktemp("watching") / "tspace", PARAMS)
    module = checkout.root / "stages" / "film.py"
    text = module.read_text()
    assert "BEGIN_SECONDS = 15.0" in text
    module.write_text(text.replace("BEGIN_SECONDS = 15.0", "BEGIN_SECONDS = 0.0"))
    checkout.commit("a film from the first second on")
    checkout.repro("features", "pair")
    return checkout


@pytest.fixture(scope="module")
def training(checkout):
    """`tspace train`, in the middle of which it is."""
    process = subprocess.Popen(
        ["tspace", "train"], cwd=checkout.root, env=environment(), stdout=subprocess.DEVNULL
    )
    wait = time.monotonic() + 300
    while not film_of(checkout, "results", "now").exists():
        assert process.poll() is None, "the training ended before its film was there"
        assert time.monotonic() < wait
        time.sleep(0.1)
    yield process
    if process.poll() is None:
        process.terminate()
        process.wait(60)


def film_of(checkout, *where: str):
    return checkout.root.joinpath(*(where or ["results"]), "recipes", "pair", "film.png")


def finished(checkout) -> int:
    return len(list((checkout.root / "store" / "expert").glob("*/DONE")))


def test_the_film_is_there_before_the_training_ends(checkout, training):
    assert finished(checkout) == 0 and training.poll() is None
    Image.open(film_of(checkout, "results", "now")).load()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run_beside_a_training(checkout, training, command):
    assert command.startswith("tspace ")
    if "--watch" in command:
        terminal = Terminal(checkout.root, *shlex.split(command))
        terminal.read_until(drawn(1))
        rows = terminal.screen()
        assert sum(row.startswith("pair states") for row in rows) == 2 and "memory" in str(rows)
        terminal.type(b"\x03")
        terminal.read_until(ENDED)
        assert terminal.status == 0
    else:
        checkout.run(*shlex.split(command))
    assert training.poll() is None and finished(checkout) == 0


def test_what_they_wrote_is_of_the_training_so_far(checkout, training):
    page = Page((checkout.root / "results/now/report.html").read_text(encoding="utf-8"))
    check_self_contained(page)
    assert "Unfinished:" in page.text
    assert page.all("img", alt="Samples of pair at each milestone so far")
    track = checkout.root / ".tspace" / "track"
    for tool, read in (("tensorboard", of_tensorboard), ("dvclive", of_dvclive)):
        out = track / tool
        points = read(out, run_of(out, "pair"), "loss/states-1-2")
        assert points and max(points) < 200000


def test_its_processes_end_with_a_training_that_is_killed(checkout, training):
    children = psutil.Process(training.pid).children(recursive=True)
    assert any("film" in child.cmdline() for child in children)
    training.send_signal(signal.SIGKILL)
    training.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_a_finished_run_is_the_one_that_nobody_watched(checkout, training):
    """Bit for bit; and it has the film of what was scored in place of the one so far."""
    checkout.edit("images: 400000", "images: 4000")
    checkout.run("dvc", "repro")
    names = sorted(path.name for path in (checkout.root / "results").iterdir())
    assert "now" not in names and Image.open(film_of(checkout)).size[0] == 3 * 52
    checkout.commit("results")
    assert checkout.run("git", "status", "--porcelain").stdout == ""
    terminal = Terminal(checkout.root, "tspace", "status", "--watch")
    terminal.read_until(ENDED)  # by itself, as all is done
    assert terminal.status == 0 and b"scores" in terminal.written.partition(LEAVE)[2]
    for name in ("artefacts", "results", "store"):
        (checkout.root / name).rename(checkout.root / ".tspace" / name)
    checkout.run("dvc", "repro", "--no-run-cache", **{film.OFF: "0"})
    assert checkout.run("git", "status", "--porcelain").stdout == ""  # the same dvc.lock
    assert film_of(checkout).read_bytes() == film_of(checkout, ".tspace", "results").read_bytes()
