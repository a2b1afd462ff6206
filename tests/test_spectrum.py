"""Spectrum and means of latents, against numpy on all rows at once."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.latents import Latents, write_shard
from pipeline.levels import spectrum
from pipeline.rows import spread


@pytest.fixture
def latents(tmp_path):
    random = np.random.Generator(np.random.PCG64(0))
    mixed = random.normal(size=(500, 12)) @ random.normal(size=(12, 12)) + 3
    rows = mixed.astype(np.float32).reshape(500, 3, 2, 2)
    labels = np.arange(500) % 3  # class 3 has none
    write_shard(tmp_path / "a.arrow", [(rows, labels)], (3, 2, 2), [1.0, 2.0, 3.0], 2.0)
    return Latents([tmp_path / "a.arrow"])


def scaled(latents):
    return latents.gather(np.arange(len(latents))).flatten(1).double().numpy()


def test_the_spectrum_is_that_of_the_covariance(latents):
    expected = np.linalg.eigvalsh(np.cov(scaled(latents).T, bias=True))[::-1]
    np.testing.assert_allclose(spectrum.spectrum(latents), expected, rtol=1e-4, atol=1e-6)


def test_long_rows_keep_the_largest_eigenvalues_and_the_total(latents, monkeypatch):
    expected = np.linalg.eigvalsh(np.cov(scaled(latents).T, bias=True))[::-1]
    monkeypatch.setattr(spectrum, "LARGEST", 10)  # 12 values a row: 10 rows' inner products
    found = spectrum.spectrum(latents)
    assert len(found) == 12 and (np.diff(found) <= 1e-6).all()
    chosen = scaled(latents)[spread(10, 500, latents.labels)]
    assert found.sum() == pytest.approx(chosen.var(0).sum(), rel=1e-4)
    assert found[0] == pytest.approx(expected[0], rel=0.6)


def test_means_by_class_and_a_class_without_rows_has_the_mean_of_all(latents):
    found = spectrum.means(latents, 4)
    rows = scaled(latents).reshape(500, 3, 2, 2)
    np.testing.assert_allclose(found[0], rows.mean(0), atol=1e-5)
    np.testing.assert_allclose(found[2], rows[1::3].mean(0), atol=1e-5)
    np.testing.assert_array_equal(found[4], found[0])
