"""Task `serve`: a server with OpenAI's API and a page to chat with the model."""

import os
from pathlib import Path
from typing import Any

import jax
from absl import logging

from allam_jax.errors import UserError
from allam_jax.generation.engine_thread import EngineThread
from allam_jax.generation.openai_api import Model
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_text_model


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Serves the model at `init.weights` until SIGTERM or Ctrl-C; then answers what is under way."""
    options = config.serve
    try:
        from allam_jax.generation.page_server import bind, listen, serve
        from allam_jax.generation.server import make_app
    except ImportError as error:
        raise UserError(f"task serve: needs {error.name}; pip install -r requirements-serve.txt") from None
    if jax.process_count() > 1:
        raise UserError("task serve: runs in one process, on all of its devices; start it once")
    key = os.environ.get(options.key_variable, "") if options.key_variable else ""
    if options.key_variable and not key:
        raise UserError(f"config.serve.key_variable: the environment has no {options.key_variable}; set it to the key")
    with bind(options.host, options.port, section="serve") as sock:
        opened = open_text_model(config, template=options.template)
        engine = opened.engine(config.engine)
        model = Model(
            name=options.name or "/".join(Path(config.init.weights).absolute().parts[-2:]),
            tokenizer=opened.tokenizer,
            template=opened.template,
            context=engine.capacity,
            max_new_tokens=options.max_new_tokens,
            max_samples=options.max_samples,
        )
        engine.warm_up()
        thread = EngineThread(engine, max_queue=options.max_queue)
        logging.info("serving %s at %s", model.name, listen(sock))
        serve(make_app(thread, model=model, settings=options, key=key), sock=sock, drain_seconds=options.drain_seconds)
        thread.stop()
    return {"model": model.name, "answer_tokens": thread.tokens}
