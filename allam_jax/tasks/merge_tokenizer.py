"""Task `merge_tokenizer`: adds a language's pieces to a base tokenizer, checks that nothing else changed, measures."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from allam_jax import files
from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.report.style import language_name
from allam_jax.settings import Settings
from allam_jax.tasks.texts import lines_of, read_texts
from allam_jax.tokenizer.fertility import fertility_bars, fertility_table
from allam_jax.tokenizer.generation_config import keep_conversation
from allam_jax.tokenizer.piece_merge import merge_vocabularies, verify_merge
from allam_jax.tokenizer.scripts import script_pattern
from allam_jax.tokenizer.tokenizer import Tokenizer, directory_of

PROOF_FILE = "proof.json"
_FEW_LINES = 100  # held-out ones of a kind, of which a proof says little
FERTILITY_FILE = "fertility.json"
FERTILITY_FIGURE = "fertility.png"


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Merges `tokenizer_merge.target` into `.base`; writes the tokenizer, `proof.json` and `fertility.{json,png}`.

    `proof.json` is what `verify_merge` found.

    UserError if a held-out line is not segmented as by the target (text of the script), as by the base (text without
    it), or as by each on its side (mixed text).
    """
    options = config.tokenizer_merge
    for key, path in (("base", options.base), ("target", options.target)):
        if path and Path(path).resolve() == workdir.resolve():
            raise UserError(f"config.tokenizer_merge.{key} = {path!r}: would be overwritten; use another --workdir")
    base = Tokenizer.load(require(options.base, key="tokenizer_merge.base", hint="give the base's directory"))
    target = Tokenizer.load(require(options.target, key="tokenizer_merge.target", hint="give its directory"))
    merged = merge_vocabularies(base, target, script=options.script, control_tokens=options.control_tokens)
    texts = read_texts(options.sources, key="tokenizer_merge.sources")
    lines = [line for documents in texts.values() for line in lines_of(documents)]
    proof = verify_merge(base, target, merged, lines, script=options.script)
    _require_equal(proof, script=options.script, target=options.target)
    for kind in (options.script, f"non_{options.script}"):
        if proof[f"{kind}_lines"] < _FEW_LINES:
            said = "merge: only %d %s lines show that texts are cut as before; give more in tokenizer_merge.sources"
            logging.warning(said, proof[f"{kind}_lines"], kind)
    table = fertility_table({"base": base, options.script: target, "merged": merged}, texts)
    logging.info("merge: %s", {key: value for key, value in proof.items() if key != "differing"})
    for name, domains in table.items():
        logging.info("fertility %s: %s", name, {d: round(v["tokens_per_word"], 3) for d, v in domains.items()})
    names = {options.script: f"{language_name(_main_source(texts, script=options.script))} only"}
    fertility_bars({names.get(name, name): row for name, row in table.items()}, workdir / FERTILITY_FIGURE)
    files.write_json(workdir / PROOF_FILE, proof)
    files.write_json(workdir / FERTILITY_FILE, table)
    merged.save(workdir)
    keep_conversation(directory_of(options.base), to=workdir, vocab_size=base.vocab_size)
    return {"vocab_size": merged.vocab_size, "fingerprint": merged.fingerprint, "merge": proof, "fertility": table}


def _main_source(texts: Mapping[str, list[str]], *, script: str) -> str:
    """The source with the most characters of the script: the one whose language was added."""
    of_script = script_pattern(script).findall
    return max(texts, key=lambda name: sum(len(of_script(text)) for text in texts[name]))


def _require_equal(proof: dict[str, Any], *, script: str, target: str) -> None:
    for kind in (f"non_{script}", script, "mixed"):
        if proof[f"{kind}_equal"] in (1.0, None):
            continue
        first = next(entry for entry in proof["differing"] if entry["kind"] == kind)
        expected, got = first["expected"], first["got"]
        at = len(os.path.commonprefix([expected, got]))
        share = 1 - proof[f"{kind}_equal"]
        raise UserError(
            f"tokenizer_merge: {share:.2%} of {proof[f'{kind}_lines']} {kind} lines are segmented unlike before, "
            f"first {first['line'][:60]!r} ({got[at : at + 5]}, expected {expected[at : at + 5]}); train {target} with "
            f"tokenizer_training.like = the base and tokenizer_training.script = {script!r}"
        )
