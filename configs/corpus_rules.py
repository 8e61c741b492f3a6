"""Ready sets of rules for `config.corpus.rules`: thresholds are values of the config like all others.

    config.corpus.rules.arabic = corpus_rules.arabic()
    python run.py --config ... --config.corpus.rules.arabic.short.threshold=50

Tags and their definitions: allam_jax/corpus/tags.py and repetition_tags.py.
"""

from ml_collections import ConfigDict

from allam_jax.corpus.language_id import LANGUAGES
from configs.base import rule


def english() -> ConfigDict:
    """ALLaM's rules for English web text, on RedPajama-v2's tags (the talk's table of filters)."""
    return _unlocked(
        language=rule("ccnet_language_score", "<", 0.6),
        short=rule("ccnet_length", "<", 150),
        few_lines=rule("ccnet_nlines", "<", 3),
        ellipsis=rule("rps_doc_frac_lines_end_with_ellipsis", ">=", 0.8),
        no_letters=rule("rps_doc_frac_no_alph_words", ">=", 0.9),
        lorem_ipsum=rule("rps_doc_lorem_ipsum", ">=", 0.5),
        stop_words=rule("rps_doc_stop_word_fraction", ">=", 0.9),
        symbols=rule("rps_doc_symbol_to_word_ratio", ">=", 0.9),
    )


def arabic() -> ConfigDict:
    """ALLaM's rules for Arabic. The paper gives no threshold for spam and stop words; these are ours.

    A language score of 0.95 is strict. lid.176 gives one in ten hadith less than 0.94, although it sees them without
    vowel marks. Lower it for classical text.
    """
    return _unlocked(
        language=rule("language_score", "<", 0.95),
        short=rule("word_count", "<", 30),
        spam=rule("word_spam_share", ">=", 0.2),
        stop_words=rule("word_stop_share", ">=", 0.9),
        symbols=rule("word_symbol_ratio", ">=", 0.9),
        no_letters=rule("word_no_letter_share", ">=", 0.9),
    )


def any_language(language: str) -> ConfigDict:
    """Rules for every language and kind of text: text in another language, hardly any words, signs instead of text.

    Thresholds are ours, and mild. The tags count words by Unicode's rules for all scripts. For a language that lid.176
    does not know, such as Hausa, there is no rule on text in another language.
    """
    known = {"language": rule("language_score", "<", 0.5)} if language in LANGUAGES else {}
    return _unlocked(
        **known,
        short=rule("word_count", "<", 5),
        no_letters=rule("word_no_letter_share", ">=", 0.6),
        symbols=rule("word_symbol_ratio", ">", 0.1),
        duplicate_lines=rule("gopher_duplicate_line_share", ">", 0.3),
        spam=rule("word_spam_share", ">=", 0.2),
    )


def blocked_words(*, threshold: float = 0.9, tag: str = "rps_doc_ldnoobw_words_share") -> ConfigDict:
    """ALLaM's rule on LDNOOBW's words, for a set of rules; needs `config.corpus.block_lists.LANGUAGE`.

    For Arabic take `word_blocked_share` and look at what it drops: the list has everyday religious and medical words.
    """
    return rule(tag, ">=", threshold)


def palm_score(*, shape: float = 9.0) -> ConfigDict:
    """Samples by the score of a quality classifier (GPT-3's alpha), for a set of rules.

    Records bring `rps_doc_ml_palm_score`, or `config.corpus.quality_models.LANGUAGE` names a trained classifier.
    """
    return rule("rps_doc_ml_palm_score", "pareto", shape)


def fineweb2_arabic() -> ConfigDict:
    """FineWeb-2's published thresholds for Standard Arabic (its repository, configs/arb_Arab.yml, and the constants of
    its pipeline script).

    They were fitted to GlotLID's score and spaCy's words; ours are lid.176's and `Words.tokens`.
    """
    gram_shares = {2: 0.197, 3: 0.172, 4: 0.146}
    duplicate_shares = {5: 0.165, 6: 0.153, 7: 0.142, 8: 0.131, 9: 0.12, 10: 0.109}
    return _unlocked(
        language=rule("language_score", "<", 0.711),
        short=rule("word_count", "<", 50),
        long=rule("word_count", ">", 100_000),
        duplicate_lines=rule("gopher_duplicate_line_share", ">", 0.304),
        duplicate_characters=rule("fineweb_duplicate_line_characters", ">", 0.1),
        **{f"top_{n}_grams": rule(f"gopher_top_{n}_gram_share", ">", share) for n, share in gram_shares.items()},
        **{
            f"duplicate_{n}_grams": rule(f"gopher_duplicate_{n}_gram_share", ">", share)
            for n, share in duplicate_shares.items()
        },
        unfinished_lines=rule("fineweb_finished_line_share", "<", 0.143),
        newlines=rule("fineweb_newline_ratio", ">", 0.189),
        short_words=rule("gopher_mean_word_length", "<", 2),
        long_words=rule("gopher_mean_word_length", ">", 9),
        no_letters=rule("gopher_letter_word_share", "<", 0.787),
        frequent_words=rule("fineweb_frequent_arabic_words", "<", 2),
        symbols=rule("word_symbol_ratio", ">", 0.1),
        ellipsis=rule("rps_doc_frac_lines_end_with_ellipsis", ">", 0.3),
    )


def _unlocked(**rules: ConfigDict) -> ConfigDict:
    """A set that further rules can be added to."""
    return ConfigDict(rules)
