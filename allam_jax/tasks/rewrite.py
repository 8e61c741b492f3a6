"""Tasks `rewrite` and `translate`: documents through a model piece by piece, every piece checked; documents again.

    WORKDIR/NAME/                   the new dataset, an ordinary source of mixtures
    WORKDIR/attempts/0/             answers of the first attempt (`over_rows`), and so on
    WORKDIR/provenance.jsonl.gz     a row a document: hashes of model and instruction, what each check found
    WORKDIR/aligned.jsonl.gz         pieces of the original beside their rewrites; sentences, where pieces are sentences
    WORKDIR/failed.md               ten failed pieces of each check, to read

A run that was killed goes on behind its last answer, and ends with the same bytes. Of several machines each takes a
part (`rewriting/rewrite_parts.py`), and task `join_rewrites` makes of all what one would have written.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from allam_jax.checksums import hash_json
from allam_jax.config import require
from allam_jax.corpus.shards import check_name, read_manifest, write_dataset
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.files import child, json_text, write_json
from allam_jax.generation.over_rows import over_rows
from allam_jax.generation.requests import sampling_of
from allam_jax.generation.rows import Prompt
from allam_jax.parallel.distributed import barrier, broadcast, is_main_process
from allam_jax.rewriting.document_pieces import Count, count_by_bytes
from allam_jax.rewriting.documents_in_pieces import PIECES_OF_A_DOCUMENT, DocumentsInPieces
from allam_jax.rewriting.glossary import read_glossary
from allam_jax.rewriting.instructions import Instruction, read_instruction
from allam_jax.rewriting.parallel_text import ParallelText
from allam_jax.rewriting.rewrite_parts import write_part
from allam_jax.rewriting.rewrite_report import RewriteReport
from allam_jax.rewriting.rules_worker import RulesBackend
from allam_jax.rewriting.settings import RewriteSettings, TranslateSettings
from allam_jax.settings import Settings, as_dict
from allam_jax.tasks.answering import Answerer, open_answerer
from allam_jax.tokenizer.tokenizer import Tokenizer

_ORIGIN = {"rewrite": "rewritten", "translate": "translated"}
_FRAME = 256  # tokens of a template around one message, at most
# What decides which pieces there are and what is asked about them; the rest decides what becomes of the answers.
_CUT = ("split", "documents", "to_language", "by_sentence", "piece_tokens", "keep", "keep_sources")


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes the new dataset into `workdir`; returns counts of documents, of pieces and of what the checks found."""
    key = config.task
    options = getattr(config, key)
    source = DocumentSource(require(options.input, key=f"{key}.input", hint="give a dataset"), split=options.split)
    name = options.name or (read_manifest(Path(options.input)) or {}).get("name", Path(options.input).name)
    check_name(name)

    # ---- who answers, and what is asked ----
    glossary = read_glossary(options.glossary) if isinstance(options, TranslateSettings) and options.glossary else None
    answerer, instruction = _worker(config, key=key, glossary=glossary is not None)
    count = _count_with(answerer.tokenizer) if answerer.tokenizer else count_by_bytes
    documents = DocumentsInPieces(
        source, settings=options, instruction=instruction, count=count, key=key, glossary=glossary
    )
    if options.parts > 1 and not documents.share():
        raise UserError(f"config.{key}.parts = {options.parts}: more than there are documents; lower it")
    parallel = _parallel_text(options, (source.fields(index)["id"] for index in documents.share()))
    cut = {field: as_dict(getattr(options, field)) for field in _CUT}
    asked: dict[str, Any] = {
        "input": source.fingerprint,
        "cut": cut,
        "instruction": instruction and instruction.fingerprint,
        "piece_numbers": PIECES_OF_A_DOCUMENT,
        "part": [options.part, options.parts],
    }
    if glossary:
        asked["glossary"] = glossary.fingerprint

    # ---- answers, and again what failed ----
    directories: list[Path] = []
    made_by: dict[str, Any] = {}
    for attempt in range(options.attempts):
        backend = answerer.backend(sampling_of(options, seed=(config.seed + attempt) % 2**32))
        made_by = made_by or backend.describe()
        total = broadcast(sum(1 for _ in documents.prompts(directories)) if is_main_process() else 0)
        if not total:
            break
        if not attempt:
            _check_room(answerer, documents, options=options, key=key)
        over_rows(
            documents.prompts(directories),
            total=total,
            backend=backend,
            directory=workdir / "attempts" / str(attempt),
            # From the second attempt on, the checks have decided which pieces are asked about.
            identity=asked | ({"attempt": attempt, "checks": as_dict(options.checks)} if attempt else {}),
            shard_rows=options.shard_rows,
            max_error_share=options.max_error_share,
            writes=is_main_process(),
            agree=broadcast,
        )
        directories.append(workdir / "attempts" / str(attempt))
        barrier(f"attempt {attempt}")

    # ---- documents again ----
    result: dict[str, Any] = {}
    if is_main_process():
        by = {"model": hash_json(made_by), "instruction": hash_json(asked["instruction"])}
        report = RewriteReport(made_by=by)
        metadata = {
            "origin": _ORIGIN[key],
            "made_of": source.fingerprint,
            "model": made_by,
            "instruction": instruction and {"name": instruction.name, "version": instruction.version},
            **{"checks": as_dict(options.checks), "failed": options.failed},
            **({"glossary": glossary.fingerprint} if glossary else {}),
        }
        wholes = documents.wholes(directories)
        if options.parts > 1:
            write_part(
                wholes,
                workdir,
                report=report,
                part=options.part,
                parts=options.parts,
                dataset={"name": name, "metadata": metadata},
                asked={key: value for key, value in asked.items() if key != "part"} | {"attempts": options.attempts},
                made_by=by,
            )
        else:
            write_dataset(
                report.documents(parallel.watched(wholes) if parallel else wholes, workdir),
                directory=child(workdir, name, what=f"config.{key}.name"),
                name=name,
                validation_share=0.0,
                metadata=metadata,
            )
        result = report.summary() | ({"reference": parallel.scores()} if parallel else {})
        report.write_examples(workdir / "failed.md")
        write_json(workdir / "report.json", result)
    return broadcast(result)


