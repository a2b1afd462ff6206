"""A network of the user's own: any torch module in a file of the checkout.

The file is executed. Its class is made as `Class(**options)` and asked as `forward(x, level,
labels)`: x float [N, C, H, W], level float [N] in the words of `told`, labels int64 [N] (the number
of classes itself for "no class") or None without classes; it answers in the shape of x. Everything
else here sees it as it sees the other networks, so what would break a promise made for all of them
is refused: state that is not a parameter, and answers that are not a function of what is asked.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, one_line
from pipeline.networks.embedding import told_as

if TYPE_CHECKING:
    from pipeline.specs import NetworkSpec

PREFIX = "module."  # of its parameters' names


class Own(nn.Module):
    """A module that was made elsewhere behind the interface of the networks here.

    name: the key of params.yaml and its value, for messages. on_cpu: makes the same on the CPU, for
    one that was laid out on `meta`.
    """

    def __init__(self, module: nn.Module, spec: NetworkSpec, name: str, on_cpu: Callable[[], Own]):
        super().__init__()
        self.module, self.name, self.told = module, name, spec.network.told
        self.channels, self.side, self.classes = spec.channels, spec.resolution, spec.classes
        self._on_cpu = on_cpu

    def forward(self, x: Tensor, log_snr: Tensor, labels: Tensor | None = None) -> Tensor:
        """As for `unet.UNet`. UserError for an answer of another shape."""
        n = x.shape[0]  # len(x) would be a constant to whoever traces it
        exact = log_snr.to(torch.promote_types(log_snr.dtype, torch.float32))
        level = told_as(self.told, exact).to(x.device).expand(n)
        if self.classes:
            told = self.classes if labels is None else labels.to(x.device)
            labels = torch.as_tensor(told, device=x.device).expand(n)
        answer = self.ask(x, level, labels)
        if not isinstance(answer, Tensor) or answer.shape != x.shape:
            got = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise UserError(
                f"{self.name}: answers {got} to images {list(x.shape)}; its "
                "forward must return a tensor of their shape"
            )
        return answer

    def ask(self, x: Tensor, level: Tensor, labels: Tensor | None) -> Any:
        """What the module answers to images [N, C, H, W], levels [N] and labels [N] or None."""
        return self.module(x, level, labels)

    def published(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The module's own names under those that they have here."""
        return {n if n.startswith(PREFIX) else PREFIX + n: value for n, value in weights.items()}

    @torch.no_grad()
    def check(self) -> None:
        """Ask twice, in a place of its own. UserError for a failure or two answers."""
        x, level = self._question(2, next(self.parameters()).device)
        was = self.training
        self.eval()
        try:
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                answers = [self._answer(x, level) for _ in range(2)]
        finally:
            self.train(was)
        if not torch.equal(*answers):
            raise UserError(
                f"{self.name}: answers one question in two ways after eval(); "
                "nothing there may draw numbers or keep any (dropout may, while training)"
            )

    def flops(self, height: int, width: int, log_snr: float | None = None) -> float:
        """Forward FLOPs for one image, as torch counts its matrix products and convolutions."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        def counted(network: Own) -> float:
            device = next(network.parameters()).device
            x, level = self._question(1, device, height, width)
            # Attention is counted where it is made of products alone.
            counter = FlopCounterMode(display=False)
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
                network.eval()._answer(x, level)
            return float(counter.get_total_flops())

        try:
            return counted(self)
        except UserError:
            if not next(self.parameters()).is_meta:
                raise
            return counted(self._on_cpu())  # what reads values cannot be counted without any

    def _question(
        self, n: int, device: torch.device, height: int = 0, width: int = 0
    ) -> tuple[Tensor, Tensor]:
        size = (n, self.channels, height or self.side, width or self.side)
        x = torch.linspace(-1, 1, size[1] * size[2] * size[3], device=device).reshape(size[1:])
        return x.expand(size).contiguous(), torch.zeros(1, device=device)

    def _answer(self, x: Tensor, level: Tensor) -> Tensor:
        try:
            return self(x, level)
        except UserError:
            raise
        except Exception as e:
            raise UserError(
                f"{self.name}: forward(x {list(x.shape)}, level [{len(x)}], "
                f"labels) fails: {type(e).__name__}: {one_line(e)}"
            ) from e


def module(spec: NetworkSpec, seed: int, device: torch.device | str, root: Path) -> Own:
    """The network of a block `network` of kind `module`; its file is below `root`.

    What its class draws comes from `seed`, on the CPU. UserError for a file that is missing or not
    the one of the spec, and for a class that cannot be made or is none of the kind.
    """
    settings = spec.network
    if spec.source is None:
        raise UserError(f"network.module: {settings.module}: was not looked at by a plan")
    path, _, class_name = settings.module.rpartition(":")
    found = class_in(root / path, class_name, "network.module", spec.source)
    where = f"network.module: {settings.module}"
    return own(Own, lambda: found(**settings.options), spec, seed, device, where)


def own(
    wrapper: type[Own],
    build: Callable[[], nn.Module],
    spec: NetworkSpec,
    seed: int,
    device: torch.device | str,
    name: str,
) -> Own:
    """What `build` makes, drawn from `seed` on the CPU, behind the interface of the networks here.

    name: the key of params.yaml and its value. UserError for what cannot be made or kept.
    """

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return build()

    try:
        try:
            with torch.device(device if torch.device(device).type == "meta" else "cpu"):
                found = make()
        except Exception:
            if torch.device(device).type != "meta":
                raise
            found = make()  # it reads values, and has none on `meta`
    except Exception as e:
        raise UserError(
            f"{name}: cannot be made of network.options: {type(e).__name__}: {one_line(e)}"
        ) from e
    _check_state(found, name)
    if torch.device(device).type != "meta":
        found = found.to(device)
    return wrapper(found, spec, name, lambda: own(wrapper, build, spec, seed, "cpu", name))


def class_in(path: Path, name: str, key: str, sha256: str | None = None) -> type[Any]:
    """A class of a Python file, which is executed, once for each content.

    key: of params.yaml, for messages. UserError if the file cannot be read, is not that of the
    checksum, fails, or has no such class.
    """
    try:
        text = path.read_bytes()
    except OSError as e:
        raise UserError(f"{key}: {path}: cannot be read ({e.strerror})") from e
    found = hashlib.sha256(text).hexdigest()
    if sha256 not in (None, found):
        raise UserError(f"{key}: {path}: changed since this was planned; run `dvc repro` again")
    try:
        return getattr(_executed(path, found), name)
    except Exception as e:
        raise UserError(f"{key}: {path}:{name}: {type(e).__name__}: {one_line(e)}") from e


@functools.cache
def _executed(path: Path, sha256: str) -> Any:
    name = f"tspace_{path.stem}_{sha256[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    namespace = importlib.util.module_from_spec(spec)
    sys.modules[name] = namespace  # where dataclasses and their like look for their module
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        spec.loader.exec_module(namespace)
    return namespace


def _check_state(found: Any, where: str) -> None:
    """UserError for what cannot be averaged, merged and kept as the parameters of a network are."""
    if not isinstance(found, nn.Module):
        raise UserError(f"{where}: is no torch.nn.Module")
    parameters = dict(found.named_parameters())
    if not parameters:
        raise UserError(f"{where}: has no parameters; there is nothing to train")
    buffers = sorted({key for key, _ in found.named_buffers()} & found.state_dict().keys())
    if buffers:
        raise UserError(
            f"{where}: has buffers ({', '.join(buffers[:3])}), and only parameters are averaged "
            "and kept: use norms without running statistics, and register constants with "
            "persistent=False"
        )
    shared = sorted(found.state_dict().keys() - parameters.keys())
    if shared:
        raise UserError(f"{where}: {shared[0]} is the weight of another name, too; share none")
    odd = sorted(key for key, p in parameters.items() if p.dtype != torch.float32)
    if odd:
        raise UserError(f"{where}: {odd[0]} is {parameters[odd[0]].dtype}; weights are float32")
