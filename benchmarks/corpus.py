"""Compares deduplication with datatrove, rensa and datasketch, and the whole pipeline with plain reading.

    pip install rensa datasketch spacy "xxhash<4"
    python benchmarks/corpus.py [--documents 10000] [--rounds 5]

All programs get the same texts (Arabic hadith, every tenth a near copy) and find near-duplicates with shingles of 13
words and 14 bands of 9 hashes. They start from the words of each document and end with the documents to remove.
datatrove's steps start from the text and write files, as in its own pipelines, with its cheapest tokenizer (white
space). The programs take turns. The output has the median times, their ratios and the number of removed documents.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

DOCUMENTS = flags.DEFINE_integer("documents", 10_000, "Number of documents.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed runs of each program.")
SHINGLE, BANDS, ROWS = 13, 14, 9


def make_texts(count: int) -> list[str]:
    """Real documents of at least 13 words; every tenth repeats an earlier one with two more words in front."""
    from allam_jax.corpus import catalog
    from allam_jax.corpus.words import bare_words
    from allam_jax.errors import UserError

    real = itertools.chain(catalog.documents("sahih_muslim_ar"), catalog.documents("sahih_al_bukhari_ar"))
    found: list[str] = []
    for document in real:
        if len(bare_words(document.text)) >= SHINGLE:
            found.append(document.text)
            if len(found) % 10 == 9:
                found.append(f"mirror {len(found)} " + found[len(found) // 2])
        if len(found) >= count:
            return found[:count]
    raise UserError(f"--documents={count}: the catalog has {len(found)}")


def ours(words: Sequence[Sequence[str]], texts: Sequence[str]) -> int:
    """The number of documents that allam_jax.corpus removes."""
    from allam_jax.corpus.duplicates import band_pairs, clusters
    from allam_jax.corpus.minhash import MinHash
    from allam_jax.corpus.settings import DedupSettings

    minhash = MinHash(DedupSettings(shingle=SHINGLE, bands=BANDS, rows=ROWS))
    keys = minhash.band_keys(np.stack([minhash.signature(shingles) for shingles in minhash.shingles(words)]))
    rows = np.arange(len(keys))
    pairs = [band_pairs(keys[:, band], rows, every=False) for band in range(BANDS)]
    return len(clusters(pairs, np.zeros(len(keys), np.int64)).removed)


def with_datatrove(words: Sequence[Sequence[str]], texts: Sequence[str]) -> int:
    """The number of documents that datatrove's MinHash steps remove."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer
    from loguru import logger

    logger.disable("datatrove")
    config = MinhashConfig(
        n_grams=SHINGLE, num_buckets=BANDS, hashes_per_bucket=ROWS, hash_config=HashConfig(precision=64)
    )
    with tempfile.TemporaryDirectory() as folder:
        signatures, pairs, removed = (f"{folder}/{name}" for name in ("signatures", "pairs", "removed"))
        step = MinhashDedupSignature(signatures, config=config, language=WhitespaceTokenizer())
        step.run(Document(text=text, id=str(number)) for number, text in enumerate(texts))
        for band in range(BANDS):
            MinhashDedupBuckets(signatures, pairs, config=config).run(None, band, BANDS)
        MinhashDedupCluster(pairs, removed, config=config).run(None, 0, 1)
        return sum(path.stat().st_size // 4 for path in Path(removed).glob("*.remove"))


def with_rensa(words: Sequence[Sequence[str]], texts: Sequence[str]) -> int:
    """The number of documents that rensa's RMinHash and its index remove."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=0.7, num_perm=BANDS * ROWS, num_bands=BANDS)

    groups = []
    for number, some in enumerate(words):
        signature = RMinHash(num_perm=BANDS * ROWS, seed=0)
        signature.update(_shingles(some))
        groups.append(index.query(signature))
        index.insert(number, signature)
    return _removed(groups)


def with_datasketch(words: Sequence[Sequence[str]], texts: Sequence[str]) -> int:
    """The number of documents that datasketch's MinHash and MinHashLSH remove, with its faster hash."""
    import xxhash
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    groups = []
    for number, some in enumerate(words):
        signature = MinHash(num_perm=BANDS * ROWS, seed=1, hashfunc=xxhash.xxh32_intdigest)
        signature.update_batch([shingle.encode() for shingle in _shingles(some)])
        groups.append(index.query(signature))
        index.insert(number, signature)
    return _removed(groups)


def _shingles(words: Sequence[str]) -> list[str]:
    return [" ".join(words[start : start + SHINGLE]) for start in range(len(words) - SHINGLE + 1)]


def _removed(groups: Sequence[Sequence[int]]) -> int:
    """The number of documents beyond the first of each cluster; `groups[i]` are earlier documents similar to i."""
    parent = list(range(len(groups)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for number, others in enumerate(groups):
        for other in others:
            parent[root(number)] = root(other)
    return len(groups) - len({root(node) for node in range(len(groups))})


def compare(arms: dict[str, Callable[[], int]], *, rounds: int) -> dict[str, float]:
    """Runs the arms in turn, prints their times and results, and returns the median seconds of each."""
    seconds: dict[str, list[float]] = defaultdict(list)
    results = {}
    for _ in range(rounds):
        for name, arm in arms.items():
            start = time.process_time()
            results[name] = arm()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(some) for name, some in seconds.items()}
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f}"
        print(f"{name:30s} {median:8.2f} s ({spread})  {results[name]:7d} documents removed", flush=True)
    return medians


def pipeline_share(texts: Sequence[str], *, rounds: int) -> None:
    """Prints the speed of the pipeline with several settings as shares of that of reading the same JSON Lines."""
    from allam_jax.corpus import pipeline
    from allam_jax.corpus.corpus_plan import make_corpus_plan
    from allam_jax.tasks.registry import settings_of
    from configs import base, corpus_arabic

    def run(folder: Path, *, rules: bool, dedup: bool) -> int:
        config = base.get_config("corpus")
        config.corpus.rules = corpus_arabic.get_config().stage.corpus.corpus.rules
        config.corpus.sources.texts = base.documents(
            path=str(folder / "texts.jsonl"), language="ar", rules="classical" if rules else "", validation_share=0.0
        )
        config.corpus.dedup.update(url=dedup, text=dedup, minhash=dedup)
        with tempfile.TemporaryDirectory() as workdir:
            plan = make_corpus_plan(settings_of(config).corpus, workdir=Path(workdir))
            tally = pipeline.run(plan, workdir=Path(workdir))["texts"]
        return int(tally["read"]["documents"] - tally["written"]["documents"])

    def read(path: Path) -> int:
        with open(path, "rb") as file:
            return sum(not json.loads(line)["text"] for line in file)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = (json.dumps({"text": text, "id": str(number)}) for number, text in enumerate(texts))
        (folder / "texts.jsonl").write_text("\n".join(lines))
        medians = compare(
            {
                "plain reading": lambda: read(folder / "texts.jsonl"),
                "read, clean, write": lambda: run(folder, rules=False, dedup=False),
                "with deduplication": lambda: run(folder, rules=False, dedup=True),
                "with rules and deduplication": lambda: run(folder, rules=True, dedup=True),
            },
            rounds=rounds,
        )
    size = sum(len(text.encode()) for text in texts) / 1e6
    for arm, seconds in medians.items():
        print(f"{arm:30s} {size / seconds:8.1f} MB/s  {medians['plain reading'] / seconds:6.1%} of plain reading")


def main(_) -> None:
    """Runs both comparisons."""
    from allam_jax.corpus.words import bare_words

    texts = make_texts(DOCUMENTS.value)
    words = [bare_words(text) for text in texts]
    size = sum(len(text.encode()) for text in texts) / 1e6
    mean = sum(map(len, words)) / len(words)
    print(f"{len(texts)} documents, {size:.1f} MB, {mean:.0f} words each; seconds of one core")
    arms = {"allam_jax": ours, "datatrove": with_datatrove, "rensa": with_rensa, "datasketch": with_datasketch}
    medians = compare({name: (lambda arm=arm: arm(words, texts)) for name, arm in arms.items()}, rounds=ROUNDS.value)
    fastest = min(seconds for name, seconds in medians.items() if name != "allam_jax")
    print(f"allam_jax / fastest of the others: {medians['allam_jax'] / fastest:.2f}\n")
    pipeline_share(texts, rounds=ROUNDS.value)


if __name__ == "__main__":
    app.run(main)
