"""The documentation checker must notice what is wrong: each test plants a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

import check
from console import abridge, blocks, matches, refresh, sandbox


def markdown(body: str, above: str = "", tag: str = "console") -> str:
    return f"{above}\n```{tag}\n{body}\n```\n"


@pytest.fixture
def update(tmp_path: Path):
    """Bring a document up to date in an empty repository."""

    def run(text: str) -> tuple[str, list[str]]:
        return check.updated(text, tmp_path, sandbox(tmp_path))

    return run


# What the program prints


def test_output_that_is_right_stays_as_it_is(update):
    text = markdown("$ python -c 'print(6 * 7)'\n42\n\n$ python -c 'print()'")
    assert update(text) == (text, [])


def test_wrong_output_is_replaced_by_the_real_one(update):
    after, problems = update(markdown("$ python -c 'print(6 * 7)'\n41"))
    assert after == markdown("$ python -c 'print(6 * 7)'\n42")
    assert problems == []


@pytest.mark.parametrize("shown", ["", "1\n2", "2\n1\n3", "1\n2\n3\n4"])
def test_missing_and_superfluous_lines_are_noticed(update, shown):
    command = "$ python -c 'for i in (1, 2, 3): print(i)'"
    after, _ = update(markdown(f"{command}\n{shown}" if shown else command))
    assert after == markdown(f"{command}\n1\n2\n3")


def test_blocks_after_one_that_grew_are_still_found(update):
    before = "".join(markdown(f"$ python -c 'print({i}); print()\nprint({i})'") for i in range(2))
    before = before.replace("()\n", "(); ")
    after, problems = update(before)
    assert problems == []
    assert [block.body[1:] for block in blocks(after.splitlines())] == [
        ("0", "", "0"),
        ("1", "", "1"),
    ]


def test_a_here_document_and_a_continued_line_are_one_command_each(update):
    body = "$ python - <<'EOF'\nprint('$ 3'[2:])\nEOF\n3\n$ python -c \\\n    'print(4)'\n4"
    assert update(markdown(body)) == (markdown(body), [])


def test_standard_error_is_part_of_the_output(update):
    body = "$ python -c 'import sys; sys.exit(\"no such thing\")'\nno such thing"
    text = markdown(body, above="<!-- exit: 1 -->")
    assert update(text) == (text, [])


def test_width_and_colour_do_not_depend_on_the_caller(update, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORCE_COLOR", "1")
    body = (
        '$ python -c \'import os; print(os.environ["COLUMNS"], os.getenv("FORCE_COLOR"))\'\n80 None'
    )
    assert update(markdown(body)) == (markdown(body), [])


# Lines left out


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("a ... d", "a b c d", True),
        ("a ... d", "a d", True),
        ("a ... d", "a b c", False),
        ("a ... d", "b c d", False),
        ("... c ...", "a b c d", True),
        ("... x ...", "a b c d", False),
        ("a ... a", "a", False),
        ("... a b ... c", "a a b b c", True),
        ("... b ... b ...", "a b c", False),
        ("...", "", True),
        ("a", "a b", False),
        ("", "", True),
    ],
)
def test_three_dots_stand_for_any_number_of_lines(expected, actual, same):
    assert matches(expected.split(), actual.split()) is same


@given(st.lists(st.sampled_from("ab"), max_size=8), st.data())
def test_leaving_out_any_lines_still_matches(lines, data):
    start, stop = sorted(data.draw(st.lists(st.integers(0, len(lines)), min_size=2, max_size=2)))
    assert matches([*lines[:start], "...", *lines[stop:]], lines)
    assert abridge([*lines[:start], "...", *lines[stop:]], lines) in (
        [*lines[:start], "...", *lines[stop:]],
        lines,
    )


def test_blanks_at_the_end_of_a_line_are_not_part_of_the_output(update):
    text = markdown("$ python -c 'print(1, end=\"  \"); print(); print(2)'\n1\n2")
    assert update(text) == (text, [])


def test_an_abridged_output_that_still_holds_is_kept(update):
    text = markdown("$ python -c 'for i in range(9): print(i)'\n0\n...\n8")
    assert update(text) == (text, [])


def test_an_abridged_output_that_changed_is_abridged_the_same_way(update):
    command = "$ python -c 'for i in range(9): print(i)'"
    after, _ = update(markdown(f"{command}\n0\n9\n...\n8"))
    assert after == markdown(f"{command}\n0\n1\n...\n8")


# What may not stand in a document


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (markdown("$ python -c 'raise SystemExit(3)'"), "exit status 3, not 0"),
        (markdown("$ python -c 'pass'", above="<!-- exit: 2 -->"), "exit status 0, not 2"),
        (markdown("$ python -c 'print(1)' | head"), "uses the shell"),
        (markdown("$ python -c 'print(1)' > file"), "uses the shell"),
        (markdown("$ python -c 'print(1)' && ls"), "uses the shell"),
        (markdown("$ ls"), "is none of"),
        (markdown("$ python -m http.server"), "is none of"),
        (markdown("$ cat /etc/hostname"), "not a file of this repository"),
        (markdown("$ head -n 3 missing.md"), "not a file of this repository"),
        (markdown("$ cat"), "not a file of this repository"),
        (markdown("$ python -c 'print(\"$ 5\")'"), "meaning of its own"),
        (markdown("42"), "starts with a command"),
        (markdown("$ moeplan profile", tag="console no-run"), "not run: reason"),
        (markdown("$ moeplan profile", tag="console no-check"), "unknown option"),
        (markdown("$ moeplan", tag="text"), "as console"),
        (markdown("pip install moeplan", tag="sh"), "not run: reason"),
        ("- item\n  ```console\n  $ ls\n  ```\n", "first column"),
        ("```console\n$ python -c 'print(1)'\n1\n", "never closed"),
        ("<!-- generated: nothing -->\n<!-- end generated -->\n", "no section 'nothing'"),
        ("<!-- generated: extras -->\n", "has no <!-- end generated -->"),
    ],
)
def test_refused(update, text, problem):
    after, problems = update(text)
    assert len(problems) == 1
    assert problem in problems[0]
    assert after == text  # a failure never gets written into a document


@pytest.mark.parametrize(
    "text",
    [
        markdown("$ moeplan profile", "<!-- not run: needs a GPU -->\n", "console no-run"),
        markdown("make all", "<!-- ci: tests -->", "sh"),
        markdown("make all", "<!-- not run: an example -->", "sh"),
        markdown("x = 1", tag="python"),
    ],
)
def test_accepted_with_a_reason(update, text):
    assert update(text) == (text, [])


def test_problems_name_their_line(tmp_path):
    (block,) = blocks(["", "```console", "$ python -c 'pass'", "$ ls", "```"])
    _, problems = refresh(block, tmp_path, sandbox(tmp_path))
    assert problems[0].startswith("4: `ls`")


# Generated sections, links, commands


def test_a_generated_section_is_replaced_and_only_it():
    text = "a\n<!-- generated: x -->\nold\n<!-- end generated -->\nb\n"
    filled, problems = check.fill_sections(text, {"x": lambda: "new\nlines"})
    assert filled == text.replace("old", "new\nlines")
    assert problems == []
    assert check.fill_sections(filled, {"x": lambda: "new\nlines"}) == (filled, [])


def test_two_generated_sections_are_both_filled():
    text = "<!-- generated: x -->\n<!-- end generated -->\n" * 2
    filled, _ = check.fill_sections(text, {"x": lambda: "new"})
    assert filled == "<!-- generated: x -->\nnew\n<!-- end generated -->\n" * 2


def test_a_marker_shown_as_code_is_left_alone():
    text = "```html\n<!-- generated: nothing -->\n```\n"
    assert check.fill_sections(text) == (text, [])


@pytest.mark.parametrize(
    ("link", "broken"),
    [
        ("[a](other.md)", False),
        ("[a](other.md#the-title-2)", False),
        ("[a](other.md#the-title-2-1)", False),
        ("[a](other.md#no-title)", True),
        ("[a](missing.md)", True),
        ("![a](missing.png)", True),
        ('<img src="missing.png" alt="">', True),
        ("[a]: missing.md", True),
        ("[a](../outside.md)", True),
        ("[a](#here)", False),
        ("[a](#there)", True),
        ("[a](other.md 'with a title')", False),
        ("[a](https://example.org/missing.md)", False),
        ("`[a](missing.md)`", False),
        ("```\n[a](missing.md)\n```", False),
    ],
)
def test_links(tmp_path, link, broken):
    root = tmp_path / "repository"
    root.mkdir()
    (tmp_path / "outside.md").write_text("exists\n")
    (root / "other.md").write_text("# The title, `2`\n\n## The title 2\n")
    (root / "this.md").write_text(f"# Here\n\n{link}\n")
    assert len(list(check.broken_links(root / "this.md", root))) == broken


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("## `moeplan estimate`\n## `moeplan data`\n### `moeplan data list`\n", []),
        ("## `moeplan estimate`\n", ["the command `moeplan data list` has no heading"]),
        (
            "## `moeplan estimate`\n## `moeplan data list`\n## `moeplan plan`\n",
            ["there is no command `moeplan plan`"],
        ),
        (
            "```\n## `moeplan estimate`\n```\n## `moeplan data list`\n",
            ["the command `moeplan estimate` has no heading"],
        ),
    ],
)
def test_each_command_has_one_heading(text, problems):
    found = list(check.misdocumented(text, {"moeplan estimate", "moeplan data list"}))
    assert len(found) == len(problems)
    assert all(problem in line for problem, line in zip(problems, found, strict=True))


def test_every_command_that_is_not_hidden_is_found():
    app, inner = typer.Typer(), typer.Typer()
    app.command("estimate")(lambda: None)
    app.command("secret", hidden=True)(lambda: None)
    inner.command("list")(lambda: None)
    inner.command("show")(lambda: None)
    app.add_typer(inner, name="data")
    expected = {"moeplan estimate", "moeplan data list", "moeplan data show"}
    assert check.command_names(app) == expected
