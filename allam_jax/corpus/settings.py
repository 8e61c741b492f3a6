"""Settings of the corpus, of texts read from it, and of the quality classifier."""

from collections.abc import Mapping

from allam_jax.errors import UserError
from allam_jax.settings import BadSetting, Section, entries, nested, setting

_ANY_NUMBER = -1e300  # thresholds of tags have no bound of their own
_TERABYTES = 2**53


class DocumentsSettings(Section):
    """Where the documents of one source come from, and what is done to their text."""

    catalog: str = setting("", "a name of the catalog (allam_jax/corpus/catalog.py); or give path")
    path: str = setting("", "your own files (docs/corpus.md): a file, a directory or a glob", path="texts")
    text_field: str = setting("text", "the column or key that holds the text")
    text_unit: str = setting("line", "what one document is in a .txt file", choices=("line", "paragraph", "file"))
    language: str = setting("", "ISO 639-1 code; needed with path")
    url_field: str = setting("url", "where a record holds its address, if anywhere")
    date_field: str = setting("date", "where a record holds its date: ISO 8601, or seconds since 1970")
    domain: str = setting("", "web, books, news, ...: for documents without an address; a label and a feature")
    repair: tuple[str, ...] = setting((), "what is repaired", choices=("mojibake", "presentation_forms", "look_alikes"))
    remove: tuple[str, ...] = setting(
        (), "what is removed; text becomes NFC in any case", choices=("tashkeel", "tatweel", "direction_marks")
    )
    redact: tuple[str, ...] = setting(
        (), "what is replaced by [EMAIL] and so on", choices=("email", "phone", "iban", "ip")
    )
    untouched: bool = setting(False, "store the text as it was read, against all of the above: for scripture")
    rules: str = setting("", "name of a set in corpus.rules that documents have to pass; empty: none")
    validation_share: float = setting(
        0.02, "share of the documents that is held out, chosen by a hash of their id", least=0, below=1
    )
    max_bytes: int = setting(0, "stop after this many bytes of text; 0 takes everything", least=0, most=_TERABYTES)
    max_bad_share: float = setting(
        0.01, "stop with the counts when more than this share of the records is unreadable", least=0, most=1
    )
    max_record_bytes: int = setting(
        64_000_000, "longer records (lines, rows, values, pages) are unreadable ones", least=1, most=2**30
    )
    max_damaged_share: float = setting(
        0.0, "stop when more than this share of the files ends early; else keep their documents", least=0, most=1
    )


class RuleSettings(Section):
    """Documents go where `tag drop threshold` holds; `pareto` samples by the tag (allam_jax/corpus/rules.py)."""

    tag: str = setting("", "a name of allam_jax/corpus/tags.py")
    drop: str = setting("<", "how the tag is compared", choices=("<", "<=", ">", ">=", "==", "pareto"))
    threshold: float = setting(0.0, "what the tag is compared with, in its unit", least=_ANY_NUMBER)


class DedupSettings(Section):
    """Which duplicates are dropped."""

    url: bool = setting(False, "drop repeated addresses")
    text: bool = setting(False, "drop repeated texts; case, punctuation, space and vowel marks do not count")
    minhash: bool = setting(False, "drop near-duplicates")
    scope: str = setting("corpus", "where duplicates are looked for", choices=("corpus", "source"))
    keep: str = setting("longest", "which document of a group stays", choices=("longest", "newest", "first"))
    shingle: int = setting(13, "words of a shingle; shorter documents have no near-duplicates", least=1)
    hashes: int = setting(128, "length of a signature", least=1, most=4096)
    bands: int = setting(14, "candidates agree in all rows of a band: 1 - (1 - s^rows)^bands at similarity s", least=1)
    rows: int = setting(9, "rows of a band", least=1)
    verify: float = setting(
        0.0, "smallest Jaccard similarity of true duplicates; 0 believes the candidates", least=0, most=1
    )

    def check(self) -> None:
        """UserError for more rows than there are hashes."""
        if self.bands * self.rows > self.hashes:
            raise UserError(
                f"config.corpus.dedup: {self.bands} bands of {self.rows} rows need {self.bands * self.rows} hashes, "
                f"there are {self.hashes}"
            )


