"""Runs one planned entry of the store: reads its inputs, calls `pipeline`, writes its results."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.store import Entry, Store, write_json, write_text
from stages.fanout import Reporter
from stages.workspace import Workspace

BLOCK = 4096  # images of the dataset that are read at once
DIAGNOSED_ROWS = 4096  # of the first pass of a pairing job
PAIRING_BYTES = 1 << 30  # of rows and noises that it keeps; it never changes a pairing
COMPARED_FEATURES = 10_000  # real images whose similarity is what unrelated images have

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


@contextlib.contextmanager
def _completing(path: Path):
    """A name to write a result under: `path` is the finished file, or absent."""
    temporary = path.with_name(f".{path.name}.part")
    yield temporary
    os.replace(temporary, path)


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
    """What finds the file of a mixture's part."""
    return lambda part: store.entry(part["entry"]).file(part["file"])


def _blocks(dataset: Any, rows: Any):
    """Chosen rows (int64, ascending) with their images, a block of the dataset at a time."""
    for start in range(0, int(rows[-1]) + 1, BLOCK):
        stop = min(start + BLOCK, len(dataset))
        mine = rows[(rows >= start) & (rows < stop)]
        if len(mine):
            yield mine, dataset.images(start, stop)[mine - start]


def run_encoder(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    from pipeline import autoencoder

    read = _mapped(_dataset(workspace, spec["dataset"]), spec["rows"], entry).__getitem__
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


def _mapped(dataset: Any, rows: int, entry: Entry):
    """The first images, uint8 [rows, C, H, W], mapped: Parquet gives single rows slowly."""
    import numpy as np

    path = entry.state / "images.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        info = dataset.info
        shape = (rows, info.channels, info.resolution, info.resolution)
        with _completing(path) as temporary:
            images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            for first in range(0, rows, BLOCK):
                last = min(first + BLOCK, rows)
                images[first:last] = dataset.images(first, last)
            images.flush()
    return np.asarray(np.load(path, mmap_mode="r"))


def _model(workspace: Workspace, model: str) -> str:
    """A model's folder, relative to the project's, or its name on the hub."""
    return str(workspace.root / model) if (workspace.root / model).is_dir() else model


@contextlib.contextmanager
def _stopping(reporter: Reporter, entry: Entry):
    """SLURM announces preemption and the time limit by SIGTERM: save, and let it be run again."""
    from pipeline.run import Interrupted

    asked = False

    def ask(*_: Any) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield lambda: asked
    except Interrupted as e:
        text = "interrupted; its checkpoint is kept, and it goes on from there"
        write_text(entry.path / "error.txt", f"{text}\n")
        reporter.log(text)
        raise SystemExit(1) from e  # not even the other entries of this process are begun
    finally:
        signal.signal(signal.SIGTERM, before)


def run_latents(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np

    from pipeline.latents import write_shard

    dataset = _dataset(workspace, spec["dataset"])
    start, stop = spec["rows"]
    mirrored = spec.get("flips_after", stop)
    info = dataset.info
    codec = _codec(spec, store) if "encoder" in spec else None
    variance = spec.get("variance", False)

    def encoded(images: np.ndarray) -> np.ndarray:
        if codec is None:
            return images
        mean, log_variance = codec.encode(images)
        if variance and log_variance is None:
            raise UserError("latent.sample: this encoder has no variance; set it to false")
        rows = np.concatenate([mean, log_variance], 1) if variance else mean
        return rows.astype(np.float16)

    def batches():
        # The rows behind the last image are the images again, mirrored.
        for low, high, offset in (
            (start, min(stop, mirrored), 0),
            (max(start, mirrored), stop, mirrored),
        ):
            for first in range(low - offset, high - offset, BLOCK):
                last = min(first + BLOCK, high - offset)
                images = dataset.images(first, last)
                if offset:
                    images = np.ascontiguousarray(images[..., ::-1])
                yield encoded(images), dataset.labels(first, last)
                reporter.progress(last + offset - start, stop - start)

    shape = (info.channels, info.resolution, info.resolution) if codec is None else codec.shape
    shift, scale = (spec["shift"], spec["scale"]) if codec is None else (codec.shift, codec.scale)
    with _completing(entry.path / "latents.arrow") as path:
        write_shard(path, batches(), shape, shift, scale, variance)


def run_spectrum(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch
    from safetensors.torch import save_file

    from pipeline import spectrum

    latents = _latents(spec, store)
    means = {"means": torch.from_numpy(spectrum.means(latents, spec["classes"]))}
    with _completing(entry.path / "means.safetensors") as path:
        save_file(means, path)
    found = {"spectrum": spectrum.spectrum(latents).tolist(), "rows": len(latents)}
    write_json(entry.path / "analysis.json", found)


def run_bounds(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np

    from pipeline import clustering

    latents = _latents(spec, store)
    settings = spec["settings"]
    count = min(settings["rows"], len(latents))
    chosen = np.linspace(0, len(latents) - 1, count).astype(np.int64)

    def rows(indices: np.ndarray) -> np.ndarray:
        return latents.gather(chosen[indices]).flatten(1).cpu().numpy()

    found = clustering.analyse(
        rows,
        count,
        np.asarray(spec["axis"]),
        key=spec["key"],
        **{key: value for key, value in settings.items() if key != "rows"},
    )
    write_json(entry.path / "analysis.json", found)


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
    started = time.monotonic()
    merged, report = merge_experts(
        spec,
        weights(spec["parent"]) if "parent" in spec else None,
        [weights(source) for source in spec["experts"]],
        _latents(spec, store) if "latents" in spec else None,
        entry.state / "evaluations.json",
        _small_sample_fid(spec, entry, store, workspace) if "confirm" in spec else None,
        reporter.progress,
    )
    with _completing(entry.path / "weights.safetensors") as path:
        save_file(dict(merged), path)
    write_json(entry.path / "report.json", report | {"seconds": time.monotonic() - started})


def _small_sample_fid(spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace):
    """What scores the candidates of a merge, with the latents' scale and decoder as they are."""
    from pipeline.selection import SmallSampleFid

    given = dict(spec["confirm"])
    shared: dict[str, Any] = {"decoder": None, "terminal": None}
    if "encoder" in given:
        codec = _codec(given, store)
        shared |= {"shift": list(codec.shift), "scale": codec.scale}
        shared["decoder"] = {"entry": given["encoder"], "file": "encoder.json"}
    if "terminal" in given:
        shared["terminal"] = {"entry": given["terminal"], "file": "means.safetensors"}
    extractor, _ = _extractor(store.entry(given["features"]), workspace)
    return SmallSampleFid(
        {**spec, "confirm": given | shared},
        _dataset(workspace, given["dataset"]).images(*given["rows"]),
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
) -> None:
    from pipeline.training import train

    parent = spec.get("parent")

    with _stopping(reporter, entry) as stop:
        train(
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
    import numpy as np

    from pipeline import noise, pairing, spectrum

    latents = _latents(spec, store)
    settings = dict(spec["settings"])
    method, key = settings.pop("method"), spec["noise_key"]
    count = len(latents)

    def rows(indices: np.ndarray) -> np.ndarray:
        return latents.gather(indices).flatten(1).cpu().numpy()

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
            memory=PAIRING_BYTES,
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
        means.reshape(len(means), -1)[0 if labels is None else 1 + labels[shown]],
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

    from pipeline import features, fidelity, scores
    from pipeline.networks.classifier import train_classifier

    torch.set_num_threads(1)
    dataset = _dataset(workspace, spec["dataset"])
    info, rows = dataset.info, spec["rows"]
    labels = dataset.labels(0, rows)
    settings = dict(spec["settings"])
    report: dict[str, Any] = {}
    if settings.pop("extractor") == "classifier":
        learnt = labels
        if labels is not None and len(np.unique(labels)) < 2:
            reporter.log("all images have one label: the classifier learns rotations instead")
            learnt = None
        module, report = train_classifier(
            _mapped(dataset, rows, entry),
            learnt,
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
    with _completing(entry.path / "features.npy") as path:
        size = (rows, extractor.dimension)
        found = np.lib.format.open_memmap(path, "w+", np.float32, size)
        for start in range(0, rows, BLOCK):
            images = dataset.images(start, min(start + BLOCK, rows))
            found[start : start + len(images)] = extractor.features(images)
        found.flush()
    if labels is not None:
        np.save(entry.path / "labels.npy", labels, allow_pickle=False)
    fidelity.moments(found, extractor.digest).save(entry.path / "reference.safetensors")
    report |= {
        "extractor": extractor.name,
        "extractor_digest": extractor.digest,
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
        **spec["sampling"],
    )
    with _completing(entry.path / "samples.arrow") as path:
        write_shard(path, [(images, labels)], images.shape[1:], [0.0] * images.shape[1], 1.0)


def run_reconstructions(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import torch

    from pipeline.consistency import evenly
    from pipeline.latents import write_shard

    torch.set_num_threads(1)
    dataset = _dataset(workspace, spec["dataset"])
    codec = _codec(spec, store)

    def batches():
        for rows, images in _blocks(dataset, evenly(spec["count"], spec["rows"])):
            mean, _ = codec.encode(images)
            first, last = int(rows[0]), int(rows[-1])
            labels = dataset.labels(first, last + 1)
            decoded = codec.decode(torch.from_numpy(mean))
            yield decoded, None if labels is None else labels[rows - first]
            reporter.progress(last + 1, spec["rows"])

    shape = codec.image_shape
    with _completing(entry.path / "samples.arrow") as path:
        write_shard(path, batches(), shape, [0.0] * shape[0], 1.0)


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
    )
    write_json(entry.path / "scores.json", result)


def run_outputs(
    spec: dict[str, Any], entry: Entry, store: Store, workspace: Workspace, reporter: Reporter
) -> None:
    import numpy as np
    import torch

    from pipeline import consistency, noise
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
        progress=lambda done, _: reporter.progress(done, total),
    )
    latents = _latents(spec, store)
    rows = consistency.evenly(count, spec["rows"])
    labels = None
    if spec["mixture"]["classes"]:
        labels = torch.as_tensor(latents.labels[rows], device=mixture.device)
    ids = torch.arange(count, device=mixture.device)
    estimates = consistency.clean_estimates(
        mixture.denoiser(labels, batch=spec["batch"]),
        latents.gather(rows),
        noise.normal(noise.derive_key(seed, "consistency"), 0, ids, latents.shape),
        asked,
    )
    nearest, real = _nearest_training(spec, _dataset(workspace, spec["dataset"]), images)
    for name, values in (
        ("images", images),
        ("features", extractor.features(images)),
        ("estimates", estimates),
        ("nearest", nearest),
        ("real-nearest", real),
    ):
        np.save(entry.path / f"{name}.npy", values, allow_pickle=False)
    reporter.progress(total, total)


def _nearest_training(spec: dict[str, Any], dataset: Any, images: Any):
    """Distances of samples to the nearest training image, and of as many of these to each other."""
    import numpy as np

    from pipeline import consistency

    searched = consistency.evenly(spec["nearest"], spec["rows"])
    chosen = searched[consistency.evenly(min(len(images), len(searched)), len(searched))]

    def with_mirrored():
        for rows, found in _blocks(dataset, searched):
            yield rows, found
            if spec["flips"]:
                yield rows, found[..., ::-1]

    real = np.concatenate([found for _, found in _blocks(dataset, chosen)])
    distances = consistency.nearest_of_blocks(
        np.concatenate([images, real]),
        with_mirrored(),
        np.concatenate([np.full(len(images), -1), chosen]),
    )
    return distances[: len(images)], distances[len(images) :]


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
    real = load(store.entry(spec["features"]), "features")
    real = real[consistency.evenly(min(COMPARED_FEATURES, len(real)), len(real))]
    found = consistency.compare(
        outputs(a),
        outputs(b),
        spec["levels"],
        real,
        load(a, "real-nearest"),
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
