"""What is wrong with a block of params.yaml, a line each: where, what, and the way out."""

from __future__ import annotations

import difflib
import math
import re
import reprlib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from pipeline.block import TAGS, Block
from pipeline.errors import UserError

MOST_TOLD = 30  # mistakes of one file: the rest is counted
MOST_OPTIONS = 40  # names that a line lists

IMAGES = "training counts images, not steps or epochs"
# What keys are called elsewhere: the key here, below a recipe or at the top, and where the unit
# is another one.
ALIASES = {
    **dict.fromkeys(("lr", "learningrate", "base_lr"), ("training.learning_rate", "")),
    **dict.fromkeys(
        ("bs", "batchsize", "batch_size", "train_batch_size", "mini_batch_size"),
        ("training.batch", "the total batch"),
    ),
    **dict.fromkeys(
        ("epoch", "epochs", "num_epochs", "n_epochs", "max_epochs"),
        ("training.images", f"{IMAGES}: epochs times the dataset's images"),
    ),
    **dict.fromkeys(
        (
            "steps",
            "iterations",
            "iters",
            "max_steps",
            "total_steps",
            "train_steps",
            "training_steps",
        ),
        ("training.images", f"{IMAGES}: steps times the batch"),
    ),
    **dict.fromkeys(("kimg", "duration"), ("training.images", IMAGES)),
    **dict.fromkeys(
        ("ema", "ema_decay", "ema_rate", "ema_beta", "ema_momentum"),
        ("training.ema_halflife", "in images: batch * ln(1/2) / ln(decay), not a factor a step"),
    ),
    **dict.fromkeys(
        ("warmup_steps", "num_warmup_steps", "lr_warmup_steps", "lr_warmup", "warmup_images"),
        ("training.warmup", "in images, not steps: steps times the batch"),
    ),
    **dict.fromkeys(
        ("pretrained", "init_from", "checkpoint", "ckpt", "resume_from", "finetune"),
        ("training.initial", "a safetensors file; to go on with a run, just run it again"),
    ),
    "wd": ("training.weight_decay", "0 is Adam"),
    **dict.fromkeys(("optim", "opt", "optimiser"), ("training.optimizer", "")),
    **dict.fromkeys(
        ("grad_clip", "clip_grad", "clip_grad_norm", "gradient_clip", "max_grad_norm"),
        ("training.clip", ""),
    ),
    **dict.fromkeys(
        ("grad_accum", "accumulate", "accumulation_steps", "gradient_accumulation_steps"),
        ("training.shards", "batch is the total batch, and is cut into so many parts"),
    ),
    **dict.fromkeys(("lr_schedule", "lr_scheduler"), ("training.decay", "")),
    **dict.fromkeys(("loss", "loss_weighting", "loss_type"), ("training.weighting", "")),
    **dict.fromkeys(
        ("amp", "fp16", "bf16", "dtype", "mixed_precision"), ("training.precision", "")
    ),
    **dict.fromkeys(
        ("save_every", "eval_every", "snapshots", "checkpoints"),
        ("training.milestones", "a list of amounts, in images"),
    ),
    **dict.fromkeys(("model", "unet", "net", "backbone", "arch", "architecture"), ("network", "")),
    **dict.fromkeys(("base_channels", "model_channels", "dim", "ch"), ("network.channels", "")),
    **dict.fromkeys(("hidden_size", "embed_dim", "n_embd"), ("network.width", "")),
    **dict.fromkeys(("num_heads", "n_heads", "num_attention_heads"), ("network.heads", "")),
    **dict.fromkeys(("num_layers", "n_layers"), ("network.depth", "")),
    "patch_size": ("network.patch", ""),
    **dict.fromkeys(("channel_mult", "ch_mult", "dim_mults"), ("network.multipliers", "")),
    **dict.fromkeys(("num_res_blocks", "layers_per_block"), ("network.blocks", "")),
    **dict.fromkeys(
        ("attention_resolutions", "attn_resolutions", "attn"), ("network.attention", "in pixels")
    ),
    **dict.fromkeys(("class_cond", "conditional"), ("network.class_conditional", "")),
    **dict.fromkeys(("p_uncond", "cfg_dropout", "cond_drop_prob"), ("network.label_dropout", "")),
    **dict.fromkeys(
        ("t", "timesteps", "num_timesteps", "num_train_timesteps", "diffusion_steps"),
        ("schedule.states", "noise levels that are trained"),
    ),
    **dict.fromkeys(
        ("flow_shift", "time_shift", "timestep_shift"), ("schedule.shift", "of a flow")
    ),
    **dict.fromkeys(("noise_schedule", "beta_schedule", "scheduler"), ("schedule.kind", "")),
    **dict.fromkeys(
        ("num_steps", "num_inference_steps", "sampling_steps", "sample_steps", "nfe"),
        ("sampling.steps", ""),
    ),
    **dict.fromkeys(("sampler", "solver"), ("sampling.kind", "")),
    **dict.fromkeys(
        ("cfg", "cfg_scale", "guidance_scale", "guidance_weight"),
        ("sampling.guidance", "1 is no guidance"),
    ),
    **dict.fromkeys(
        ("parametrization", "parameterization", "prediction_type", "pred_type"), ("prediction", "")
    ),
    **dict.fromkeys(("image_size", "img_size", "size"), ("data.resolution", "in pixels")),
    "dataset": ("data.source", ""),
    **dict.fromkeys(("data_path", "data_dir", "dataset_path", "root", "folder"), ("data.path", "")),
    **dict.fromkeys(("num_samples", "n_samples"), ("evaluate.samples", "")),
    **dict.fromkeys(("random_seed", "manual_seed"), ("seed", "")),
}


