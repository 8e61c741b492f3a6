"""Task `tokenizer`: trains a SentencePiece BPE tokenizer on document shards."""

from pathlib import Path
from typing import Any

from absl import logging

from allam_jax.settings import Settings
from allam_jax.tasks.texts import lines_of, read_texts
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Trains on `config.tokenizer_training.sources` and writes the tokenizer files into `workdir`."""
    options = config.tokenizer_training
    texts = read_texts(options.sources, key="tokenizer_training.sources")
    sizes = {name: sum(len(text.encode()) for text in documents) for name, documents in texts.items()}
    logging.info("tokenizer: training %d pieces on %s bytes", options.vocab_size, sizes)
    tokenizer = train_sentencepiece(
        (line for documents in texts.values() for line in lines_of(documents)),
        output=workdir,
        vocab_size=options.vocab_size,
        control_tokens=options.control_tokens,
        required_characters=options.required_characters,
        like=Tokenizer.load(options.like) if options.like else None,
        script=options.script or None,
    )
    return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint, "training_bytes": sizes}
