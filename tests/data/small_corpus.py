"""A small corpus, and a tokenizer whose ids can be computed by hand."""

import numpy as np

from allam_jax.data.loader import make_loader
from allam_jax.data.settings import DataSettings, PhaseSettings, SourceSettings

BOS, EOS = 256, 257


class ByteTokenizer:
    """One id per UTF-8 byte."""

    bos_id, eos_id, vocab_size, fingerprint = BOS, EOS, 258, "bytes"

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        return [BOS] * bos + list(text.encode()) + [EOS] * eos

    def encode_batch(self, texts, *, bos: bool = False, eos: bool = False) -> list[list[int]]:
        return [self.encode(text, bos=bos, eos=eos) for text in texts]


def make_texts(prefix: str, count: int, *, seed: int) -> list[str]:
    """Texts of 1 to 120 letters that begin with their number, all different; every 17th is ten times as long."""
    rng = np.random.default_rng(seed)
    texts = []
    for number in range(count):
        length = int(rng.integers(1, 120)) * (10 if number % 17 == 0 else 1)
        texts.append(f"{prefix}{number}:" + "".join(rng.choice(list("abcdefgh "), size=length)))
    return texts


TEXTS = {"en": make_texts("e", 101, seed=1), "ar": make_texts("ع", 40, seed=2), "code": make_texts("c", 24, seed=3)}


def load(*, sources, phases=None, seq_len, batch_size, lanes=0, **options):
    """`make_loader`, with dicts for sources and phases."""
    data = DataSettings(
        sources={name: SourceSettings(**{**entry, "path": str(entry["path"])}) for name, entry in sources.items()},
        phases={name: PhaseSettings(**entry) for name, entry in (phases or {}).items()},
        seq_len=seq_len,
        batch_size=batch_size,
        lanes=lanes,
    )
    return make_loader(data, **options)


def take(loader, count):
    """The next `count` batches."""
    return [next(loader) for _ in range(count)]


def assert_same(batches, others):
    """Equal keys and equal arrays, batch by batch."""
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])
