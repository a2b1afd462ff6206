"""What is wrong with a block of params.yaml, a line each: where, what, and the way out."""

from __future__ import annotations

import contextlib
import difflib
import re
import reprlib
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError

Block = BaseModel
TAGS = ("kind", "method", "extractor", "encoder")  # the key that chooses a block's form
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
    **dict.fromkeys(("wd", "optimizer", "optim"), ("training.weight_decay", "0 is Adam")),
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


def shown(value: Any) -> str:
    """A value as a message can show it: cut where it is long or deep."""
    short = reprlib.Repr()
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
        problems += [_line(model, raw, path, error, root, top) for error in e.errors()]
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
        if len(forms) > 1 and not any(tag in value for tag in TAGS):
            for form in forms:
                for tag in TAGS:
                    default = form.model_fields.get(tag)
                    if default is not None and isinstance(default.default, str):
                        value = {tag: default.default, **value}
        form = _block_below(block, key, value)
        filled[key] = value if form is None else _with_forms(form, value)
    return filled


def _line(
    model: type[Block],
    raw: Any,
    path: tuple[str, ...],
    error: Any,
    root: type[Block],
    top: type[Block],
) -> str:
    """One error as `path: what is wrong; the way out`."""
    location: list[str] = []
    here, block = raw, model
    parent = model
    steps = [step for step in error["loc"] if step != "[key]"]
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        if isinstance(here, dict) and step not in here and not last:
            continue  # pydantic names the chosen form of a union: not a key
        if isinstance(step, str) and step not in _fields(block) and not isinstance(here, dict):
            continue  # the same for a union of plain types
        location.append(str(step))
        parent = block
        if not last or error["type"] != "missing":
            if isinstance(here, dict):
                here = here.get(step)
                block = _block_below(block, step, here)
            elif isinstance(here, list) and isinstance(step, int):
                here = here[step] if step < len(here) else None
    where = ".".join([*path, *(_cut(step) for step in location)])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "invalid_key":
        return f"{where}: no such key; a key is a word"
    if kind == "extra_forbidden":
        return f"{where}: no such key; {_meant(location[-1], parent, len(location), root, top)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(context["discriminator"]).strip("'")
        options = _tags(error, parent, location)
        given = context.get("tag")
        if given is None:
            return f"{where}.{tag}: missing; {nearest('', options)}"
        return f"{where}.{tag}: {shown(given)} is none of them; {nearest(given, options)}"
    if kind == "literal_error":
        options = [o.strip("'\" ") for o in re.split(r", | or ", context["expected"])]
        given = here if isinstance(here, str) else shown(here)
        return f"{where}: {shown(here)} is none of them; {nearest(given, options)}"
    if kind == "missing":
        return f"{where}: missing"
    text = error["msg"].removeprefix("Value error, ")
    return f"{where}: {text[0].lower() + text[1:]}, found {shown(here)}{_rewritten(kind, here)}"


def _cut(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."


def _rewritten(kind: str, value: Any) -> str:
    """How a value that YAML reads as another type is written, where that can be told."""
    number = None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = float(value)
    elif isinstance(value, float):
        number = value
    if kind in ("int_type", "int_from_float") and number is not None and number.is_integer():
        return f"; write {int(number)}" if abs(number) < 2**63 else ""
    if kind == "float_type" and number is not None:
        return f"; write {number:g}"
    if kind == "bool_type":
        word = str(value).lower()
        if word in ("yes", "on", "y", "1", "true"):
            return "; write true"
        if word in ("no", "off", "n", "0", "false"):
            return "; write false"
    return ""


def _meant(
    given: str, block: type[Block] | None, depth: int, root: type[Block], top: type[Block]
) -> str:
    """The key that an unknown one stands for: of this block, of another one, or a likely typo.

    depth: 1 in `block` itself if that is a whole recipe or the whole file.
    """
    names = _fields(block)
    word = re.sub(r"[^a-z0-9]+", "_", given.lower())
    whole = [*names, "defaults"] if block is top else names
    close = difflib.get_close_matches(given, whole, n=1, cutoff=0.8)
    alias, note = ALIASES.get(word, ("", ""))
    if word == "steps" and "states" in names:  # of a schedule
        alias, note = ALIASES["timesteps"]
    note = f" ({note})" if note else ""
    own = alias.rpartition(".")[2]
    if own in names and (depth > 1 or "." not in alias):
        return f"did you mean `{own}`?{note}"
    if close:
        return nearest(given, whole)
    known = {path.rpartition(".")[2]: path for path in reversed(list(_paths(root)))}
    above = {path.rpartition(".")[2]: path for path in reversed(list(_paths(top)))}
    found = alias or known.get(word) or above.get(word)
    if not found:
        return nearest(given, whole)
    first = found.partition(".")[0]
    if first not in _fields(root):  # a section of the whole file
        if block is top:
            return f"did you mean `{found}`?{note}"
        return f"did you mean `{found}`, at the top level? It is one for all recipes{note}"
    if block is top:
        return f"did you mean `{found}`, in `defaults` or in a recipe?{note}"
    return f"did you mean `{found}`{'' if block is root else ' of the recipe'}?{note}"


def _paths(block: type[Block], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all keys in a block and the forms below it, in their order."""
    for name, field in block.model_fields.items():
        if name != "recipes":
            yield f"{prefix}{name}"
            for form in forms_of(field.annotation):
                yield from _paths(form, f"{prefix}{name}.")


def _fields(block: Any) -> list[str]:
    return list(block.model_fields) if isinstance(block, type) else []


def _block_below(block: Any, key: Any, value: Any) -> Any:
    """The block class that describes `value`, found under `key` of `block`; None if none does."""
    if not isinstance(block, type) or key not in block.model_fields:
        return None
    forms = forms_of(block.model_fields[key].annotation)
    if len(forms) > 1 and isinstance(value, dict):
        for form in forms:
            for tag in TAGS:
                field = form.model_fields.get(tag)
                if field is not None and value.get(tag, field.default) in typing.get_args(
                    field.annotation
                ):
                    return form
        return None
    return forms[0] if forms else None


def forms_of(annotation: Any) -> list[type[Block]]:
    """The blocks that a key can hold."""
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [f for a in typing.get_args(annotation) for f in forms_of(a)]
    if typing.get_origin(annotation) is Annotated:
        return forms_of(typing.get_args(annotation)[0])
    return []


def _tags(error: Any, block: Any, location: list[str]) -> list[str]:
    expected = error.get("ctx", {}).get("expected_tags")
    if expected:
        return [t.strip("' ") for t in str(expected).split(",")]
    known = location and location[-1] in _fields(block)
    forms = forms_of(block.model_fields[location[-1]].annotation) if known else []
    return [
        option
        for form in forms
        for tag in TAGS
        if tag in form.model_fields
        for option in typing.get_args(form.model_fields[tag].annotation)
    ]


def nearest(given: Any, names: list[str]) -> str:
    """The name that was probably meant, and all there are."""
    close = difflib.get_close_matches(str(given)[:80], names, n=1, cutoff=0.5)
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
