"""Digests: what changes them and what does not."""

from __future__ import annotations

import importlib
import io
import sys
import textwrap
import tokenize

import pytest

from pipeline.store import identity
from pipeline.store.identity import canonical_json, code_digest, digest
from tests.workflow import ROOT


def test_equal_values_have_one_text():
    assert canonical_json({"b": 1, "a": [0.1, None]}) == '{"a":[0.1,null],"b":1}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})
    with pytest.raises(ValueError):
        digest({"a": float("nan")})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three modules: a imports b, c stands alone."""
    folder = tmp_path / "toolbox"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "tools").mkdir()
    (folder / "tools" / "__init__.py").write_text("")
    (folder / "a.py").write_text("from toolbox import b\n\n\ndef f():\n    return b.g()\n")
    (folder / "b.py").write_text("def g():\n    return 1\n")
    (folder / "c.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def forget():
        for cached in (code_digest, identity.reachable, identity.source_of, identity._is_package):
            cached.cache_clear()
        importlib.invalidate_caches()

    def current(*roots):
        forget()
        return code_digest(*(roots or ["toolbox.a"]))

    yield folder, current
    forget()
    for name in [n for n in sys.modules if n.startswith("toolbox")]:
        del sys.modules[name]


def test_code_counts_with_all_it_imports_and_nothing_else(package):
    folder, current = package
    before = current()
    (folder / "c.py").write_text("x = 2\n")
    assert current() == before
    (folder / "b.py").write_text("def g():\n    return 2\n")
    assert current() != before


def test_comments_docstrings_and_blank_lines_do_not_count(package):
    folder, current = package
    before = current()
    (folder / "b.py").write_text(
        textwrap.dedent('''\
            """What b is."""

            # why
            def g():
                """What g does,

                at length.
                """

                return 1  # one
        ''')
    )
    assert current() == before


def test_a_string_that_looks_like_a_comment_counts(package):
    folder, current = package
    (folder / "b.py").write_text('def g():\n    return "# 1"\n')
    before = current()
    (folder / "b.py").write_text('def g():\n    return "# 2"\n')
    assert current() != before


USED = """
def kept():
    return {0}


def other():
    return {1}


class Shape:
    sides = {2}

    def area(self):
        return helper()


def helper():
    return 1


SIZES = [1, 2]
"""


def test_only_the_definitions_that_are_used_count(package):
    folder, current = package
    (folder / "a.py").write_text("from toolbox.b import kept\n\n\ndef f():\n    return kept()\n")
    (folder / "b.py").write_text(USED.format(1, 2, 3))
    before = current()
    (folder / "b.py").write_text(USED.format(1, 9, 9) + "\n\ndef further():\n    return 0\n")
    assert current() == before
    (folder / "b.py").write_text(USED.format(9, 2, 3))
    assert current() != before


@pytest.mark.parametrize(
    "use",
    [
        "from toolbox import b\n\n\ndef f():\n    return b.Shape()\n",
        "def f():\n    from toolbox.b import Shape as S\n\n    return S()\n",
        "import toolbox.b as b\n\n\nclass F(b.Shape):\n    pass\n",
        "from toolbox import b\n\n\ndef f(kind):\n    return getattr(b, kind)()\n",
    ],
)
def test_what_a_used_definition_uses_counts(package, use):
    folder, current = package
    (folder / "a.py").write_text(use)
    (folder / "b.py").write_text(USED.format(1, 2, 3))
    before = current()
    (folder / "b.py").write_text(
        USED.format(1, 2, 3).replace("return 1\n\n\nSIZES", "return 4\n\n\nSIZES")
    )
    assert current() != before


def test_statements_that_run_at_import_count(package):
    folder, current = package
    before = current("toolbox.a:f")
    (folder / "b.py").write_text("def g():\n    return 1\n\n\nif True:\n    print()\n")
    assert current("toolbox.a:f") != before


def test_moving_code_changes_nothing(package):
    folder, current = package
    before = current()
    (folder / "b.py").rename(folder / "tools" / "moved.py")
    (folder / "a.py").write_text(
        "from toolbox.tools import moved as b\n\n\ndef f():\n    return b.g()\n"
    )
    assert current() == before
    (folder / "a.py").write_text("def f():\n    return b.g()\n")
    assert current() != before  # and what is not found any more is missed


def test_types_of_arguments_do_not_lead_on(package):
    folder, current = package
    (folder / "a.py").write_text("from toolbox import c\n\n\ndef f(n: c.x) -> c.x:\n    return n\n")
    before = current()
    (folder / "c.py").write_text("x = 2\n")
    assert current() == before


def test_a_missing_name_is_an_error(package):
    _, current = package
    with pytest.raises(ValueError, match=r"toolbox\.b has no h"):
        current("toolbox.b:h")


def test_a_missing_module_is_an_error():
    with pytest.raises(ValueError, match="no module named"):
        code_digest("pipeline.nothing_here")


def tokenized(text):
    """The lines of a module without comments, by Python's own tokenizer."""
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return [line.rstrip() for line in lines]


STRINGS = r"""
a = "# none"  # one
b = r"\"  # one
c = rb'\'' '#none'  # one
d = '''
# none \''' # none
'''  # 'one'
e = f"{'# none'}#none"  # "one
g = ""  # one
h = '' "#"'#'  # one
"""


def test_comments_are_found_as_python_finds_them():
    texts = [path.read_text() for path in ROOT.glob("*/**/*.py") if ".venv" not in path.parts]
    assert len(texts) > 100
    for text in [STRINGS, *texts]:
        assert identity._without_comments(text, []) == tokenized(text)