class _Short(reprlib.Repr):
    """Values as YAML writes them, cut where they are long or deep."""

    def repr_NoneType(self, value: None, level: int) -> str:
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        return "true" if value else "false"

    def repr_date(self, value: Any, level: int) -> str:
        return str(value)

    repr_datetime = repr_date


def shown(value: Any) -> str:
    """A value as a message can show it: cut where it is long or deep."""
    short = _Short()
    short.maxstring = short.maxother = 80
    try:
        return short.repr(value)
    except ValueError:  # a number with more digits than Python writes
        return "a number of thousands of digits"


def validate(
    model: type[Block],
    raw: Any,
    path: tuple[str, ...],
    problems: list[str],
    root: type[Block],
    top: type[Block],
) -> Any:
    """A block read strictly, or None with each mistake added to `problems`.

    path: where `raw` stands in params.yaml. root, top: the blocks of a recipe and of the whole
    file, among whose keys the one that was meant is looked for.
    """
    try:
        return model.model_validate(_with_forms(model, raw))
    except ValidationError as e:
        found = [(_place(model, raw, error), error) for error in e.errors()]
    # A value that may be of several types is told once, where it comes closest to one of them.
    above = {place.keys[:depth] for place, _ in found for depth in range(len(place.keys))}
    told: dict[tuple[str, ...], tuple[_Place, Any]] = {}
    for place, error in found:
        known = place.keys in told and error["type"] in EXPECTED
        if place.keys not in above and not known:
            told[place.keys] = place, error
    for place, error in told.values():
        where = ".".join([*path, *map(_cut, place.keys)])
        problems.append(f"{where}{_mistake(place, error, root, top)}")
    return None


def _with_forms(block: type[Block], raw: Any) -> Any:
    """`raw` with the default form written where a block leaves its own out."""
    if not isinstance(raw, dict):
        return raw
    filled = dict(raw)
    for key, field in block.model_fields.items():
        value, forms = raw.get(key), forms_of(field.annotation)
        if not isinstance(value, dict) or not forms:
            continue
        tag = _tag(forms)
        if tag is not None and tag not in value:
            default = [
                own for form in forms if isinstance(own := form.model_fields[tag].default, str)
            ]
            value = {**dict.fromkeys([tag] if default else [], *default), **value}
        form = _form(forms, value)
        filled[key] = value if form is None else _with_forms(form, value)
    return filled


