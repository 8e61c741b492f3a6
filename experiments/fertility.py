"""The tokens per word before and after merging an Arabic tokenizer into the base's (ALLaM paper, Figure 1).

    python run.py --sweep experiments/fertility.py --jobs 2

The claims: after the merge, the base's tokenizer needs as many tokens per Arabic word as a tokenizer trained on Arabic
alone, and as many as before on English and code. The talk: 230 billion words of Arabic are 1.2T tokens in Llama-2's
vocabulary and 308B in ALLaM's, 3.9 times fewer.

Arabic tokenizers of 512 to 4,096 pieces are merged into an English base of 2,048, whose training text has 2 % Arabic,
as Llama-2's had. A seed selects another division of the documents into training and held-out text. Fertility is the
number of tokens over the number of words between white space, on held-out text. The tokens of a corpus of 230 billion
words are that number times the tokens per word of the text here, which is modern Arabic commentary without vowel marks.

Laptop: 12 runs of tokenizers, half a minute on two cores. Paper (`:paper`): 8,000 to 64,000 pieces; give a recipe of
your own with the stages of configs/tiny.py and your base's tokenizer, as `--config FILE`.
"""

from allam_jax.ablation.claims import Claim
from allam_jax.ablation.experiment import Experiment
from allam_jax.ablation.figures import Against, Together
from allam_jax.ablation.measures import Measure, computed, result
from allam_jax.ablation.vary import grid, param, seeds
from experiments.settings import ARABIC, CODE, ENGLISH, setting

SIZES = {"laptop": (512, 1024, 2048, 4096), "paper": (8_000, 16_000, 32_000, 64_000)}
DEFAULT = {"laptop": 2048, "paper": 32_000}  # the size at which the claims are judged
KINDS = {"ar": ARABIC, "en": ENGLISH, "code": CODE}
TOKENIZERS = {"base": "base", "arabic": "Arabic only", "merged": "merged"}
WORDS = 230e9  # in the talk's Arabic corpus
STAGE = "merged_tokenizer"
PER_WORD = "tokens/word"


def get_experiment(scale: str = "laptop") -> Experiment:
    """The experiment at a `scale`: laptop or paper."""
    here = setting(scale)
    at = {"pieces": DEFAULT[here.scale]}
    return Experiment(
        title="Fertility of merged tokenizers",
        claim="A merged tokenizer needs as few tokens for Arabic as one trained on Arabic alone, and as many as the "
        "base for everything else (ALLaM paper, section 2.2, Figure 1; the talk).",
        config="configs/tiny.py",
        vary=grid(
            param("stage.arabic_tokenizer.tokenizer_training.vocab_size", *SIZES[here.scale], name="pieces"),
            seeds(0, 1, 2, keys=("stage.corpus.seed",)),
        ),
        measures=(*_fertilities(), *_differences(), *_corpus()),
        figures=(
            Together(
                name="fertility",
                panels={
                    title: tuple(f"{tokenizer}_{kind}" for tokenizer in TOKENIZERS) for kind, title in KINDS.items()
                },
                lines=tuple(TOKENIZERS.values()),
                lines_title="tokenizer",
                x="pieces",
                x_label="Pieces of the Arabic tokenizer",
                log_x=True,
                caption="Fertility (tokens per word) of the base, the Arabic and the merged tokenizer, held out.",
            ),
            Against(
                name="corpus",
                measures=("corpus", "saving"),
                x="pieces",
                x_label="Pieces of the Arabic tokenizer",
                log_x=True,
                from_zero=True,
                caption="Tokens of an Arabic corpus of 230 billion words with the merged tokenizer, and the ratio of "
                "the base's tokens to them.",
            ),
        ),
        claims=(
            Claim(text="on Arabic the merged tokenizer is within 0.02 tokens/word of the Arabic one",
                  measure="difference_ar", of=at, than=0.0, expect="equal", margin=0.02),
            Claim(text="on English it is within 0.02 tokens/word of the base", measure="difference_en", of=at, than=0.0,
                  expect="equal", margin=0.02),
            Claim(text="on code it is within 0.02 tokens/word of the base", measure="difference_code", of=at, than=0.0,
                  expect="equal", margin=0.02),
            Claim(text="an Arabic corpus has fewer tokens than with the base", measure="saving", of=at, than=1.0,
                  expect="higher"),
        ),
    )  # fmt: skip


def _fertilities() -> tuple[Measure, ...]:
    return tuple(
        result(f"{tokenizer}_{kind}", path=_path(tokenizer, kind), stage=STAGE, title=f"{title}, {name}", unit=PER_WORD)
        for kind, title in KINDS.items()
        for tokenizer, name in TOKENIZERS.items()
    )


def _differences() -> tuple[Measure, ...]:
    """The difference of the merged tokenizer to the tokenizer that it should equal, on each kind of text."""
    return tuple(
        _combined(f"difference_{kind}", lambda a, b: a - b, kind=kind, to=to, unit=PER_WORD,
                  title=f"{KINDS[kind]}: merged minus {TOKENIZERS[to]}")
        for kind, to in (("ar", "arabic"), ("en", "base"), ("code", "base"))
    )  # fmt: skip


def _corpus() -> tuple[Measure, ...]:
    return (
        _combined("corpus_base", lambda merged, base: WORDS * base / 1e9, kind="ar", to="base", unit="billion tokens",
                  title="230 billion words, base"),
        _combined("corpus", lambda merged, base: WORDS * merged / 1e9, kind="ar", to="base", unit="billion tokens",
                  title="230 billion words, merged"),
        _combined("saving", lambda merged, base: base / merged, kind="ar", to="base", unit="times",
                  title="Arabic tokens, base over merged"),
    )  # fmt: skip


def _combined(name, function, *, kind: str, to: str, title: str, unit: str) -> Measure:
    """A measure: `function` of the tokens per word of the merged tokenizer and of `to`, on one kind of text."""
    merged, other = (result("", path=_path(tokenizer, kind), stage=STAGE, title="") for tokenizer in ("merged", to))
    return computed(
        name, lambda folders: function(merged.read(folders), other.read(folders)), stages=(STAGE,), title=title,
        unit=unit,
    )  # fmt: skip


def _path(tokenizer: str, kind: str) -> str:
    return f"fertility/{tokenizer}/{kind}/tokens_per_word"
