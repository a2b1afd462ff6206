"""Two thousand bad params: each is planned or refused in a `UserError`, soon."""

from __future__ import annotations

import copy
import dataclasses
import io
import random
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import plan
from pipeline.errors import UserError
from pipeline.params.feasibility import check_against
from pipeline.params.load import load, resolve

ROOT = Path(__file__).parent.parent
PARSED, WRITTEN = 1_800, 200
SECONDS = 10  # that one may take
# rows, resolution, channels, classes of datasets.
DATASETS = [*[(1797, 8, 1, 10), (50_000, 32, 3, 10)] * 4, (2, 1, 1, 0), (70, 30, 3, 1)]


def _deep(depth: int) -> list:
    nested: list = []
    for _ in range(depth):
        nested = [nested]
    return nested


VALUES = [
    *(
        None,
        True,
        False,
        "",
        "x" * 100_000,
        "\0",
        "é\u202e\U0001f9ea",
        "yes",
        "1e5",
        " ",
        "a.b",
        "/",
    ),
    *(0, 1, -1, 2, 3, 7, 8, 64, 1000, 1001, 10**6, 2**31, 2**53, 2**63, 10**30, 10**400, -(2**70)),
    *(0.0, -0.0, 0.5, 1.0, 1e-300, 5e-324, 1.7e308, -1.7e308, float("nan"), float("inf")),
    *([], {}, [[]], [1, 1], [0.5, 0.5], [1] * 50_000, _deep(200), {"kind": "x"}, {"kind": ["edm"]}),
    *({"kind": None}, {1: 2}, {(1, 2): 3}, {"": ""}, {None: 1}, {1, 2}, b"x", object()),
    *("continuous", "edm", "linear", "uniform", "assignment", "unet", "per-state", "ddpm"),
]
CLUSTERED = {
    "partition": {"kind": "data", "clusters": 4, "intervals": 2, "router": {"images": 1000}},
    "schedule": {"kind": "log-snr", "states": 16},
    "pairing": {"method": "assignment"},
    "sampling": {"top": 2},
}
KEYS = [
    "lr",
    "kind",
    "",
    "\0",
    "é",
    "x" * 5000,
    3,
    None,
    1.5,
    True,
    (1, 2),
    "recipes",
    "method",
    "steps",
]


def _places(node, path=()):
    """Every place of a document, as a container and a key of it."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))


def _spoilt(document, draw: random.Random):
    """A document with one to four things in it changed, added, removed, moved or made extreme."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        places = list(_places(document))
        node, key = draw.choice(places)
        other, from_key = draw.choice(places)
        change = draw.randrange(6)
        if change == 0:
            node[key] = copy.deepcopy(other[from_key])
        elif change == 1 and isinstance(node, dict):
            node[draw.choice(KEYS)] = copy.deepcopy(draw.choice(VALUES))
        elif change == 2:
            del node[key]
        elif change == 3 and isinstance(node[key], int | float):
            node[key] = node[key] * draw.choice((-1, 0, 0.1, 3, 10, 1000, 10**9, 10**40))
        else:
            node[key] = copy.deepcopy(draw.choice(VALUES))
    return document


def _planned(params, dataset) -> None:
    """As far as planning goes without measurements."""
    rows, resolution, channels, classes = dataset
    facts = plan.DatasetFacts(
        digest="d",
        rows=rows - params.data.holdout,
        held_out=params.data.holdout,
        resolution=resolution,
        channels=channels,
        classes=classes,
        mean=(100.0,) * channels,
        std=(50.0,) * channels,
    )
    check_against(params, *dataset)
    plan.check(params, facts)
    jobs = plan.analyses(params, facts)
    # As if the clusters were known, and all alike.
    known = [job for job in jobs if job.kind == "clusters"]
    seen = plan.latent_facts(params, facts).rows
    sizes = {job.name: {"rows": [seen // job.spec.clusters] * job.spec.clusters} for job in known}
    plan.experts(params, dataclasses.replace(facts, analyses=sizes))


def _sources() -> list:
    """The project's own params, and each preset cut to few recipes, which takes less to plan."""
    paths = [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))]
    own, *presets = [YAML(typ="safe", pure=True).load(path) for path in paths]
    for preset in presets:
        recipes = preset["recipes"].items()
        alone = [(k, v) for k, v in recipes if "parent" not in (v or {}).get("training", {})]
        preset["recipes"] = dict(alone[:2] + alone[-2:])
        preset["evaluate"].pop("consistency", None)
    clustered = copy.deepcopy(own)
    clustered["recipes"] = {"data": CLUSTERED}
    return [own] * 4 + presets + [clustered] * 2


def test_bad_params_are_refused_in_words_and_soon(tmp_path):
    draw, sources = random.Random(20), _sources()
    refused, slowest = 0, 0.0
    for number in range(PARSED + WRITTEN):
        document = _spoilt(copy.deepcopy(draw.choice(sources)), draw)
        began = time.process_time()
        try:
            if number < PARSED:
                params = resolve(document)
            else:
                path = tmp_path / "params.yaml"
                path.write_bytes(_text(document, draw))
                params = load(path)
            _planned(params, draw.choice(DATASETS))
        except UserError as e:
            refused += 1
            assert len(str(e)) < 20_000
        except Exception as e:
            pytest.fail(f"number {number}: {type(e).__name__}: {e}")
        slowest = max(slowest, time.process_time() - began)
    assert slowest < SECONDS
    assert refused > 1_000  # the others are possible, or wait for measurements


def _text(document, draw: random.Random) -> bytes:
    """A document as YAML, some of it damaged; a good one where a value cannot be written."""
    stream = io.StringIO()
    try:
        YAML(typ="safe", pure=True).dump(document, stream)
    except Exception:
        stream = io.StringIO((ROOT / "params.yaml").read_text())
    text = bytearray(stream.getvalue().encode("utf-8", "replace"))
    for _ in range(draw.randrange(3)):
        at = draw.randrange(len(text))
        text[at : at + draw.randrange(3)] = draw.choice(
            (
                b"",
                b"[",
                b"}",
                b"\t",
                b": ",
                b"&a ",
                b"*a",
                b"!!int ",
                b"'",
                b"\xff",
                b"\0",
                b"- ",
                b"<<: ",
            )
        )
    return bytes(text)
