"""Text of ids as they come, and where it stops."""

from collections.abc import Sequence

from allam_jax.tokenizer.tokenizer import Tokenizer

CONTEXT = 8  # ids in front of new ones, so that they are decoded as they are in the middle of a text
HALF_CHARACTER = "\ufffd"
MOST_HALVES = 3  # bytes that a character of UTF-8 can have before it is whole


class Detokenizer:
    """The text that ids add to a prompt, one id after the other.

    Together the pieces are what the ids add to the decoded prompt: a leading space stays, and no piece ends within a
    character. The text of special tokens is left out.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]):
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the last ids, without bytes of which no character came
        self._bytes: list[int] = []  # the first bytes of a character
        self._given = 0  # characters of the window's text
        for index in prompt_ids[-CONTEXT:]:
            self.push(index)

    def push(self, index: int) -> str:
        """What can be said of the text now."""
        if self._is_known(index) and self._tokenizer.is_fallback_byte(index):
            self._bytes.append(index)
            return self._characters()
        return self._broken() + self._pushed(index)

    def _characters(self) -> str:
        """Takes a character of the waiting bytes. One byte that is wrong makes decoders forget those before it."""
        broken = ""
        while self._bytes:
            try:
                character = b"".join(map(self._tokenizer.token_bytes, self._bytes)).decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    break
                del self._bytes[0]
                broken += HALF_CHARACTER
            else:
                self._window += self._bytes
                self._bytes.clear()
                self._given = len(self._text())
                return broken + character
        return broken

    def _broken(self) -> str:
        broken = HALF_CHARACTER * len(self._bytes)
        self._bytes.clear()
        return broken

    def _pushed(self, index: int) -> str:
        self._window.append(index)
        text = self._text()
        end = _whole_characters(text)
        new, self._given = text[self._given : end], max(self._given, end)
        if end == len(text) and len(self._window) > 4 * CONTEXT:
            del self._window[:-CONTEXT]
            self._given = len(self._text())
        return new

    def flush(self) -> str:
        """What was held back: the start of a character that never became whole, as U+FFFD."""
        text = self._text()
        new, self._given = text[self._given :], len(text)
        return new + self._broken()

    def _text(self) -> str:
        return self._tokenizer.decode(list(filter(self._is_known, self._window)), skip_special=True)

    def _is_known(self, index: int) -> bool:
        """A model may have more rows than its tokenizer has ids; those stand for no text."""
        return index < self._tokenizer.vocab_size


def _whole_characters(text: str) -> int:
    """The length of the text without what may yet become a character."""
    return max(len(text.rstrip(HALF_CHARACTER)), len(text) - MOST_HALVES)


class StopTexts:
    """Ends a text before the first of some strings, and holds back what may become one of them."""

    def __init__(self, texts: Sequence[str]):
        self._texts = texts
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What can be given of the text now, and whether it has ended."""
        text = self._held + text
        found = [start for stop in self._texts if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((_overlap(text, stop) for stop in self._texts), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """What was held back in vain."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
