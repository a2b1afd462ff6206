"""How fast this machine is at what params.yaml asks for, measured once and kept.

No result depends on it. `.tspace/calibration.json` holds seconds by kind of work, and whose they
are: another machine, torch or version measures anew, another network only itself.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pipeline
from pipeline import plan
from pipeline.devices import cores
from pipeline.errors import UserError
from pipeline.plan import DatasetFacts
from pipeline.store.circumstances import cpu_seconds, processor
from pipeline.store.entry import Store
from pipeline.store.files import sealed, write_json, write_sealed
from stages.gpus import kinds, listed
from stages.source import extractor_files, raw_path, recipe_files
from stages.tools.clock import timed
from stages.tools.forecast import Measured, Rate
from stages.tools.init import init
from stages.tools.work import Works
from stages.workspace import Workspace

ROWS = 2_000  # images that the rehearsal has, or as many as a block of `pair`
BYTES = 64 << 20  # of them, at most
LEAST_ROWS = 512  # of which the classifier can still keep some apart
OWN = ("artefacts", "store", "results", ".tspace")  # of a checkout, which a rehearsal has itself
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# The smallest project, of which stages are run to see how long it takes to do next to nothing.
SMALL = """\
seed: 0
data: {source: digits, limit: 128}
latent: {encoder: pixels}
features: {images: 64, batch: 8, dimension: 8, channels: 8}
evaluate: {samples: 64, allow_few: true}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  training: {images: 64, batch: 16, milestones: [32]}
  sampling: {steps: 2}
recipes:
  ddpm: {}
  edm: {schedule: {kind: edm}, curriculum: {kind: edm-lognormal}}
  apart: {schedule: {kind: log-snr, states: 4}, partition: {kind: per-state}}
  paired: {pairing: {method: assignment, block: 128}}
