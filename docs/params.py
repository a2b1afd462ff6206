"""Writes docs/params.md: `python docs/params.py`.

All but the introduction comes from the blocks of params.yaml: types, ranges and defaults from their
fields, meanings from the docstrings of blocks and fields (a field's is the string literal below it,
as in PEP 258). The first paragraph of a docstring stands in a table, the others below it. A key of
several forms of a block is explained at the first of them, and again where it means something else.
"""

from __future__ import annotations

import ast
import functools
import itertools
import math
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.block import MOST_IMAGES, MOST_LOG_SNR, MOST_RUNS, MOST_WIDTH, TAGS, Block  # noqa: E402
from pipeline.params.checks import MOST_EXPERTS  # noqa: E402
from pipeline.params.document import MOST_BYTES, MOST_VALUES  # noqa: E402
from pipeline.params.load import SECTIONS  # noqa: E402
from pipeline.params.mistakes import forms_of  # noqa: E402
from pipeline.params.recipe import Params, Recipe  # noqa: E402

PAGE = ROOT / "docs" / "params.md"
Forms = Sequence[type[Block]]


def document() -> str:
    """The text of docs/params.md. ValueError for a block or key without a docstring."""
    parts = [introduction()]
    # A block that several forms hold, by a key of all, has one place.
    first = {place: at for at, place in reversed(places().items())}
    for place, (owner, key) in reversed(first.items()):
        parts += [f"{'###' if '.' in place else '##'} {place}", *section(owner, key)]
    return "\n\n".join(parts) + "\n"


def introduction() -> str:
    return f"""\
<!-- Written by `python docs/params.py` from the docstrings and fields of pipeline/*/params.py. -->

# params.yaml

Seven sections must be there, `{{}}` at least: {", ".join(f"`{name}`" for name in SECTIONS)}.
Each recipe is merged over `defaults` key by key; a block of another form (another `kind`, `method`,
...) replaces the default block whole. YAML's anchors and aliases work. Mistakes are told all at
once, each with the nearest valid name, and keys by the names that other projects give them (`lr`,
`batch_size`, `cfg_scale` ...) with the one that was meant. What a dataset cannot give (more
components than pixels, more neighbours than images) is refused by `prepare` and `tspace plan`, and
not by a job hours later.

Whatever costs time or memory has a bound far above what anybody needed, told by the refusal:
{number(MOST_IMAGES)} images, {number(MOST_WIDTH)} channels at a level, {number(MOST_RUNS)} recipes
(each seed counted), {number(MOST_EXPERTS)} experts. Log-SNRs are within {number(-MOST_LOG_SNR)} and
{number(MOST_LOG_SNR)}: beyond about 32 the noise or the signal is lost in float32's rounding, and
beyond 88 SNRs themselves overflow. A file has {MOST_BYTES // 1024} KiB at most, and
{number(MOST_VALUES)} values with its aliases written out.

Everything that counts training counts images, and every batch is the total batch. A state is a
noise level, named by its log-SNR, the natural logarithm of alpha^2 / sigma^2; states are listed
from the cleanest to the noisiest.

Ready-made settings: `tspace preset` lists them, `tspace preset cifar10` writes one to
`params.yaml`. Before paying for a large one, rehearse it:

```
tspace preset cifar10 --scale 1e-5 --width 0.1    # the same recipes in minutes; scores mean nothing
```

`--scale` multiplies every count of images (`images`, `milestones`, `warmup`, `ema_halflife`,
`holdout`, ...), `samples` and sampling `steps`, each down to a floor, and lowers batches so that a
run still has steps; `--width` multiplies the networks' widths and blocks. What the preset downloads
(Inception, a published autoencoder) it still downloads, and it still reads the whole dataset:
`data.limit` cuts that.

`tspace plan --gpu H100` says, before anything is downloaded, what the recipes would take on a GPU:

```
tspace preset imagenet256-latent
tspace plan --gpu H100 --price 2.5 --rows 1281167 --classes 1000
```

FLOPs are counted; hours follow from an assumed fifth of the GPU's published dense peak in the
precision of each job (`--utilization` says another share; samples are drawn in float32), dollars
from `--price` an hour. Memory is that of the largest training step: weights, gradients, moments,
averages, and what the forward pass of a shard keeps for the backward one, which is counted by
running it on tensors without values. On CPUs that count is what a real pass keeps; for `bfloat16`
it follows the rule of CUDA's autocast, that norms are float32. [On an
H200](benchmarks.md#speed-on-a-gpu) torch reserved a fifth more, and a compiled 36M U-Net reached
0.19 of the peak; what is narrower, or not compiled, reaches less.
`--rows` and `--classes` say of the images what params.yaml leaves open, while they are not there.
Recipes that measure something on the data are counted with as many even states and intervals.
[watching.md](watching.md#what-it-will-take) says how to learn what all stages take on this machine.

**Reconstructions.** The constants of `clts`, `mdlrc` and `easy-to-hard` are not public in full, nor
are the thresholds of `optimal-denoiser` and the schedules of the T-space paper: what stands here is
built from abstracts, reviews and code that others published, and every constant is a key. The
terms of `training.auxiliary` and `network.routing` are written from their papers' formulas, and
not compared with released code. The curriculum `adaptive` is its paper's formulas with the
constants of its code; its policy's network is this project's own. The
losses, states, densities, pairings and samplers of the other methods are their paper's or its
code's, but for what is said at their keys: rows choose noise without their mean
(`pairing.center`), assignment keeps to classes (`pairing.within_class`), and pixels have another
scale (`schedule.shift`). Networks, augmentation and the order of the data are this project's own.
""".rstrip()


