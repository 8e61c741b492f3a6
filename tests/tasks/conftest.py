"""A corpus, a tokenizer and a finished run that the tests of tasks share."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from launcher import Launcher
from processes import made_once

from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import write_dataset
from allam_jax.tasks import setup
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece

# Both sides of a pair have to fit in a row of 32 tokens.
SHORT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}:{% endif %}{% endfor %}"
)
LETTERS = {"en": "abcdefghij", "ar": "ابتثجحخدذر"}


def make_texts(language: str, *, count: int) -> list[str]:
    """Texts of random words out of a small vocabulary."""
    rng = np.random.default_rng(len(language) + ord(language[0]))
    letters = list(LETTERS[language])
    words = ["".join(rng.choice(letters, size=rng.integers(2, 6))) for _ in range(60)]
    return [" ".join(rng.choice(words, size=rng.integers(5, 60))) for _ in range(count)]


def fill(root: Path) -> None:
    """Writes texts, their datasets and a tokenizer into `root`."""
    texts = {language: make_texts(language, count=300) for language in LETTERS}
    (root / "text").mkdir()
    for language, some in texts.items():
        (root / "text" / f"{language}.txt").write_text("\n".join(some) + "\n", encoding="utf-8")
        write_dataset(
            (Document(text=text, id=str(i), source=language, language=language) for i, text in enumerate(some)),
            directory=root / "corpus" / language,
            name=language,
            validation_share=0.05,
        )
    words = [text.split()[:4] for text in texts["en"][:40]]
    chats = [{"instruction": " ".join(each[:2]), "output": each[2]} for each in words]
    pairs = [{"prompt": each[0], "chosen": each[2][:2], "rejected": each[3][:1]} for each in words]
    questions = [{"question": each[0], "A": each[1], "B": each[2], "answer": "B"} for each in words]
    for name, records in (("chats", chats), ("pairs", pairs), ("questions", questions)):
        (root / "text" / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (root / "text" / "short.jinja").write_text(SHORT_TEMPLATE)
    train_sentencepiece((text for some in texts.values() for text in some), output=root / "tokenizer", vocab_size=384)


@pytest.fixture(scope="session")
def launcher(tmp_path_factory):
    """See Launcher."""
    with made_once(tmp_path_factory, "tiny") as (root, empty):
        if empty:
            fill(root)
    return Launcher(root, root / "compilation_cache")


@pytest.fixture(scope="module")
def one_device():
    """Tasks that run in this process compile for one device of the eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "make_mesh", functools.partial(setup.make_mesh, devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="session")
def reference(launcher, tmp_path_factory):
    """Workdir of the run of tiny.py that nothing interrupted."""
    with made_once(tmp_path_factory, "reference") as (workdir, empty):
        if empty:
            launcher.train(workdir)
    return workdir
