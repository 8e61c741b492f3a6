"""The code in the answer of a chat: fenced as in Markdown, among text, drafts and commands of a shell."""

import re
import textwrap
from collections.abc import Sequence

_THOUGHT_END = "</think>"
# A fence alone on its line, or behind text, as models write it.
_OPENS = re.compile(r"([ \t]*)(?:(`{3,}|~{3,})[^`]*|[^`]*[^`\s][ \t]*(`{3,})[ \t]*(?:python|py)?3?[ \t]*)", re.I)
_DEEPEST = 3  # columns that the end of a block may stand farther in than its beginning, as in CommonMark


def code_of_answer(answer: str, *, name: str) -> str:
    """The first block of code that defines `name`; or else the first block; or the answer, where it has none.

    What a model has thought aloud before its answer is no part of it. Where an answer goes on from a fence that was
    asked for, what comes before its first fence is a block too.
    """
    before, blocks = code_blocks(answer.rpartition(_THOUGHT_END)[2].replace("\r\n", "\n"))
    for block in (*blocks, before):
        for code in (block, textwrap.dedent(block)):
            if defines(code, name):
                return code
    return blocks[0] if blocks else before


def defines(code: str, name: str) -> bool:
    """Whether code gives a name a function, or another value, at the margin."""
    name = re.escape(name)
    return bool(re.search(rf"^(?:(?:async )?def {name}\b|{name}[ \t]*(?::[^=\n]+)?=[^=])", code, re.M))


def code_blocks(text: str) -> tuple[str, list[str]]:
    """What comes before the first block of code, and the blocks, the last of which may lack its end."""
    lines = text.split("\n")
    blocks: list[str] = []
    place = first = next((n for n, line in enumerate(lines) if _OPENS.fullmatch(line)), len(lines))
    while place < len(lines):
        if opened := _OPENS.fullmatch(lines[place]):
            indent, sign = opened[1], opened[2] or opened[3]
            inside, taken = _until(lines[place + 1 :], sign=sign, indent=indent)
            # A block in a list stands farther in, with all its lines.
            blocks.append("".join(f"{line.removeprefix(indent)}\n" for line in inside))
            place += taken
        place += 1
    return "\n".join(lines[:first]), blocks


def _until(lines: Sequence[str], *, sign: str, indent: str) -> tuple[Sequence[str], int]:
    """The lines before the end of a block that begins so, and how many lines it has with its end.

    As in CommonMark the end is a fence of the same kind, as long or longer. One that stands farther in is inside of a
    docstring, unless there is no other. One behind code ends a block too.
    """
    ends = re.compile(rf"([ \t]*)([^`~]*){re.escape(sign)}{sign[0]}*[ \t]*")
    found = [(place, ended) for place, line in enumerate(lines) if (ended := ends.fullmatch(line))]
    near = [(place, ended) for place, ended in found if ended[2] or len(ended[1]) <= len(indent) + _DEEPEST]
    for place, ended in (near or found)[:1]:
        return [*lines[:place], *([ended[1] + ended[2]] if ended[2] else [])], place + 1
    return lines, len(lines)
