"""Task `extend_tokenizer`: adds pieces of a language in the base's own script, and measures what that changes."""

from pathlib import Path
from typing import Any

from absl import logging

from allam_jax import files
from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.settings import Settings
from allam_jax.tasks.merge_tokenizer import FERTILITY_FIGURE, FERTILITY_FILE, PROOF_FILE
from allam_jax.tasks.texts import lines_of, read_texts
from allam_jax.tokenizer.fertility import fertility_bars, fertility_table
from allam_jax.tokenizer.generation_config import keep_conversation
from allam_jax.tokenizer.piece_extension import extend_vocabulary, measure_extension
from allam_jax.tokenizer.tokenizer import Tokenizer
from allam_jax.tokenizer.tokenizer_files import directory_of


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Extends `tokenizer_extension.base`; writes the tokenizer, `proof.json` and `fertility.{json,png}`.

    `proof.json` is what `measure_extension` found on held-out lines: a measurement, because text of the same script
    cannot be proved unchanged.
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
    extended = extend_vocabulary(
        base,
        (line for documents in texts.values() for line in lines_of(documents)),
        (line for documents in kept.values() for line in lines_of(documents)),
        script=options.script,
        pieces=options.pieces,
        limit=options.limit,
        control_tokens=options.control_tokens,
    )
    measured = measure_extension(base, extended, {name: lines_of(documents) for name, documents in held_out.items()})
    table = fertility_table({"base": base, "extended": extended}, held_out)
    logging.info("extended %d to %d pieces: %s", base.vocab_size, extended.vocab_size, measured)
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
