"""Instructions for workers: a TOML file with a name, a version, and a prompt for each language of documents.

name = "native alignment"
version = 1
[prompts]                # en, ar, ..., and `default` for languages that have none
en = "Rewrite ... {guidelines} ... {text}"
[guidelines.en]          # lines that stand for {guidelines}
format = "..."
"""

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allam_jax.errors import UserError, nearest
from allam_jax.files import check_shape, sha256_of_json

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
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"{path}: cannot read the instruction ({error}); copy configs/instructions/rewrite.toml"
        ) from None
    check_shape(values, kind=dict, keys={"name": str, "version": int, "prompts": dict}, where=path)
    guidelines = values.get("guidelines", {})
    prompts = {
        language: _with_guidelines(prompt, guidelines.get(language, {}), where=f"{path}: prompts.{language}")
        for language, prompt in values["prompts"].items()
    }
    if not prompts:
        raise UserError(f"{path}: has no prompts; give one for each language of documents")
    return Instruction(values["name"], values["version"], prompts)


def _with_guidelines(prompt: Any, guidelines: Mapping[str, str], *, where: str) -> str:
    if not isinstance(prompt, str) or prompt.count(_TEXT) != 1:
        raise UserError(f"{where}: expected a text with {_TEXT} once, where the document's text comes")
    if _GUIDELINES in prompt and not guidelines:
        raise UserError(f"{where}: names {_GUIDELINES}, but the file has none for this language")
    return prompt.strip().replace(_GUIDELINES, "\n".join(f"- {line}" for line in guidelines.values()))
