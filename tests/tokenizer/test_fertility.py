import subprocess
import sys

import pytest
from tokenizer_helpers import Corpus, Merge, reference, sentencepiece_model

from allam_jax.errors import UserError
from allam_jax.tokenizer.fertility import fertility, fertility_table


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


def test_importing_the_room_loads_no_plotting_nor_tokenizers_library():
    code = (
        "import sys; from allam_jax.tokenizer import fertility, sentencepiece_training, piece_merge;"
        "print([name for name in ('matplotlib', 'tokenizers', 'transformers', 'jax', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
