"""A YAML document of bounded size, read to plain values."""

from __future__ import annotations

import re
from typing import Any

MOST_BYTES = 1 << 18
# Values after the aliases are written out: a few lines of aliases of aliases stand for billions.
MOST_VALUES = 100_000
MOST_DIGITS = 400  # of an integer: a float has no more


class NotReadable(Exception):
    """What is wrong with a document, without its name."""


def read(text: bytes) -> Any:
    """The values of a YAML 1.2 document: dicts, lists, text, numbers, booleans and None.

    NotReadable for text that is no YAML, too long, or nested, numbered or aliased without end.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError

    if len(text) > MOST_BYTES:
        raise NotReadable(f"{len(text):,} bytes; at most {MOST_BYTES:,} are read")
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text.decode("utf-8"))
        if node is None:
            return None
        if _values(node) > MOST_VALUES:
            raise NotReadable(f"its aliases stand for more than {MOST_VALUES:,} values")
        return yaml.constructor.construct_document(node)
    except RecursionError:
        raise NotReadable("nested too deep") from None
    except DuplicateKeyError as e:
        key = re.search(r'duplicate key "(.*?)" with', str(e), re.DOTALL)
        line = "" if e.problem_mark is None else f"line {e.problem_mark.line + 1}: "
        raise NotReadable(f"{line}the key `{key and key[1]}` stands there twice") from e
    # Besides its own errors, the library lets those of the number and date types through.
    except (YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError) as e:
        raise NotReadable(_told(e, text)) from e


def _told(error: Exception, text: bytes) -> str:
    """Where the text stops being YAML, and why."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return f"not valid YAML: {' '.join(str(error).split())[:200]}"
    line = dict(enumerate(text.decode("utf-8", "replace").splitlines())).get(mark.line, "")
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"line {mark.line + 1}: starts with a tab; YAML is indented by spaces only"
    why = ", ".join(filter(None, (error.context, error.problem)))
    if error.problem == "mapping values are not allowed here":
        why += "; a line is indented wrongly, or the one above has a colon without a space after it"
    opened = getattr(error, "context_mark", None)
    if opened is not None and opened.line != mark.line:
        why += f" (begun in line {opened.line + 1})"
    return f"line {mark.line + 1}, column {mark.column + 1}: not valid YAML: {why}"


def _values(node: Any) -> int:
    """Number of values below a node with every alias written out. RecursionError for a circle.

    NotReadable for an integer without end: Python would not write it in any message.
    """
    known: dict[int, int] = {}

    def count(of: Any) -> int:
        if id(of) not in known:
            if str(of.tag).endswith(":int") and len(of.value) > MOST_DIGITS:
                line = of.start_mark.line + 1
                raise NotReadable(f"line {line}: an integer of {len(of.value):,} digits")
            below = of.value if isinstance(of.value, list) else []
            known[id(of)] = 1 + sum(
                count(part)
                for item in below
                for part in (item if isinstance(item, tuple) else (item,))
            )
        return known[id(of)]

    return count(node)
