"""Where the images come from, and what the networks see of them."""

from __future__ import annotations

from collections.abc import Iterator
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

# What opens each source: (place, split, limit) -> `sources.base.Source`; that of `patches` is also
# told their side.
SOURCES = {
    "digits": "pipeline.data.sources.builtin:open_digits",
    "fashion-mnist": "pipeline.data.sources.builtin:open_fashion_mnist",
    "cifar10": "pipeline.data.sources.cifar10:open_cifar10",
    "folder": "pipeline.data.sources.folder:open_folder",
    "parquet": "pipeline.data.sources.parquet:open_parquet",
    "webdataset": "pipeline.data.sources.webdataset:open_webdataset",
    "npz": "pipeline.data.sources.npz:open_npz",
    "patches": "pipeline.data.sources.patches:open_patches",
    "synthetic": "pipeline.data.sources.synthetic:open_synthetic",
}


class Data(Block):
    """Where the images come from, and their normal form."""

    source: Literal[*SOURCES] = "digits"
    """What reads the images; [data/README.md](../data/README.md) describes each source."""
    path: Text | None = None
    """File or folder: relative to the project, absolute, or below `~`."""
    split: Literal["train", "test"] = "train"
    """The part that is read, of a source that has both."""
    side: Annotated[int, Field(gt=0, le=4096)] | None = None
    """Of `patches`: side of the squares that photographs are cut into, in pixels of theirs."""
    resolution: Annotated[int, Field(gt=0, le=4096)] | None = None
    """Side in pixels; null keeps the source's own."""
    channels: Literal[1, 3] | None = None
    """1 is grey, 3 is RGB; null keeps the source's own."""
    crop: Literal["center", "none"] = "center"
    """`center` cuts the largest centred square, `none` refuses images that are not square."""
    limit: Images | None = None
    """At most so many images, spread over the source, each class in its proportion."""
    duplicates: Literal["keep", "drop", "refuse"] = "keep"
    """What to do with exact copies."""
    holdout: ImagesOrNone = 0
    """Images kept from training, a share of every class; searches of `merge` evaluate on them."""


def strange(source: str, limit: int | None, side: int | None) -> Iterator[str]:
    """What lacks of the keys that a source must have, or has no place in it."""
    if source == "synthetic" and limit is None:
        yield "data.limit: missing; `synthetic` draws as many images as it says, such as 20000"
    if source == "patches" and side is None:
        yield (
            "data.side: missing; `patches` are squares of so many pixels of the photographs, such "
            "as 64"
        )
    if source != "patches" and side is not None:
        yield f"data.side: {side}: only `patches` have one; leave it out"


class Pixels(Block):
    """The images themselves, scaled."""

    encoder: Literal["pixels"] = "pixels"
    flips: bool = False
    """Every image mirrored as well, as a row of its own."""
    shard: Images = 65_536
    """Rows per file, and per job."""


class Autoencoder(Block):
    """Latents of a small KL autoencoder that is trained here (Rombach et al. 2022)."""

    encoder: Literal["autoencoder"]
    channels: Annotated[int, Field(gt=0, le=1024)] = 4
    """Channels of the latents."""
    downsample: Literal[2, 4, 8, 16] = 4
    """Side of an image over the side of its latents."""
    width: Width = 32
    """Channels of the autoencoder at the latents' resolution."""
    blocks: Depth = 1
    """Residual blocks per level."""
    images: Images = 150_000
    """Training budget."""
    batch: Batch = 64
    """Batch size of that training."""
    learning_rate: PositiveFloat = 4e-3
    """Learning rate of that training, of Adam."""
    kl_weight: NonNegativeFloat = 1e-5
    """Weight of the KL term in the loss."""
    sample: bool = False
    """Train on draws from the encoder's Gaussian, not on its mean; takes twice the space."""
    flips: bool = False
    shard: Images = 65_536
    threads: Threads = 1
    """CPU threads; part of the result's identity."""


class Diffusers(Block):
    """Latents of a published autoencoder (`pip install -c constraints.txt -e '.[diffusers]'`)."""

    encoder: Literal["diffusers"]
    model: Text
    """A local folder or a name on the hub, of an AutoencoderKL or AutoencoderTiny."""
    channels: Annotated[int, Field(gt=0, le=1024)] = 4
    downsample: Literal[2, 4, 8, 16, 32] = 8
    sample: bool = False
    flips: bool = False
    shard: Images = 65_536
    threads: Threads = 1


Latent = Pixels | Autoencoder | Diffusers
