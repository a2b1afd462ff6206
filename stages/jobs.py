"""Runs one planned entry of the store: reads its inputs, calls `pipeline`, writes its results.

No digest covers this module, so nothing here may choose rows or hold a number that could change a
result (`tests/test_jobs.py` looks).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.circumstances import measured
from pipeline.errors import UserError, room_for, system_message
from pipeline.files import Lost, ask, keep, kept, replacing, sweep, write_json, write_text
from pipeline.store import Entry, Store
from stages.fanout import FINAL, Reporter
from stages.workspace import Workspace

# Writes an entry's results; what it returns belongs to the circumstances, not to the results.
Runner = Callable[[dict[str, Any], Entry, Store, Workspace, Reporter], dict[str, Any] | None]


def run_job(workspace: Workspace, store: Store, name: str) -> bool:
    """Make the entry `kind/digest` unless it is finished; whether it is finished afterwards.

    A failure leaves one line in the entry's error.txt and the traceback in its log. One that the
    job itself declares final is not tried again before the next run of its stage. Raises SystemExit
    if the entry was taken over by another process, and says nothing in it.
    """
    entry = store.entry(name)
    reporter = Reporter(entry)
    with entry.lease(os.environ.get("SLURM_JOB_ID", ""), reporter.log), _lost_is_the_end():
        if entry.done:
            return True
        if (entry.path / FINAL).exists():
            return False
        try:
            spec = entry.spec()
            reporter.log(f"started by process {os.getpid()} on {os.uname().nodename}")
            with measured(entry) as circumstances:
                found = RUNNERS[entry.kind](spec, entry, store, workspace, reporter)
                circumstances.update(found or {})
            entry.finish()
            reporter.log("finished")
            return True
        except UserError as e:
            # A full disk is no fault of the job.
            _fail(entry, reporter, str(e), f"failed: {e}", system_message(e, entry.path) is None)
        except Exception as e:
            text = system_message(e, entry.path) or f"{type(e).__name__}: {e}"
            _fail(entry, reporter, text, traceback.format_exc(), False)
    return False


def _fail(entry: Entry, reporter: Reporter, error: str, log: str, final: bool) -> None:
    """Keep why a job failed where its stage looks for it, on a full disk, too."""
    ask(entry.path)  # what went wrong may be that another process took over and cleared up
    # Half-written files are of no use any more, and what they took may be all the room there is.
    for folder in (entry.path, entry.state):
        sweep(folder)
    print(error, file=sys.stderr)
    with contextlib.suppress(OSError):
        write_text(entry.path / "error.txt", f"{error}\n")
        if final:
            write_text(entry.path / FINAL, "")
        reporter.log(log)


@contextlib.contextmanager
def _lost_is_the_end():
    try:
        yield
    except Lost as e:
        print(e, file=sys.stderr)
        raise SystemExit(1) from e


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _images(workspace: Workspace, spec: dict[str, Any]):
    """The dataset of a job, its held-out rows last."""
    from pipeline.dataset import open_dataset
    from pipeline.split import Split

    dataset = open_dataset(workspace.dataset)
    if dataset.info.digest != spec["dataset"]:
        raise UserError(f"{workspace.dataset}: is not the dataset this job was planned for")
    return Split(dataset, spec.get("held_out", 0))


def _save(path: Path, values: Any) -> None:
    """Write an array so that the file is complete or absent."""
    import numpy as np

    with replacing(path) as temporary, open(temporary, "wb") as f:
        np.save(f, values, allow_pickle=False)


def _training_progress(reporter: Reporter):
    """What a training calls with its `Progress`."""
    return lambda state: reporter.progress(state.images, state.total, state.rate, state.loss)


def _codec(spec: dict[str, Any], store: Store):
    from pipeline.autoencoder import load_codec

    return load_codec(store.entry(spec["encoder"]).file("encoder.json").parent, device())


def _mixture(spec: dict[str, Any], store: Store):
    from pipeline.mixture import Mixture

    return Mixture(spec["mixture"], _file_of(store), device=device())


def _file_of(store: Store):
    """What finds the file of a mixture's part, which must be the very one that it names."""

    def find(part: dict[str, Any]) -> Path:
        entry = store.entry(part["entry"])
        path = entry.file(part["file"])
        if part.get("sha256", (known := entry.files()[part["file"]]["sha256"])) != known:
            raise UserError(f"{path}: not the file that the mixture was made of; run `dvc repro`")
        return path

    return find


