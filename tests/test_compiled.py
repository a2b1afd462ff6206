import shutil

import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.compiled import compiled, verdict

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler"
)


class Network(torch.nn.Module):
    """As small as one can be: a U-Net takes a minute and a half to compile."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.output = torch.nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x, log_snr, labels):
        assert labels is None
        return self.output(torch.nn.functional.silu(self.mix(x)) * log_snr[:, None, None, None])


@needs_compiler
def test_a_compiled_network_gives_the_same_answers_and_gradients():
    net, said = Network(), []
    x, log_snr = torch.randn(4, 1, 8, 8), torch.linspace(-4, 4, 4)
    forward = compiled(net, (x, log_snr, None), 1_000, log=said.append)
    assert all(p.grad is None for p in net.parameters())
    assert len(said) == 1 and said[0].startswith("compiled in ")

    def passes(call):
        net.zero_grad()
        output = call(x, log_snr, None)
        output.square().mean().backward()
        return [output.detach(), *(p.grad.clone() for p in net.parameters())]

    for got, wanted in zip(passes(forward), passes(net), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    # A batch of another size is not compiled for: the very same bits.
    assert torch.equal(forward(x[:3], log_snr[:3], None), net(x[:3], log_snr[:3], None))


def test_what_cannot_be_compiled_says_what_to_do(monkeypatch):
    def fails(network, **_):
        def forward(*_):
            raise RuntimeError("No working C++ compiler found")

        return forward

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler .*training.compile: false"):
        compiled(Network(), (torch.randn(2, 1, 8, 8), torch.zeros(2), None), 10)


@pytest.mark.parametrize(
    ("plain", "quick", "images", "wanted"),
    [
        (
            1.0,
            0.5,
            2_000,
            "has paid after 1,280 images; this run of 2,000 pays",
        ),
        (1.0, 0.5, 1_000, "this run of 1,000 is too few for it: training.compile: false is faster"),
        (1.0, 1.0, 10**9, "it never pays here, training.compile: false is faster"),
    ],
)
def test_whether_compiling_pays(plain, quick, images, wanted):
    assert verdict(10.0, plain, quick, 64, images).endswith(wanted)