class _Place(NamedTuple):
    """Where an error is, and what may stand there.

    keys: from the checked block on. forms: what the block of the last key could be, block: what it
    is. field: the last key's own, if `block` has it. annotation: of what may stand there, value:
    what does.
    """

    keys: tuple[str, ...]
    forms: list[type[Block]]
    block: type[Block] | None
    field: FieldInfo | None
    annotation: Any
    value: Any


def _place(model: type[Block], raw: Any, error: Any) -> _Place:
    place = _Place((), [], None, None, model, raw)
    steps = [step for step in error["loc"] if step != "[key]"]
    for i, step in enumerate(steps):
        here = place.value
        absent = i == len(steps) - 1 and error["type"] in ("missing", "invalid_key")
        # Other steps are pydantic's names of the forms of a union, no keys.
        if isinstance(here, dict) and (step in here or absent):
            forms = forms_of(place.annotation)
            block = _form(forms, here)
            field = block.model_fields.get(step) if block else None
            annotation = field.annotation if field else _items(place.annotation, dict)
            value = here.get(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            forms, block, field = [], None, None
            annotation, value = _items(place.annotation, list), here[step]
        else:
            continue
        place = _Place((*place.keys, str(step)), forms, block, field, annotation, value)
    return place


# Of pydantic's errors, those of a value of another type.
EXPECTED = {
    *("int_type", "int_from_float", "float_type", "bool_type", "string_type", "list_type"),
    *("dict_type", "model_type", "model_attributes_type", "literal_error"),
}
BOUNDS = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be {le} or less",
    "finite_number": "must be finite",
    "too_short": "has too few values (at least {min_length})",
    "too_long": "has too many values (at most {max_length})",
    "string_too_short": "must not be empty",
    "string_too_long": "is too long (at most {max_length} characters)",
}


def _mistake(place: _Place, error: Any, root: type[Block], top: type[Block]) -> str:
    """One error as what follows its place: `: what is wrong; the way out`."""
    kind, context, value = error["type"], error.get("ctx", {}), place.value
    if kind == "invalid_key":
        return ": no such key; a key is a word"
    if kind == "extra_forbidden":
        return f": no such key{_meant(place, root, top)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(context["discriminator"]).strip("'")
        options = _tags(forms_of(place.annotation), tag)
        if tag not in value:
            return f".{tag}: missing; {nearest('', options)}"
        return f".{tag}: {_no_choice(value[tag], options)}"
    if kind == "missing":
        return f": missing; give {_expected(place.annotation)}"
    options = [o for o in _options(place.annotation) if o is not type(None)]
    if all(_is(option, Literal) for option in options):
        return f": {_no_choice(value, [str(v) for o in options for v in o.__args__])}"
    if kind in EXPECTED:
        way_out = _rewritten(place)
        found = f": expected {_expected(place.annotation)}, found {shown(value)}"
        return f"{found}; {way_out}" if way_out else found
    text = error["msg"]
    if kind in BOUNDS:
        numbers = {k: v for k, v in context.items() if isinstance(v, int | float)}
        ends = {k: f"{v:,.0f}" if v == int(v) else f"{v:g}" for k, v in numbers.items()}
        text = BOUNDS[kind].format_map(ends)
    return f": {text.removeprefix('Value error, ')}, found {shown(value)}"


def _no_choice(value: Any, options: list[str]) -> str:
    given = value if isinstance(value, str) else shown(value)
    return f"{shown(value)} is not allowed; {nearest(given, options)}"


def _cut(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."


WORDS = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "text"},
    type(None): "null",
}
SEVERAL = {int: "whole numbers", float: "numbers", str: "names"}


