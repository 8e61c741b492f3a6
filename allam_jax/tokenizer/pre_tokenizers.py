"""The ways in which byte-level BPE tokenizers cut text into words, by llama.cpp's names (`tokenizer.ggml.pre`).

A GGUF file has only the name; a `tokenizer.json` spells it out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from allam_jax.errors import UserError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA3 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _bytes_after(*splits: dict[str, Any], use_regex: bool) -> list[dict[str, Any]]:
    return [*splits, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}]


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# Name -> the steps, and whether a word that is a piece stays whole where no merges lead to it (`ignore_merges`). Where
# several names mean the same, the first is written.
_KNOWN: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": (_bytes_after(use_regex=True), False),
    "smollm": (_bytes_after({"type": "Digits", "individual_digits": True}, use_regex=True), False),
    "llama-bpe": (_bytes_after(_split(_LLAMA3), use_regex=False), True),
    "dbrx": (_bytes_after(_split(_LLAMA3), use_regex=False), False),
    "qwen2": (_bytes_after(_split(_QWEN2), use_regex=False), False),
    "tekken": (_bytes_after(_split(_TEKKEN), use_regex=False), True),
}
_SAME = {
    **dict.fromkeys(("starcoder", "refact", "command-r"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral"), "llama-bpe"),
    **dict.fromkeys(("smaug-bpe",), "dbrx"),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez"), "qwen2"),
    **dict.fromkeys(("mpt", "olmo", "jais"), "gpt-2"),
}


def pre_tokenizer_named(name: str, *, where: str) -> tuple[dict[str, Any], bool]:
    """The `pre_tokenizer` of a tokenizer.json, and its `ignore_merges`; UserError (of `where`) for an unknown name."""
    steps, ignores_merges = _KNOWN.get(_SAME.get(name, name), ([], False))
    if not steps:
        raise UserError(
            f"{where}: tokenizer.ggml.pre = {name!r} is a way to cut words that is not known here; known are "
            f"{', '.join([*_KNOWN, *_SAME])}: give the model's Hugging Face directory instead"
        )
    return ({"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]), ignores_merges


def name_of_pre_tokenizer(document: Mapping[str, Any], *, where: str) -> str:
    """The name under which llama.cpp knows how a tokenizer.json cuts words; UserError (of `where`) if it has none."""
    ignores_merges = bool(document["model"].get("ignore_merges"))
    steps = _flat(document.get("pre_tokenizer"))
    for name, (known, ignores) in _KNOWN.items():
        if (_flat({"type": "Sequence", "pretokenizers": known}), ignores) == (steps, ignores_merges):
            return name
    raise UserError(
        f"{where}: its pre_tokenizer is none of those that llama.cpp has a name for and that are known here "
        f"({', '.join(_KNOWN)}), so a GGUF file of it would cut text differently; export to huggingface or orbax"
    )


def _flat(step: Mapping[str, Any] | None) -> Sequence[dict[str, Any]]:
    """The steps one after another, without what changes no ids."""
    if step is None:
        return []
    if step.get("type") == "Sequence":
        return [inner for part in step.get("pretokenizers", ()) for inner in _flat(part)]
    kept = {key: value for key, value in step.items() if key != "trim_offsets"}
    return [{"use_regex": True, **kept} if step.get("type") == "ByteLevel" else kept]
