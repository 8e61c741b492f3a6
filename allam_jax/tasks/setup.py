"""Turns sections of a config into the objects that they describe, for several tasks."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh

from allam_jax.config import require
from allam_jax.data.evaluation_rows import EvaluationRows, make_evaluation_rows
from allam_jax.data.loader import Loader, make_loader
from allam_jax.data.settings import DataSettings, SourceSettings
from allam_jax.data.sources import stated_weights
from allam_jax.data.token_cache import TokenSource, is_token_cache
from allam_jax.evaluation.bits_per_byte import Result, make_evaluator
from allam_jax.evaluation.continuations import TextEncoder
from allam_jax.evaluation.likelihood import Likelihood
from allam_jax.evaluation.metric_keys import HELD_OUT
from allam_jax.evaluation.text_perplexity import TextScore, text_scores
from allam_jax.generation.engine import Engine
from allam_jax.generation.settings import EngineSettings
from allam_jax.model.llama import Params
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.parallel.distributed import leave, places, process_rows
from allam_jax.parallel.gpus import peak_flops
from allam_jax.parallel.mesh import make_mesh
from allam_jax.settings import Settings
from allam_jax.tokenizer.chat_template import ChatTemplate
from allam_jax.tokenizer.generation_config import stop_ids
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.training.load import load_model
from allam_jax.training.loop import Evaluation
from allam_jax.training.origin import open_fitting_tokenizer
from allam_jax.watchdog import Watchdog
from allam_jax.weights.directory import LoadedWeights


def open_mesh(config: Settings) -> Mesh:
    """The device mesh of `config.mesh`."""
    return make_mesh(dataclasses.asdict(config.mesh))


def open_watchdog(config: Settings) -> Watchdog:
    """What watches the progress of all processes, as `config.metrics` says."""
    return Watchdog(
        report_minutes=config.metrics.stall_report_minutes,
        leave_minutes=config.metrics.stall_leave_minutes,
        others=places,
        leaving=leave,
    )


def peak_flops_of(config: Settings, *, mesh: Mesh) -> float:
    """What a device computes a second at best: as `config.metrics` says, else its data sheet; 0 where none is known."""
    data_sheet = peak_flops(mesh.devices.flat[0].device_kind, compute_dtype=config.compute.compute_dtype)
    return config.metrics.peak_tflops * 1e12 or data_sheet


def open_model(config: Settings, *, mesh: Mesh) -> tuple[LoadedWeights, Tokenizer, Path]:
    """The model at `config.init.weights`, its tokenizer and the tokenizer's directory; they fit together."""
    weights = Path(require(config.init.weights, key="init.weights", hint="give the path of a model"))
    loaded = load_model(weights, mesh=mesh)
    tokenizer, tokenizer_dir = open_fitting_tokenizer(
        config,
        loaded.config,
        beside_weights=loaded.tokenizer_dir,
        weights=str(weights),
        fingerprint=loaded.metadata.get("tokenizer"),
    )
    return loaded, tokenizer, tokenizer_dir


@dataclasses.dataclass(frozen=True)
class TextModel:
    """What continues texts and answers messages: a model on its mesh, its tokenizer, and its chat template if any."""

    weights: LoadedWeights
    tokenizer: Tokenizer
    tokenizer_dir: Path
    template: ChatTemplate | None
    options: ComputeOptions
    mesh: Mesh

    def engine(self, settings: EngineSettings) -> Engine:
        """An engine whose answers end at `answer_ends`."""
        return Engine(
            self.weights.params,
            config=self.weights.config,
            options=self.options,
            settings=settings,
            tokenizer=self.tokenizer,
            eos_ids=answer_ends(self.tokenizer, self.tokenizer_dir, self.template),
            mesh=self.mesh,
        )


def answer_ends(tokenizer: Tokenizer, directory: Path, template: ChatTemplate | None) -> tuple[int, ...]:
    """The ids that end an answer: where the model says, and at the end of a turn of the template."""
    return tuple(dict.fromkeys((*stop_ids(tokenizer, directory), *(template.end_ids() if template else ()))))