def _expected(annotation: Any) -> str:
    """What may stand at a place, in words."""
    words: dict[str, None] = {}
    for option in _options(annotation):
        if _is(option, Literal):
            words |= dict.fromkeys(f"`{value}`" for value in option.__args__)
        elif _is(option, list):
            several = SEVERAL.get(_options(option.__args__[0])[0], "values")
            words[f"a list of {several}"] = None
        else:
            words[WORDS.get(option, "keys")] = None
    return " or ".join(words)


def _rewritten(place: _Place) -> str:
    """How a value of another type is written, where that can be told; else empty."""
    value, options = place.value, _options(place.annotation)
    forms = forms_of(place.annotation)
    if forms:
        return _as_block(forms, place)
    if value is None:
        return f"the default is {shown(place.field.default)}" if _optional(place.field) else ""
    for option in options:
        if _is(option, list) and not isinstance(value, dict | list):
            return _as_list(option, place)
    if bool in options:
        word = str(value).lower()
        if word in ("yes", "on", "y", "1", "true"):
            return "write true"
        if word in ("no", "off", "n", "0", "false"):
            return "write false"
    number = _number(value)
    if int in options and number is not None and number == int(number):
        return f"write {int(number)}" if abs(number) < 2**63 else ""
    if float in options and number is not None:
        return f"write {number:g}"
    return ""


def _as_block(forms: list[type[Block]], place: _Place) -> str:
    value, tag = place.value, _tag(forms)
    if tag is None and value is None:
        return "write {} for its defaults"
    if tag is None:  # a block of one form
        for key, field in forms[0].model_fields.items():
            for option in _options(field.annotation):
                if _is(option, Literal) and value in option.__args__:
                    return f"write {{{key}: {value}}}"
        return f"its keys are {', '.join(forms[0].model_fields)}"
    options = _tags(forms, tag)
    if value in options:
        return f"write {{{tag}: {value}}}"
    if (value is False or str(value).lower() in ("none", "off", "no")) and _optional(place.field):
        return f"write {{{tag}: {getattr(place.field.default, tag)}}}, the default"
    return f"write {{{tag}: ...}}, {nearest(value, options)}"


def _as_list(option: Any, place: _Place) -> str:
    value = place.value
    if place.keys[-1] == "seeds" and isinstance(value, int) and 1 < value < 10:
        return f"write {list(range(value))} for {value} seeds, [{value}] for the seed {value}"
    limits = place.field.metadata if place.field is not None else []
    if any(getattr(limit, "min_length", None) == 2 for limit in limits):
        return f"the default is {shown(place.field.default)}"
    parts = value.split(",") if isinstance(value, str) else [value]
    numbers = [_number(part) for part in parts]
    if None not in numbers:
        parts = [int(n) if n == int(n) else n for n in numbers]
    try:
        TypeAdapter(option).validate_python(parts, strict=True)
    except ValidationError:
        return ""
    return f"write [{', '.join(map(str, parts))}]"


def _number(value: Any) -> float | None:
    """The finite number that a value stands for: 5, `5`, `1e3`, `60k`."""
    if isinstance(value, str) and (found := re.fullmatch(r"([\d.]+)\s*([kM])", value.strip())):
        thousands = _number(found[1])
        return None if thousands is None else thousands * {"k": 1e3, "M": 1e6}[found[2]]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _optional(field: FieldInfo | None) -> bool:
    return field is not None and not field.is_required()


