"""Task `extend_tokenizer`: goes on with the base's BPE on a language, and measures or proves what that changes."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax import files
from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.settings import Settings
from allam_jax.tasks.merge_tokenizer import FERTILITY_FIGURE, FERTILITY_FILE, PROOF_FILE
from allam_jax.tasks.texts import lines_of, read_texts
from allam_jax.tokenizer.byte_level_extension import extend_byte_level, train_byte_level, verify_byte_level
from allam_jax.tokenizer.fertility import fertility_bars, fertility_table
from allam_jax.tokenizer.generation_config import keep_conversation
from allam_jax.tokenizer.json_model import JsonModel
from allam_jax.tokenizer.piece_extension import extend_vocabulary, measure_extension
from allam_jax.tokenizer.scripts import script_pattern
from allam_jax.tokenizer.tokenizer import Tokenizer, directory_of


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Extends `tokenizer_extension.base`; writes the tokenizer, `proof.json` and `fertility.{json,png}`.

    `proof.json` is what held-out lines show. Text in the script of the new pieces cannot be proved unchanged:
    `measure_extension` counts. A byte-level BPE that learns another script has the proof of `verify_byte_level`.
    """
    options = config.tokenizer_extension
    if options.base and Path(options.base).resolve() == workdir.resolve():
        raise UserError(
            f"config.tokenizer_extension.base = {options.base!r}: would be overwritten; use another --workdir"
        )
    base = Tokenizer.load(require(options.base, key="tokenizer_extension.base", hint="give the base's directory"))
    texts, kept, held_out = (
        read_texts(getattr(options, key), key=f"tokenizer_extension.{key}") for key in ("sources", "kept", "held_out")
    )
    is_byte_level = isinstance(base.model, JsonModel)
    learn = extend_byte_level if is_byte_level else extend_vocabulary
    new_lines, kept_lines = ([line for text in each.values() for line in lines_of(text)] for each in (texts, kept))
    shares_script = _shares_script(kept_lines, script=options.script)
    extended = learn(
        base,
        new_lines,
        kept_lines,
        script=options.script,
        pieces=options.pieces,
        # Words of the new script in texts of another change, as they should.
        limit=options.limit if shares_script or not is_byte_level else 1.0,
        control_tokens=options.control_tokens,
    )
    held_out_lines = {name: lines_of(documents) for name, documents in held_out.items()}
    tokenizers = {"base": base, "extended": extended}
    if is_byte_level and not shares_script:
        lines = [line for lines in held_out_lines.values() for line in lines]
        measured = verify_byte_level(base, extended, lines, script=options.script)
        assert measured[f"non_{options.script}_equal"] in (1.0, None), measured
        assert not measured["unreachable_pieces"], measured
        alone = train_byte_level(base, new_lines, pieces=measured["new_pieces"])
        tokenizers = {"base": base, options.script: alone, "extended": extended}
    else:
        measured = measure_extension(base, extended, held_out_lines)
    table = fertility_table(tokenizers, held_out)
    logging.info("extended %d to %d pieces: %s", base.vocab_size, extended.vocab_size, measured)
    added = extended.vocab_size - base.vocab_size
    if added < options.pieces:
        logging.warning("%d pieces are added instead of %d: the texts or the limit give no more", added, options.pieces)
    fertility_bars(table, workdir / FERTILITY_FIGURE)
    files.write_json(workdir / PROOF_FILE, measured)
    files.write_json(workdir / FERTILITY_FILE, table)
    extended.save(workdir)
    keep_conversation(directory_of(options.base), to=workdir, vocab_size=base.vocab_size)
    return {
        "vocab_size": extended.vocab_size,
        "fingerprint": extended.fingerprint,
        "merge": measured,
        "fertility": table,
    }


def _shares_script(lines: Sequence[str], *, script: str) -> bool:
    """Whether most letters of the kept languages are of the new pieces' script; a name here and there is not enough."""
    own = script_pattern(script).match
    letters = Counter(filter(str.isalpha, itertools.chain.from_iterable(lines)))
    return sum(count for letter, count in letters.items() if own(letter)) > letters.total() / 2
