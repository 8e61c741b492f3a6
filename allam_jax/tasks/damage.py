"""Task `damage`: clean documents -> the same with planted damage, and pairs from which a worker learns to undo it.

WORKDIR/NAME/            the damaged documents
WORKDIR/truth.jsonl      a row a document: its id, its clean text, and what was planted
WORKDIR/pairs.jsonl      conversations for task `sft`: the instruction with a damaged piece, and the clean piece
WORKDIR/known_words/     the entries of each block list that are planted as `insult`, as a block list for rules
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from absl import logging

from allam_jax.config import require
from allam_jax.corpus.document import Document
from allam_jax.corpus.shards import check_name, read_manifest, write_dataset
from allam_jax.corpus.word_lists import read_block_list
from allam_jax.data.documents import DocumentSource
from allam_jax.errors import UserError
from allam_jax.files import atomic_path, child, json_text, unit_hash, write_text
from allam_jax.rewriting.document_pieces import count_by_bytes, pieces_of, rejoin
from allam_jax.rewriting.inner_damage import LANGUAGES, damaged
from allam_jax.rewriting.instructions import Instruction, read_instruction
from allam_jax.rewriting.settings import INSULT, UNKNOWN_INSULT, DamageSettings
from allam_jax.settings import Settings

_NO_INSULTS = "pieces that get no insult, for want of"
TRUTH, PAIRS = "truth.jsonl", "pairs.jsonl"
DAMAGED = "damaged"  # the origin of its documents


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Writes the damaged dataset, its truth and the pairs; returns how much of each kind was planted."""
    options = config.damage
    source = DocumentSource(require(options.input, key="damage.input", hint="give a dataset"), split=options.split)
    name = options.name or (read_manifest(Path(options.input)) or {}).get("name", Path(options.input).name)
    check_name(name)
    instruction = read_instruction(
        require(
            options.instruction, key="damage.instruction", hint="give a file, such as configs/instructions/short.toml"
        )
    )
    insults = {
        language: _divided(read_block_list(path), known=options.known_words)
        for language, path in options.block_lists.items()
    }
    for language, words in insults.items():
        write_text(known_words(workdir, language), "".join(f"{word}\n" for word in words[INSULT]))
    counts = Counter[str](dict.fromkeys(("documents", "pairs", *options.kinds), 0))
    with (
        atomic_path(workdir / TRUTH) as truth_path,
        atomic_path(workdir / PAIRS) as pairs_path,
        open(truth_path, "w", encoding="utf-8") as truth,
        open(pairs_path, "w", encoding="utf-8") as pairs,
    ):
        write_dataset(
            _damaged(source, options, insults, instruction, seed=config.seed, truth=truth, pairs=pairs, counts=counts),
            directory=child(workdir, name, what="config.damage.name"),
            name=name,
            validation_share=0.0,
            metadata={"origin": DAMAGED, "made_of": source.fingerprint},
        )
    for reason in (name for name in counts if name.startswith(_NO_INSULTS)):
        logging.warning("damage: %d %s", counts[reason], reason)
    return dict(counts)


def _damaged(
    source: DocumentSource,
    options: DamageSettings,
    insults: Mapping[str, Mapping[str, list[str]]],
    instruction: Instruction,
    *,
    seed: int,
    truth: IO[str],
    pairs: IO[str],
    counts: Counter[str],
) -> Iterator[Document]:
    shares = dict.fromkeys(options.kinds, options.share)
    for index in range(min(len(source), options.documents or len(source))):
        fields = source.fields(index)
        language = fields["language"]
        if language not in LANGUAGES:
            raise UserError(
                f"config.damage.input: a document in {language!r}; damage is known in {', '.join(LANGUAGES)}"
            )
        # Every piece has its own draws, so that more or fewer documents change nothing in the others.
        rng = random.Random(f"{seed}:{fields['source']}:{fields['id']}")
        pieces = pieces_of(fields["text"], most_tokens=options.piece_tokens, count=count_by_bytes)
        texts, planted = list[str | None](), list[tuple[str, str]]()
        for piece in pieces:
            texts.append(None)
            if piece.kept:
                continue
            words = insults.get(language, {})
            if INSULT in options.kinds and not words.get(INSULT):
                counts[f"{_NO_INSULTS} damage.block_lists.{language}"] += 1
            found = damaged(piece.text, language=language, insults=words, shares=shares, rng=rng)
            texts[-1] = found.text
            planted += found.planted
            reply = {"role": "assistant", "content": piece.text}
            conversation = {"messages": [*instruction.messages(found.text, language=language), reply]}
            pairs.write(f"{json_text(conversation)}\n")
            counts["pairs"] += 1
        counts["documents"] += 1
        counts.update(kind for kind, _ in planted)
        truth.write(f"{json_text({'id': fields['id'], 'text': fields['text'], 'planted': planted})}\n")
        yield Document(text=rejoin(pieces, texts), id=fields["id"], source=fields["source"], language=language)


def known_words(directory: Path, language: str) -> Path:
    """The block list that rules may know, in the directory of this task."""
    return directory / "known_words" / f"{language}.txt"


def _divided(entries: Iterable[str], *, known: float) -> dict[str, list[str]]:
    """Kind -> its entries. The text of an entry alone decides, so that several runs divide a list alike."""
    kinds: dict[str, list[str]] = {INSULT: [], UNKNOWN_INSULT: []}
    for entry in sorted(entries):
        kinds[INSULT if unit_hash(entry) < known else UNKNOWN_INSULT].append(entry)
    return kinds
