"""Texts that the recipe of the tests is trained on, and a sweep that nothing interrupted."""

import numpy as np
import pytest
from sweeper import Sweeper

LETTERS = {"en": "abcdefghij", "ar": "ابتثجحخدذر"}


@pytest.fixture(scope="session")
def sweeper(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweeper")
    (root / "text").mkdir()
    rng = np.random.default_rng(0)
    for language, letters in LETTERS.items():
        words = ["".join(rng.choice(list(letters), size=rng.integers(2, 6))) for _ in range(60)]
        lines = [" ".join(rng.choice(words, size=rng.integers(5, 60))) for _ in range(300)]
        (root / "text" / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Sweeper(root, root / "compiled")


@pytest.fixture(scope="session")
def finished(sweeper, tmp_path_factory):
    """The workdir of a sweep that nothing interrupted, and what it printed."""
    workdir = tmp_path_factory.mktemp("finished") / "sweep"
    out, err = sweeper.run(workdir, "--jobs=2")
    return workdir, out, err
