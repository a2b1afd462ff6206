"""Training speed: this pipeline, its peers and what the machine can do, in turns.

    python benchmarks/throughput.py --diffusers-python A/bin/python --ddp-python B/bin/python
    python benchmarks/throughput.py --gpu --diffusers-python A/bin/python

`ours` is pipeline.training.train itself, with the settings a recipe gets by default, on rows of a
shard on disk. `diffusers` is UNet2DModel in the loop of diffusers' unconditional training example
(DDPMScheduler, AdamW, a cosine schedule, EMAModel, gradients clipped), once as near to our
parameters and FLOPs as it can be, and once of our widths. `denoising-diffusion-pytorch` is its Unet
and GaussianDiffusion in the step of its Trainer (Adam, ema-pytorch, gradients clipped); its Unet
has attention on every level. Peers get their rows from memory, as tensors: what their scripts do
to decode and augment images is not in their time. A peer whose Python is not given is left out.

On a GPU networks are larger, and every contender trains under bfloat16 autocast, and through
torch.compile, too. Peers get their rows from the GPU's own memory. Ours keeps to kernels that
repeat their bits; `any kernels` is `training.deterministic: false`. `diffusers, made fast` does
what its example does not: channels-last, CUDA graphs by torch.compile's `reduce-overhead`, fused
AdamW, averages by foreach, a loss that is never read. `busy` is the share of the time in which some
kernel ran, by NVML, over the counted steps.

Every run is a process of its own with one thread a core; the first steps are not counted. Images/s
is the median of the rounds, memory the largest ru_maxrss, interpreter and libraries included.
FLOPs are those of one training step by torch's FlopCounterMode, forward and backward, the same
counter for all, and networks differ in them: speed-ups are ratios of GFLOP/s, that is of images/s
at equal FLOPs. `speedup_images` is the ratio of plain images/s.

The ceiling is measured in the same rounds: `convolution` is the best GFLOP/s, forward and
backward, of any one 3x3 convolution of our network at its own shape, in the better of both memory
layouts; `all convolutions` is the sum of their FLOPs over the sum of their times; `matmul` is a
large product. On a GPU they are in bfloat16.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, print_table, versions, write_results

from pipeline.specs import ExpertSpec

ROWS = 4096
IMAGES = 10_000_000  # of a run that is stopped long before
WARM_UP = 5  # steps
OURS, CEILING = "ours", "ceiling"
DIFFUSERS, DDP = "diffusers", "denoising-diffusion-pytorch"
SAME_WIDTHS = "diffusers, our widths"
MADE_FAST = "diffusers, made fast"

# A peer's are as near to our parameters and FLOPs as multiples of 8 channels (latent: 4) allow.
SETTINGS: dict[str, dict[str, Any]] = {
    "images": {  # of about a million parameters
        "shape": (3, 32, 32),
        "batch": 32,
        OURS: {"kind": "unet", "channels": 32, "multipliers": [1, 2, 2], "blocks": 1},
        DIFFUSERS: {"widths": (24, 56, 72), "groups": 8},
        SAME_WIDTHS: {"widths": (32, 64, 64), "groups": 8},
        DDP: {"dim": 24, "dim_mults": (1, 2, 2)},
    },
    # That of the training benchmarks, see fashion.py.
    "latent": {
        "shape": (2, 8, 8),
        "batch": 64,
        OURS: {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1},
        DIFFUSERS: {"widths": (12, 32), "groups": 4},
        SAME_WIDTHS: {"widths": (16, 32), "groups": 4},
        DDP: {"dim": 8, "dim_mults": (1, 2)},
    },
}
GPU_SETTINGS: dict[str, dict[str, Any]] = {
    f"{size}, 32x32": {
        "shape": (3, 32, 32),
        "batch": 128,
        OURS: {
            "kind": "unet",
            "channels": channels,
            "multipliers": [1, 2, 2, 2],
            "blocks": 2,
            "attention": [16],
        },
        DIFFUSERS: {
            "widths": (channels, *3 * (2 * channels,)),
            "groups": 32,
            "blocks": 2,
            "attention": (1,),
        },
        MADE_FAST: {},
    }
    # Of the DDPM's width (Ho et al. 2020), and of half of it.
    for size, channels in (("36M", 128), ("9M", 64))
}
Stop = Callable[[], bool]


@dataclasses.dataclass(frozen=True)
class Way:
    """How a contender computes."""

    device: str = "cpu"
    precision: str = "float32"
    compile: bool = False
    deterministic: bool = True  # ours alone

    def __str__(self) -> str:
        """As it stands behind a contender's name."""
        parts = [self.precision] if self.device == "cuda" else []
        parts += ["compiled"] * self.compile + ["any kernels"] * (not self.deterministic)
        return "".join(f", {part}" for part in parts)

    def autocast(self) -> Any:
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")


