"""Small byte-level BPE tokenizers, trained by the tokenizers library."""

import json
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from allam_jax.tokenizer.json_model import JsonModel
from allam_jax.tokenizer.tokenizer import Tokenizer

SPECIAL = ["<|pad|>", "<|im|>", "<|end|>"]
# As SmolLM2 (digits one by one), GPT-2, and Llama 3.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


def train(texts: Iterable[str], *, size: int, pre: str = "smollm") -> tokenizers.Tokenizer:
    """A tokenizer of the library; its special tokens come first, as in SmolLM2, or last, as in Llama 3."""
    found = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    found.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
    found.decoder = decoders.ByteLevel()
    special = [] if pre == "llama-bpe" else SPECIAL
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(texts, trainer)
    if pre == "llama-bpe":
        found.add_special_tokens(SPECIAL)
    return found


def as_tokenizer(found: tokenizers.Tokenizer, *, source: str = "byte-level") -> Tokenizer:
    """Ours, of the same file."""
    document = json.loads(found.to_str())
    settings = {"bos_token": "<|im|>", "eos_token": "<|end|>"}
    return Tokenizer(JsonModel(json.dumps(document), settings=settings, source=source))