class ExecutorSettings(Section, changes_results=False):
    """Where the corpus is made. What is written is the same everywhere."""

    kind: str = setting("local", "what runs the parts", choices=("local", "slurm", "ray"))
    workers: int = setting(1, "parts at a time; -1: all", least=-1)
    memory_gb: int = setting(4, "of a part, on slurm and ray", least=1)
    partition: str = setting("", "slurm: partition")
    time: str = setting("24:00:00", "slurm: time limit of a part")
    cpus: int = setting(1, "slurm: cores of a part", least=1)
    qos: str = setting("", "slurm: quality of service")
    options: tuple[str, ...] = setting((), 'slurm: further sbatch options, such as "account=me"')
    ray_address: str = setting("", "ray: address of a running cluster; empty starts one here")

    def check(self) -> None:
        """UserError for no worker, and for Slurm without a partition."""
        if self.workers == 0:
            raise BadSetting("workers", " = 0: expected 1 or more, or -1 for all")
        if self.kind == "slurm" and not self.partition:
            raise BadSetting("partition", " is empty: name the Slurm partition to run on")


class CorpusSettings(Section, name="corpus"):
    """How sources become clean document shards."""

    sources: Mapping[str, DocumentsSettings] = entries("base.documents(...): one dataset each")
    rules: Mapping[str, Mapping[str, RuleSettings]] = entries(
        "sets of rules, name -> base.rule(...); ready sets: configs/corpus_rules.py"
    )
    tags: tuple[str, ...] = setting((), "tags computed for all documents, beside those that rules ask for")
    block_lists: Mapping[str, str] = entries("language -> file of blocked words and phrases, one a line", path="files")
    quality_models: Mapping[str, str] = entries("language -> directory of task quality_classifier", path="files")
    features: tuple[str, ...] = setting((), 'stored beside text and id: "url", "date", "domain", "tags", other fields')
    parts: int = setting(1, "into how many parts a source of several files is cut, each with its own shards", least=1)
    shard_bytes: int = setting(256_000_000, "text of a shard; it is closed when it holds so much", least=1)
    dedup: DedupSettings = nested(DedupSettings, "which duplicates are dropped")
    executor: ExecutorSettings = nested(ExecutorSettings, "where it runs; changes nothing in what is written")


class PlantedSettings(Section, name="planted"):
    """Damage that task plant puts into real documents, to measure what a corpus run finds of it."""

    sources: Mapping[str, tuple[str, ...]] = entries("name -> catalog sources of one language, in a tuple")
    foreign: tuple[str, ...] = setting((), "catalog sources of documents that do not belong there")
    share: float = setting(0.02, "of the documents, for each kind of damage", least=0, most=1)
    files: int = setting(4, "files that each source is written to, all open at once", least=1, most=256)


class PlantedCheckSettings(Section, name="planted"):
    """What task check_planted compares."""

    crawl: str = setting("", "directory of the task plant", path="files")
    corpus: str = setting("", "directory of the task corpus that read it", path="files")


class TextsSettings(Section):
    """Whole texts out of document shards."""

    path: str = setting("", "a dataset directory", path="files")
    split: str = setting("train", "train or validation")
    max_bytes: int = setting(0, "stop after this many bytes; 0 takes everything", least=0, most=_TERABYTES)


class QualitySettings(Section, name="quality"):
    """How the quality classifier is trained."""

    positives: Mapping[str, TextsSettings] = entries("base.texts(...) of known quality: encyclopedias, books")
    negatives: Mapping[str, TextsSettings] = entries("base.texts(...): unfiltered web")
    held_out: float = setting(0.1, "share of the documents that the classifier is tested on", above=0, below=1)
    epochs: int = setting(5, "fastText: passes over the texts", least=1, most=10_000)
    learning_rate: float = setting(0.5, "fastText: learning rate", above=0)
    word_ngrams: int = setting(2, "fastText: longest n-gram of words", least=1)
    dim: int = setting(32, "fastText: size of the vectors", least=1)
    buckets: int = setting(2**18, "fastText: hashed n-grams; the model has buckets x dim x 4 bytes, and words", least=1)
