"""Instructions for workers: a TOML file with a name, a version, and a prompt for each language of documents.

name = "native alignment"
version = 1
[prompts]                # en, ar, ..., and `default` for languages that have none
en = "Rewrite ... {guidelines} ... {text}"
[guidelines.en]          # lines that stand for {guidelines}; people who review are shown them too
format = "..."
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allam_jax.errors import UserError, nearest
from allam_jax.files import Keys, check_shape, sha256_of_json

_TEXT, _GUIDELINES = "{text}", "{guidelines}"
_DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What a model is asked about a text.

    Attributes:
        name, version: of the file, for the provenance.
        prompts: language -> prompt, in which {text} stands for the text.
    """

    name: str
    version: int
    prompts: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """A hash of everything that a model reads."""
        return sha256_of_json([self.name, self.version, dict(self.prompts)])

    def messages(self, text: str, *, language: str) -> list[dict[str, str]]:
        """The conversation whose next reply is the rewritten text; UserError for a language without prompt."""
        prompt = self.prompts.get(language) or self.prompts.get(_DEFAULT)
        if prompt is None:
            raise UserError(
                f"the instruction {self.name!r} has no prompt for documents in {language!r}; "
                f"{nearest(language, self.prompts)}, or add one, or one called {_DEFAULT!r}"
            )
        before, _, after = prompt.partition(_TEXT)
        return [{"role": "user", "content": f"{before}{text}{after}"}]


def read_instruction(path: str) -> Instruction:
    """The instruction of a file; UserError that names the file and what is wrong with it."""
    values = _read(path, keys={"name": str, "version": int, "prompts": dict})
    guidelines = values.get("guidelines", {})
    prompts = {
        language: _with_guidelines(prompt, guidelines.get(language, {}), where=f"{path}: prompts.{language}")
        for language, prompt in values["prompts"].items()
    }
    if not prompts:
        raise UserError(f"{path}: has no prompts; give one for each language of documents")
    return Instruction(values["name"], values["version"], prompts)


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


def _with_guidelines(prompt: Any, guidelines: Mapping[str, str], *, where: str) -> str:
    if not isinstance(prompt, str) or prompt.count(_TEXT) != 1:
        raise UserError(f"{where}: expected a text with {_TEXT} once, where the document's text comes")
    if _GUIDELINES in prompt and not guidelines:
        raise UserError(f"{where}: names {_GUIDELINES}, but the file has none for this language")
    return prompt.strip().replace(_GUIDELINES, "\n".join(f"- {line}" for line in guidelines.values()))
