"""Marks of direction: with them every line runs as the answer does, by the rule for paragraphs of UAX 9."""

import unicodedata

import pytest

from allam_jax.generation.terminal_text import DirectedLines, printable

LINES = {
    "rtl": "مرحبا!\nGPT هو نموذج\n1. أولا\n- JAX مكتبة\n\n   \n٣ أشياء\n(Python) لغة",
    "ltr": "Hello\nمرحبا is a word\n* نقطة\nplain",
    "neutral": "123\n---\n",
}


def paragraph_level(line):
    """Rules P2 and P3 of UAX 9: the first strong character decides."""
    found = (unicodedata.bidirectional(character) for character in line)
    return next((0 if kind == "L" else 1 for kind in found if kind in ("L", "R", "AL")), None)


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_every_line_runs_as_the_first(name, size):
    text, lines = LINES[name], DirectedLines()
    pieces = [lines.push(text[at : at + size]) for at in range(0, len(text), size)]
    shown = "".join([*pieces, lines.flush()])
    assert shown.replace("\u200f", "").replace("\u200e", "") == text
    levels = {paragraph_level(line) for line in shown.split("\n")} - {None}
    assert levels == {"rtl": {1}, "ltr": {0}, "neutral": set()}[name]
    marked = [line[:1] for line in shown.split("\n") if line[:1] in ("\u200e", "\u200f")]
    assert len(marked) == {"rtl": 3, "ltr": 2, "neutral": 0}[name]  # only where they are needed


def test_letters_are_not_held_back():
    lines = DirectedLines()
    assert lines.push("- ") == ""
    assert lines.push("ن") == "- ن"
    assert lines.push("ص 1") == "ص 1"


def test_a_model_cannot_command_the_terminal():
    assert printable("a\x1b[2Jb\x07\tc\n\x9bd") == "a\ufffd[2Jb\ufffd\tc\n\ufffdd"
