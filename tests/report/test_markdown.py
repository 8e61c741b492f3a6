"""Numbers, tables and links as a report shows them."""

import re
from pathlib import Path

import markdown_it
import pytest

from allam_jax.report import markdown


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.0, "0"),
        (7690, "7,690"),
        (1.3684999, "1.368"),
        (2.0, "2.000"),
        (999.96, "1,000"),
        (1234.6, "1,235"),
        (123_456.7, "123,457"),
        (0.02, "0.02000"),
        (3e-5, "3e-05"),
        (-0.5, "-0.5000"),
        (12_345_678.0, "12,345,678"),
        (1.5e20, "1.5e+20"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (True, "True"),
        ("as it is", "as it is"),
    ],
)
def test_numbers(value, text):
    assert markdown.number(value) == text


def test_table_keeps_its_shape_whatever_is_in_it():
    rows = [{"name": "a|b\nc", "value": 1.0}, {"name": "d"}]
    lines = markdown.table(rows, {"name": "Name", "value": "Value"}).splitlines()
    assert [cells(line) for line in lines] == [
        ["Name", "Value"],
        ["---", "---:"],  # text to the left, numbers to the right
        [r"a\|b c", "1.000"],
        ["d", "–"],
    ]


HOSTILE = (
    "<script>alert(1)</script><img src=http://x.example/a.png>",
    "![a](http://x.example/b.png) [text](javascript:x) [ref]: http://x.example",
    "<!-- a comment without an end",
    "`code` ``` ~~~ **bold** __bold__ $x^2$ a@b.example www.x.example https://x.example",
    "\u202eright to left\u2066 \x00\x1b[31m \ud800",
    "| a | b |\n|---|---|\r\n# heading",
    "&lt;script&gt;",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_is_shown_and_does_nothing(text):
    """A real parser finds text and nothing else, and the text is the one that was given."""
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for block, kinds in (
        (markdown.quote(text), ["blockquote_open", "paragraph_open", "inline", "paragraph_close", "blockquote_close"]),
        (markdown.table([{"a": text}]), None),
    ):
        tokens = parser.parse(block)
        inlines = [token for token in tokens if token.type == "inline"]
        assert kinds is None or [token.type for token in tokens] == kinds
        assert kinds or [token.type for token in tokens].count("td_open") == 1
        shown = "".join(child.content for child in inlines[-1].children)
        assert {child.type for child in inlines[-1].children} <= {"text", "text_special"}
        hidden = re.sub("⟨U\\+([0-9A-F]+)⟩", lambda match: chr(int(match[1], 16)), shown)
        assert hidden == " ".join(text.split())
        assert not re.search(r"(?<!\\)://|www\.|(?<!\\)@", block)  # which GitHub makes links of
        assert not re.search("[\u202a-\u202e\u2066-\u2069\ud800-\udfff\x00]", block)


def test_a_fence_is_longer_than_those_inside():
    assert markdown.code("a\n```\nb") == "````\na\n```\nb\n````"


def test_columns_may_be_keys():
    assert markdown.table([{"b": 1, "a": 2}], ["a", "b"]).splitlines()[0] == "| a | b |"


def test_figure_links_are_relative_to_the_report():
    block = markdown.figure(Path("/w/stage one/figures/x.png"), caption="A [1] curve.", report=Path("/w/report.md"))
    assert block == "![A (1) curve.](stage%20one/figures/x.png)\n\n*A [1] curve.*"


def test_sections_are_apart():
    assert markdown.section("Title", "one\n", "two", level=3) == "### Title\n\none\n\ntwo"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (59.97, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_durations(seconds, text):
    assert markdown.duration(seconds) == text