CPU_WAYS = [Way()]
GPU_WAYS = [
    Way("cuda", "bfloat16"),
    Way("cuda", "bfloat16", compile=True),
    Way("cuda", "bfloat16", compile=True, deterministic=False),
]


class Clock:
    """Asked after each step whether to stop; knows the speed of the steps after the warm-up."""

    def __init__(self, seconds: float, way: Way) -> None:
        self.seconds, self.way = seconds, way
        self.steps, self.start, self.end = -WARM_UP, 0.0, 0.0
        self.busy: list[int] = []

    def __call__(self) -> bool:
        if not self.end:
            self.steps += 1
            if self.steps == 0:
                self.start = self._now()
                if self.way.device == "cuda":
                    threading.Thread(target=self._watch, daemon=True).start()
            elif self.steps > 0 and time.perf_counter() - self.start >= self.seconds:
                self.end = self._now()
        return bool(self.end)

    def _now(self) -> float:
        """When the device, too, has done all that it was told."""
        synchronize(self.way)
        return time.perf_counter()

    def _watch(self) -> None:
        """Note how busy the GPU was in the last sixth of a second, or so, again and again."""
        import torch

        while not self.end:
            time.sleep(0.2)
            with contextlib.suppress(ModuleNotFoundError):  # without NVML's package: not known
                self.busy.append(torch.cuda.utilization())

    @property
    def step_seconds(self) -> float:
        return (self.end - self.start) / self.steps


def synchronize(way: Way) -> None:
    import torch

    if way.device == "cuda":
        torch.cuda.synchronize()


