"""Text of two directions on a terminal.

A terminal that knows the bidirectional algorithm takes the direction of each line from the first letter in it. That is
wrong for a line of an Arabic answer that begins with a Latin word. A mark in front (U+200F or U+200E, of no width) sets
it right. Terminals that join and order letters themselves need nothing else, and others ignore the mark.
"""

import unicodedata

RIGHT_TO_LEFT, LEFT_TO_RIGHT = "\u200f", "\u200e"
# DECSET 2501 of "BiDi in Terminal Emulators": the direction of a line is found in its text.
FIND_DIRECTION, KEEP_DIRECTION = "\x1b[?2501h", "\x1b[?2501l"
_MARK_OF = {"L": LEFT_TO_RIGHT, "R": RIGHT_TO_LEFT, "AL": RIGHT_TO_LEFT}  # by the bidirectional class of a letter


class DirectedLines:
    """Puts marks into a text that comes in pieces: its lines all run as its first letter does."""

    def __init__(self) -> None:
        self._direction = ""  # the mark of the whole text, once a letter has come
        self._held: str | None = ""  # the start of a line before its first letter; None behind that

    def push(self, text: str) -> str:
        """The next piece with marks. Line starts without a letter, such as a bullet, are held back."""
        out = []
        for character in text:
            if self._held is None:
                out.append(character)
            elif (mark := _MARK_OF.get(unicodedata.bidirectional(character))) is not None:
                self._direction = self._direction or mark
                out.append(("" if mark == self._direction else self._direction) + self._held + character)
                self._held = None
            else:
                self._held += character
            if character == "\n":
                out.append(self._held or "")
                self._held = ""
        return "".join(out)

    def flush(self) -> str:
        """What was held back."""
        held, self._held = self._held or "", ""
        return held


def printable(text: str) -> str:
    """The text without what commands a terminal, such as escape sequences that a model may write."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)
