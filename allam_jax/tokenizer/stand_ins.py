"""Private characters that stand for those of messages while a template is rendered; see `chat_template.py`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_PRIVATE = range(0xF0000, 0xFFFFE)  # a private plane of Unicode


class StandIns:
    """Private characters, each for one character of the messages. They occur neither in these nor in the template."""

    def __init__(self, given: Mapping[str, Any], *, taken: str):
        texts = [taken, *_strings(given)]
        used, spelled = set().union(*texts), "\n".join(texts)
        self._free = (chr(code) for code in _PRIVATE if chr(code) not in used and f"{code:08x}" not in spelled)
        self._of: dict[str, str] = {}

    @property
    def meaning(self) -> dict[str, str]:
        """Stand-in -> character."""
        return {stand_in: character for character, stand_in in self._of.items()}

    def reserve(self) -> str:
        """A private character for another use."""
        return next(self._free)

    def replaced(self, text: str, characters: Iterable[str]) -> str:
        """The text with stand-ins for these characters, but for those that `borders_of` leaves out."""
        for character in {c for c in characters if _can_stand(c)} & set(text):
            if character not in self._of:
                self._of[character] = self.reserve()
            text = text.replace(character, self._of[character])
        return text

    def unescaped(self, text: str) -> str:
        """The text with the stand-ins that Python has written as escapes, inside of lists and dictionaries."""
        for stand_in in self._of.values():
            text = text.replace(repr(stand_in)[1:-1], stand_in)
        return text

    def restored(self, text: str) -> str:
        """The text with the characters for their stand-ins."""
        return text.translate({ord(own): character for own, character in self.meaning.items()}) if self._of else text


def _can_stand(character: str) -> bool:
    """Not white space, which templates strip, and not what JSON escapes."""
    return not character.isspace() and character >= " " and character not in '"\\'


def borders_of(token: str) -> Sequence[str]:
    """The first and the last character of a control token that a stand-in can replace."""
    found = [character for character in token if _can_stand(character)]
    return (found[0], found[-1]) if found else ()


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def without_marks(text: str, start: str, end: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text without the marks of generation, and the places between them."""
    spans, opened, kept, length = [], list[int](), list[str](), 0
    for piece in re.split(f"([{start}{end}])", text):
        if piece == start:
            opened.append(length)
        elif piece == end:
            spans.append((opened.pop(), length))
        else:
            kept.append(piece)
            length += len(piece)
    return "".join(kept), tuple(sorted(spans))
