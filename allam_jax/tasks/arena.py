"""Task `arena`: people vote on pairs of answers; ratings, win rates and agreement come out."""

from pathlib import Path
from typing import Any

from allam_jax import files
from allam_jax.config import require
from allam_jax.errors import UserError
from allam_jax.evaluation.votes import Assignment, Rule, VoteLog, read_pairs
from allam_jax.settings import Settings

VOTES = "votes.jsonl"


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Serves the page until SIGTERM or Ctrl-C, with votes in `votes.jsonl`; writes `arena.json`, report and figures."""
    options = config.arena
    try:
        import evalica  # noqa: F401  # now, and not after the last vote

        from allam_jax.evaluation import arena_report
        from allam_jax.evaluation.arena_server import make_app
        from allam_jax.generation.page_server import serve_page
    except ImportError as error:
        raise UserError(f"task arena: needs {error.name}; pip install -r requirements-eval.txt") from None
    pairs = read_pairs(require(options.pairs, key="arena.pairs", hint="give a JSON Lines file of pairs"))
    log = VoteLog(workdir / VOTES)
    try:
        if options.serve:
            rule = Rule(options.raters, options.more_raters)
            app = make_app(Assignment(pairs, log, rule=rule, seed=config.seed), options)
            serve_page(app, host=options.host, port=options.port, section="arena")
    finally:
        log.close()
    found = arena_report.results(pairs, log.votes, options, seed=config.seed)
    files.write_json(workdir / "arena.json", found)
    arena_report.write(workdir / "arena.md", found, title=options.title)
    return {key: found[key] for key in ("pairs", "decided", "votes", "fleiss_kappa", "krippendorff_alpha")}
