"""Task `chat`: a conversation with a model in the terminal."""

import contextlib
import dataclasses
import io
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from allam_jax import files
from allam_jax.errors import UserError
from allam_jax.generation.engine import Engine
from allam_jax.generation.requests import Request, Sampling, sampling_of
from allam_jax.generation.terminal_text import FIND_DIRECTION, KEEP_DIRECTION, DirectedLines, printable
from allam_jax.interrupts import StopRequest, Terminated
from allam_jax.settings import Settings
from allam_jax.tasks.setup import open_text_model
from allam_jax.tokenizer.chat_template import ChatTemplate
from allam_jax.tokenizer.ready_templates import READY

HELP = """\
/reset         forget the conversation
/system TEXT   another system message (none without TEXT); forgets the conversation
/save FILE     write the conversation as JSON
/help          this list
/quit          leave (also Ctrl-D). Ctrl-C stops an answer."""


def run(config: Settings, workdir: Path) -> dict[str, Any]:
    """Talks with the model at `init.weights` until /quit or the end of the input; returns how many answers it gave."""
    if jax.process_count() > 1:
        raise UserError("task chat: runs in one process; start it once")
    model = open_text_model(config, template=config.chat.template)
    if model.template is None:
        raise UserError(
            f"{model.tokenizer_dir}: no chat template; set chat.template to {', '.join(READY)} or a .jinja file"
        )
    engine = model.engine(dataclasses.replace(config.engine, slots=1))
    sampling = sampling_of(config.chat, seed=config.seed)
    chat = Conversation(engine, model.template, sampling=sampling, system=config.chat.system)
    talk(chat)
    return {"answers": chat.answers}


def talk(chat: "Conversation") -> None:
    """Reads lines, answers messages and obeys commands until /quit or the end of the input."""
    with _terminal() as ask, _CtrlC() as ctrl_c:
        print("Type a message, or /help.", file=sys.stderr, flush=True)
        while (line := ctrl_c.next_line(ask)) is not None:
            command, _, argument = line.strip().partition(" ")
            if command == "/quit":
                break
            if command.startswith("/"):
                print(chat.command(command, argument.strip()), flush=True)
            elif line.strip():
                chat.answer(line, write=_write, stopped=lambda: bool(ctrl_c.received))


class Conversation:
    """Messages so far, and how the next one is answered."""

    def __init__(self, engine: Engine, template: ChatTemplate, *, sampling: Sampling, system: str):
        self._engine, self._template, self._sampling, self._system = engine, template, sampling, system
        self.answers = 0
        self.messages: list[dict[str, str]] = []
        self._reset()

    def command(self, name: str, argument: str) -> str:
        """Obeys a line that begins with a slash; says what it did."""
        if name == "/reset" or name == "/system":
            self._system = argument if name == "/system" else self._system
            self._reset()
            return f"system: {self._system}" if self._system else "no system message"
        if name == "/save":
            if not argument:
                return "/save FILE: give the name of a file"
            try:
                path = Path(argument).expanduser()
                files.write_json(path, {"messages": self.messages})
            except (OSError, ValueError, RuntimeError) as error:  # NUL in a name; `~somebody` who has no home
                return f"{argument}: {getattr(error, 'strerror', error)}"
            return f"{len(self.messages)} messages in {path}"
        return HELP if name == "/help" else f"{name} is no command; these are:\n{HELP}"

    def answer(self, text: str, *, write: Callable[[str], None], stopped: Callable[[], bool]) -> None:
        """Answers a message piece by piece until it is `stopped`. A message that cannot be answered is forgotten."""
        self.messages.append({"role": "user", "content": text})
        name = uuid.uuid4().hex
        try:
            prompt_ids = tuple(self._template.prompt_ids(self.messages))
            room = self._engine.capacity - len(prompt_ids)
            sampling = dataclasses.replace(
                self._sampling,
                max_new_tokens=max(min(self._sampling.max_new_tokens, room), 1),
                seed=(self._sampling.seed + self.answers) % 2**32,
            )
            self._engine.submit(Request(name, prompt_ids, sampling))
        except UserError as error:
            self.messages.pop()
            write(f"{str(error).removeprefix(f'prompt {name}: ')} (/reset forgets the conversation)\n")
            return
        lines, parts, reason = DirectedLines(), list[str](), None
        while self._engine.busy:
            if stopped():
                self._engine.cancel(name)
            for delta in self._engine.step():
                parts.append(delta.text)
                reason = delta.finish_reason
                write(lines.push(printable(delta.text)))
        write(f"{lines.flush()}\n")
        if reason == "length":
            full = sampling.max_new_tokens < self._sampling.max_new_tokens
            cut = f"the context of {self._engine.capacity} tokens is full; /reset forgets the conversation"
            write(f"[{cut if full else f'cut off after chat.max_new_tokens = {sampling.max_new_tokens} tokens'}]\n")
        self.messages.append({"role": "assistant", "content": "".join(parts)})
        self.answers += 1

    def _reset(self) -> None:
        self.messages = [{"role": "system", "content": self._system}] if self._system else []


class _CtrlC(StopRequest):
    """Ctrl-C during a chat: drops the line that is being typed, and otherwise is noted until the next line."""

    def __init__(self) -> None:
        super().__init__(notices={"SIGINT": "[stopped]"})
        self._asking = False

    def noted(self, name: str) -> None:
        if self._asking:
            self._asking = False
            raise KeyboardInterrupt

    def next_line(self, ask: Callable[[], str]) -> str | None:
        """The next line; None at the end of the input."""
        while True:
            self.received.clear()
            try:
                self._asking = True
                line = ask()
                self._asking = False
                line.encode()
                return line
            except Terminated:
                raise
            except KeyboardInterrupt:
                print("\n(/quit or Ctrl-D leaves)", file=sys.stderr, flush=True)
            except EOFError:
                return None
            except UnicodeError:
                print("this line is not UTF-8", file=sys.stderr, flush=True)
            finally:
                self._asking = False


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def _terminal() -> Iterator[Callable[[], str]]:
    """Gives the function that reads a line: with editing and history on a terminal, plainly from a file."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield lambda: input()
        return
    import readline  # noqa: F401  with it, `input` edits lines

    # `input` edits only what goes to descriptor 1, which `streams.protect` has made standard error.
    before, kept = sys.stdout, os.dup(1)
    os.dup2(before.fileno(), 1)
    sys.stdout = io.TextIOWrapper(
        io.FileIO(1, "w", closefd=False), encoding="utf-8", errors="replace", write_through=True
    )
    sys.stdout.write(FIND_DIRECTION)
    try:
        yield lambda: input("> ")
    finally:
        sys.stdout.write(KEEP_DIRECTION)
        sys.stdout = before
        os.dup2(kept, 1)
        os.close(kept)
