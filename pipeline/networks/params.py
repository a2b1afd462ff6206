from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.block import BelowOne, Depth, Form, Positive, Width, neutral


class UNet(Form):
    made_by: ClassVar[str] = "pipeline.networks.unet:unet"
    kind: Literal["unet"] = "unet"
    channels: Width = 32
    multipliers: Annotated[list[Width], Field(min_length=1, max_length=10)] = [1, 2]
    blocks: Depth = 1  # residual blocks a level
    # Resolutions with self-attention
    attention: Annotated[list[Positive], Field(max_length=10)] = []
    dropout: BelowOne = 0.0
    projections: bool = neutral(False)  # channel-wise, after each level (Decouple-then-Merge)
    class_conditional: bool = neutral(False)
    label_dropout: BelowOne = 0.1


class MultiDecoder(UNet):
    """A shared encoder and a decoder for each interval of the partition (Zhang et al. 2024)."""

    made_by: ClassVar[str] = "pipeline.networks.multi_decoder:multi_decoder"
    kind: Literal["multi-decoder"]
    # Base widths, cleanest first
    decoder_channels: Annotated[list[Width], Field(min_length=1, max_length=1000)]


Network = UNet | MultiDecoder
