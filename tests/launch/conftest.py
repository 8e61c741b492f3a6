"""Texts that the recipe of the tests is trained on, and a sweep that nothing interrupted."""

import numpy as np
import pytest
from processes import made_once
from sweeper import Sweeper

LETTERS = {"en": "abcdefghij", "ar": "ابتثجحخدذر"}


@pytest.fixture(scope="session")
def sweeper(tmp_path_factory):
    with made_once(tmp_path_factory, "sweeper") as (root, empty):
        if empty:
            write_texts(root / "text")
    return Sweeper(root, root / "compiled")


def write_texts(folder):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for language, letters in LETTERS.items():
        words = ["".join(rng.choice(list(letters), size=rng.integers(2, 6))) for _ in range(60)]
        lines = [" ".join(rng.choice(words, size=rng.integers(5, 60))) for _ in range(300)]
        (folder / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def finished(sweeper, tmp_path_factory):
    """The workdir of a sweep that nothing interrupted, and what it printed."""
    with made_once(tmp_path_factory, "finished") as (folder, empty):
        if empty:
            for name, text in zip(("out", "err"), sweeper.run(folder / "sweep", "--jobs=2"), strict=True):
                (folder / name).write_text(text)
    return folder / "sweep", (folder / "out").read_text(), (folder / "err").read_text()
