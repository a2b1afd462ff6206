"""Which steps are recorded as a CUDA graph; that they have the same bits is for tests/gpu."""

import pytest
import torch

from pipeline.training.recorded import can_be_recorded
from tests.cases import CASES
from tests.specs import expert_spec

GPU = torch.device("cuda")
# They look at values, or take some from the host.
LAUNCHED = {
    "two decoders",
    "decoders in shards",
    "transformer with two decoders",
    "its decoders in shards",
    "transformer with all options",  # told a timestep, by a table
    "contrastive",
    "dispersive",
    "aligned",
    "aligned transformer",
}


@pytest.mark.parametrize("case", CASES)
def test_steps_that_are_always_the_same_are_recorded(case):
    spec = expert_spec(**CASES[case])
    assert can_be_recorded(spec, GPU) == (case not in LAUNCHED)
    assert not can_be_recorded(spec, torch.device("cpu"))


def test_a_batch_that_shards_do_not_divide_is_launched():
    assert not can_be_recorded(expert_spec(training={"batch": 10, "shards": 4}), GPU)