def make_rows(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [ROWS, *shape]; what is in them takes no time."""
    return np.random.default_rng(0).integers(0, 256, (ROWS, *shape), np.uint8)


def count_step_flops(step: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


# --- contenders: each trains until the clock stops it and says what its network is ----------------


def our_spec(setting: dict[str, Any], threads: int, way: Way = CPU_WAYS[0]) -> ExpertSpec:
    """The spec of a recipe that names no more than the network, the batch and the way."""
    from pipeline import plan
    from pipeline.params.load import resolve

    raw = {
        "defaults": {
            "network": setting[OURS],
            "training": {
                "images": IMAGES,
                "batch": setting["batch"],
                "threads": threads,
                "precision": way.precision,
                "compile": way.compile,
                "deterministic": way.deterministic,
            },
        },
        "recipes": {"throughput": {}},
    }
    channels, side, _ = setting["shape"]
    facts = plan.DatasetFacts("0" * 64, ROWS, side, channels, 0, (127.5,) * channels, 73.9)
    return plan.experts(resolve(raw), facts)["throughput"].experts[0].job.spec


def ours(setting: dict[str, Any], stop: Stop, way: Way) -> tuple[Any, Callable[[], Any]]:
    import torch

    from pipeline.data.latents import Latents, write_shard
    from pipeline.networks.build import network_of
    from pipeline.training.run import Interrupted
    from pipeline.training.train import train

    spec = our_spec(setting, torch.get_num_threads(), way)
    shape = setting["shape"]
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "rows.arrow"
        write_shard(shard, [(make_rows(shape), None)], shape, (127.5,) * shape[0], 73.9)
        try:
            train(spec, Latents([shard], way.device), Path(folder), log=say, stop=stop)
        except Interrupted:
            pass
        else:
            raise SystemExit("the run ended before its time: fewer --seconds")
    network = network_of(spec, device=torch.device(way.device))
    x = torch.randn(setting["batch"], *shape, device=way.device)
    log_snr = torch.zeros(setting["batch"], device=way.device)
    return network, lambda: network(x, log_snr).square().mean().backward()


def say(text: str) -> None:
    print(text, file=sys.stderr)


def rows_in_batches(setting: dict[str, Any], way: Way) -> Iterator[Any]:
    """uint8 tensors [batch, *shape] without end, as peers are fed.

    On a CPU by torch's DataLoader; on a GPU, which that would keep waiting, from its memory.
    """
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    rows = torch.from_numpy(make_rows(setting["shape"])).to(way.device)
    while way.device == "cuda":
        yield from rows[torch.randperm(ROWS, device="cuda")].split(setting["batch"])
    rows = TensorDataset(rows)
    while True:
        for (batch,) in DataLoader(rows, setting["batch"], shuffle=True, drop_last=True):
            yield batch


def diffusers(
    setting: dict[str, Any], stop: Stop, way: Way, key: str = DIFFUSERS, fast: bool = False
) -> tuple[Any, Callable[[], Any]]:
    import torch
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from torch.nn import functional

    channels, side, _ = setting["shape"]
    own = setting[key]
    widths, attends = own["widths"], own.get("attention", ())
    last = len(widths) - 1
    downs = ["AttnDownBlock2D" if i in attends else "DownBlock2D" for i in range(last + 1)]
    ups = ["AttnUpBlock2D" if last - i in attends else "UpBlock2D" for i in range(last + 1)]
    model = UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=own.get("blocks", 1),
        block_out_channels=widths,
        down_block_types=downs,
        up_block_types=ups,
        norm_num_groups=own["groups"],
        add_attention=bool(attends),
        attention_head_dim=None,
    ).to(way.device)
    layout = torch.channels_last if fast else torch.contiguous_format
    model.to(memory_format=layout)
    average = EMAModel(
        model.parameters(),
        decay=0.9999,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=0.75,
        foreach=fast,
    )
    states = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=1e-4,
        betas=(0.95, 0.999),
        weight_decay=1e-6,
        eps=1e-8,
        fused=fast or None,
    )
    rates = get_scheduler(
        "cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100_000
    )
    model.train()
    torch.backends.cuda.matmul.allow_tf32 = True
    mode = "reduce-overhead" if fast else "default"
    forward = torch.compile(model, mode=mode) if way.compile else model
    for batch in rows_in_batches(setting, way):
        clean = batch.float() / 127.5 - 1
        noise = torch.randn(clean.shape, device=way.device)
        timesteps = torch.randint(
            0, states.config.num_train_timesteps, (len(clean),), device=way.device
        ).long()
        noisy = states.add_noise(clean, noise, timesteps).contiguous(memory_format=layout)
        with way.autocast():
            predicted = forward(noisy, timesteps).sample
        loss = functional.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        if not fast:
            loss.detach().item()  # shown after each step
        if stop():
            break
    return model, lambda: model(noisy, timesteps).sample.square().mean().backward()


def same_widths(setting: dict[str, Any], stop: Stop, way: Way) -> tuple[Any, Callable[[], Any]]:
    return diffusers(setting, stop, way, SAME_WIDTHS)


def made_fast(setting: dict[str, Any], stop: Stop, way: Way) -> tuple[Any, Callable[[], Any]]:
    return diffusers(setting, stop, way, fast=True)


def denoising_diffusion_pytorch(
    setting: dict[str, Any], stop: Stop, way: Way
) -> tuple[Any, Callable[[], Any]]:
    import torch
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    channels, side, _ = setting["shape"]
    model = Unet(**setting[DDP], channels=channels)
    diffusion = GaussianDiffusion(model, image_size=side)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = EMA(diffusion, beta=0.995, update_every=10)
    for batch in rows_in_batches(setting, way):
        diffusion.train()
        data = batch.float() / 255
        loss = diffusion(data)
        loss.item()  # shown after each step
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        if stop():
            break
    return model, lambda: diffusion(data).backward()


CONTENDERS: dict[str, Callable[[dict[str, Any], Stop, Way], tuple[Any, Callable[[], Any]]]] = {
    OURS: ours,
    DIFFUSERS: diffusers,
    SAME_WIDTHS: same_widths,
    MADE_FAST: made_fast,
    DDP: denoising_diffusion_pytorch,
}


def train(name: str, setting: dict[str, Any], seconds: float, way: Way) -> dict[str, Any]:
    clock = Clock(seconds, way)
    network, step = CONTENDERS[name](setting, clock, way)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # before FLOPs are counted
    if way.device == "cuda":
        import torch

        peak = torch.cuda.max_memory_reserved() / 2**20
    return {
        "step_seconds": clock.step_seconds,
        "flops": count_step_flops(step),
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "peak_mib": peak,
        "busy": statistics.mean(clock.busy) / 100 if clock.busy else None,
    }


# --- the machine ----------------------------------------------------------------------------------


def best_seconds(call: Callable[[], Any], seconds: float, way: Way) -> float:
    """Of a call, the best of at least one after the first, within about so many seconds."""
    best, end = float("inf"), time.perf_counter() + seconds
    call()
    while True:
        synchronize(way)
        start = time.perf_counter()
        call()
        synchronize(way)
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best


def ceiling(setting: dict[str, Any], seconds: float, way: Way) -> dict[str, float]:
    """GFLOP/s of the network's convolutions, each by itself, and of a matrix product."""
    import torch

    kind = torch.bfloat16 if way.device == "cuda" else torch.float32
    like = {"device": way.device, "dtype": kind}

    from pipeline.networks.build import network_of

    network = network_of(our_spec(setting, torch.get_num_threads()))
    found: list[tuple[torch.nn.Conv2d, torch.Size]] = []
    hooks = [
        module.register_forward_hook(lambda m, given, _: found.append((m, given[0].shape)))
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    batch = setting["batch"]
    network.to(way.device)
    with torch.no_grad():
        x = torch.randn(batch, *setting["shape"], device=way.device)
        network(x, torch.zeros(batch, device=way.device))
    network.to(kind)
    for hook in hooks:
        hook.remove()
    each = seconds / (2 * len(found) + 1)
    best, flops_sum, seconds_sum = 0.0, 0, 0.0
    for convolution, shape in found:
        flops, taken = 0, []
        for layout in (torch.contiguous_format, torch.channels_last):
            convolution.to(memory_format=layout)
            x = torch.randn(shape, **like).contiguous(memory_format=layout)
            x.requires_grad_(shape[1] != setting["shape"][0])  # images get no gradient
            gradient = torch.randn_like(convolution(x))

            def step(convolution=convolution, x=x, gradient=gradient):
                convolution(x).backward(gradient)
                convolution.zero_grad()
                x.grad = None

            flops = count_step_flops(step)
            taken.append(best_seconds(step, each, way))
        flops_sum += flops
        seconds_sum += min(taken)
        if convolution.kernel_size == (3, 3):
            best = max(best, flops / min(taken))
    side = 8192 if way.device == "cuda" else 2048
    a = torch.randn(side, side, **like)
    return {
        "convolution": best / 1e9,
        "all convolutions": flops_sum / seconds_sum / 1e9,
        "matmul": 2 * side**3 / best_seconds(lambda: a @ a, each, way) / 1e9,
    }


# --- rounds ---------------------------------------------------------------------------------------


def run(
    python: str, contender: str, setting: str, way: Way, options: argparse.Namespace
) -> dict[str, Any]:
    """One contender's figures, by a process of its own."""
    command = [python, __file__, "--contender", contender, "--setting", setting]
    command += [
        "--way",
        json.dumps(dataclasses.asdict(way)),
        "--seconds",
        str(options.seconds),
        "--threads",
        str(options.threads),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{contender} on {setting} failed in {python}, see above")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    name: str, setting: dict[str, Any], pythons: dict[str, str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of one setting: contenders in each way, then ceilings."""
    ways = GPU_WAYS if options.gpu else CPU_WAYS
    runs: dict[tuple[str, Way], list[dict[str, Any]]] = {
        (c, way): []
        for way in ways
        for c in CONTENDERS
        if c in pythons and c in setting and (way.deterministic or c == OURS)
        if way.compile or c != MADE_FAST
    }
    runs[CEILING, ways[0]] = []
    for _ in range(options.rounds):
        for (contender, way), found in runs.items():
            found.append(run(pythons[contender], contender, name, way, options))
            print(f"{name}: {contender}{way}: {json.dumps(found[-1])}", flush=True)
    found = runs.pop((CEILING, ways[0]))
    ceilings = {k: max(one[k] for one in found) for k in found[0]}
    batch = setting["batch"]
    rows = []
    for (contender, way), found in runs.items():
        speeds = [batch / one["step_seconds"] for one in found]
        flops = found[0]["flops"] / batch
        speed = statistics.median(speeds)
        row = {
            "setting": name,
            "contender": f"{contender}{way}",
            "parameters": found[0]["parameters"],
            "mflop_per_image": flops / 1e6,
            "images_per_second": speed,
            "images_per_second_of_rounds": speeds,
            "gflops": speed * flops / 1e9,
            "ceiling_fraction": speed * flops / 1e9 / ceilings["convolution"],
            "peak_mib": max(one["peak_mib"] for one in found),
        }
        if options.gpu:
            row["busy"] = found[0]["busy"]
        rows.append(row)
    rows += [{"setting": name, "ceiling": k, "gflops": value} for k, value in ceilings.items()]
    return rows


def headline_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    each: dict[str, Any] = {}
    for setting in SETTINGS:
        suffix = "" if setting == "images" else f"_{setting}"
        mine, *peers = [r for r in rows if r["setting"] == setting and "contender" in r]
        if peers:
            best = max(peers, key=lambda row: row["gflops"])
            found[f"speedup_vs_best_peer{suffix}"] = mine["gflops"] / best["gflops"]
            found[f"best_peer{suffix}"] = best["contender"]
            found[f"peak_mib_best_peer{suffix}"] = best["peak_mib"]
        found[f"ceiling_fraction{suffix}"] = mine["ceiling_fraction"]
        found[f"images_per_second_ours{suffix}"] = mine["images_per_second"]
        found[f"peak_mib_ours{suffix}"] = mine["peak_mib"]
        for peer in peers:
            name = peer["contender"].replace(",", "").replace(" ", "_").replace("-", "_")
            speedup = mine["images_per_second"] / peer["images_per_second"]
            each[f"speedup_vs_{name}{suffix}"] = mine["gflops"] / peer["gflops"]
            each[f"speedup_images_vs_{name}{suffix}"] = speedup
    return found | each


def gpu_headline_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """GFLOP/s of ours over the peers', each in its best way and in each way that both went."""
    found: dict[str, Any] = {}
    for setting in GPU_SETTINGS:
        name = setting.partition(",")[0]
        speeds = {
            row["contender"]: row["gflops"]
            for row in rows
            if row["setting"] == setting and "contender" in row
        }
        peers = {key: own for key, own in speeds.items() if not key.startswith(OURS)}
        mine = {key: own for key, own in speeds.items() if key.startswith(OURS)}
        if peers:
            repeatable = [own for key, own in mine.items() if "any kernels" not in key]
            found[f"speedup_vs_best_peer_{name}"] = max(repeatable) / max(peers.values())
        for key, own in peers.items():
            for peer in (DIFFUSERS, MADE_FAST):
                way = key.removeprefix(f"{peer}, ")
                if f"{OURS}, {way}" in mine:
                    said = f"{peer}, {way}".replace(", ", "_").replace(" ", "_")
                    found[f"speedup_vs_{said}_{name}"] = mine[f"{OURS}, {way}"] / own
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--diffusers-python", help="a Python with diffusers")
    parser.add_argument("--ddp-python", help="a Python with denoising-diffusion-pytorch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each contender in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gpu", action="store_true", help="on the GPU that torch finds")
    parser.add_argument("--quick", action="store_true", help="a step each, nothing written")
    parser.add_argument("--contender", choices=[*CONTENDERS, CEILING], help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    parser.add_argument("--way", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        import torch

        torch.set_num_threads(options.threads)
        setting, way = (SETTINGS | GPU_SETTINGS)[options.setting], Way(**options.way)
        if options.contender == CEILING:
            found = ceiling(setting, options.seconds, way)
        else:
            found = train(options.contender, setting, options.seconds, way)
        print(json.dumps(found))
        return
    if options.quick:
        options.rounds, options.seconds = 1, 0.0
    # The record of the command is read on other machines.
    others = (options.diffusers_python, options.ddp_python)
    sys.argv = ["OTHER/bin/python" if a in others else a for a in sys.argv]
    if options.gpu:
        import torch  # by which `machine` knows the GPU

        torch.cuda.init()
    described = machine() | {"threads": options.threads}
    pythons = dict.fromkeys((OURS, CEILING), sys.executable)
    for names, option, packages in (
        ((DIFFUSERS, SAME_WIDTHS, MADE_FAST), "diffusers_python", ["diffusers"]),
        ((DDP,), "ddp_python", ["denoising-diffusion-pytorch", "ema-pytorch"]),
    ):
        python = getattr(options, option)
        flag = "--" + option.replace("_", "-")
        if python is None:
            print(f"{names[0]} is left out: no {flag} is given")
            continue
        described[names[0]] = versions(python, [*packages, "torch"], flag)
        pythons |= dict.fromkeys(names, python)
    rows = []
    for name, setting in (GPU_SETTINGS if options.gpu else SETTINGS).items():
        found = measure(name, setting, pythons, options)
        columns = ("contender", "ceiling", "parameters", "mflop_per_image", "images_per_second")
        print_table(found, (*columns, "gflops", "ceiling_fraction", "peak_mib", "busy"))
        rows += found
    if not options.quick:
        if options.gpu:
            write_results("throughput-gpu", rows, gpu_headline_of(rows), described)
        else:
            write_results("throughput", rows, headline_of(rows), described)


if __name__ == "__main__":
    main()
