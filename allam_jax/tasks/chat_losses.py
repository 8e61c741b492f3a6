"""Task `chat_losses`: the loss of a model on the replies of conversations, by language and turn.

All conversations are scored, whatever `conversations.held_out_share` says. The workdir holds samples/ and
chat_losses.json.
"""

import functools
from pathlib import Path
from typing import Any

from allam_jax.alignment.packed_samples import PackedRows, items_of
from allam_jax.alignment.reply_losses import reply_losses
from allam_jax.alignment.sample_cache import conversations
from allam_jax.files import write_json
from allam_jax.parallel.distributed import is_main_process
from allam_jax.settings import Settings
from allam_jax.tasks.open_samples import languages_of, make_samples, open_template
from allam_jax.tasks.setup import open_text_model
from allam_jax.training.run_description import check_seq_len


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Scores the model at `init.weights`; returns `{LANGUAGE: {"loss"}, LANGUAGE_turnN: {"loss"}}` in nats a token."""
    model = open_text_model(config, template=config.conversations.template)
    check_seq_len(config.data.seq_len, model=model.weights.config)
    samples = make_samples(
        config,
        workdir,
        model,
        template=open_template(config, model),
        maker=functools.partial(conversations, learned="all"),
        kind="losses",
    )
    rows = PackedRows(
        samples=samples, items=items_of(samples), seq_len=config.data.seq_len, packed=config.conversations.packed
    )
    scores = reply_losses(
        rows,
        languages=languages_of(config),
        config=model.weights.config,
        options=config.compute,
        mesh=model.mesh,
        batch_size=config.data.batch_size,
        num_chunks=4,
    )
    result = scores(model.weights.params)
    if is_main_process():
        write_json(workdir / "chat_losses.json", result)
    return result
