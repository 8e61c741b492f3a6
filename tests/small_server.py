"""A server on a small model with random weights, in threads of this process."""

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jax
from small_models import TINY

from allam_jax.generation.engine import Engine
from allam_jax.generation.engine_thread import EngineThread
from allam_jax.generation.openai_api import Model
from allam_jax.generation.page_server import bind, make_server
from allam_jax.generation.requests import Delta, FinishReason, Request
from allam_jax.generation.server import make_app
from allam_jax.generation.settings import EngineSettings, ServeSettings
from allam_jax.model.llama import Params, init_params
from allam_jax.model.llama_config import ComputeOptions, LlamaConfig
from allam_jax.tokenizer.chat_template import ChatTemplate
from allam_jax.tokenizer.ready_templates import READY
from allam_jax.tokenizer.sentencepiece_training import train_sentencepiece
from allam_jax.tokenizer.tokenizer import Tokenizer, with_control_tokens
from allam_jax.weights.directory import save_weights

TEXT = ["the cat sat on the mat and the dog ran", "قال رسول الله صلى الله عليه وسلم", "x = f(1)"] * 30
CONTEXT = 192


def make_tokenizer() -> Tokenizer:
    return with_control_tokens(train_sentencepiece(TEXT, vocab_size=330), ["<|im_start|>", "<|im_end|>"])


def make_params(tokenizer: Tokenizer) -> tuple[Params, LlamaConfig]:
    config = dataclasses.replace(
        TINY, vocab_size=tokenizer.vocab_size, vocab_multiple=16, max_position=CONTEXT, init_std=0.3
    )
    return jax.jit(lambda: init_params(jax.random.key(0), config=config))(), config


def make_engine(tokenizer: Tokenizer, *, slots: int = 4, burst: int = 4) -> Engine:
    params, config = make_params(tokenizer)
    settings = EngineSettings(slots=slots, burst=burst)
    ends = (tokenizer.eos_id, tokenizer.special_tokens["<|im_end|>"])
    return Engine(params, config=config, options=ComputeOptions(), settings=settings, tokenizer=tokenizer, eos_ids=ends)


def save_model(directory: Path) -> None:
    """The same model as a weights directory with its tokenizer."""
    tokenizer = make_tokenizer()
    tokenizer.save(directory / "tokenizer")
    params, config = make_params(tokenizer)
    metadata = {"tokenizer": tokenizer.fingerprint}
    given = {"tokenizer_dir": directory / "tokenizer", "metadata": metadata}
    save_weights(directory / "model", params=params, config=config, **given)


@dataclasses.dataclass
class Served:
    """A running server and what it stands on."""

    url: str
    engine: EngineThread
    model: Model
    server: object

    def client(self, **given) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **given)

    def metric(self, name: str) -> float:
        """A value of /metrics, without labels."""
        lines = self.client().get("/metrics").text.splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def settle(self, seconds: float = 20.0) -> None:
        """Waits until nothing is under way."""
        until = time.monotonic() + seconds
        while self.engine._engine.busy or self.metric("allam_free_slots") < len(self.engine._engine._answers):
            assert time.monotonic() < until, "slots are still taken"
            time.sleep(0.02)


@contextlib.contextmanager
def serving(engine: Engine, tokenizer: Tokenizer, *, key: str = "", **settings) -> Iterator[Served]:
    """Serves an engine until the end of the block; `settings` are keys of the section."""
    defaults = {"port": 0, "max_new_tokens": 128, "max_samples": 16, "drain_seconds": 20.0}
    options = ServeSettings(**(defaults | settings))
    template = ChatTemplate(READY["allam"], tokenizer=tokenizer, name="allam")
    model = Model("small/model", tokenizer, template, engine.capacity, options.max_new_tokens, options.max_samples)
    thread = EngineThread(engine, max_queue=options.max_queue)
    with bind(options.host, options.port, section="serve") as sock:
        app = make_app(thread, model=model, settings=options, key=key)
        server = make_server(app, drain_seconds=options.drain_seconds)
        runner = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        runner.start()
        while not server.started:
            time.sleep(0.01)
        yield Served(f"http://127.0.0.1:{sock.getsockname()[1]}", thread, model, server)
        server.should_exit = True
        runner.join(30)
        thread.stop()


class ScriptedEngine:
    """Gives the words of a text, one a step, in place of a model: what a page or a terminal shows is then known."""

    capacity, queued = 512, 0

    def __init__(self, text: str, *, seconds: float = 0.0, reason: FinishReason = "stop"):
        self.text, self._seconds, self._reason = text, seconds, reason
        self._answers: list[Request | None] = []
        self._left: list[str] = []
        self.requests: list[Request] = []

    @property
    def busy(self) -> bool:
        return bool(self._answers)

    @property
    def free_slots(self) -> int:
        return 1 - len(self._answers)

    def check(self, request: Request) -> None:
        pass

    def submit(self, request: Request) -> None:
        self._answers, self._left = [request], re.findall(r"\S+\s*", self.text)
        self.requests.append(request)

    def cancel(self, name: str) -> None:
        if self._answers and self._answers[0].name == name:
            self._left = []

    def step(self) -> list[Delta]:
        if not self._answers:
            return []
        time.sleep(self._seconds)
        name, word = self._answers[0].name, self._left.pop(0) if self._left else ""
        if not self._left:
            self._answers = []
        return [Delta(name, 0, (1,), word, (), None if self._left else self._reason)]