def _parallel_text(options: RewriteSettings, ids: Iterable[str]) -> ParallelText | None:
    if not isinstance(options, TranslateSettings) or not options.reference:
        return None
    if options.parts > 1:
        raise UserError("config.translate.reference: chrF is that of a whole; give it where parts = 1")
    return ParallelText(options.reference, split=options.reference_split, ids=ids)


def _worker(config: Settings, *, key: str, glossary: bool) -> tuple[Answerer, Instruction | None]:
    options = getattr(config, key)
    if options.worker == "rules":
        if options.instruction:
            raise UserError(f"config.{key}.instruction: rules read none; leave it empty")
        rules = RulesBackend(options.block_lists)
        return Answerer(lambda _: rules), None
    path = require(
        options.instruction, key=f"{key}.instruction", hint="give a file, such as configs/instructions/rewrite.toml"
    )
    instruction = read_instruction(path, glossary=glossary)
    answerer = open_answerer(config, section=key, messages=True)
    if answerer.tokenizer is None and config.tokenizer:
        return dataclasses.replace(answerer, tokenizer=Tokenizer.load(Path(config.tokenizer))), instruction
    return answerer, instruction


def _check_room(answerer: Answerer, documents: DocumentsInPieces, *, options: RewriteSettings, key: str) -> None:
    """UserError unless every piece, with its instruction and a whole answer, fits into what the model can hold."""
    if answerer.encode is None:
        return
    encode, room = answerer.encode, answerer.capacity - options.max_new_tokens
    longest = max((len(encode(prompt)) for prompt in documents.prompts([]) if _may_exceed(prompt, room)), default=0)
    if longest > room:
        raise UserError(
            f"config.{key}: a piece with the instruction has {longest:,} tokens; with max_new_tokens = "
            f"{options.max_new_tokens:,} they exceed the {answerer.capacity:,} that a text has (engine.capacity, or "
            f"else the model's context); lower {key}.piece_tokens = {options.piece_tokens:,} or {key}.max_new_tokens"
        )


def _may_exceed(prompt: Prompt, room: int) -> bool:
    """Whether a prompt can have more tokens than there is room for: it has no more than bytes, beside its frame."""
    return len(json_text(prompt.asked).encode()) + _FRAME > room


def _count_with(tokenizer: Tokenizer) -> Count:
    return lambda texts: list(map(len, tokenizer.encode_batch(texts)))
