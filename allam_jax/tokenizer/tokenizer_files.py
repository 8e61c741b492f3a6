"""The files of a tokenizer, and whether they are as they were written."""

import fnmatch
from collections.abc import Mapping
from pathlib import Path

from allam_jax.checksums import find_list

GENERATION_FILE = "generation_config.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
MODEL_FILES = ("tokenizer.model", "tokenizer.json")
# Here and in transformers, with what the model says of its use. Other files are not read and not copied.
TOKENIZER_FILES = (
    *MODEL_FILES,
    SETTINGS_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    TEMPLATE_FILE,
    GENERATION_FILE,
    "vocab.json",
    "merges.txt",
)
MORE_TEMPLATES = "additional_chat_templates/*.jinja"  # those with names, as transformers 5 saves them
COPY_AGAIN = "copy the tokenizer again or make it anew (or remove files.json, if it was changed on purpose)"


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a directory, by its relative path, belongs to the tokenizer there."""
    return name in TOKENIZER_FILES or fnmatch.fnmatch(name, MORE_TEMPLATES)


def check_files(directory: Path, contents: Mapping[str, bytes] | None = None) -> None:
    """UserError for a file of the tokenizer in a directory that is not as the directory's list says.

    A directory without a list is another program's and is taken as it is; so is one whose list names no tokenizer.

    Args:
        directory: of the tokenizer.
        contents: name -> what has been read; None reads the files.
    """
    files = find_list(directory, remedy=COPY_AGAIN)
    if files is None or not set(MODEL_FILES) & files.files.keys():
        return
    files.check(remedy=COPY_AGAIN, reads=is_tokenizer_file)
    for name in sorted(filter(is_tokenizer_file, files.files)):
        if contents is None:
            files.read_bytes(name, remedy=COPY_AGAIN)
        else:
            files.compare(name, contents[name], remedy=COPY_AGAIN)
