"""The networks that predict."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.block import BelowOne, Depth, Form, Positive, Width, neutral


class UNet(Form):
    """A U-Net of the DDPM++ family (Ho et al. 2020; Song et al. 2021; Karras et al. 2022)."""

    made_by: ClassVar[str] = "pipeline.networks.unet:unet"
    kind: Literal["unet"] = "unet"
    channels: Width = 32
    """Base width."""
    multipliers: Annotated[list[Width], Field(min_length=1, max_length=10)] = [1, 2]
    """Width of each level over the base width; each level halves the image."""
    blocks: Depth = 1
    """Residual blocks per level."""
    attention: Annotated[list[Positive], Field(max_length=10)] = []
    """Resolutions with self-attention."""
    dropout: BelowOne = 0.0
    """Dropout in the residual blocks."""
    projections: bool = neutral(False)
    """After each level a matrix over the channels that starts as the identity
    (Decouple-then-Merge); a parent may lack them."""
    class_conditional: bool = neutral(False)
    """Give the network the labels."""
    label_dropout: BelowOne = 0.1
    """Share of labels that are left out, which guidance needs."""


class MultiDecoder(UNet):
    """A shared encoder, and a decoder for each interval of the partition (Zhang et al. 2024)."""

    made_by: ClassVar[str] = "pipeline.networks.multi_decoder:multi_decoder"
    kind: Literal["multi-decoder"]
    decoder_channels: Annotated[list[Width], Field(min_length=1, max_length=1000)]
    """Base width of each decoder, cleanest interval first."""


Network = UNet | MultiDecoder
