"""The networks that predict."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from pipeline.block import (
    MOST_WIDTH,
    BelowOne,
    Block,
    Depth,
    Form,
    Positive,
    Text,
    Width,
    named,
    neutral,
)

VELOCITY = "pipeline.networks.velocity:velocity"


class Conditional(Form):
    """What every network can be told beside the state."""

    width_key: ClassVar[str] = "channels"  # whose value `partition.channels` has for each expert
    always_told: ClassVar[bool] = False  # of its state, an expert of one state, too
    decoder_key: ClassVar[str] = ""  # whose values are the sizes of the intervals' own decoders
    file_key: ClassVar[str] = ""  # that names the file that it is made of

    class_conditional: bool = neutral(False)
    """Give the network the labels."""
    label_dropout: BelowOne = 0.1
    """The probability that a label is left out, for guidance."""
    velocity: bool = neutral(False)
    """What it answers is the velocity eps - z of a flow, and `v` is made of that: what
    `prediction: flow` stands for."""

    @property
    def maker(self) -> Callable[..., Any]:
        plain = super().maker
        return functools.partial(named(VELOCITY), plain) if self.velocity else plain

    @property
    def makers(self) -> tuple[str, ...]:
        return (*super().makers, *([VELOCITY] if self.velocity else []))

    @property
    def decoders(self) -> list[int]:
        """Size of each interval's own decoder, cleanest first; [] where all is one network."""
        return getattr(self, self.decoder_key) if self.decoder_key else []

    def alone(self) -> Conditional:
        """The same network without an interval's own parts."""
        return self

    @property
    def file(self) -> str:
        """The file below the project's folder that it is made of, if any."""
        return ""

    @property
    def random(self) -> bool:
        """Whether torch draws numbers in its forward pass while it trains."""
        return False

    @property
    def fixed(self) -> bool:
        """Whether it computes the same whatever the values, and takes nothing from the host."""
        return False

    def contradictions(self, widths: Sequence[int]) -> Iterator[tuple[str, str]]:
        """Impossible combinations as (key, what and the way out). widths: of single experts."""
        yield from ()

    def misfits(self, side: int, what: str) -> Iterator[tuple[str, str]]:
        """What does not fit images of a side, counted in `what`, as (key, what is wrong)."""
        yield from ()


