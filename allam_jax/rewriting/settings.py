"""Settings of rewriting and translating documents, of damage to learn from, and of comparing corpora."""

from collections.abc import Mapping

from allam_jax.errors import UserError
from allam_jax.evaluation.settings import JudgeSamplingSettings
from allam_jax.generation.settings import TEMPLATE, EndpointSettings, SamplingSettings
from allam_jax.settings import Section, entries, nested, setting

ALL_CHECKS = (
    "finish",
    "scaffold",
    "refusal",
    "end",
    "length",
    "dropped",
    "numbers",
    "dates",
    "links",
    "quotations",
    "names",
    "language",
    "copied",
    "repetition",
    "glossary",
)
# In the order in which they are planted.
INSULTS = (INSULT, UNKNOWN_INSULT) = ("insult", "unknown_insult")
DAMAGE_KINDS = ("broken_lines", "inline_advertisement", *INSULTS, "advertisement", "boilerplate", "spam")
RANDOM, LOW_PERPLEXITY, HIGH_PERPLEXITY = CHOICES_OF_PAIRS = ("random", "low_perplexity", "high_perplexity")
_WITHIN_A_LANGUAGE = tuple(name for name in ALL_CHECKS if name != "glossary")
_ACROSS_LANGUAGES = tuple(name for name in ALL_CHECKS if name not in ("dropped", "quotations", "names"))


class CheckSettings(Section):
    """From where on a rewrite fails a check. Shares are 0 to 1."""

    names: tuple[str, ...] = setting(
        _WITHIN_A_LANGUAGE, "the checks that a rewrite must pass", choices=_WITHIN_A_LANGUAGE
    )
    least_length: float = setting(0.5, "letters, as a share of the original's without advertising", least=0)
    most_length: float = setting(1.5, "letters, as a share of the original's", above=0)
    most_dropped: float = setting(0.1, "share of the words that lie in passages without counterpart", least=0, most=1)
    most_lost_numbers: float = setting(0.0, "share of the numbers and dates that are gone", least=0, most=1)
    most_lost_names: float = setting(0.2, "share of the names that are gone", least=0, most=1)
    least_language: float = setting(0.5, "probability of the language, where the original has it", least=0, most=1)
    least_copied: float = setting(0.0, "share of word 5-grams that are the original's", least=0, most=1)
    most_copied: float = setting(1.0, "share of word 5-grams that are the original's", least=0, most=1)
    most_repetition: float = setting(0.1, "characters in repeated 5-grams, above the original's share", least=0, most=1)


class TranslationCheckSettings(CheckSettings):
    """The same for translations: nothing is copied, and words cannot be compared."""

    names: tuple[str, ...] = setting(
        _ACROSS_LANGUAGES, "the checks that a translation must pass", choices=_ACROSS_LANGUAGES
    )
    least_length: float = setting(0.4, "letters, as a share of the original's without advertising", least=0)
    most_length: float = setting(2.5, "letters, as a share of the original's", above=0)
    most_copied: float = setting(0.2, "share of word 5-grams that are the original's", least=0, most=1)