@functools.cache
def places() -> dict[tuple[type[Block], str], str]:
    """The keys that have a section of their own, in its order: (block, key) -> heading."""
    top = [(Params, key) for key in Params.model_fields]
    top += [
        (Recipe, key) for key, field in Recipe.model_fields.items() if forms_of(field.annotation)
    ]
    known = {form for owner, key in top for form in held(owner, key)}
    found = {}
    for owner, key in top:
        found[owner, key] = key
        for form in held(owner, key):
            for below in form.model_fields:
                if form is not Recipe and not known.issuperset(held(form, below)):
                    found[form, below] = f"{key}.{below}"
    return found


def held(owner: type[Block], key: str) -> Forms:
    """The forms of block that a key holds."""
    annotation = owner.model_fields[key].annotation
    return [Recipe] if annotation == dict[str, Recipe] else forms_of(annotation)


def section(owner: type[Block], key: str) -> Iterator[str]:
    """Tables and paragraphs on a key of `owner`."""
    forms = held(owner, key)
    if not forms:
        yield table(rows([owner], [(key, meaning([owner], owner, key))]))
        return
    if len(forms) == 1:
        yield from paragraphs(forms[0].__doc__)
    else:
        yield paragraphs(meaning([owner], owner, key))[0]
        tag, default = tag_of(forms), owner.model_fields[key].default
        chosen, what = getattr(default, tag, ""), {form: paragraphs(form.__doc__) for form in forms}
        lines = [[tags([form], tag, chosen), what[form][0]] for form in forms]
        yield table([[f"`{tag}`", "what it is"], *lines])
        yield from (f"{tags([form], tag)}: {more}" for form in forms for more in what[form][1:])
    if told := keys(forms):
        yield table(rows(forms, told))
        yield from (f"`{name}`: {more}" for name, text in told for more in paragraphs(text)[1:])


def keys(forms: Forms) -> list[tuple[str, str]]:
    """(key, meaning) of all keys but the one that chooses the form, each once."""
    tag = tag_of(forms)
    found = [(key, meaning(forms, f, key)) for f in forms for key in f.model_fields if key != tag]
    return list(dict.fromkeys(found))


def rows(forms: Forms, told: list[tuple[str, str]]) -> list[list[str]]:
    """A heading, and a row for each key."""
    lines = []
    for key, text in told:
        having = [f for f in forms if key in f.model_fields and meaning(forms, f, key) == text]
        default, allowed = (
            differing({form: say(form, key) for form in having}, tag_of(forms))
            for say in (default_of, values_of)
        )
        lines.append([f"`{key}`", those(having, forms), default, allowed, paragraphs(text)[0]])
    head = ["key", "of", "default", "values", "meaning"]
    apart = 2 if len(forms) > 1 else 1  # one form has all keys: no column says so
    return [[*line[:apart], *line[2:]] for line in (head, *lines)]


# --- what the sources say -------------------------------------------------------------------------
def meaning(forms: Forms, form: type[Block], key: str) -> str:
    """What a key of a form means: as told there, or at the first of the forms that tells it."""
    for cls in (base for one in (form, *forms) for base in one.__mro__):
        if text := docstrings(cls.__module__).get((cls.__name__, key)):
            return text
    raise ValueError(f"{form.__module__}: {form.__name__}.{key} has no docstring")


