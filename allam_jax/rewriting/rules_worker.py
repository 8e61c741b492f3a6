"""Cleaning by rules alone, as a backend of `over_rows`: what a model must do better.

Sentences of advertising and words of a block list go, and lines that break a sentence are joined. It is what
RefinedWeb's corrections of lines do, and knows no more than they.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from allam_jax.corpus.word_lists import bare_block_list
from allam_jax.corpus.words import bare_words, ends_sentence
from allam_jax.files import sha256_of_json
from allam_jax.generation.over_rows import Choice, RowAnswer
from allam_jax.generation.rows import Prompt
from allam_jax.rewriting.advertising import without_advertising

LANGUAGE = "language"  # the kept field of a prompt from which the rules know its language
_VERSION = 1
_LEAST_LINE = 20  # characters; shorter lines are headings or verses
_TOKEN = re.compile(r"\S+\s*")


class RulesBackend:
    """Answers a prompt, which is the bare text of a piece, with the cleaned text."""

    def __init__(self, block_lists: Mapping[str, str]):
        """`block_lists`: language -> file. UserError for one that cannot be read."""
        self._blocked = {language: bare_block_list(path) for language, path in block_lists.items()}

    def describe(self) -> dict[str, Any]:
        """The version of the rules and the lists."""
        lists = {language: sorted(map(list, entries)) for language, entries in self._blocked.items()}
        return {"rules": _VERSION, "block_lists": sha256_of_json(lists)}

    def answers(self, prompts: Iterable[Prompt]) -> Iterator[RowAnswer]:
        """See `over_rows.Backend`."""
        for prompt in prompts:
            assert isinstance(prompt.asked, str)
            text = cleaned(
                prompt.asked, language=prompt.kept[LANGUAGE], blocked=self._blocked.get(prompt.kept[LANGUAGE], ())
            )
            yield RowAnswer((Choice(text, "stop", 0),))


def cleaned(text: str, *, language: str, blocked: Iterable[tuple[str, ...]] = ()) -> str:
    """The text without sentences of advertising and without blocked words and phrases, its broken lines joined."""
    text = without_advertising(text, language=language)
    return _joined_lines(without_blocked(text, blocked)).strip()


def without_blocked(text: str, blocked: Iterable[tuple[str, ...]]) -> str:
    """The text without the phrases, each a tuple of `bare_words`, and without the white space behind them."""
    phrases = frozenset(blocked)
    if not phrases:
        return text
    longest = max(map(len, phrases))
    tokens = _TOKEN.findall(text)
    words = [" ".join(bare_words(token)) for token in tokens]
    kept, place = [text[: len(text) - len(text.lstrip())]], 0
    while place < len(tokens):
        size = next((n for n in range(longest, 0, -1) if tuple(words[place : place + n]) in phrases), 0)
        if not size:
            kept.append(tokens[place])
        place += size or 1
    return "".join(kept)


def _joined_lines(text: str) -> str:
    lines = text.split("\n")
    joined = lines[:1]
    for line in lines[1:]:
        before = joined[-1].rstrip()
        begins = line.lstrip()[:1]
        if len(before) >= _LEAST_LINE and not ends_sentence(before) and begins.isalpha() and not begins.isupper():
            joined[-1] = f"{before} {line.lstrip()}"
        else:
            joined.append(line)
    return "\n".join(joined)
