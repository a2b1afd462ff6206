"""A sampler and a schedule are added as docs/design.md says, on a copy, and run end to end."""

from __future__ import annotations

import json

import pytest

from tests.test_digests import TABLE
from tests.workflow import Checkout

PARAMS = """\
seed: 0
data: {source: digits, limit: 200}
latent: {encoder: pixels}
features: {extractor: classifier, images: 256, dimension: 8, channels: 8}
evaluate: {samples: 16, allow_few: true}
defaults:
  network: {kind: unet, channels: 8, multipliers: [1], blocks: 1}
  training: {images: 64, batch: 16}
recipes:
  known:
    schedule: {kind: log-snr, states: 4, log_snr_max: 5.0, log_snr_min: -5.0}
  added:
    schedule: {kind: squeezed, states: 4}
    sampling: {kind: euler}
"""


@pytest.mark.slow
def test_a_sampler_and_a_schedule_are_two_files_each(tmp_path):
    """The added ones make what is known by another name, so the expert is the very same."""
    checkout = Checkout.create(tmp_path / "tspace", PARAMS)
    for name in ("add a sampler", "add a schedule"):
        edit, _ = TABLE[name]
        edit(checkout.root)
    checkout.repro()
    known, added = (
        json.loads((checkout.root / "results" / "metrics" / f"{name}.json").read_text())
        for name in ("known", "added")
    )
    assert known["fid"] == added["fid"]
    experts = checkout.root / "artefacts" / "experts" / "manifest.json"
    assert len(json.loads(experts.read_text())["entries"]) == 1
