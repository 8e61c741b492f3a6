"""Instructions for workers: a TOML file with a name, a version, and a prompt for each language of documents.

name = "native alignment"
version = 1
[prompts]                # en, ar, ..., and `default` for languages that have none
en = "Rewrite ... {guidelines} ... {text}"
[guidelines.en]          # lines that stand for {guidelines}; people who review are shown them too
format = "..."
[glossary]               # stands for {glossary} where terms of a glossary occur; they stand for {terms}
en = "..."
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allam_jax.errors import UserError, nearest
from allam_jax.files import Keys, check_shape, sha256_of_json

_TEXT, _GUIDELINES, _GLOSSARY, _TERMS = "{text}", "{guidelines}", "{glossary}", "{terms}"
_DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What a model is asked about a text.

    Attributes:
        name, version: of the file, for the provenance.
        prompts: language -> prompt, in which names in braces stand for texts.
        glossaries: language -> what the prompt says of terms, in which {terms} stands for them.
    """

    name: str
    version: int
    prompts: Mapping[str, str]
    glossaries: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that a model reads."""
        glossaries = [dict(self.glossaries)] if self.glossaries else []
        return sha256_of_json([self.name, self.version, dict(self.prompts), *glossaries])

    def messages(self, text: str, *, language: str, terms: Sequence[tuple[str, str]] = ()) -> list[dict[str, str]]:
        """The conversation whose next reply is the rewritten text; UserError for a language without prompt.

        `terms`, each with its translation, are put where the prompt has {glossary}.
        """
        glossary = ""
        if terms:
            lines = "\n".join(f"- {source}: {target}" for source, target in terms)
            glossary = self._of(self.glossaries, language, what="glossary").replace(_TERMS, lines) + "\n"
        return self.filled({"text": text, "glossary": glossary}, language=language)

    def filled(self, texts: Mapping[str, str], *, language: str) -> list[dict[str, str]]:
        """The prompt with texts in place of their names, whatever is spelled inside of them."""
        places = "|".join(map(re.escape, texts))
        prompt = self._of(self.prompts, language, what="prompt")
        content = re.sub(rf"\{{({places})\}}", lambda match: texts[match[1]], prompt)
        return [{"role": "user", "content": content}]

    def _of(self, texts: Mapping[str, str], language: str, *, what: str) -> str:
        found = texts.get(language) or texts.get(_DEFAULT)
        if found is None:
            raise UserError(
                f"the instruction {self.name!r} has no {what} for documents in {language!r}; "
                f"{nearest(language, texts)}, or add one, or one called {_DEFAULT!r}"
            )
        return found


def read_instruction(path: str, *, places: Sequence[str] = (_TEXT,), glossary: bool = False) -> Instruction:
    """The instruction of a file.

    Args:
        path: of the TOML file.
        places: what stands for texts, each of which a prompt has once.
        glossary: whether prompts must also have a place for terms.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    values = _read(path, keys={"name": str, "version": int, "prompts": dict})
    guidelines, glossaries = values.get("guidelines", {}), values.get("glossary", {})
    prompts = {
        language: _with_guidelines(
            prompt, guidelines.get(language, {}), places=places, where=f"{path}: prompts.{language}"
        )
        for language, prompt in values["prompts"].items()
    }
    if not prompts:
        raise UserError(f"{path}: has no prompts; give one for each language of documents")
    if bad := [name for name, text in glossaries.items() if not isinstance(text, str) or text.count(_TERMS) != 1]:
        raise UserError(f"{path}: glossary.{bad[0]}: expected a text with {_TERMS} once, where terms come")
    if glossary and not all(prompt.count(_GLOSSARY) == 1 for prompt in prompts.values()):
        raise UserError(
            f"{path}: a prompt lacks {_GLOSSARY}, where terms come; add it, and a text under [glossary], as in "
            "configs/instructions/translate.toml"
        )
    return Instruction(values["name"], values["version"], prompts, glossaries)


@dataclasses.dataclass(frozen=True)
class Guidelines:
    """The guidelines of a file: language -> name of a rule -> what it says."""

    name: str
    version: int
    rules: Mapping[str, Mapping[str, str]]

    def names(self) -> list[str]:
        """The names of all rules, in their order."""
        return list(dict.fromkeys(name for rules in self.rules.values() for name in rules))


def read_guidelines(path: str) -> Guidelines:
    """The guidelines of an instruction, or of a file that has nothing else; UserError for a file without."""
    values = _read(path, keys={"name": str, "version": int, "guidelines": dict})
    for language, rules in values["guidelines"].items():
        if not isinstance(rules, dict) or not rules or not all(isinstance(text, str) for text in rules.values()):
            raise UserError(f'{path}: guidelines.{language}: expected lines such as format = "..."')
    if not values["guidelines"]:
        raise UserError(f"{path}: has no guidelines; give some for each language, under [guidelines.en]")
    return Guidelines(values["name"], values["version"], values["guidelines"])


def _read(path: str, *, keys: Keys) -> dict[str, Any]:
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"{path}: cannot read the instruction ({error}); copy configs/instructions/rewrite.toml"
        ) from None
    check_shape(values, kind=dict, keys=keys, where=path)
    return values


def _with_guidelines(prompt: Any, guidelines: Mapping[str, str], *, places: Sequence[str], where: str) -> str:
    if not isinstance(prompt, str) or not all(prompt.count(place) == 1 for place in places):
        raise UserError(f"{where}: expected a text with {' and '.join(places)} once, where a document's text comes")
    if _GUIDELINES in prompt and not guidelines:
        raise UserError(f"{where}: names {_GUIDELINES}, but the file has none for this language")
    return prompt.strip().replace(_GUIDELINES, "\n".join(f"- {line}" for line in guidelines.values()))