@functools.cache
def docstrings(module: str) -> dict[tuple[str, str], str]:
    """The string literals below the fields of a module's classes, by class and field."""
    if not module.startswith("pipeline."):
        return {}
    return {
        (node.name, field.target.id): below.value.value
        for node in ast.parse(Path(sys.modules[module].__file__).read_text()).body
        if isinstance(node, ast.ClassDef)
        for field, below in itertools.pairwise(node.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def paragraphs(text: str | None) -> list[str]:
    if not text:
        raise ValueError("a block has no docstring")
    return [" ".join(part.split()) for part in text.strip().split("\n\n")]


def tag_of(forms: Forms) -> str:
    """The key that chooses among several forms; "" for one."""
    several = len(forms) > 1
    return next(t for t in TAGS if all(t in f.model_fields for f in forms)) if several else ""


def tags(forms: Forms, tag: str, default: str = "") -> str:
    """What chooses each of the forms."""
    words = [w for form in forms for w in typing.get_args(form.model_fields[tag].annotation)]
    return ", ".join(f"`{word}`{' (the default)' * (word == default)}" for word in words)


def those(having: Forms, forms: Forms) -> str:
    """Which of the forms have a key."""
    absent = [form for form in forms if form not in having]
    if not absent:
        return "all"
    few = 3 * len(absent) < len(forms)
    return f"all but {tags(absent, tag_of(forms))}" if few else tags(having, tag_of(forms))


# --- values ---------------------------------------------------------------------------------------
def differing(values: dict[type[Block], str], tag: str) -> str:
    """The one value of all forms, or the commonest and those of others."""
    groups: dict[str, list[type[Block]]] = {}
    for form, value in values.items():
        groups.setdefault(value, []).append(form)
    first, *others = sorted(groups, key=lambda value: -len(groups[value]))
    return "; ".join([first, *(f"{tags(groups[value], tag)}: {value}" for value in others)])


def default_of(form: type[Block], key: str) -> str:
    value = form.model_fields[key].default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Block):
        chosen = [f"{tag}: {getattr(value, tag)}" for tag in TAGS if hasattr(value, tag)]
        return f"`{{{', '.join(chosen)}}}`"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        return f"[{', '.join(plain(one) for one in value)}]"
    return f"`{value}`" if isinstance(value, str) else plain(value)


def plain(value: float) -> str:
    return f"{value:.10f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def values_of(form: type[Block], key: str) -> str:
    field = form.model_fields[key]
    if held(form, key) and (place := places().get((form, key))):
        optional = type(None) in typing.get_args(field.annotation)
        return f"[block](#{place.replace('.', '')}){', or null' * optional}"
    return values(field.annotation, field.metadata)


def values(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """The values that a type allows, with the bounds among its metadata."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return values(
            inner[0], [one for field in inner[1:] for one in getattr(field, "metadata", ())]
        )
    if origin in (typing.Union, types.UnionType):
        if forms := forms_of(annotation):
            return f"block of {tag_of(forms)} {tags(forms, tag_of(forms))}, or null"
        return ", or ".join("null" if one is type(None) else values(one) for one in inner)
    if origin is Literal:
        return ", ".join(f"`{one}`" if isinstance(one, str) else str(one) for one in inner)
    names = ("ge", "gt", "le", "lt", "min_length", "max_length")
    bounds = {n: getattr(one, n) for one in metadata for n in names if hasattr(one, n)}
    if origin is list:
        return f"list of {length(bounds)}, each {values(inner[0])}"
    if origin is dict and "max_length" not in bounds:
        return "mapping of names to any values"
    if origin is dict:
        return f"mapping of {length(bounds)} names, each to a {values(inner[1])}"
    simple = {bool: "true, false", str: "text"}
    return simple.get(annotation) or span(annotation is int, bounds)


def length(bounds: dict[str, int]) -> str:
    least, most = bounds.get("min_length", 0), bounds["max_length"]
    return str(most) if least == most else f"{f'{least} to' if least else 'up to'} {number(most)}"


def span(whole: bool, bounds: dict[str, float]) -> str:
    """The numbers between bounds; those of `whole` numbers are moved to the last one allowed."""
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    above, below = "gt" in bounds, "lt" in bounds
    if whole:
        return f"{number(low + above)} to {number(high - below)}"
    return f"{'above ' * above}{number(low)} to {'below ' * below}{number(high)}"


def number(value: float) -> str:
    """With commas, or as a power of 10 or 2 where that is shorter."""
    if value == 2**63 - 1:
        return "2^63 - 1"
    for base, least in ((10, 6), (2, 20)):
        power = round(math.log(abs(value), base)) if value else 0
        if abs(power) >= least and math.isclose(abs(value), float(base) ** power):
            return f"{'-' if value < 0 else ''}{base}^{power}"
    return f"{value:,.10g}"


def table(lines: list[list[str]]) -> str:
    head, *cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    body = [f"| {' | '.join(line)} |" for line in (head, *cells)]
    return "\n".join([body[0], "|---" * len(head) + "|", *body[1:]])


if __name__ == "__main__":
    PAGE.write_text(document())
