"""Opens what `config.conversations` describes: the template, and the samples on disk, made once in the workdir."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh

from allam_jax.alignment.packed_samples import PackedRows, PackedSamples
from allam_jax.alignment.replayed_text import replayed
from allam_jax.alignment.reply_masks import Masker, Sample
from allam_jax.alignment.sample_cache import Maker, Samples, Text, open_samples, write_samples
from allam_jax.alignment.settings import ReplaySettings
from allam_jax.alignment.watched_answers import SUITE as WATCHED
from allam_jax.alignment.watched_answers import prompts_of, watched_answers
from allam_jax.checksums import hash_json
from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.generation.engine import Engine
from allam_jax.generation.settings import EngineSettings
from allam_jax.model.llama import Params
from allam_jax.model.low_rank import merged
from allam_jax.parallel.distributed import broadcast, is_main_process, process_rows
from allam_jax.settings import Settings, as_dict
from allam_jax.tasks.answering import content_of
from allam_jax.tasks.inputs_of_task import inputs_of_settings
from allam_jax.tasks.setup import TextModel, answer_ends
from allam_jax.tokenizer.chat_template import ChatTemplate
from allam_jax.tokenizer.ready_templates import READY
from allam_jax.training.loop import Evaluation
from allam_jax.training.origin import Origin

SAMPLES_FOLDER = "samples"
_SLOTS = 8  # watched answers under way at a time: their keys and values lie beside the state of the run


def open_template(config: Settings, origin: Origin | TextModel) -> ChatTemplate:
    """The template of `config.conversations.template`, or that of the tokenizer; UserError if there is none."""
    template = ChatTemplate.named(
        config.conversations.template, tokenizer=origin.tokenizer, directory=origin.tokenizer_dir
    )
    if template is None:
        raise UserError(
            f"config.conversations.template: {origin.tokenizer_dir} has no chat template; set it to "
            f"{', '.join(READY)} or a file"
        )
    return template


def make_samples(
    config: Settings,
    workdir: Path,
    origin: Origin | TextModel,
    *,
    template: ChatTemplate,
    maker: Callable[[Masker], Maker],
    kind: str,
    replay: ReplaySettings | None = None,
) -> Samples:
    """Writes the samples of the config's conversations into the workdir unless they are there, and opens them.

    `template` renders them; `maker` makes those of a record; `kind` tells apart what makers do with equal settings;
    `replay` says which text is learned beside them.
    """
    options = config.conversations
    require(options.sources, key="conversations.sources", hint="name at least one source")
    for name, source in options.sources.items():
        require(source.path, key=f"conversations.sources.{name}.path", hint="give a file, a folder or a dataset")
    directory = workdir / SAMPLES_FOLDER
    problem = ""
    if is_main_process():
        try:
            text, of_text = _replayed(config, replay, origin=origin) if replay and replay.share else (None, {})
            masker = Masker(
                template, tokenizer=origin.tokenizer, seq_len=config.data.seq_len, too_long=options.too_long
            )
            write_samples(
                directory,
                paths={name: source.path for name, source in options.sources.items()},
                make=maker(masker),
                identity={
                    "kind": kind,
                    "files": _contents(config),
                    "template": hash_json(template.source),
                    "tokenizer": origin.tokenizer.fingerprint,
                    "seq_len": config.data.seq_len,
                    "options": {
                        key: value
                        for key, value in as_dict(options).items()
                        if key in ("too_long", "held_out_share", "max_bad_share")
                    },
                }
                | of_text,
                vocab_size=origin.tokenizer.vocab_size,
                held_out_share=options.held_out_share,
                max_bad_share=options.max_bad_share,
                text=text,
            )
        except UserError as error:
            problem = str(error)
    if problem := broadcast(problem):  # the others wait for the files
        raise UserError(problem)
    return open_samples(directory)


def _replayed(
    config: Settings, replay: ReplaySettings, *, origin: Origin | TextModel
) -> tuple[Text, dict[str, Sequence[Any]]]:
    """What gives the text to learn, and what decides it."""
    for name, source in replay.sources.items():
        require(source.path, key=f"replay.sources.{name}.path", hint="give a dataset directory")
    found = inputs_of_settings(config)
    sources = {
        name: [source.weight, source.split, content_of(found[f"replay.sources.{name}.path"])]
        for name, source in replay.sources.items()
    }

    def text(beside: int) -> Mapping[str, Iterator[Sample]]:
        seq_len, seed = config.data.seq_len, config.seed
        return replayed(replay, beside=beside, tokenizer=origin.tokenizer, seq_len=seq_len, seed=seed)

    return text, {"replay": [replay.share, sources, config.seed]}


def languages_of(config: Settings) -> list[str]:
    """The label of each source."""
    return [source.language or name for name, source in config.conversations.sources.items()]


def packed_loader(config: Settings, rows: PackedRows, *, mesh: Mesh) -> PackedSamples:
    """This process's batches."""
    start, stop = process_rows(mesh, global_batch=config.data.batch_size)
    loader = PackedSamples(rows, batch_size=config.data.batch_size, seed=config.seed, local_rows=range(start, stop))
    count, tokens = len(rows.items), int((rows.samples.lengths[rows.items] - 1).sum())
    logging.info(
        "an epoch: %s %s in %s rows, %.0f %% full, about %.0f a step",
        f"{count:,}",
        "pairs" if rows.items.shape[1] == 2 else "samples",
        f"{loader.rows_of_an_epoch:,}",
        100 * tokens / (loader.rows_of_an_epoch * rows.seq_len),
        count / loader.rows_of_an_epoch * config.data.batch_size,
    )
    return loader


def steps_of(config: Settings, loader: PackedSamples) -> int | None:
    """Updates of the run, where the config states epochs."""
    epochs = config.conversations.epochs
    return loader.steps_of(epochs) if epochs else None


def _contents(config: Settings) -> dict[str, Sequence[str]]:
    """The hashes of the files of each source."""
    found = inputs_of_settings(config)
    return {
        name: [hash_ for _, _, hash_ in found[f"conversations.sources.{name}.path"].record().values()]
        for name in config.conversations.sources
    }


def open_watched(
    config: Settings, origin: Origin, rows: PackedRows, *, template: ChatTemplate, mesh: Mesh
) -> list[Evaluation]:
    """The evaluation that answers prompts of `rows` while the model is tuned, if the config asks for it."""
    options = config.watch
    prompts = prompts_of(rows, options, room=origin.model.max_position)
    if not prompts:
        return []
    ends = answer_ends(origin.tokenizer, origin.tokenizer_dir, template)
    size = EngineSettings(slots=min(_SLOTS, len(prompts)), capacity=max(map(len, prompts)) + options.max_new_tokens)

    def engine(params: Params) -> Engine:
        return Engine(
            merged(params),
            config=origin.model,
            options=config.compute,
            settings=size,
            tokenizer=origin.tokenizer,
            eos_ids=ends,
            mesh=mesh,
        )

    scores = watched_answers(prompts, settings=options, open_engine=engine)
    return [Evaluation(suite=WATCHED, every=options.every, scores=scores)]


def as_context(loader: PackedSamples) -> contextlib.AbstractContextManager[PackedSamples]:
    """A loader that needs no closing, for `Material`."""
    return contextlib.nullcontext(loader)
