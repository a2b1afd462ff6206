"""The pages of docs/: commands exist, messages are those of the code, links lead somewhere."""

from __future__ import annotations

import ast
import functools
import re
import shlex

import click
import pytest

from stages import cli
from tests.workflow import ROOT

PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "data" / "README.md"])
INDEX = (ROOT / "docs" / "README.md").read_text()
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()
GAP = "\0"  # what a message's blanks are filled with


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def code(text):
    """Every line of code blocks, and every `inline code`, without what a comment says."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.S | re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines = [line for block in blocks for line in block.splitlines()]
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines + re.findall(r"`([^`]+)`", prose)]


def commands(text):
    """The arguments of every use of the command line, by shell words."""
    found = []
    for line in code(text):
        for part in re.split(r"&&|;", line):
            if match := re.match(r"\s*(?:[A-Z_]+=\S+ )*tspace(?: (.*))?$", part):
                found.append(shlex.split(match[1] or ""))
    return found


def check(arguments):
    """click.UsageError for what the command line does not know; nothing is run."""
    if not arguments or arguments[0].startswith("<"):
        return  # the tool itself, or `tspace <stage>`
    context = click.Context(cli.main, info_name="tspace")
    name = arguments[0]
    if name in ("COMMAND", "--help", "--version"):
        return
    command = cli.main.get_command(context, name)
    if command is None:
        raise click.UsageError(f"no command {name}")
    try:
        # A page may name a command alone, and write N for a number.
        words = ["7" if word == "N" else word for word in arguments[1:]]
        command.make_context(name, words, parent=context)
    except click.exceptions.Exit:  # --help
        pass
    except click.MissingParameter:
        if len(arguments) > 1:
            raise


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_on_a_page_is_one(page, capsys):
    for arguments in commands(page.read_text()):
        try:
            check(arguments)
        except click.UsageError as e:
            pytest.fail(f"{name_of(page)}: tspace {shlex.join(arguments)}: {e.message}")


def test_the_check_of_commands_finds_mistakes():
    for wrong in (["trian"], ["plan", "--recipes", "a"], ["export", "--out", "x"], ["gc", "now"]):
        with pytest.raises(click.UsageError):
            check(wrong)
    check(["export"])
    check(["compare", "a", "b", "-n", "4"])
    assert commands("run `A=1 tspace plan --json`\n```\ncd a && tspace status  # words\n```\n") == [
        ["status"],
        ["plan", "--json"],
    ]


@functools.cache
def messages():
    """Every text of the code, with GAP for each value in it."""
    found = []
    for path in sorted([*(ROOT / "stages").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else GAP for v in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def known(message):
    """Whether a message of the page stands in the code: `…` is a value, or code."""
    gap = f"(?:{GAP}|`[^`]*`)+"
    pattern = gap.join(map(re.escape, message.strip("…").split("…")))
    return any(re.search(pattern, text) for text in messages())


QUOTED = re.findall(r"^\| `([^`]+)` \|", TROUBLE, re.M)


@pytest.mark.parametrize("message", QUOTED)
def test_every_message_on_the_page_is_one_of_the_code(message):
    assert known(message)


def test_the_check_of_messages_finds_mistakes():
    assert len(QUOTED) >= 12
    assert not known("…: the disc is full…; make room and run again")
    assert not known("data.path: … does exist")


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http", "mailto")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(path.read_text()), f"{name_of(page)}: {target}"


def test_the_index_names_every_page():
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(
        re.findall(r"\]\(([\w-]+\.md)", INDEX)
    )
