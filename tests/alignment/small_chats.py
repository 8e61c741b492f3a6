"""Conversations in two languages, and small tokenizers of both kinds with the control tokens of the templates."""

import functools
import tempfile
from pathlib import Path

import tokenizers

from allam_jax.alignment.reply_masks import Masker
from allam_jax.tokenizer.chat_template import ChatTemplate
from allam_jax.tokenizer.ready_templates import READY
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer, with_control_tokens

CONTROLS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

ENGLISH = [
    ("system", "You answer briefly."),
    ("user", "What is the capital of Egypt?"),
    ("assistant", "Cairo."),
    ("user", "And of Oman?"),
    ("assistant", "Muscat, a city\non the sea."),
    ("user", "Thanks!"),
    ("assistant", "You are welcome."),
]
ARABIC = [
    ("user", "ما عاصمة مصر؟"),
    ("assistant", "القاهرة."),
    ("user", "وعاصمة عمان؟"),
    ("assistant", "مسقط، مدينة على البحر."),
]
TEXT = [text for _, text in (*ENGLISH, *ARABIC)] + ["[INST] <<SYS>> user assistant system <</SYS>> [/INST]"]


def messages(turns):
    return tuple({"role": role, "content": content} for role, content in turns)


@functools.cache
def sentencepiece_tokenizer() -> Tokenizer:
    return with_control_tokens(train_sentencepiece(TEXT * 20, vocab_size=380), CONTROLS)


@functools.cache
def byte_level() -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Ours, and that of Hugging Face on the same file."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>", *CONTROLS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TEXT * 20, trainer)
    with tempfile.TemporaryDirectory() as folder:
        model.save(str(Path(folder) / "tokenizer.json"))
        (Path(folder) / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
        return Tokenizer.load(folder), model


def ready(name: str, tokenizer: Tokenizer, *, marked: bool = True) -> ChatTemplate:
    """A ready template, or the same without its marks of generation."""
    source = READY[name]
    if not marked:
        source = source.replace("{%- generation %}", "{{- '' }}").replace("{% endgeneration %}", "{{ '' }}")
    return ChatTemplate(source, tokenizer=tokenizer, name=name)


def masker(name="chatml", *, tokenizer=None, seq_len=512, too_long="whole_turns", marked=True) -> Masker:
    tokenizer = tokenizer or sentencepiece_tokenizer()
    template = ready(name, tokenizer, marked=marked)
    return Masker(template, tokenizer=tokenizer, seq_len=seq_len, too_long=too_long)
