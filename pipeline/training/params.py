"""How experts are trained."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.block import (
    Batch,
    BelowOne,
    Block,
    Form,
    Images,
    ImagesOrNone,
    Length,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Share,
    Text,
    Threads,
    Width,
    neutral,
)

Shards = Literal[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


class PlainWeighting(Block):
    """Unit weight on the network's own target (`uniform`), on the error of another prediction
    (`eps`, `x0`, `v`, or `edm`, which is `v`), or on that of a rectified flow's velocity (`flow`,
    Liu et al. 2023): (alpha + sigma)^2 times that of `v`."""

    kind: Literal["uniform", "eps", "x0", "v", "edm", "flow"] = "uniform"


class MinSnrWeighting(Block):
    """min(SNR, gamma) on the error of `x0` (Hang et al. 2023)."""

    kind: Literal["min-snr"]
    gamma: PositiveFloat = 5.0
    """Greatest weight."""


class P2Weighting(Block):
    """SNR / (k + SNR)^gamma on the error of `x0` (Choi et al. 2022)."""

    kind: Literal["p2"]
    k: PositiveFloat = 1.0
    """Added to the SNR."""
    gamma: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 1.0
    """Power of that sum."""


class UncertaintyWeighting(Block):
    """Learnt, so that every noise level contributes alike (Karras et al. 2024)."""

    kind: Literal["uncertainty"]


Weighting = PlainWeighting | MinSnrWeighting | P2Weighting | UncertaintyWeighting


class AdamOptimizer(Block):
    """Adam (Kingma & Ba 2015), or AdamW with weight decay."""

    kind: Literal["adam"] = "adam"


class MuonOptimizer(Form):
    """Muon (Jordan et al. 2024) for matrices and convolutions, Adam for the rest, with one learning
    rate for both (steps as large as Adam's, Liu et al. 2025)."""

    made_by: ClassVar[str] = "pipeline.training.muon:Muon"
    kind: Literal["muon"]
    momentum: BelowOne = 0.95
    """Of its (Nesterov) momentum; `betas` are Adam's."""


Optimizer = AdamOptimizer | MuonOptimizer


class ContrastiveAuxiliary(Form):
    """Away from the targets of images of other classes (contrastive flow matching, Stoica et al.
    2025); needs `network.class_conditional`."""

    made_by: ClassVar[str] = "pipeline.training.auxiliary:contrastive"
    kind: Literal["contrastive"]
    weight: BelowOne = 0.05
    """Of the term beside the error."""


class DispersiveAuxiliary(Form):
    """The inner values of a batch's images, away from each other (Wang & He 2025)."""

    made_by: ClassVar[str] = "pipeline.training.auxiliary:dispersive"
    kind: Literal["dispersive"]
    layer: Text = "encoder"
    """Layer of the network, by its name in torch: `encoder` is all of it before the decoder; for a
    transformer the papers take one a quarter or a third up, such as `encoder.blocks.1`."""
    weight: PositiveFloat = 0.5
    temperature: PositiveFloat = 0.5
    """Of the exponential that distances are averaged in."""


class RepaAuxiliary(Form):
    """A layer aligned with the extractor's features of the clean image (`features`; REPA, Yu et al.
    2025, here with one vector an image)."""

    made_by: ClassVar[str] = "pipeline.training.auxiliary:repa"
    kind: Literal["repa"]
    layer: Text = "encoder"
    weight: PositiveFloat = 0.5
    hidden: Width = 256
    """Width of the perceptron between the two."""


Auxiliary = ContrastiveAuxiliary | DispersiveAuxiliary | RepaAuxiliary


class Stop(Block):
    """When an expert's training ends early: at a milestone, by its loss on held-out images
    (`data.holdout`), which all milestones record."""

    patience: Positive = 2
    """Milestones in a row that gain nothing."""
    gain: BelowOne = 0.01
    """Share of the best loss before them by which one of them must be lower to count as a gain."""


class Training(Block):
    """How the experts of a recipe are trained."""

    images: Images = 200_000
    """Training budget in all: the experts of a recipe share it."""
    batch: Batch = 64
    """Total batch."""
    optimizer: Annotated[Optimizer, Field(discriminator="kind")] = neutral(AdamOptimizer())
    """What turns gradients into steps."""
    learning_rate: PositiveFloat = 2e-3
    """Learning rate of the optimizer."""
    warmup: ImagesOrNone = 5_000
    """Images per expert over which the learning rate rises, at most a tenth of its budget."""
    decay: Literal["constant", "linear", "cosine", "inverse-sqrt", "mdlrc", "momentum-decay"] = (
        "cosine"
    )
    """How the learning rate falls: `inverse-sqrt` is that of Karras et al. 2024; `mdlrc` decaying
    momentum with learning-rate compensation (Xu et al. 2024; a reconstruction); `momentum-decay`
    the same without (Chen et al. 2019)."""
    floor: Share = 0.05
    """Learning rate at the end of `linear` and `cosine`, as a factor; `linear` with 0.1 is the
    control of `mdlrc`."""
    reference_images: Images | None = None
    """Where the decay of `inverse-sqrt` begins, which needs it."""
    betas: Annotated[list[BelowOne], Field(min_length=2, max_length=2)] = [0.9, 0.99]
    """Betas of Adam."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay; with it Adam is AdamW."""
    ema_halflife: ImagesOrNone = 10_000
    """Images per expert in which the weights' moving average forgets half; 0 keeps the last
    weights."""
    power_ema: Annotated[list[Length], Field(max_length=20)] = []
    """Lengths (sigma_rel, such as [0.05, 0.1]) of power-function averages that are kept at each
    milestone, for `merge.method: post-hoc` (Karras et al. 2024)."""
    budget: Literal["uniform", "curriculum", "by-difficulty"] = "uniform"
    """How experts share the images: `uniform` equally, `curriculum` as it draws their states,
    `by-difficulty` more where the data's error changes most."""
    start: Literal["random", "shared-seed"] = "random"
    """`shared-seed` gives all experts of a seed the same first weights."""
    parent: Text | None = None
    """Start from the network that this recipe ends with."""
    initial: Text | None = neutral(None)
    """Start from weights of a safetensors file: those of the same name and shape are taken."""
    train: Literal["all", "decoders"] = "all"
    """`decoders` of a multi-decoder network only, with a parent."""
    milestones: Annotated[list[Images], Field(max_length=1000)] = []
    """Images in all at which snapshots are kept and scored; the end always is one."""
    stop: Stop | None = neutral(None)
    """End each expert's training where `milestones` no longer gain, `stop: {}` by the rule's own
    defaults; later milestones have the weights of that one. It needs held-out images, and a
    learning rate that does not wait for the end to fall (`decay: constant` or `inverse-sqrt`)."""
    weighting: Annotated[Weighting, Field(discriminator="kind")] = PlainWeighting()
    """Weight of each noise level in the loss."""
    auxiliary: Annotated[Auxiliary, Field(discriminator="kind")] | None = neutral(None)
    """A term of the loss beside that error; null: none."""
    clip: NonNegativeFloat = neutral(0.0)
    """Largest norm of the gradient of all weights together, to which a larger one is scaled down;
    0 leaves every gradient as it is."""
    shards: Shards = neutral(1)
    """Equal parts of a batch, whose gradients are summed in a fixed order: so any number of
    processes gives the same bits ([slurm.md](slurm.md)), and a batch may be larger than memory."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of products: `bfloat16` is autocast, `tf32` is float32 with TF32 where a GPU has it."""
    deterministic: bool = neutral(True)
    """On a GPU: kernels that give the same bits every time; false takes faster ones, which gains
    [a few percent](benchmarks.md#speed-on-a-gpu)."""
    compile: bool = False
    """Train through torch.compile; the job's log says how long compiling took and after how many
    images it has paid. On a GPU a [large network](benchmarks.md#speed-on-a-gpu) needs it. Part of
    the result's identity, as it rounds otherwise."""
    experts_per_job: Positive = 1
    """Small experts trained by one process, one after the other; no part of the identity."""
    threads: Threads = 1
    """CPU threads per job; part of the result's identity."""


class Decouple(Block):
    """How the experts of a `training.parent` are fine-tuned (Decouple-then-Merge, Ma et al.
    2025)."""

    outside: Share = 0.0
    """Probability that an image's state is drawn outside the expert's own; 0.3 in its code."""
    consistency: NonNegativeFloat = 0.0
    """Weight of the distance to the frozen parent's answers; 1 in the paper."""
