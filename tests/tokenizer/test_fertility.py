import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from tokenizer_helpers import Corpus, Merge, reference, sentencepiece_model

from allam_jax.errors import UserError
from allam_jax.tokenizer.fertility import fertility, fertility_table, plot_fertility


def test_counts_by_hand():
    tokenizer = sentencepiece_model({"▁ab": -1.0, "ab": -2.0, "▁": -3.0, "a": -4.0, "b": -5.0})
    # ▁ab ▁ab | ▁ab + two bytes of é; words are what white space parts.
    expected = {"tokens": 5, "words": 3, "bytes": 9, "tokens_per_word": 5 / 3, "tokens_per_byte": 5 / 9}
    assert fertility(tokenizer, ["ab ab", "abé"]) == expected


def test_ratios_are_sums_over_sums(languages: Merge, corpus: Corpus):
    table = fertility_table({"base": languages.base, "merged": languages.merged}, {"ar": iter(corpus.test["ar"])})
    lines = corpus.test["ar"]
    assert table["merged"]["ar"]["tokens"] == sum(map(len, reference(languages.merged).encode(lines)))
    assert table["base"]["ar"]["words"] == len(" ".join(lines).split())
    assert table["base"]["ar"]["tokens_per_word"] > 1.5 * table["merged"]["ar"]["tokens_per_word"] > 1.5


def test_no_words_is_an_error(mistral):
    with pytest.raises(UserError, match="no word"):
        fertility(mistral, [" ", ""])


def test_the_plot_has_a_bar_of_the_right_height_for_every_number(tmp_path):
    rows = {"base": (5.0, 1.0), "arabic": (2.0, 4.0), "merged": (2.0, 1.0)}
    table = {
        name: {domain: {"tokens_per_word": value} for domain, value in zip(("ar", "en"), values, strict=True)}
        for name, values in rows.items()
    }
    plot_fertility(table, tmp_path / "figures" / "fertility.png")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["fertility.png"]
    image = (matplotlib.image.imread(tmp_path / "figures" / "fertility.png")[..., :3] * 255).round().astype(int)
    heights = []
    for colour in ((0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73)):
        columns = np.all(image == colour, axis=-1).sum(axis=0)
        # Bars stand left of the legend; its patch is the last run of columns.
        runs = np.split(columns, np.flatnonzero(np.diff((columns > 0).astype(int))) + 1)
        heights.extend(int(run.max()) for run in runs if run.max() > 0 and len(run) > 5)
    bars = [heights[0], heights[1], heights[3], heights[4], heights[6], heights[7]]
    assert np.allclose(np.array(bars) / bars[0] * 5.0, [5.0, 1.0, 2.0, 4.0, 2.0, 1.0], atol=0.05)
    assert heights[2] < bars[1]  # the legend's patch


def test_importing_the_room_loads_no_plotting_nor_tokenizers_library():
    code = (
        "import sys; import allam_jax.tokenizer.fertility, allam_jax.tokenizer.train, allam_jax.tokenizer.merge;"
        "print([name for name in ('matplotlib', 'tokenizers', 'transformers', 'jax', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
