"""The dataset, its latents, what is measured on them, and the reference of the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import rows
from pipeline.data.params import Pixels
from pipeline.errors import UserError
from pipeline.params.recipe import Params
from pipeline.plan.job import Job, code_of
from pipeline.specs import EncoderSpec, FeaturesSpec, Images, LatentsSpec, SpectrumSpec


@dataclass(frozen=True)
class DatasetFacts:
    """What planning needs to know of the prepared dataset, and what was measured on it."""

    digest: str
    rows: int  # that are trained on; the held-out ones follow them
    resolution: int
    channels: int
    classes: int  # 0 without labels
    mean: tuple[float, ...]  # per channel, in uint8 units
    std: tuple[float, ...]
    held_out: int = 0
    class_counts: tuple[int, ...] = ()  # rows of each class that are trained on; () without labels
    analyses: Mapping[str, Any] = field(default_factory=dict)  # results by job name
    # Checksums of the files that the feature extractor is made of, by their key in params.yaml.
    extractor_files: Mapping[str, str] = field(default_factory=dict)
    # Checksums of the files that recipes name, by their path in params.yaml.
    recipe_files: Mapping[str, str] = field(default_factory=dict)
    reference_file: str | None = None  # checksum of evaluate.reference


def facts(
    info: Any,
    held_out: int = 0,
    analyses: Mapping[str, Any] | None = None,
    extractor_files: Mapping[str, str] | None = None,
    recipe_files: Mapping[str, str] | None = None,
    reference_file: str | None = None,
) -> DatasetFacts:
    """Planning's view of a dataset's info, `held_out` of its rows apart (see `split.Split`)."""
    counts = np.asarray(info.class_counts or (), np.int64)
    kept = counts - rows.shares(counts, held_out) if len(counts) else counts
    return DatasetFacts(
        digest=info.digest,
        rows=info.rows - held_out,
        resolution=info.resolution,
        channels=info.channels,
        classes=len(info.classes or ()),
        mean=tuple(info.mean),
        std=tuple(info.std),
        held_out=held_out,
        class_counts=tuple(kept.tolist()),
        analyses=analyses or {},
        extractor_files=extractor_files or {},
        recipe_files=recipe_files or {},
        reference_file=reference_file,
    )


def images_of(data: DatasetFacts) -> Images:
    """What a job's spec says of the images that it reads."""
    return Images(dataset=data.digest, held_out=data.held_out, rows=data.rows)


@dataclass(frozen=True)
class LatentFacts:
    """Shape and number of the rows that the networks see."""

    rows: int
    channels: int
    resolution: int


def latent_facts(params: Params, data: DatasetFacts) -> LatentFacts:
    """The rows that training sees. UserError if the images do not fit the encoder."""
    latent = params.latent
    rows = data.rows * (2 if latent.flips else 1)
    if isinstance(latent, Pixels):
        return LatentFacts(rows, data.channels, data.resolution)
    return LatentFacts(rows, latent.channels, data.resolution // latent.downsample)


def encoder(params: Params, data: DatasetFacts) -> Job | None:
    """The job that trains or fetches the encoder; None for pixels."""
    latent = params.latent
    if isinstance(latent, Pixels):
        return None
    spec = EncoderSpec(
        images=images_of(data),
        shape=[data.channels, data.resolution, data.resolution],
        settings=latent.without("flips", "shard", "sample"),
        seed=params.seed,
        code=code_of("encoder"),
    )
    label, images = f"{latent.encoder} encoder", getattr(latent, "images", data.rows)
    return Job("encoder", spec, label, weight=images, threads=latent.threads)


def latents(params: Params, data: DatasetFacts) -> list[Job]:
    """Jobs that turn the prepared images into shards that training maps into memory."""
    return _shards(params, data, 0, latent_facts(params, data).rows, "images")


def pixel_std(data: DatasetFacts) -> float:
    """Root of the pixels' average variance, in uint8 units. UserError if there is none."""
    scale = float(np.sqrt(np.mean(np.square(data.std))))
    if scale == 0:
        raise UserError("data: every pixel of every image has the same value; nothing to learn")
    return scale


def held_out(params: Params, data: DatasetFacts) -> list[Job]:
    """The same for the held-out images (data.holdout), which no expert is trained on."""
    stop = data.rows + data.held_out
    return _shards(params, data, data.rows, stop, "held-out images", flips=False)


def _shards(
    params: Params, data: DatasetFacts, first: int, end: int, what: str, flips: bool | None = None
) -> list[Job]:
    latent, codec = params.latent, encoder(params, data)
    base: dict[str, Any] = {"images": images_of(data), "code": code_of("latents")}
    if latent.flips if flips is None else flips:
        base["flips_after"] = data.rows
    needs: tuple[str, ...] = ()
    if codec is None:
        # Unit average variance: log-SNRs then mean what they say.
        base |= {"shift": list(data.mean), "scale": pixel_std(data)}
    else:
        base |= {"encoder": codec.name, "variance": latent.sample}
        needs = (codec.name,)
    jobs = []
    for start in range(first, end, latent.shard):
        stop = min(start + latent.shard, end)
        spec = LatentsSpec(**base, first=start, last=stop)
        label = f"{what} {start}-{stop - 1}"
        jobs.append(Job("latents", spec, label, needs, weight=stop - start))
    return jobs


def spectrum(params: Params, data: DatasetFacts) -> Job:
    """The job that measures the latents' mean (also by class) and principal variances."""
    shards = tuple(job.name for job in latents(params, data))
    spec = SpectrumSpec(latents=list(shards), classes=data.classes, code=code_of("spectrum"))
    return Job("spectrum", spec, "spectrum", shards)


def features(params: Params, data: DatasetFacts) -> Job:
    """The job that makes the feature extractor and the features of the real images."""
    spec = FeaturesSpec(
        images=images_of(data),
        settings=params.features,
        files=dict(data.extractor_files),
        seed=params.seed,
        code=code_of("features"),
    )
    return Job("features", spec, f"{params.features.extractor} features")
