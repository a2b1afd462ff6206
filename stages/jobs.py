"""Runs one planned entry of the store: reads its inputs, calls `pipeline`, writes its results."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

from pipeline.errors import UserError
from pipeline.store import Entry, Store, write_json, write_text
from stages.fanout import Reporter
from stages.workspace import Workspace

DIAGNOSED_ROWS = 4096  # of the first pass of a pairing job

Runner = Callable[[dict[str, Any], Entry, Store, Workspace, Reporter], None]


def run_job(workspace: Workspace, store: Store, name: str) -> bool:
    """Make the entry `kind/digest` unless it is finished; whether it is finished afterwards.

    A failure leaves one line in the entry's error.txt and the traceback in its log.
    """
    entry = store.entry(name)
    with entry.lease(os.environ.get("SLURM_JOB_ID", "")):
        if entry.done:
            return True
        reporter = Reporter(entry)
        try:
            spec = entry.spec()
            reporter.log(f"started by process {os.getpid()} on {os.uname().nodename}")
            RUNNERS[entry.kind](spec, entry, store, workspace, reporter)
            entry.finish()
            reporter.log("finished")
            return True
        except UserError as e:
            reporter.log(f"failed: {e}")
            write_text(entry.path / "error.txt", f"{e}\n")
        except Exception as e:
            reporter.log(traceback.format_exc())
            write_text(entry.path / "error.txt", f"{type(e).__name__}: {e}\n")
    return False


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _dataset(workspace: Workspace, digest: str):
    from pipeline.dataset import open_dataset

    dataset = open_dataset(workspace.dataset)
    if dataset.info.digest != digest:
        raise UserError(f"{workspace.dataset}: is not the dataset this job was planned for")
    return dataset


def run_latents(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    from pipeline.latents import write_shard

    dataset = _dataset(workspace, spec["dataset"])
    start, stop = spec["rows"]
    info = dataset.info

    def batches():
        for first in range(start, stop, 4096):
            last = min(first + 4096, stop)
            yield dataset.images(first, last), dataset.labels(first, last)
            reporter.progress(last - start, stop - start)

    shape = (info.channels, info.resolution, info.resolution)
    path = entry.path / ".latents.arrow.part"
    write_shard(path, batches(), shape, spec["shift"], spec["scale"])
    os.replace(path, entry.path / "latents.arrow")


def _latents(spec: dict[str, Any], store: Store):
    from pipeline.latents import Latents

    return Latents([store.entry(n).file("latents.arrow") for n in spec["latents"]], device())


def run_expert(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    from pipeline.training import Interrupted, Progress, train

    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        asked = True

    # SLURM announces preemption and the time limit by SIGTERM: save, and let it be run again.
    before = signal.signal(signal.SIGTERM, ask)

    def tell(state: Progress) -> None:
        reporter.progress(state.images, state.total, state.rate, state.loss)

    try:
        train(
            spec,
            _latents(spec, store),
            entry.path,
            _pairings(spec, store),
            progress=tell,
            log=reporter.log,
            stop=lambda: asked,
        )
    except Interrupted as e:
        text = "interrupted; its checkpoint is kept, and it goes on from there"
        write_text(entry.path / "error.txt", f"{text}\n")
        reporter.log(text)
        raise SystemExit(1) from e  # not even the other entries of this process are begun
    finally:
        signal.signal(signal.SIGTERM, before)


def _pairings(spec: dict[str, Any], store: Store) -> list:
    from pipeline.pairing import read_pairing

    found = []
    for name in spec.get("pairings", ()):
        entry = store.entry(name)
        expect = {"data": entry.spec()["dataset"], "key": spec["noise_key"]}
        found.append(read_pairing(entry.file("pairing.arrow"), expect))
    return found


def run_pairing(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np

    from pipeline import noise, pairing

    latents = _latents(spec, store)
    settings = dict(spec["settings"])
    method, key = settings.pop("method"), spec["noise_key"]
    count = len(latents)

    def rows(indices: np.ndarray) -> np.ndarray:
        return latents.gather(indices).flatten(1).cpu().numpy()

    number = settings.pop("components")
    components = None
    if number is not None:
        components = pairing.principal_components(rows, count, number, key=key)
    labels = latents.labels if spec["by_class"] and method == "assignment" else None
    slots = {}
    reporter.unit = "passes"
    first, last = spec["slots"]
    for slot in range(first, last):
        slots[slot] = pairing.pair_slot(
            method,
            rows,
            count,
            key=key,
            slot=slot,
            labels=labels,
            components=components,
            **settings,
        )
        reporter.progress(slot + 1 - first, last - first)
    shown = np.arange(min(count, DIAGNOSED_ROWS))
    ids = pairing.noise_ids(method, slots[first], shown, settings.get("candidates", 0))
    statistics = pairing.diagnose(
        rows(shown),
        noise.normal(key, first, ids, latents.shape),
        pairing.principal_components(rows, count, min(4, int(np.prod(latents.shape))), key=key),
        None if latents.labels is None else latents.labels[shown],
    )
    pairing.write_pairing(
        entry.path / "pairing.arrow",
        slots,
        method=method,
        settings=settings,
        key=key,
        data=spec["dataset"],
        statistics=statistics,
    )
    write_json(entry.path / "diagnostics.json", statistics)


def run_features(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np
    import torch

    from pipeline import features, scores
    from pipeline.networks.classifier import train_classifier

    torch.set_num_threads(1)
    dataset = _dataset(workspace, spec["dataset"])
    info = dataset.info
    settings = dict(spec["settings"])
    report: dict[str, Any] = {}
    if settings.pop("extractor") == "classifier":
        module, report = train_classifier(
            dataset.images(0, info.rows),
            dataset.labels(0, info.rows),
            classes=len(info.classes) if info.classes else None,
            images_budget=settings.pop("images"),
            seed=spec["seed"],
            device=device(),
            progress=reporter.progress,
            **settings,
        )
        features.save_extractor(module, entry.path / "extractor.safetensors", report)
        extractor = features.classifier_extractor(module, device=device())
    else:
        extractor = _other_extractor(spec["settings"], workspace)
    found = np.empty((info.rows, extractor.dimension), np.float32)
    for start in range(0, info.rows, 4096):
        images = dataset.images(start, min(start + 4096, info.rows))
        found[start : start + len(images)] = extractor.features(images)
    np.save(entry.path / "features.npy", found, allow_pickle=False)
    report |= {
        "extractor": extractor.name,
        "dimension": extractor.dimension,
        "floor": scores.floor(found, seed=spec["seed"], allow_few=True),
    }
    write_json(entry.path / "report.json", report)


def _other_extractor(settings: dict[str, Any], workspace: Workspace):
    """An extractor that is not trained here; paths in params.yaml are relative to the project."""
    from pipeline import features

    weights = settings["weights"] and workspace.root / settings["weights"]
    if settings["extractor"] == "module":
        path, _, name = settings["module"].rpartition(":")
        return features.module_extractor(
            f"{workspace.root / path}:{name}", weights, device=device()
        )
    return features.torch_fidelity_extractor(settings["extractor"], weights, device=device())


def _extractor(reference: Entry, workspace: Workspace):
    from pipeline import features

    settings = reference.spec()["settings"]
    if settings["extractor"] == "classifier":
        return features.load_extractor(reference.file("extractor.safetensors"), device=device())
    return _other_extractor(settings, workspace)


def run_samples(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch

    from pipeline.latents import write_shard
    from pipeline.mixture import Mixture, draw

    torch.set_num_threads(spec["threads"])
    description = spec["mixture"]
    mixture = Mixture(
        description, lambda e: store.entry(e["entry"]).file(e["file"]), device=device()
    )
    reporter.unit = "states"
    images, labels = draw(
        mixture,
        spec["states"],
        range(*spec["rows"]),
        seed=spec["seed"],
        batch=spec["batch"],
        progress=reporter.progress,
        **spec["sampling"],
    )
    path = entry.path / ".samples.arrow.part"
    write_shard(path, [(images, labels)], images.shape[1:], [0.0] * images.shape[1], 1.0)
    os.replace(path, entry.path / "samples.arrow")


def run_scores(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np
    import torch

    from pipeline import scores
    from pipeline.latents import Latents

    torch.set_num_threads(1)
    reference = store.entry(spec["features"])
    extractor = _extractor(reference, workspace)
    settings = spec["settings"]
    samples = Latents([store.entry(n).file("samples.arrow") for n in spec["samples"]])
    generated = extractor.features(samples.raw(np.arange(len(samples))))
    real = np.load(reference.file("features.npy"), allow_pickle=False)
    result = scores.score(
        real,
        generated.astype(np.float32),
        seed=settings["seed"],
        neighbours=settings["neighbours"],
        allow_few=settings["allow_few"],
        extractor=extractor.name,
    )
    write_json(entry.path / "scores.json", result)


RUNNERS: dict[str, Runner] = {
    "latents": run_latents,
    "features": run_features,
    "pairing": run_pairing,
    "expert": run_expert,
    "samples": run_samples,
    "scores": run_scores,
}