"""
STAGES = ("source", "prepare", "encode")  # of it, a stage with a job the last
AFTER = ("analyse", "features", "pair", "train", "merge", "sample", "evaluate", "consistency")


def machine() -> dict[str, Any]:
    """What times depend on, apart from the work."""
    return {
        "processor": processor(),
        "cores": cores(),
        "gpus": kinds(),
        "torch": version("torch"),
        "python": platform.python_version(),
        "tspace": pipeline.__version__,
    }


def kept(workspace: Workspace) -> Measured:
    """What was measured on this machine; nothing where that was elsewhere, or is damaged."""
    try:
        found = sealed(_path(workspace).read_text())
        if found["machine"] != machine():
            return Measured()
        rates = {kind: Rate(*pair) for kind, pair in found["rates"].items()}
        return Measured(rates, found["flops"], found["overheads"])
    except (OSError, ValueError, KeyError, TypeError):
        return Measured()


def _keep(workspace: Workspace, found: Measured) -> None:
    rates = {kind: [rate.fixed, rate.each] for kind, rate in found.rates.items()}
    known = {"machine": machine(), "rates": rates}
    known |= {"flops": dict(found.flops), "overheads": dict(found.overheads)}
    _path(workspace).parent.mkdir(exist_ok=True)
    write_sealed(_path(workspace), known)


def _path(workspace: Workspace) -> Path:
    return workspace.scratch / "calibration.json"


def measure(workspace: Workspace, facts: DatasetFacts, prepared: bool) -> list[str]:
    """Measure what is not known of this machine; what could not be measured, in words.

    facts: of the dataset, prepared or not.
    """
    from stages.tools.rehearsal import Rehearsal

    known = kept(workspace)
    parts = Rehearsal(workspace, workspace.store, facts).parts(frozenset(known.rates))
    [prepare] = Works(workspace.params, facts).prepared()
    path = raw_path(workspace)
    raw = not prepared and (path is None or path.exists())
    work = [] if known.overheads else ["the start of stages"]
    work += ["preparing images"] if raw and prepare.kind not in known.rates else []
    work += [what for what, _ in parts]
    if not work:
        print("measured before: nothing is new", file=sys.stderr)
        return []
    print(f"measures for about a minute: {', '.join(work)}", file=sys.stderr, flush=True)
    overheads, rates, flops = dict(known.overheads), dict(known.rates), dict(known.flops)
    failed = []
    with tempfile.TemporaryDirectory(prefix="tspace-") as name:
        if not overheads:
            overheads = _overheads(Path(name) / "small")
        own = _checkout(workspace, Path(name) / "own")
        if raw:
            rates[prepare.kind] = Rate(0.0, _prepared(workspace, own, facts))
        else:
            _drawn(workspace if prepared else None, own, facts)
        told = Path(name) / "known.json"
        write_json(told, sorted(known.rates))
        for found in _rehearsed(own, told):
            rates |= {kind: Rate(*pair) for kind, pair in found["rates"].items()}
            flops |= found["flops"]
            overheads["torch"] = found["torch"]
            failed += found["failed"]
    _keep(workspace, Measured(rates, flops, overheads))
    return failed


# --- stages that do next to nothing


def _overheads(root: Path) -> dict[str, float]:
    """Seconds around the work.

    dvc: until its first stage. stage: of one that does nothing. prepare: more of that, before its
    first image. jobs: more of one with jobs, until the first begins and after the last. process: of
    a job's, until the job begins, as many at a time as there are cores. report: more of that.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        init(root)
    (root / "params.yaml").write_text(SMALL)
    (root / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    hidden = ("TSPACE_STORE", "SNAKEMAKE_PROFILE")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    begun, started = [], time.monotonic()
    command = [sys.executable, "-m", "dvc", "repro", STAGES[-1]]
    with subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("Running stage"):
                begun.append(time.monotonic())
    ended = time.monotonic()
    if process.returncode or len(begun) != len(STAGES):
        raise UserError("plan --measure: a small run failed:\n" + "".join(said[-20:]))
    [entry] = [
        Store(root / "store").entry(f"latents/{p.name}") for p in root.glob("store/latents/*")
    ]
    inside = entry.circumstances()["seconds"]
    job = [sys.executable, "-m", "stages.cli", "job"]
    job += ["--root", str(root), "--store", str(root / "store"), entry.name]
    at_once, computed = time.monotonic(), cpu_seconds()
    jobs = [subprocess.Popen(job, env=environment) for _ in range(cores())]
    for each in jobs:
        each.wait()
    # What else the machine does is not counted.
    computed = (cpu_seconds() - computed) / len(jobs)
    process_seconds = min(time.monotonic() - at_once, computed)
    stage = begun[1] - begun[0]
    return {
        "dvc": begun[0] - started,
        "stage": stage,
        "prepare": max(begun[2] - begun[1] - stage, 0.0),
        "jobs": max(ended - begun[-1] - inside - process_seconds - stage, 0.0),
        "process": process_seconds,
        "report": _report(root, environment),
    }


def _report(root: Path, environment: dict[str, str]) -> float:
    """Seconds of a small project's report, once all before it is there."""
    code = "import sys; from stages.tools.calibration import report_of; report_of(sys.argv[1])"
    command = [sys.executable, "-c", code, str(root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"plan --measure: a small report failed: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def report_of(root: str) -> None:
    """Do what is left of a small project in this process; print the seconds of the report."""
    from stages.job import run_here
    from stages.report.write import report

    workspace = Workspace(Path(root), run=run_here)
    for stage in AFTER:
        getattr(importlib.import_module(f"stages.{stage}"), stage)(workspace)
    with timed() as took:
        report(workspace)
    print(took[0])


# --- the work of params.yaml


def _checkout(workspace: Workspace, root: Path) -> Workspace:
    """A folder with the files of the checkout, and with artefacts of its own."""
    (root / "artefacts").mkdir(parents=True)
    for path in workspace.root.iterdir():
        if path.name not in OWN:
            (root / path.name).symlink_to(path.absolute())
    return Workspace(root)


def _rows(workspace: Workspace, facts: DatasetFacts) -> int:
    """How many images a rehearsal has: some, and as many as any block of `pair`."""
    blocks = [getattr(recipe.pairing, "block", 0) for recipe in workspace.params.recipes.values()]
    some = min(ROWS, BYTES // (facts.channels * facts.resolution**2))
    return min(facts.rows + facts.held_out, max(some, LEAST_ROWS, *blocks))


def _prepared(workspace: Workspace, own: Workspace, facts: DatasetFacts) -> float:
    """Prepare some of the images for a rehearsal; seconds of each."""
    from pipeline.data.dataset import prepare

    settings = workspace.params.data.model_dump(exclude={"holdout"})
    settings |= {"path": raw_path(workspace), "limit": _rows(workspace, facts)}
    started = time.process_time()
    info = prepare(own.dataset, **settings)
    return (time.process_time() - started) / info.rows


def _drawn(prepared: Workspace | None, own: Workspace, facts: DatasetFacts) -> None:
    """Some images of a prepared dataset, or noise of their shape, as the dataset of a rehearsal."""
    import numpy as np

    from pipeline.data.dataset import open_dataset, prepare

    rows = _rows(own, facts)
    if prepared is not None:
        dataset = open_dataset(prepared.dataset)
        images, labels = dataset.images(0, rows), dataset.labels(0, rows)
    else:
        shape = (rows, facts.channels, facts.resolution, facts.resolution)
        images = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
        labels = np.arange(rows) % facts.classes if facts.classes else None
    if labels is not None and facts.classes <= rows:  # each class has to be among them
        labels = np.where(np.arange(rows) < facts.classes, np.arange(rows), labels)
    arrays = {"images": images.transpose(0, 2, 3, 1)}
    arrays |= {} if labels is None else {"labels": labels}
    path = own.dataset.with_name("images.npz")
    np.savez(path, **arrays)
    prepare(own.dataset, source="npz", path=path)


def _rehearsed(own: Workspace, known: Path) -> Iterator[dict[str, Any]]:
    """What processes find that share the work, as many as jobs would run at once."""
    threads = max(recipe.training.threads for recipe in own.params.recipes.values())
    count = len(listed()) or max(1, cores() // threads)
    command = [sys.executable, "-m", "stages.cli", "rehearse", str(own.root), str(known)]
    environment = {k: v for k, v in os.environ.items() if k != "TSPACE_STORE"}
    environment |= dict.fromkeys(THREADS, "1")  # as Snakemake does; torch is told its own number
    processes = []
    for part in range(count):
        out = own.root / f"found-{part}.json"
        parted = [*command, str(part), str(count), str(out)]
        process = subprocess.Popen(
            parted, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        processes.append((process, out))
    try:
        for process, out in processes:
            said, _ = process.communicate()
            if process.returncode:
                raise UserError(f"plan --measure: the rehearsal failed: {said.strip()[-2000:]}")
            yield json.loads(out.read_text())
    finally:
        for process, _ in processes:
            process.kill()
            process.wait()


def rehearse(root: Path, known: Path, part: int, count: int, out: Path) -> None:
    """Measure every `count`-th kind of work that is not known, from `part` on; to a JSON file."""
    started = time.process_time()
    import torch  # noqa: F401

    seconds = time.process_time() - started
    from pipeline.data.dataset import open_dataset
    from stages.tools.rehearsal import Rehearsal

    own = Workspace(root)
    facts = plan.facts(
        open_dataset(own.dataset).info,
        extractor_files=extractor_files(own),
        recipe_files=recipe_files(own),
    )
    rehearsal, failed = Rehearsal(own, Store(root / f"store-{part}"), facts), []
    for what, work in rehearsal.parts(frozenset(json.loads(known.read_text())))[part::count]:
        try:
            work()
        except UserError as e:
            failed.append(f"{what}: {e}")
    rates = {kind: [rate.fixed, rate.each] for kind, rate in rehearsal.rates.items()}
    found = {"rates": rates, "flops": rehearsal.flops, "torch": seconds, "failed": failed}
    write_json(out, found)