def run_encoder(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    from pipeline import autoencoder

    read = _mapped(_images(workspace, spec), spec["rows"], entry, reporter.log).__getitem__
    settings = dict(spec["settings"])
    threads = settings.pop("threads")
    common = {"shape": tuple(spec["shape"]), "device": device(), "threads": threads}
    if settings.pop("encoder") == "diffusers":
        autoencoder.fetch_diffusers(
            _model(workspace, settings["model"]),
            entry.path,
            read,
            spec["rows"],
            log=reporter.log,
            **common,
        )
        codec = autoencoder.load_codec(entry.path)
        promised = (settings["channels"], *(n // settings["downsample"] for n in spec["shape"][1:]))
        if codec.shape != promised:
            raise UserError(
                f"latent.model: {settings['model']} has latents of shape {codec.shape}, but "
                f"latent.channels and latent.downsample say {promised}"
            )
        return

    with _stopping(reporter, entry) as stop:
        autoencoder.train_autoencoder(
            read,
            spec["rows"],
            settings=settings,
            seed=spec["seed"],
            folder=entry.path,
            progress=_training_progress(reporter),
            log=reporter.log,
            stop=stop,
            **common,
        )


def _mapped(images: Any, rows: int, entry: Entry, log: Callable[[str], None]):
    """The first images, uint8 [rows, C, H, W], mapped: Parquet gives single rows slowly."""
    import numpy as np

    for _, path in kept(entry.state, "images.npy", log):
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    info = images.info
    shape = (rows, info.channels, info.resolution, info.resolution)

    def write(path: Path) -> None:
        mapped = _new_array(path, np.uint8, shape)
        first = 0
        for block, _ in images.blocks(0, rows):
            mapped[first : first + len(block)] = block
            first += len(block)
        mapped.flush()

    keep(entry.state, "images.npy", rows, write)
    return _mapped(images, rows, entry, log)


def _new_array(path: Path, dtype: Any, shape: tuple[int, ...]):
    """A mapped .npy file with room for all of it: a full disk would kill whoever fills a hole."""
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        size = path.stat().st_size
        with room_for(path, size), open(path, "r+b") as f:
            os.posix_fallocate(f.fileno(), 0, size)
    return array


def _model(workspace: Workspace, model: str) -> str:
    """A model's folder, relative to the project's, or its name on the hub."""
    return str(workspace.root / model) if (workspace.root / model).is_dir() else model


@contextlib.contextmanager
def _stopping(reporter: Reporter, entry: Entry):
    """Save when asked to stop, and let it be run again.

    SLURM announces preemption and the time limit by SIGTERM; Ctrl-C sends SIGINT to all processes.
    """
    from pipeline.run import Interrupted

    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        asked = True

    before = {asking: signal.signal(asking, ask) for asking in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    except Interrupted as e:
        text = "interrupted; its checkpoint is kept, and it goes on from there"
        write_text(entry.path / "error.txt", f"{text}\n")
        reporter.log(text)
        raise SystemExit(1) from e  # not even the other entries of this process are begun
    finally:
        for asking, handler in before.items():
            signal.signal(asking, handler)


def run_latents(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    from pipeline.latents import encoded, write_shard

    images = _images(workspace, spec)
    start, stop = spec["rows"]
    info = images.info
    codec = _codec(spec, store) if "encoder" in spec else None
    variance = spec.get("variance", False)
    mirrored = spec.get("flips_after", stop)

    def batches():
        done = 0
        for values, labels in encoded(images, start, stop, mirrored, codec, variance):
            yield values, labels
            done += len(values)
            reporter.progress(done, stop - start)

    shape = (info.channels, info.resolution, info.resolution) if codec is None else codec.shape
    shift, scale = (spec["shift"], spec["scale"]) if codec is None else (codec.shift, codec.scale)
    with replacing(entry.path / "latents.arrow") as path:
        write_shard(path, batches(), shape, shift, scale, variance)


def run_spectrum(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch
    from safetensors.torch import save_file

    from pipeline import spectrum

    latents = _latents(spec, store)
    means = {"means": torch.from_numpy(spectrum.means(latents, spec["classes"]))}
    with replacing(entry.path / "means.safetensors") as path:
        save_file(means, path)
    found = {"spectrum": spectrum.spectrum(latents).tolist(), "rows": len(latents)}
    write_json(entry.path / "analysis.json", found)


def run_bounds(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np

    from pipeline import clustering

    latents = _latents(spec, store)
    settings = dict(spec["settings"])
    found = clustering.analyse(
        _flat(latents),
        len(latents),
        np.asarray(spec["axis"]),
        key=spec["key"],
        most=settings.pop("rows"),
        labels=latents.labels,
        **settings,
    )
    write_json(entry.path / "analysis.json", found)


def _flat(latents: Any):
    """Row indices to scaled rows, float32 [n, d]."""
    return lambda indices: latents.gather(indices).flatten(1).cpu().numpy()


def run_pilot(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch
    from safetensors.torch import load_file

    from pipeline import pilot
    from pipeline.networks.build import network_of

    torch.set_num_threads(spec["threads"])
    trained = store.entry(spec["expert"])
    of = trained.spec()
    network = network_of(of, device=device()).eval()
    network.load_state_dict(load_file(trained.file(spec["file"])))
    reporter.unit = "levels"
    found = pilot.error_curve(
        network,
        of,
        _latents(spec, store),
        spec["levels"],
        spec["noise_key"],
        gradients=spec["gradients"],
        progress=reporter.progress,
    )
    write_json(entry.path / "analysis.json", found)


def run_merged(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    from safetensors.torch import load_file, save_file

    from pipeline.selection import merge_experts

    def weights(source: dict[str, str]):
        return load_file(store.entry(source["entry"]).file(source["file"]))

    reporter.unit = "evaluations"
    merged, report = merge_experts(
        spec,
        weights(spec["parent"]) if "parent" in spec else None,
        [weights(source) for source in spec["experts"]],
        _latents(spec, store) if "latents" in spec else None,
        entry.state,
        _small_sample_fid(spec, entry, store, workspace) if "confirm" in spec else None,
        reporter.progress,
        reporter.log,
    )
    with replacing(entry.path / "weights.safetensors") as path:
        save_file(dict(merged), path)
    write_json(entry.path / "report.json", report)


def _small_sample_fid(spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace):
    """What scores the candidates of a merge, with the latents' scale and decoder as they are."""
    from pipeline.scores import useless_features
    from pipeline.selection import SmallSampleFid

    given = dict(spec["confirm"])
    shared: dict[str, Any] = {"decoder": None, "terminal": None}
    if "encoder" in given:
        codec = _codec(given, store)
        shared |= {"shift": list(codec.shift), "scale": codec.scale}
        shared["decoder"] = {"entry": given["encoder"], "file": "encoder.json"}
    if "terminal" in given:
        shared["terminal"] = {"entry": given["terminal"], "file": "means.safetensors"}
    reference = store.entry(given["features"])
    useless = useless_features(reference.load_json("report.json"))
    if useless:
        raise UserError(f"merge.confirm: {useless}; or set confirm to 0")
    extractor, _ = _extractor(reference, workspace)
    return SmallSampleFid(
        {**spec, "confirm": given | shared},
        _images(workspace, given).images(*given["rows"]),
        extractor,
        _file_of(store),
        entry.state,
        device(),
    )


def _latents(spec: dict[str, Any], store: Store):
    from pipeline.latents import Latents

    return Latents([store.entry(n).file("latents.arrow") for n in spec["latents"]], device())


def run_expert(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> dict[str, Any]:
    from pipeline.training import train

    parent = spec.get("parent")

    with _stopping(reporter, entry) as stop:
        return train(
            spec,
            _latents(spec, store),
            entry.path,
            _pairings(spec, store),
            components=_components(spec, store),
            parent=parent and store.entry(parent["entry"]).file(parent["file"]),
            progress=_training_progress(reporter),
            log=reporter.log,
            stop=stop,
        )


def _components(spec: dict[str, Any], store: Store):
    """The components in which a run keeps its paired noise; None for all."""
    from pipeline.pairing import read_components

    if not spec["pairing"].get("keep"):
        return None
    entry = store.entry(spec["pairings"][0])
    return read_components(entry.file("components.arrow"), entry.spec()["dataset"])


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
    from pipeline import pairing, spectrum

    latents = _latents(spec, store)
    settings = dict(spec["settings"])
    method, key = settings.pop("method"), spec["noise_key"]
    rows, count = _flat(latents), len(latents)
    kept = settings.pop("keep")
    if kept is not None:
        basis = pairing.principal_components(rows, count, kept, key=key)
        pairing.write_components(entry.path / "components.arrow", basis, spec["dataset"])
    number = settings.pop("components")
    components = None
    if number is not None:
        components = pairing.principal_components(rows, count, number, key=key)
    labels = latents.labels if spec["classes"] else None
    means = spectrum.means(latents, spec["classes"])
    chosen_by = pairing.centred(rows, means, labels) if settings.pop("center", False) else rows
    slots = {}
    reporter.unit = "passes"
    first, last = spec["slots"]
    for slot in range(first, last):
        slots[slot] = pairing.pair_slot(
            method,
            chosen_by,
            count,
            key=key,
            slot=slot,
            labels=labels,
            components=components,
            **settings,
        )
        reporter.progress(slot + 1 - first, last - first)
    statistics = pairing.diagnose_slot(
        method,
        rows,
        slots[first],
        latents.shape,
        key=key,
        slot=first,
        candidates=settings.get("candidates", 0),
        labels=latents.labels,
        means=means,
        by_class=labels is not None,
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

    from pipeline import features, fidelity
    from pipeline.networks.classifier import train_classifier

    torch.set_num_threads(1)
    images = _images(workspace, spec)
    info, rows = images.info, spec["rows"]
    labels = images.labels(0, rows)
    settings = dict(spec["settings"])
    report: dict[str, Any] = {}
    if settings.pop("extractor") == "classifier":
        with _stopping(reporter, entry) as stop:
            module, report = train_classifier(
                _mapped(images, rows, entry, reporter.log),
                labels,
                entry.path,
                classes=len(info.classes) if info.classes else None,
                images_budget=settings.pop("images"),
                seed=spec["seed"],
                device=device(),
                progress=_training_progress(reporter),
                log=reporter.log,
                stop=stop,
                **settings,
            )
        if labels is not None and report["task"] == "rotations":
            reporter.log("all images have one label: the classifier learnt rotations instead")
        features.save_extractor(module, entry.path / "extractor.safetensors", report)
        extractor = features.classifier_extractor(module, device=device())
    else:
        extractor = _other_extractor(spec["settings"], workspace)
    with replacing(entry.path / "features.npy") as path:
        size = (rows, extractor.dimension)
        found = _new_array(path, np.float32, size)
        start = 0
        for block, _ in images.blocks(0, rows):
            found[start : start + len(block)] = extractor.features(block)
            start += len(block)
        found.flush()
    if labels is not None:
        _save(entry.path / "labels.npy", labels)
    fidelity.moments(found, extractor.digest).save(entry.path / "reference.safetensors")
    report |= {
        "extractor": extractor.name,
        "extractor_digest": extractor.digest,
        "dimension": extractor.dimension,
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
    """The extractor of a features entry, and the moments that it found of the real images."""
    from pipeline import features
    from pipeline.fidelity import Moments

    settings = reference.spec()["settings"]
    if settings["extractor"] == "classifier":
        extractor = features.load_extractor(
            reference.file("extractor.safetensors"), device=device()
        )
    else:
        extractor = _other_extractor(settings, workspace)
    moments = Moments.load(reference.file("reference.safetensors"))
    if extractor.digest != moments.extractor:
        raise UserError(
            f"extractor {extractor.name}: is not the one of {reference.path} any more (other "
            "weights or another version); delete that folder and run `dvc repro` again"
        )
    return extractor, moments


def run_samples(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch

    from pipeline.latents import write_shard
    from pipeline.mixture import draw

    torch.set_num_threads(spec["threads"])
    reporter.unit = "states"
    images, labels = draw(
        _mixture(spec, store),
        spec["states"],
        range(*spec["rows"]),
        seed=spec["seed"],
        batch=spec["batch"],
        progress=reporter.progress,
        class_counts=spec.get("class_counts"),
        **spec["sampling"],
    )
    with replacing(entry.path / "samples.arrow") as path:
        write_shard(path, [(images, labels)], images.shape[1:], [0.0] * images.shape[1], 1.0)


def run_reconstructions(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np
    import torch

    from pipeline.autoencoder import reconstructions
    from pipeline.latents import write_shard

    torch.set_num_threads(1)
    images, codec = _images(workspace, spec), _codec(spec, store)
    chosen = []

    def batches():
        done = 0
        for rows, decoded, labels in reconstructions(codec, images, spec["count"]):
            yield decoded, labels
            chosen.append(rows)
            done += len(rows)
            reporter.progress(done, spec["count"])

    shape = codec.image_shape
    with replacing(entry.path / "samples.arrow") as path:
        write_shard(path, batches(), shape, [0.0] * shape[0], 1.0)
    _save(entry.path / "rows.npy", np.concatenate(chosen))


def run_scores(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np
    import torch

    from pipeline import scores
    from pipeline.latents import Latents

    torch.set_num_threads(1)
    reference = store.entry(spec["features"])
    extractor, moments = _extractor(reference, workspace)
    settings = spec["settings"]
    samples = Latents([store.entry(n).file("samples.arrow") for n in spec["samples"]])
    generated = extractor.features(samples.raw(np.arange(len(samples))))
    real = np.load(reference.file("features.npy"), mmap_mode="r", allow_pickle=False)
    labelled = "labels.npy" in reference.files()
    result = scores.score(
        moments,
        real,
        generated,
        seed=settings["seed"],
        neighbours=settings["neighbours"],
        allow_few=settings["allow_few"],
        extractor=extractor.name,
        real_labels=np.load(reference.file("labels.npy")) if labelled else None,
        labels=samples.labels,
        useless=scores.useless_features(reference.load_json("report.json")),
    )
    if "labels" in spec:
        result["labels"] = spec["labels"]
    write_json(entry.path / "scores.json", result)


def run_outputs(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch

    from pipeline import consistency
    from pipeline.mixture import draw

    torch.set_num_threads(spec["threads"])
    extractor, _ = _extractor(store.entry(spec["features"]), workspace)
    mixture = _mixture(spec, store)
    count, seed, asked = spec["samples"], spec["seed"], [own for _, own in spec["levels"]]
    total = len(spec["states"]) + len(asked)
    reporter.unit = "states"
    # Without noise in its steps: the samples are functions of their starting noise alone.
    images, _ = draw(
        mixture,
        spec["states"],
        range(count),
        seed=seed,
        kind="ddim",
        guidance=spec["guidance"],
        batch=spec["batch"],
        class_counts=spec.get("class_counts"),
        progress=lambda done, _: reporter.progress(done, total),
    )
    estimates = consistency.estimates(
        mixture,
        _latents(spec, store),
        count,
        spec["rows"],
        asked,
        seed=seed,
        batch=spec["batch"],
    )
    nearest, real = consistency.nearest_training(
        images, _images(workspace, spec), spec["nearest"], spec["flips"]
    )
    for name, values in (
        ("images", images),
        ("features", extractor.features(images)),
        ("estimates", estimates),
        ("nearest", nearest),
        ("real-nearest", real),
    ):
        _save(entry.path / f"{name}.npy", values)
    reporter.progress(total, total)


def run_consistency(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np

    from pipeline import consistency

    def load(of: Entry, name: str) -> np.ndarray:
        return np.load(of.file(f"{name}.npy"), mmap_mode="r", allow_pickle=False)

    def outputs(of: Entry) -> consistency.Outputs:
        levels = [level for level, _ in of.spec()["levels"]]
        images, features, nearest, estimates = (
            load(of, name) for name in ("images", "features", "nearest", "estimates")
        )
        by_level = dict(zip(levels, estimates, strict=True))
        return consistency.Outputs(images, features, nearest, by_level)

    a, b = (store.entry(name) for name in spec["outputs"])
    reference = store.entry(spec["features"])
    labelled = "labels.npy" in reference.files()
    found = consistency.compare(
        outputs(a),
        outputs(b),
        spec["levels"],
        load(reference, "features"),
        load(a, "real-nearest"),
        real_labels=load(reference, "labels") if labelled else None,
        seed=spec["seed"],
        **spec["settings"],
    )
    write_json(entry.path / "comparison.json", found)


RUNNERS: dict[str, Runner] = {
    "encoder": run_encoder,
    "latents": run_latents,
    "spectrum": run_spectrum,
    "bounds": run_bounds,
    "pilot": run_pilot,
    "features": run_features,
    "pairing": run_pairing,
    "expert": run_expert,
    "merged": run_merged,
    "samples": run_samples,
    "reconstructions": run_reconstructions,
    "scores": run_scores,
    "outputs": run_outputs,
    "consistency": run_consistency,
}
