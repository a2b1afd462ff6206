"""`tspace track`: what other tools read back is what the store has, each point once."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.errors import UserError
from pipeline.specs import spec_of
from pipeline.training import train
from pipeline.training.run import Interrupted, Progress
from stages import cli, film
from stages.analyse import analyse
from stages.curves import losses
from stages.inputs import latents_of, training_progress
from stages.job import run_here
from stages.merge import merge
from stages.reporter import Reporter
from stages.tools import trackers
from stages.tools.track import Follower, flat, track
from stages.train import train as train_all
from stages.workspace import Workspace
from tests.test_inspection import experts_of, make, small_workspace
from tests.workflow import run_stages

PARAMS = """\
seed: 0
data: {source: digits, limit: 200}
latent: {encoder: pixels}
features: {extractor: classifier, images: 4000, dimension: 16, channels: 16}
evaluate: {samples: 100, batch: 50}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  training: {images: 1000, batch: 16, milestones: [500]}
recipes:
  one:
    schedule: {kind: log-snr, states: 4}
    training: {learning_rate: 0.003}
  two:
    schedule: {kind: log-snr, states: 4}
    partition: {kind: uniform, intervals: 2}
"""

# What the tool itself reads of a series: {images: value}, as written or [value, value] where twice.
Read = Callable[[Path, str, str], dict[int, float]]


def by_images(points) -> dict[int, float]:
    points = list(points)
    assert len({images for images, _ in points}) == len(points), "a point is there twice"
    return dict(points)


def of_tensorboard(out: Path, run: str, series: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / run), size_guidance={"scalars": 0, "images": 0}).Reload()
    return by_images((point.step, point.value) for point in found.Scalars(series))


def of_dvclive(out: Path, run: str, series: str) -> dict[int, float]:
    from dvclive.plots import Metric
    from dvclive.utils import parse_tsv

    rows = parse_tsv(out / run / "plots" / Metric.subfolder / f"{series}.tsv")
    name = series.rpartition("/")[2]
    return by_images((int(row["step"]), float(row[name])) for row in rows)


def of_mlflow(out: Path, run: str, series: str) -> dict[int, float]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=out.as_uri())
    experiment = client.get_experiment_by_name("tspace").experiment_id
    [found] = client.search_runs([experiment], f"tags.mlflow.runName = '{run}'")
    return by_images(
        (m.step, m.value) for m in client.get_metric_history(found.info.run_id, series)
    )


def of_wandb(out: Path, run: str, series: str) -> dict[int, float]:
    from wandb.proto.wandb_internal_pb2 import Record

    points = []
    for path in out.glob(f"wandb/offline-run-*-{run}/*.wandb"):
        for data in records(path.read_bytes()):
            items = Record.FromString(data).history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            if series in row:
                points.append((row["images"], row[series]))
    return by_images(points)


def records(log: bytes, block: int = 32768) -> Iterator[bytes]:
    """What a log of LevelDB's format holds, after the seven bytes of W&B's own head."""
    at, whole = 7, b""
    while at < len(log):
        if block - at % block < 7:  # no room for a head: the block is filled up
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", log, at)
        whole += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


READERS: dict[str, Read] = {
    "tensorboard": of_tensorboard,
    "dvclive": of_dvclive,
    "mlflow": of_mlflow,
    "wandb": of_wandb,
}


@pytest.fixture(autouse=True)
def own_store(monkeypatch):
    for name in ("TSPACE_STORE", "MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("track") / "tspace"
    root.mkdir()
    (root / "params.yaml").write_text(PARAMS)
    run_stages(Workspace(root))
    return Workspace(root)


def run_of(out: Path, recipe: str) -> str:
    runs = json.loads((out / "written.json").read_text())["runs"]
    [name] = [run for run in runs if run.startswith(f"{recipe}-")]
    return name


def needs(tool: str) -> None:
    pytest.importorskip(trackers.TOOLS[tool][0], reason=f"{tool} is not installed")


@pytest.mark.parametrize("tool", READERS)
def test_a_finished_run_is_there_whole_and_once(finished, tool, tmp_path, monkeypatch, capsys):
    needs(tool)
    monkeypatch.chdir(tmp_path)
    before = contents(finished)
    for _ in range(2):  # the second time nothing is new
        track(finished, tool, tmp_path / "out", once=True)
    told = capsys.readouterr().out
    assert "\n" + f"{tool}: 0 new points in " in "\n" + told
    read, out = READERS[tool], tmp_path / "out"
    [job] = experts_of(finished, "one")
    curve = finished.store.entry(job.name).load_json("curve.json")
    assert read(out, run_of(out, "one"), "loss") == pytest.approx(dict(curve), rel=1e-6)
    for number, job in enumerate(experts_of(finished, "two")):
        curve = finished.store.entry(job.name).load_json("curve.json")
        series = f"loss/states-{2 * number + 1}-{2 * number + 2}"
        assert read(out, run_of(out, "two"), series) == pytest.approx(dict(curve), rel=1e-6)
    metrics = json.loads((finished.results / "recipes/one/metrics.json").read_text())["milestones"]
    fid = {int(images): own["fid"] for images, own in metrics.items()}
    assert read(out, run_of(out, "one"), "scores/fid") == pytest.approx(fid, rel=1e-6)
    assert contents(finished) == before


def contents(workspace: Workspace) -> dict[str, float]:
    return {str(p): p.stat().st_mtime for p in workspace.root.rglob("*") if p.is_file()}


def test_tensorboard_has_params_and_samples(finished, tmp_path):
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    out = tmp_path / "out"
    track(finished, "tensorboard", out, once=True)
    found = EventAccumulator(str(out / run_of(out, "one"))).Reload()
    told = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    params = metadata.parse_session_start_info_plugin_data(told).hparams
    assert params["training.learning_rate"].number_value == 0.003
    assert params["schedule.kind"].string_value == "log-snr"
    assert [picture.step for picture in found.Images("samples")] == [500, 1000]
    assert (found.Images("samples")[0].width, found.Images("samples")[0].height) == (202, 202)


def test_dvclive_has_params_and_samples(finished, tmp_path):
    needs("dvclive")
    import yaml

    out = tmp_path / "out"
    track(finished, "dvclive", out, once=True)
    run = out / run_of(out, "one")
    assert yaml.safe_load((run / "params.yaml").read_text())["training.learning_rate"] == 0.003
    names = {path.name for path in (run / "plots/images/samples").iterdir()}
    assert names == {"500.png", "1000.png"}


@pytest.mark.parametrize("tool", ["tensorboard", "dvclive"])
def test_a_run_that_goes_on_is_followed_and_no_point_is_written_twice(tool, tmp_path, monkeypatch):
    """Looked at while it trains, after a restart, and when it is finished."""
    needs(tool)
    monkeypatch.setattr("stages.fanout._run", run_here)
    workspace = small_workspace(tmp_path / "tspace", PARAMS)
    analyse(workspace)
    out, read = tmp_path / "out", READERS[tool]
    [job] = experts_of(workspace, "one")
    entry = workspace.store.plan("expert", job.spec.as_json())
    followers = []

    def follower() -> None:
        out.mkdir(exist_ok=True)
        followers.append(Follower(workspace, trackers.tracker(tool), out))

    follower()
    tell = training_progress(Reporter(entry))
    said: list[Progress] = []

    def every(run, _, total):
        """As a slow training would say: after every batch."""
        said.append(Progress(run.images, total, 100.0, run.curve[-1][1] if run.curve else None))
        tell(said[-1])

    def stop() -> bool:
        if len(said) % 9 == 0:
            followers[-1].look()
        if len(said) == 20:  # of 63 batches
            follower()
        return len(said) == 40

    monkeypatch.setattr(train._Run, "tell", every)
    rows = latents_of(job.spec.latents, workspace.store)
    with entry.lease(), pytest.raises(Interrupted):
        train.train(job.spec, rows, entry.path, stop=stop)
    followers[-1].look()
    film.film(workspace, watch=False)  # the frame at 500 images
    followers[-1].look()
    run = run_of(out, "one")
    followers[-1].close()
    partly = read(out, run, "loss")
    assert 3 <= len(partly) < 45
    train_all(workspace)
    merge(workspace)
    for _ in range(2):
        track(workspace, tool, out, once=True)
    curve = dict(entry.load_json("curve.json"))
    whole = read(out, run, "loss")
    assert whole.items() >= partly.items() and max(whole) == 1000
    # Each is a point of the finished curve; what passed unseen is missing.
    assert whole == pytest.approx({images: curve[images] for images in whole}, abs=1e-5)


def test_losses_so_far_are_points_of_the_finished_curve(tmp_path, monkeypatch):
    """From what a log says, at whatever batch it says it."""
    workspace = small_workspace(tmp_path / "tspace", PARAMS)
    [job] = experts_of(workspace, "one")
    assert make(workspace, [job]) == [True]
    entry = workspace.store.entry(job.name)
    curve = losses(entry, job.spec)
    assert curve == [(int(i), loss) for i, loss in entry.load_json("curve.json")]
    assert len(curve) == 50
    other = workspace.store.plan("expert", {"other": "entry"})
    reporter = Reporter(other)
    batches = range(16, 1000, 16)
    for images in batches:
        last = [loss for at, loss in curve if at <= images]
        reporter._logged = 0.0
        reporter.progress(images, 1000, 100.0, last[-1] if last else None)
    found = losses(other, job.spec)
    assert [at for at, _ in found] == [at for at, _ in curve if at < 1000]
    assert dict(found) == pytest.approx({at: loss for at, loss in curve if at < 1000}, abs=1e-5)
    assert spec_of(entry) == job.spec


def test_an_edited_recipe_is_another_run(finished, tmp_path):
    needs("dvclive")
    out, path = tmp_path / "out", finished.root / "params.yaml"
    track(finished, "dvclive", out, once=True)
    try:
        path.write_text(PARAMS.replace("0.003", "0.004"))
        edited = Workspace(finished.root)
        make(edited, experts_of(edited, "one"))
        track(edited, "dvclive", out, once=True)
    finally:
        path.write_text(PARAMS)
    runs = json.loads((out / "written.json").read_text())["runs"]
    assert len([run for run in runs if run.startswith("one-")]) == 2
    assert len([run for run in runs if run.startswith("two-")]) == 1


def test_a_kill_in_the_middle_writes_no_point_twice(finished, tmp_path):
    needs("dvclive")
    out = tmp_path / "out"
    code = (
        "import os, sys; from pathlib import Path; from stages.tools import track, trackers\n"
        "from stages.workspace import Workspace\n"
        "written = iter(range(30))\n"
        "class Dies(trackers.DVCLive):\n"
        "    def point(self, *given):\n"
        "        super().point(*given)\n"
        "        if next(written) == 29: os.kill(os.getpid(), 9)\n"
        "trackers.TOOLS['dvclive'] = ('dvclive', Dies)\n"
        "track.track(Workspace(Path(sys.argv[1])), 'dvclive', Path(sys.argv[2]), True)"
    )
    command = [sys.executable, "-c", code, str(finished.root), str(out)]
    root = Path(__file__).parent.parent
    assert subprocess.run(command, cwd=root, check=False).returncode == -signal.SIGKILL
    for _ in range(2):
        track(finished, "dvclive", out, once=True)
    # What was found in that look of the run is lost; other runs are whole.
    assert 0 < len(of_dvclive(out, run_of(out, "one"), "loss")) < 50
    assert len(of_dvclive(out, run_of(out, "two"), "scores/fid")) == 2


@pytest.mark.parametrize("asking", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_asked_to_with_all_of_it_written(finished, tmp_path, asking):
    needs("tensorboard")
    out = tmp_path / "out"
    path = finished.root / "params.yaml"
    for needed in ("Snakefile", "dvc.yaml"):
        (finished.root / needed).touch()
    try:
        path.write_text(f"{PARAMS}  three: {{schedule: {{kind: log-snr, states: 4}}}}\n")
        command = [sys.executable, "-m", "stages.cli", "track", "--to", "tensorboard"]
        process = subprocess.Popen(
            [*command, "--out", str(out)],
            cwd=finished.root,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            stdout=subprocess.PIPE,
            text=True,
        )
        wait = time.monotonic() + 60
        while not (out / "written.json").exists():
            assert time.monotonic() < wait and process.poll() is None
            time.sleep(0.1)
        process.send_signal(asking)
        said, _ = process.communicate(timeout=60)
    finally:
        path.write_text(PARAMS)
    assert process.returncode == 0 and "new points in" in said
    assert len(of_tensorboard(out, run_of(out, "one"), "loss")) == 50


@pytest.mark.parametrize("tool", READERS)
def test_a_tool_that_is_not_installed_is_one_line_with_the_way_out(tool, monkeypatch):
    monkeypatch.setitem(sys.modules, trackers.TOOLS[tool][0], None)  # as if it were not there
    with pytest.raises(UserError, match=rf"--to {tool}: not installed .*; pip install -c .*'\.\["):
        trackers.tracker(tool)


def test_an_unknown_tool_names_the_known_ones(finished, monkeypatch):
    monkeypatch.chdir(finished.root)
    for needed in ("Snakefile", "dvc.yaml"):
        (finished.root / needed).touch()
    done = CliRunner().invoke(cli.main, ["track", "--to", "tensorbord"])
    assert done.exit_code == 2
    assert "--to tensorbord: no such tool; did you mean `tensorboard`?" in done.output


def test_a_damaged_memory_is_told(finished, tmp_path):
    needs("dvclive")
    track(finished, "dvclive", tmp_path, once=True)
    memory = tmp_path / "written.json"
    memory.write_text(memory.read_text().replace("1000", "900"))
    with pytest.raises(UserError, match=r"written\.json: damaged.*name another --out"):
        track(finished, "dvclive", tmp_path, once=True)


def test_settings_are_flat():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