def _meant(place: _Place, root: type[Block], top: type[Block]) -> str:
    """The key that an unknown one stands for: of another form of its block, of this block or of
    another one, or a likely typo. What follows `no such key`."""
    given, block = place.keys[-1], place.block
    names = _fields(block)
    word = re.sub(r"[^a-z0-9]+", "_", given.lower())
    whole = [*names, "defaults"] if block is top else names
    close = difflib.get_close_matches(given, whole, n=1, cutoff=0.8)
    alias, note = ALIASES.get(word, ("", ""))
    if word == "steps" and "states" in names:  # of a schedule
        alias, note = ALIASES["timesteps"]
    note = f" ({note})" if note else ""
    own = alias.rpartition(".")[2]
    if own in names and (len(place.keys) > 1 or "." not in alias):
        return f"; did you mean `{own}`?{note}"
    others = [form for form in place.forms if given in form.model_fields]
    if others:
        tag = _tag(place.forms)
        return f" of {tag}: {_tags([block], tag)[0]}; it belongs to {', '.join(_tags(others, tag))}"
    if close:
        return f"; {nearest(given, whole, 0.6)}"
    found = alias or _place_of(word, root) or _place_of(word, top)
    if not found:
        return f"; {nearest(given, whole, 0.6)}"
    first = found.partition(".")[0]
    if first not in _fields(root):  # a section of the whole file
        if block is top:
            return f"; did you mean `{found}`?{note}"
        return f"; did you mean `{found}`, at the top level? It is one for all recipes{note}"
    if block is top:
        return f"; did you mean `{found}`, in `defaults` or in a recipe?{note}"
    return f"; did you mean `{found}`{'' if block is root else ' of the recipe'}?{note}"


def _place_of(key: str, block: type[Block]) -> str | None:
    """The path of a key in a block: the first of those that are least deep."""
    paths = [path for path in _paths(block) if path.rpartition(".")[2] == key]
    return min(paths, key=lambda path: path.count("."), default=None)


def _paths(block: type[Block], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all keys in a block and the forms below it, in their order."""
    for name, field in block.model_fields.items():
        if name != "recipes":
            yield f"{prefix}{name}"
            for form in forms_of(field.annotation):
                yield from _paths(form, f"{prefix}{name}.")


def _fields(block: Any) -> list[str]:
    return list(block.model_fields) if isinstance(block, type) else []


def _is(annotation: Any, origin: Any) -> bool:
    return typing.get_origin(annotation) is origin


def _options(annotation: Any) -> list[Any]:
    """The types that an annotation allows."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in _options(part)]
    if _is(annotation, Annotated):
        return _options(typing.get_args(annotation)[0])
    return [annotation]


def _items(annotation: Any, kind: type) -> Any:
    """What a list's or a dict's items may be; Any where that is not known."""
    found = [typing.get_args(option)[-1] for option in _options(annotation) if _is(option, kind)]
    return found[0] if found else Any


def forms_of(annotation: Any) -> list[type[Block]]:
    """The blocks that a key can hold."""
    options = _options(annotation)
    return [one for one in options if isinstance(one, type) and issubclass(one, Block)]


def _tag(forms: Sequence[type[Block]]) -> str | None:
    """The key that chooses among forms; None for a single one."""
    if len(forms) < 2:
        return None
    return next(tag for tag in TAGS if all(tag in form.model_fields for form in forms))


def _tags(forms: Sequence[type[Block]], tag: str) -> list[str]:
    return [v for form in forms for v in typing.get_args(form.model_fields[tag].annotation)]


def _form(forms: Sequence[type[Block]], value: Any) -> type[Block] | None:
    """The form that describes `value`; None if none does."""
    tag = _tag(forms)
    if tag is None:
        return forms[0] if forms else None
    for form in forms:
        if value.get(tag, form.model_fields[tag].default) in _tags([form], tag):
            return form
    return None


def nearest(given: Any, names: list[str], alike: float = 0.5) -> str:
    """The name that was probably meant, where one is as much `alike`, and all there are."""
    close = difflib.get_close_matches(str(given)[:80], names, n=1, cutoff=alike)
    options = ", ".join(names[:MOST_OPTIONS]) + (", ..." if len(names) > MOST_OPTIONS else "")
    return f"did you mean `{close[0]}`? (one of: {options})" if close else f"one of: {options}"


def refusal(source: str, problems: list[str]) -> UserError:
    """All mistakes of a file in one error, each once."""
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        return UserError(f"{source}: {unique[0]}")
    lines = [f"  {p}" for p in unique[:MOST_TOLD]]
    if len(unique) > MOST_TOLD:
        lines.append(f"  and {len(unique) - MOST_TOLD} more")
    return UserError(f"{source}: {len(unique)} mistakes:\n" + "\n".join(lines))
