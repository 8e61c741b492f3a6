"""Task `merge_tokenizer`: adds a language's pieces to a base tokenizer, proves that no more changed, measures it."""

from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from allam_jax import files
from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.tasks.texts import lines_of, read_texts
from allam_jax.tokenizer.fertility import fertility_table, plot_fertility
from allam_jax.tokenizer.merge import merge, verify_merge
from allam_jax.tokenizer.tokenizer import Tokenizer

FERTILITY_FILE = "fertility.json"
FERTILITY_FIGURE = "fertility.png"


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Merges `tokenizer_merge.target` into `.base`; writes the tokenizer, `fertility.json` and `fertility.png`.

    UserError if one held-out line without a character of the script is segmented differently than before.
    """
    options = config.tokenizer_merge
    base = Tokenizer.load(require(options.base, key="tokenizer_merge.base", hint="give the base's directory"))
    target = Tokenizer.load(require(options.target, key="tokenizer_merge.target", hint="give its directory"))
    texts = read_texts(options.sources, key="tokenizer_merge.sources")
    merged = merge(base, target, script=options.script, control_tokens=options.control_tokens)
    lines = [line for documents in texts.values() for line in lines_of(documents)]
    proof = verify_merge(base, target, merged, lines, script=options.script)
    if proof["non_arabic_equal"] not in (1.0, None):
        raise UserError(f"tokenizer merge changes text outside script {options.script!r}: {proof['differing'][0]}")
    table = fertility_table({"base": base, options.script: target, "merged": merged}, texts)
    logging.info("merge: %s", {key: value for key, value in proof.items() if key != "differing"})
    for name, domains in table.items():
        logging.info("fertility %s: %s", name, {d: round(v["tokens_per_word"], 3) for d, v in domains.items()})
    plot_fertility(table, workdir / FERTILITY_FIGURE)
    files.write_json(workdir / FERTILITY_FILE, table)
    merged.save(workdir)
    return {"vocab_size": merged.vocab_size, "fingerprint": merged.fingerprint, "merge": proof, "fertility": table}
