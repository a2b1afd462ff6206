from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.block import (
    Batch,
    Block,
    Depth,
    Images,
    ImagesOrNone,
    NonNegativeFloat,
    PositiveFloat,
    Text,
    Threads,
    Width,
)

# What opens each source: (place, split, limit) -> `sources.base.Source`.
SOURCES = {
    "digits": "pipeline.data.sources.builtin:open_digits",
    "fashion-mnist": "pipeline.data.sources.builtin:open_fashion_mnist",
    "cifar10": "pipeline.data.sources.cifar10:open_cifar10",
    "folder": "pipeline.data.sources.folder:open_folder",
    "parquet": "pipeline.data.sources.parquet:open_parquet",
    "npz": "pipeline.data.sources.npz:open_npz",
}


class Data(Block):
    """Where the images come from and their normal form."""

    source: Literal[*SOURCES] = "digits"
    path: Text | None = None
    split: Literal["train", "test"] = "train"
    # Pixels; null keeps the source's own
    resolution: Annotated[int, Field(gt=0, le=4096)] | None = None
    channels: Literal[1, 3] | None = None  # null keeps the source's own
    crop: Literal["center", "none"] = "center"
    limit: Images | None = None  # at most so many images, spread over the source
    duplicates: Literal["keep", "drop", "refuse"] = "keep"
    holdout: ImagesOrNone = 0  # images kept from training and scoring: a selection set


class Pixels(Block):
    """The networks see scaled pixels."""

    encoder: Literal["pixels"] = "pixels"
    flips: bool = False  # every image mirrored as well, as a row of its own
    shard: Images = 65_536  # rows a file


class Autoencoder(Block):
    """Latents of a small KL autoencoder that is trained here, on the dataset."""

    encoder: Literal["autoencoder"]
    channels: Annotated[int, Field(gt=0, le=1024)] = 4  # of the latents
    downsample: Literal[2, 4, 8, 16] = 4
    width: Width = 32  # at the latents' resolution
    blocks: Depth = 1  # residual blocks a level
    images: Images = 150_000  # training budget
    batch: Batch = 64
    learning_rate: PositiveFloat = 4e-3
    kl_weight: NonNegativeFloat = 1e-5
    sample: bool = False  # train on draws from the encoder's Gaussian, not on its mean
    flips: bool = False
    shard: Images = 65_536
    threads: Threads = 1


class Diffusers(Block):
    """Latents of a published autoencoder, through the package `diffusers`."""

    encoder: Literal["diffusers"]
    model: Text  # a local folder or a hub id: AutoencoderKL or AutoencoderTiny
    channels: Annotated[int, Field(gt=0, le=1024)] = 4
    downsample: Literal[2, 4, 8, 16, 32] = 8
    sample: bool = False
    flips: bool = False
    shard: Images = 65_536
    threads: Threads = 1


Latent = Pixels | Autoencoder | Diffusers
