"""What a GPU needs: copies nothing waits for, arithmetic that repeats, its errors in words.

Nothing here imports torch before it is used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device, by a copy that the host does not wait for.

    One that is on the device is given back.
    """
    if values.device.type == device.type:
        return values
    if device.type == "meta":  # where nothing is copied
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def set_arithmetic(device: torch.device, tf32: bool, deterministic: bool) -> None:
    """How a GPU computes, in this process from now on; a CPU has no such choice.

    tf32: products of float32 with 10 bits of mantissa. deterministic: kernels that give the same
    bits every time, where torch's defaults take the faster of both.
    """
    import torch

    if device.type == "cpu":
        return
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first use
    torch.use_deterministic_algorithms(deterministic)
    # Else torch fills all memory that it takes, which is a tenth of a step. Nothing here reads
    # what was not written: the CPU's numbers are the same ones in every run.
    torch.utils.deterministic.fill_uninitialized_memory = False


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Makes running out of memory, or a kernel that cannot repeat its bits, a UserError.

    what: the settings that decide on the memory, with their values.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as e:
        raise UserError(
            f"out of GPU memory with {what}; double training.shards (the same batch in smaller "
            "parts), or lower the width"
        ) from e
    except RuntimeError as e:
        if "deterministic" not in str(e):
            raise
        text = str(e).partition(".")[0]
        raise UserError(f"{text}; set training.deterministic: false to do without") from e


def named(device: str) -> str:
    """What a device is called, for a log; of a CPU that a GPU stands beside, why it is not used."""
    import torch

    if device == "cpu":
        why = unusable()
        return f"cpu; this machine has a GPU, but {why}" if why else "cpu"
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB"


def unusable() -> str:
    """Why torch cannot use the GPU of this machine; empty if it can, or if there is none."""
    import torch

    if torch.cuda.is_available() or not os.path.exists("/dev/nvidiactl"):
        return ""
    built = torch.version.cuda
    if built is None:
        return "torch is a build without CUDA; install one for the driver that `nvidia-smi` shows"
    return f"torch (CUDA {built}) cannot use it; `nvidia-smi` shows for which CUDA the driver is"
