"""Digests: what changes them and what does not."""

from __future__ import annotations

import sys
import textwrap

import pytest

from pipeline.identity import canonical_json, code_digest, digest


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
    (folder / "a.py").write_text("from toolbox import b\n\n\ndef f():\n    return b.g()\n")
    (folder / "b.py").write_text("def g():\n    return 1\n")
    (folder / "c.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def current(name="toolbox.a"):
        code_digest.cache_clear()
        return code_digest(name)

    yield folder, current
    code_digest.cache_clear()
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


def test_a_missing_module_is_an_error():
    with pytest.raises(ValueError, match="no module named"):
        code_digest("pipeline.nothing_here")
