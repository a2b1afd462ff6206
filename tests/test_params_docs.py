"""docs/params.md: what the blocks of params.yaml say of themselves, complete and up to date."""

from __future__ import annotations

import importlib.util
import re
import typing
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from pipeline.block import Block
from pipeline.params.load import SECTIONS
from pipeline.params.mistakes import forms_of
from pipeline.params.recipe import Params, Recipe

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def docs():
    spec = importlib.util.spec_from_file_location("docs_params", ROOT / "docs" / "params.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_blocks_say(docs):
    text = (ROOT / "docs" / "params.md").read_text()
    assert text == docs.document(), "docs/params.md is stale; run `python docs/params.py`"


def test_every_key_and_form_is_explained(docs):
    """The page names each, in backquotes, in the section of its block."""
    parts = re.split(r"^## (\w+)$", docs.document(), flags=re.MULTILINE)
    words = {
        section: set(re.findall(r"[\w-]+", " ".join(re.findall("`([^`]+)`", body))))
        for section, body in zip(["top", *parts[1::2]], parts[::2], strict=True)
    }
    absent = [f"{key} (a section)" for key in SECTIONS if key not in words["top"]]
    for section, block in _blocks():
        for name, field in block.model_fields.items():
            wanted = {name} | _literals(field.annotation)
            absent += [f"{section}: {word}" for word in wanted - words.get(section, set())]
    assert not absent


def test_a_key_without_a_docstring_is_refused(docs):
    class Silent(Block):
        """A block."""

        key: int = 0

    with pytest.raises(ValueError, match=r"Silent\.key has no docstring"):
        docs.keys([Silent])


def test_a_key_of_several_forms_is_one_row_with_what_differs(docs):
    forms = docs.held(Recipe, "schedule")
    _, *rows = docs.rows(forms, docs.keys(forms))
    assert [row[:4] for row in rows if row[0] in ("`states`", "`zero_terminal`", "`log_snr`")] == [
        [
            "`states`",
            "all but `explicit`",
            "16; `linear`, `cosine`: 1000; `edm`, `flow`: `continuous`",
            "1 to 1,000; `log-snr`, `edm`, `flow`: 1 to 1,000, or `continuous`",
        ],
        ["`zero_terminal`", "all but `edm`, `flow`", "false", "true, false"],
        ["`log_snr`", "`explicit`", "required", "list of 1 to 1,000, each -60 to 60"],
    ]


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (Annotated[int, Field(gt=0, le=64)], "1 to 64"),
        (Annotated[int, Field(ge=0, lt=2**63)] | None, "0 to 2^63 - 1, or null"),
        (Annotated[float, Field(gt=0, le=1e6)], "above 0 to 10^6"),
        (Annotated[float, Field(ge=1e-9, lt=0.28)], "10^-9 to below 0.28"),
        (Literal["a", "b"] | Annotated[int, Field(ge=1, le=2**20)], "`a`, `b`, or 1 to 2^20"),
        (Annotated[list[bool], Field(min_length=2, max_length=2)], "list of 2, each true, false"),
        (Annotated[list[str], Field(max_length=1000)], "list of up to 1,000, each text"),
    ],
)
def test_values_are_those_of_the_type(docs, annotation, said):
    class Made(Block):
        key: annotation

    field = Made.model_fields["key"]
    assert docs.values(field.annotation, field.metadata) == said


def _blocks():
    """Every block of params.yaml, with the section of the page that it belongs to."""
    yield "recipes", Recipe
    for model in (Params, Recipe):
        for key, field in model.model_fields.items():
            for block in forms_of(field.annotation):
                yield key, block
                for inner, own in block.model_fields.items():
                    if inner not in Recipe.model_fields:  # such a one has its own section
                        yield from ((key, nested) for nested in forms_of(own.annotation))


def _literals(annotation) -> set[str]:
    if typing.get_origin(annotation) is typing.Literal:
        return {value for value in typing.get_args(annotation) if isinstance(value, str)}
    return {w for part in typing.get_args(annotation) for w in _literals(part)}