class RewriteSettings(SamplingSettings, name="rewrite"):
    """Documents through a model, piece by piece."""

    input: str = setting("", "dataset of documents, as the corpus task writes it", path="texts")
    split: str = setting("train", "split of the dataset")
    name: str = setting("", "name of the new dataset; empty: that of the input")
    documents: int = setting(0, "documents at most, from the first on; 0: all", least=0)
    parts: int = setting(
        1, "machines that share the documents, each in a workdir of its own; task join_rewrites joins them", least=1
    )
    part: int = setting(0, "which share this one takes, from 0", least=0)
    instruction: str = setting(
        "", "TOML file with the instruction in each language, such as configs/instructions/rewrite.toml", path="files"
    )
    worker: str = setting(
        "model", "model: init.weights or the endpoint; rules: cleaning without a model", choices=("model", "rules")
    )
    to_language: str = setting("", "language of the result; empty: the document's own")
    by_sentence: bool = setting(False, "every sentence is a piece, so that pieces of both texts are aligned sentences")
    piece_tokens: int = setting(
        512, "tokens of a piece at most: the tokenizer's, or a third of the bytes for an endpoint without one", least=1
    )
    keep: tuple[str, ...] = setting(("﴿[^﴿﴾]*﴾",), "regular expressions of passages that stay as they are")
    keep_sources: tuple[str, ...] = setting((), "documents of these sources, such as scripture, stay as they are")
    attempts: int = setting(1, "times that a piece is rewritten until it passes; above 1, sample", least=1, most=20)
    failed: str = setting(
        "keep",
        "a piece without a rewrite that passes: keep the original's text, drop the piece, or drop_document",
        choices=("keep", "drop", "drop_document"),
    )
    checks: CheckSettings = nested(CheckSettings, "what a rewrite must pass")
    common_words: str = setting(
        "", "file with a word a line: no names in Arabic; empty: words of two documents of the input", path="files"
    )
    block_lists: Mapping[str, str] = entries("LANGUAGE -> file of words that worker=rules removes", path="files")
    max_new_tokens: int = setting(1024, "tokens of a rewritten piece", least=1)
    template: str = setting("", TEMPLATE, path="template")
    shard_rows: int = setting(1000, "pieces of a file of answers", least=1)
    max_error_share: float = setting(0.1, "share of pieces without answer that ends the run", least=0, most=1)
    endpoint: EndpointSettings = nested(EndpointSettings, "a server that answers instead of init.weights")

    def check(self) -> None:
        """UserError for attempts that would all give the same text, and for a part that there is not."""
        if self.part >= self.parts:
            raise UserError(
                f"config.{self.section_name}.part = {self.part}: parts count from 0, and there are {self.parts} (parts)"
            )
        if self.attempts > 1 and self.temperature == 0:
            raise UserError(
                f"config.{self.section_name}.attempts = {self.attempts}: at temperature 0 all attempts give the same "
                "text; set a temperature, or attempts to 1"
            )


class TranslateSettings(RewriteSettings, name="translate", version=2):
    """The same machine with another instruction: sentence by sentence into another language."""

    glossary: str = setting(
        "", "file of lines TERM<tab>TRANSLATION, which the model is told; empty: none", path="files"
    )
    reference: str = setting("", "dataset of translations with the same ids, for chrF; empty: none", path="texts")
    reference_split: str = setting("train", "split of the reference")
    to_language: str = setting("ar", "language of the result")
    by_sentence: bool = setting(True, "every sentence is a piece, so that pieces of both texts are aligned sentences")
    checks: TranslationCheckSettings = nested(TranslationCheckSettings, "what a translation must pass")
    failed: str = setting(
        "drop_document",
        "a piece without a translation that passes: keep the original's text, drop the piece, or drop_document",
        choices=("keep", "drop", "drop_document"),
    )


class JoinSettings(Section, name="join_rewrites"):
    """The parts of one rewrite."""

    input: str = setting("", "directory whose folders are the workdirs of all parts", path="stage")


class DamageSettings(Section, name="damage", version=2):
    """Damage inside of documents, and the pairs from which a worker learns to undo it."""

    input: str = setting("", "dataset of clean documents in Arabic or English", path="texts")
    split: str = setting("train", "split of the dataset")
    name: str = setting("", "name of the damaged dataset; empty: that of the input")
    documents: int = setting(0, "documents at most, from the first on; 0: all", least=0)
    kinds: tuple[str, ...] = setting(DAMAGE_KINDS, "what is planted", choices=DAMAGE_KINDS)
    share: float = setting(0.4, "of the pieces, for each kind", least=0, most=1)
    block_lists: Mapping[str, str] = entries("LANGUAGE -> file of words from which insults are taken", path="files")
    known_words: float = setting(
        1.0, "share of their entries that rules may know; the others are planted as unknown_insult", least=0, most=1
    )
    piece_tokens: int = setting(256, "of a pair, as a third of its bytes", least=8)
    instruction: str = setting(
        "", "TOML file with the instruction of the pairs; that of the worker's later work", path="files"
    )


