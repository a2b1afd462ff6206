"""Several small experts in one process: one after the other, or stacked into one computation?

`python benchmarks/stacking.py` takes k single-state experts of one architecture and times forward,
backward and Adam for a batch of each: one network after the other on one thread (what
`training.experts_per_job` does, bit-identical to separate jobs), and as one stacked network by
`torch.func.vmap`, which turns convolutions into grouped ones and whose bits are not those of
separate training. `gain` is the first's time over the second's. On two threads, too: one stacked
step against two processes' worth of sequential ones.
"""

import copy
from typing import Any

import torch
from common import machine, print_table, time_alternating, write_results
from torch.nn import functional

from pipeline.networks.build import network_of
from pipeline.networks.params import UNet
from pipeline.specs import NetworkSpec
from pipeline.training.optim import Adam

SHAPE, BATCH = (2, 8, 8), 32


def contenders(count: int, channels: int) -> dict[str, Any]:
    """A step of `count` experts in either way, as calls without arguments."""
    spec = NetworkSpec(
        network=UNet(channels=channels),
        conditioning="none",
        channels=SHAPE[0],
        resolution=SHAPE[1],
        classes=0,
    )
    networks = [network_of(spec, seed) for seed in range(count)]
    x = torch.randn(count, BATCH, *SHAPE)
    optimizers = [Adam(network.parameters(), 1e-3, (0.9, 0.999), 0.0) for network in networks]
    stacked, _ = torch.func.stack_module_state(networks)
    base = copy.deepcopy(networks[0]).to("meta")
    whole = Adam(list(stacked.values()), 1e-3, (0.9, 0.999), 0.0)

    def one_after_the_other() -> None:
        for network, rows, optimizer in zip(networks, x, optimizers, strict=True):
            functional.mse_loss(network(rows, None), rows).backward()
            optimizer.step()
            optimizer.zero_grad()

    def loss(parameters: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(torch.func.functional_call(base, parameters, (rows, None)), rows)

    gradient = torch.func.vmap(torch.func.grad(loss))

    def together() -> None:
        for name, found in gradient(stacked, x).items():
            stacked[name].grad = found
        whole.step()

    return {"one after the other": one_after_the_other, "stacked": together}


def main() -> None:
    described = machine()
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for channels in (4, 16):
            for count in (4, 16):
                times = time_alternating(contenders(count, channels), repeats=7)
                row = {"threads": threads, "channels": channels, "experts": count, "batch": BATCH}
                row |= {f"ms {name}": 1e3 * t["best"] for name, t in times.items()}
                row["gain"] = row["ms one after the other"] / row["ms stacked"]
                rows.append(row)
    print_table(rows, list(rows[0]))
    headline = {
        f"stacked_gain_{r['channels']}_channels_{r['experts']}_experts": r["gain"]
        for r in rows
        if r["threads"] == 1
    }
    write_results("stacking", rows, headline, described)


if __name__ == "__main__":
    main()
