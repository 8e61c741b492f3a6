"""Writes tokenizer files with which Hugging Face transformers gives the same ids.

SentencePiece joins the adjacent pair with the best score; the tokenizers library follows a list of merge rules. The
list has every pair of reachable pieces whose concatenation is a reachable piece, in the order of scores. Converters
that order by id, or that write only one pair for each piece, give other ids.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from allam_jax.checksums import write_listed
from allam_jax.errors import UserError
from allam_jax.files import json_text
from allam_jax.tokenizer.json_model import JsonModel
from allam_jax.tokenizer.kinds import Kind
from allam_jax.tokenizer.sentencepiece_model import SPACE, SentencePieceModel
from allam_jax.tokenizer.tokenizer_files import SETTINGS_FILE

CHAT_START, CHAT_END = "<|im_start|>", "<|im_end|>"
# ChatML after a bos token; used if the vocabulary has ChatML's two tokens.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def save(model: SentencePieceModel | JsonModel, directory: Path) -> None:
    """Writes the tokenizer files into `directory`, with their list; see Tokenizer.save."""
    if isinstance(model, SentencePieceModel):
        document = _json_bytes(tokenizer_json(model))  # may raise, so nothing is written before
        contents = {"tokenizer.model": model.serialized(), "tokenizer.json": document}
    else:
        contents = {"tokenizer.json": model.serialized().encode()}
    contents[SETTINGS_FILE] = _json_bytes(tokenizer_config(model))
    contents["special_tokens_map.json"] = _json_bytes(_named_tokens(model))
    write_listed(directory, contents, whole=True)


def _json_bytes(value: Any) -> bytes:
    return f"{json_text(value, indent=2)}\n".encode()


def check_expressible(model: SentencePieceModel) -> None:
    """UserError for a model that merge rules cannot express.

    These are models with a normaliser other than identity, with user-defined pieces, or with two pieces of the same
    score: SentencePiece then takes the leftmost pair, but rules have one order. Runs of one character may have the same
    score, because their order is known.
    """
    normalizer = model.proto.normalizer_spec
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces or not normalizer.escape_whitespaces:
        raise UserError(
            f"{model.source}: normaliser {normalizer.name!r} changes the text; expected identity with white space kept "
            "(retrain the tokenizer with train_sentencepiece)"
        )
    if Kind.USER_DEFINED in model.kinds or Kind.UNUSED in model.kinds:
        raise UserError(f"{model.source}: has user-defined or unused pieces, which a tokenizer.json cannot express")
    scores = _scores(model)
    ties = Counter(score for piece, score in scores.items() if len(set(piece)) > 1)
    if any(count > 1 for count in ties.values()):
        score = next(score for score, count in ties.items() if count > 1)
        tied = [piece for piece, s in scores.items() if s == score and len(set(piece)) > 1]
        raise UserError(
            f"{model.source}: {len(tied)} pieces such as {', '.join(map(repr, tied[:3]))} have the same score "
            f"{score + 0:g}, which a tokenizer.json cannot express. If the vocabulary was merged from two, start from "
            "the first of them"
        )


def _scores(model: SentencePieceModel) -> dict[str, float]:
    return {p.piece: p.score for p, kind in zip(model.proto.pieces, model.kinds, strict=True) if kind is Kind.NORMAL}


def merge_rules(model: SentencePieceModel) -> list[tuple[str, str]]:
    """All merge rules of a SentencePiece BPE model that passed `check_expressible`, the strongest first."""
    scores = _scores(model)
    rules = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                rules.append((-score, -len(piece), -cut, left, right))
    # Among equal scores, the longer piece comes first, then the longer left part. So a run of one character grows from
    # the left, as in SentencePiece, which joins the leftmost of equal pairs.
    rules.sort()
    return [(left, right) for _, _, _, left, right in rules]


def tokenizer_json(model: SentencePieceModel) -> dict[str, Any]:
    """The content of a `tokenizer.json` that gives the ids of a SentencePiece BPE model.

    UserError for a model that merge rules cannot express.
    """
    check_expressible(model)
    normalizer = model.proto.normalizer_spec
    to_space = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    from_space: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if normalizer.add_dummy_prefix:
        to_space.insert(0, {"type": "Prepend", "prepend": SPACE})
        from_space.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": token,
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
                "special": True,
            }
            for token, index in sorted(model.special_tokens.items(), key=lambda item: item[1])
        ],
        "normalizer": {"type": "Sequence", "normalizers": to_space},
        "pre_tokenizer": None,
        "post_processor": None if model.bos_id is None else bos_processor(model.pieces[model.bos_id], model.bos_id),
        "decoder": {"type": "Sequence", "decoders": from_space},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[model.unk_id] if model.unk_id is not None else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.proto.trainer_spec.byte_fallback,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(model.pieces)},
            "merges": [list(rule) for rule in merge_rules(model)],
        },
    }


def tokenizer_config(model: SentencePieceModel | JsonModel) -> dict[str, Any]:
    """The content of `tokenizer_config.json`; its generic class makes transformers read tokenizer.json unchanged."""
    if isinstance(model, JsonModel):
        return model.settings
    # The class LlamaTokenizer would replace our normaliser by one that adds no dummy prefix before a space.
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_named_tokens(model),
        "add_bos_token": model.bos_id is not None,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": int(1e30),
    }
    if {CHAT_START, CHAT_END} <= model.special_tokens.keys():
        config["chat_template"] = CHAT_TEMPLATE
    return config


def _named_tokens(model: SentencePieceModel | JsonModel) -> dict[str, str]:
    ids = {"bos": model.bos_id, "eos": model.eos_id, "unk": model.unk_id, "pad": model.pad_id}
    return {f"{name}_token": model.pieces[index] for name, index in ids.items() if index is not None}


def bos_processor(bos: str, index: int) -> dict[str, Any]:
    """The `post_processor` of a tokenizer.json that begins every text with this token."""

    def sequence(name: str, kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": bos, "type_id": kind}}, {"Sequence": {"id": name, "type_id": kind}}]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {bos: {"id": bos, "ids": [index], "tokens": [bos]}},
    }