class AskedDocumentsSettings(Section):
    """Which documents a server is asked about."""

    documents: int = setting(200, "documents of each corpus at most, drawn by the seed", least=1)
    most_characters: int = setting(20_000, "longer documents are not asked about", least=1)
    shard_rows: int = setting(20, "answers of a file; so many are lost at most when a run is killed", least=1)
    endpoint: EndpointSettings = nested(EndpointSettings, "the server; without a url nothing is asked")


class RubricSettings(AskedDocumentsSettings):
    """A judge that grades documents before and after."""

    instruction: str = setting(
        "", "TOML file with criteria and prompts, such as configs/instructions/rubric.toml", path="files"
    )
    sampling: JudgeSamplingSettings = nested(JudgeSamplingSettings, "how the judge answers")


class ModerationSettings(AskedDocumentsSettings):
    """A server that says what is toxic, with OpenAI's API of moderations."""

    documents: int = setting(8000, "documents of each corpus at most, drawn by the seed", least=1)


class CompareCorporaSettings(Section, name="compare"):
    """Corpora that were made of one corpus: of a damaged one whose truth is known, or of any."""

    damaged: str = setting("", "directory of the task damage; or give before", path="files")
    before: str = setting("", "dataset that the corpora were made of, where no damage was planted", path="texts")
    corpora: Mapping[str, str] = entries("NAME -> dataset that was made of it", path="texts")
    split: str = setting("train", "split of the datasets")
    documents: int = setting(0, "documents at most, drawn by the seed; 0: all", least=0)
    rubric: RubricSettings = nested(RubricSettings, "grades by a judge, before and after")
    moderation: ModerationSettings = nested(ModerationSettings, "toxicity by a server, before and after")
    block_lists: Mapping[str, str] = entries(
        "LANGUAGE -> file of blocked words, for the table of toxicity", path="files"
    )


class SeedPoolSettings(Section, name="seed_pool"):
    """Documents for annotation, drawn by strata of domain and language."""

    inputs: Mapping[str, str] = entries("NAME -> deduplicated dataset, as the corpus task writes it", path="texts")
    split: str = setting("train", "split of the datasets")
    name: str = setting("seed", "name of the new dataset")
    documents: int = setting(2000, "documents of the pool", least=1)
    domain: str = setting("source", "field of a document with its domain")
    balance: float = setting(
        0.5, "a stratum's share goes by this power of its size: 1 as in the corpus, 0 equal ones", least=0, most=1
    )
    least_bytes: int = setting(200, "shorter documents are not drawn", least=1)
    most_bytes: int = setting(20_000, "longer ones are not either", least=1)

    def check(self) -> None:
        """UserError for bounds that nothing is between."""
        if self.least_bytes > self.most_bytes:
            raise UserError(
                f"config.seed_pool.least_bytes = {self.least_bytes}: more than most_bytes = {self.most_bytes}; "
                "no document would be drawn"
            )


class SeedPairsSettings(Section, name="seed_pairs"):
    """The annotated pairs that a worker is trained on."""

    input: str = setting(
        "",
        "clean.jsonl of task review, aligned.jsonl.gz of task rewrite, or rows with original and rewrite",
        path="chats",
    )
    instruction: str = setting(
        "", "TOML file with the instruction of the pairs; that of the worker's later work", path="files"
    )
    choice: str = setting(
        RANDOM,
        "which pairs: at random, or by the perplexity of their rewrites at init.weights",
        choices=CHOICES_OF_PAIRS,
    )
    pairs: int = setting(0, "pairs at most; 0: all", least=0)