def open_text_model(config: Settings, *, template: str) -> TextModel:
    """The model at `config.init.weights`; `template` as `ChatTemplate.named` takes it."""
    mesh = open_mesh(config)
    weights, tokenizer, tokenizer_dir = open_model(config, mesh=mesh)
    found = ChatTemplate.named(template, tokenizer=tokenizer, directory=tokenizer_dir)
    return TextModel(weights, tokenizer, tokenizer_dir, found, config.compute, mesh)


def scores_of_texts(config: Settings, texts: Sequence[str]) -> list[TextScore]:
    """Of each text by the model at `config.init.weights`."""
    model = open_text_model(config, template="")
    likelihood = Likelihood(
        model.weights.params,
        config=model.weights.config,
        options=config.compute,
        settings=config.likelihood,
        mesh=model.mesh,
    )
    return text_scores(texts, likelihood=likelihood, encoder=TextEncoder(model.tokenizer, template=None))


def open_held_out(config: Settings, *, tokenizer: Tokenizer, seq_len: int) -> dict[str, EvaluationRows]:
    """The held-out documents of each of `config.eval.sources`, in windows of `seq_len` where the config states none."""
    return {
        name: make_evaluation_rows(
            require(source.path, key=f"eval.sources.{name}.path", hint="give a dataset directory"),
            split=source.split,
            tokenizer=tokenizer,
            seq_len=config.eval.seq_len or seq_len,
            max_bytes=config.eval.max_bytes or None,
        )
        for name, source in config.eval.sources.items()
    }


def held_out_scorer(
    config: Settings, *, model: LlamaConfig, tokenizer: Tokenizer, mesh: Mesh, seq_len: int
) -> Callable[[Params], dict[str, Result]]:
    """Opens `config.eval.sources`; parameters -> the result of `make_evaluator` for each of them."""
    held_out = open_held_out(config, tokenizer=tokenizer, seq_len=seq_len)
    evaluator = make_evaluator(
        config=model,
        options=config.compute,
        mesh=mesh,
        batch_size=config.eval.batch_size,
        num_chunks=config.eval.loss_chunks,
    )
    return lambda params: {name: evaluator(params, rows) for name, rows in held_out.items()}


def open_evaluations(config: Settings, *, model: LlamaConfig, tokenizer: Tokenizer, mesh: Mesh) -> list[Evaluation]:
    """What a training run is scored on: bits per byte of `config.eval.sources`, if there are any."""
    if not config.eval.sources:
        return []
    scorer = held_out_scorer(config, model=model, tokenizer=tokenizer, mesh=mesh, seq_len=config.data.seq_len)

    def scores(params: Params) -> dict[str, dict[str, float]]:
        return {name: {"bits_per_byte": result["bits_per_byte"]} for name, result in scorer(params).items()}

    return [Evaluation(suite=HELD_OUT, every=config.eval.every, scores=scores)]


def open_loader(config: Settings, *, tokenizer: Tokenizer, mesh: Mesh) -> Loader:
    """This process's loader of `config.data`."""
    start, stop = process_rows(mesh, global_batch=config.data.batch_size)
    rows = stop - start
    return make_loader(
        weighted(config.data),
        tokenizer=tokenizer,
        seed=config.seed,
        # Processes that differ along the tensor axis only read the same rows.
        process_index=start // rows,
        process_count=config.data.batch_size // rows,
    )


def weighted(data: DataSettings) -> DataSettings:
    """The same settings with the weights of the sources that their epochs come to, if epochs state the mixture."""
    sources = require(data.sources, key="data.sources", hint="name at least one source")
    weights = stated_weights(sources, targets={name: _known_targets(source) for name, source in sources.items()})
    replaced = {name: dataclasses.replace(source, weight=weights[name]) for name, source in sources.items()}
    return dataclasses.replace(data, sources=replaced)


def _known_targets(source: SourceSettings) -> int:
    """Tokens of an epoch, where they are given or a token cache knows them; else 0."""
    if source.tokens or not source.epochs or not is_token_cache(source.path):
        return source.tokens
    return TokenSource(source.path, split=source.split).targets