class UNet(Conditional):
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

    @property
    def random(self) -> bool:
        return self.dropout > 0

    @property
    def fixed(self) -> bool:
        return not self.decoder_key

    def contradictions(self, widths: Sequence[int]) -> Iterator[tuple[str, str]]:
        widest = max([self.channels, *widths]) * max(self.multipliers)
        if widest > MOST_WIDTH:
            what = f"the widest level has {widest:,} channels; at most {MOST_WIDTH:,}"
            yield "network.multipliers", what

    def misfits(self, side: int, what: str) -> Iterator[tuple[str, str]]:
        levels = len(self.multipliers)
        factor = 2 ** (levels - 1)
        if side % factor:
            yield (
                "multipliers",
                f"{levels} levels halve the image "
                f"{'once' if levels == 2 else f'{levels - 1} times'}, but {side} {what} are not a "
                f"multiple of {factor}; use fewer levels, or another data.resolution",
            )
        sizes = [side // 2**i for i in range(levels)]
        for wanted in self.attention:
            if wanted not in sizes:
                yield "attention", f"no level has resolution {wanted}; there are {sizes}"


class MultiDecoder(UNet):
    """A shared encoder, and a decoder for each interval of the partition (Zhang et al. 2024)."""

    made_by: ClassVar[str] = "pipeline.networks.multi_decoder:multi_decoder"
    decoder_key: ClassVar[str] = "decoder_channels"
    kind: Literal["multi-decoder"]
    decoder_channels: Annotated[list[Width], Field(min_length=1, max_length=1000)]
    """Base width of each decoder, cleanest interval first."""

    def contradictions(self, widths: Sequence[int]) -> Iterator[tuple[str, str]]:
        yield from super().contradictions([*widths, *self.decoder_channels])

    def alone(self) -> UNet:
        return UNet(**{key: getattr(self, key) for key in UNet().arguments()})


# Depth, width and heads of the paper's table.
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
MOST_TOKENS = 16_384  # of an image: each attends to each


class TokenRouting(Block):
    """Some tokens, drawn anew for each image, skip the blocks in the middle while it trains (TREAD,
    Krause et al. 2025): an image then takes fewer FLOPs. Sampling takes all of them."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of the tokens, that skips."""
    start: Depth = 2
    """Blocks that all tokens pass before."""
    end: Depth = 2
    """Blocks that all tokens pass after."""


class DiT(Conditional):
    """A transformer on patches, told its state by adaptive norms (Peebles & Xie 2023)."""

    made_by: ClassVar[str] = "pipeline.networks.dit:dit"
    width_key: ClassVar[str] = "width"
    kind: Literal["dit"]
    size: Literal["S", "B", "L", "XL"] | None = neutral(None)
    """Depth, width and heads of the paper's DiT of this name, instead of these keys."""
    patch: Positive = 2
    """Side of a patch, in pixels or latents: a token each."""
    depth: Depth = 12
    """Blocks of attention and perceptron."""
    width: Width = 384
    """Of a token: a multiple of 4 times `heads`."""
    heads: Positive = 6
    """Of each attention."""
    mlp_ratio: Annotated[float, Field(gt=0, le=16)] = 4.0
    """Width of a perceptron's hidden layer over `width`."""
    qk_norm: bool = neutral(False)
    """Root-mean-square norms on queries and keys, against attention that grows without bound."""
    swiglu: bool = neutral(False)
    """Gated perceptrons (Shazeer 2020), of as many weights."""
    rotary: bool = neutral(False)
    """Rotary positions in each attention, instead of sines and cosines added to the tokens."""
    told: Literal["log_snr", "timestep"] = neutral("log_snr")
    """How the state is told: `timestep` is what published weights know, 0 to 999 of DDPM."""
    routing: TokenRouting | None = neutral(None)
    """Let some tokens skip blocks of the `depth` while it trains, `routing: {}` as in its paper;
    null: none."""

    @model_validator(mode="before")
    @classmethod
    def _by_size(cls, given: Any) -> Any:
        """The numbers that a size stands for, so that both spellings are one network."""
        size = given.get("size") if isinstance(given, dict) else None
        if not isinstance(size, str) or size not in SIZES:
            return given
        numbers = dict(zip(("depth", "width", "heads"), SIZES[size], strict=True))
        if beside := numbers.keys() & given.keys():
            raise ValueError(
                f"size: {size} is {', '.join(f'{k}: {v}' for k, v in numbers.items())}; "
                f"leave out size or {min(beside)}"
            )
        return given | numbers | {"size": None}

    @property
    def random(self) -> bool:
        return self.routing is not None

    @property
    def fixed(self) -> bool:
        return not self.decoder_key and self.told == "log_snr"

    def contradictions(self, widths: Sequence[int]) -> Iterator[tuple[str, str]]:
        if self.routing is not None and self.routing.start + self.routing.end >= self.depth:
            yield (
                "network.routing",
                f"{self.routing.start} blocks before and {self.routing.end} after leave none of "
                f"the {self.depth} to skip; lower start or end",
            )
        own = [("partition.channels", width) for width in widths]
        for key, width in [("network.width", self.width), *own]:
            if width % (4 * self.heads):
                yield key, f"{width} is no multiple of {4 * self.heads}, 4 times network.heads"

    def misfits(self, side: int, what: str) -> Iterator[tuple[str, str]]:
        if side % self.patch:
            yield "patch", f"{side} {what} are not a multiple of {self.patch}"
        elif (tokens := (side // self.patch) ** 2) > MOST_TOKENS:
            yield "patch", f"makes {tokens:,} tokens of an image; at most {MOST_TOKENS:,}: raise it"


class MultiDiT(DiT):
    """Blocks that all noise levels share, then some of each interval's own."""

    made_by: ClassVar[str] = "pipeline.networks.dit:multi_dit"
    decoder_key: ClassVar[str] = "decoder_depths"
    kind: Literal["multi-dit"]
    decoder_depths: Annotated[
        list[Annotated[int, Field(ge=0, le=64)]], Field(min_length=1, max_length=1000)
    ]
    """Blocks of each interval's own, cleanest first, after the `depth` that all share."""

    def alone(self) -> DiT:
        keys = DiT(kind="dit").arguments()
        return DiT(kind="dit", **{key: getattr(self, key) for key in keys})


def _plain_values(options: dict[str, Any]) -> dict[str, Any]:
    json.dumps(options, allow_nan=False)  # ValueError for .inf and .nan, which no digest has
    return options


class Foreign(Conditional):
    """A torch module whose code is not of this project."""

    always_told: ClassVar[bool] = True
    options: Annotated[dict[str, JsonValue], AfterValidator(_plain_values)] = {}
    """What the class is made with."""
    told: Literal["log_snr", "timestep", "sigma"] = "log_snr"
    """What its forward pass is told of the state, as float [N]: `timestep` is 0 to 999 of DDPM's
    linear schedule, `sigma` noise over signal."""

    @property
    def random(self) -> bool:
        return True  # it may have dropout

    def contradictions(self, widths: Sequence[int]) -> Iterator[tuple[str, str]]:
        if widths:
            yield "partition.channels", f"a {self.kind} has no width of ours; leave it out"


class Module(Foreign):
    """Any torch module in a file of this checkout, which is executed."""

    made_by: ClassVar[str] = "pipeline.networks.module:module"
    file_key: ClassVar[str] = "module"
    kind: Literal["module"]
    module: Annotated[Text, Field(pattern=r"^\w[\w-]*(/\w[\w-]*)*\.py:[A-Za-z_]\w*$")]
    """`path/to/file.py:ClassName`, below the project's folder; made as `ClassName(**options)`."""

    @property
    def file(self) -> str:
        return self.module.rpartition(":")[0]


class Diffusers(Foreign):
    """A network of the package diffusers (`pip install -c constraints.txt -e '.[diffusers]'`)."""

    made_by: ClassVar[str] = "pipeline.networks.of_diffusers:of_diffusers"
    file_key: ClassVar[str] = "config"
    kind: Literal["diffusers"]
    model: Literal["UNet2DModel", "DiTTransformer2DModel"]
    """Its class. Channels, image size and classes are those of the data."""
    config: Annotated[Text, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*\.json$")] | None = neutral(None)
    """The `config.json` of a saved model, below the project's folder; `options` come on top."""
    told: Literal["log_snr", "timestep", "sigma"] = "timestep"
    """What its forward pass is told of the state, as float [N]: `timestep` is 0 to 999 of DDPM's
    linear schedule, which published weights know; `sigma` is noise over signal."""

    @property
    def file(self) -> str:
        return self.config or ""


class RouterNetwork(Conditional):
    """What tells clusters of the data apart in noise: a U-Net's encoder, of a `partition`."""

    made_by: ClassVar[str] = "pipeline.networks.router:router"
    kind: Literal["router"] = "router"
    channels: Width
    clusters: Positive


Network = UNet | MultiDecoder | DiT | MultiDiT | Module | Diffusers
