"""The chat in a pseudo-terminal: lines, commands, Ctrl-C, Arabic; the model's part is played by a script."""

import json
import os
import pty
import re
import select
import signal
import sys
import time

import pytest
from small_server import ScriptedEngine, make_tokenizer

from allam_jax import interrupts, streams
from allam_jax.generation.requests import Sampling
from allam_jax.generation.terminal_text import FIND_DIRECTION, KEEP_DIRECTION
from allam_jax.tasks import chat
from allam_jax.tokenizer.chat_template import ChatTemplate
from allam_jax.tokenizer.ready_templates import READY

ANSWER = "مرحبا بك\nJAX مكتبة \x1b[2J للأرقام\n- نقطة"


class Terminal:
    """A child that talks, and what it has written."""

    def __init__(self, tokenizer, answer, *, seconds=0.0):
        self.shown = ""
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            try:
                self._talk(tokenizer, answer, seconds)
            finally:
                os._exit(1)

    @staticmethod
    def _talk(tokenizer, answer, seconds):
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115  pytest has put others in place
        sys.stdout, sys.stderr = open(1, "w", encoding="utf-8"), open(2, "w", encoding="utf-8")  # noqa: SIM115
        streams.protect()
        interrupts.install()
        template = ChatTemplate(READY["allam"], tokenizer=tokenizer, name="allam")
        engine = ScriptedEngine(answer, seconds=seconds)
        talk = chat.Conversation(engine, template, sampling=Sampling(max_new_tokens=99), system="كن مفيدا")
        chat.talk(talk)
        print(f"answers: {talk.answers}", flush=True)
        os._exit(0)

    def type(self, text):
        os.write(self._descriptor, text.encode())

    def until(self, text, seconds=20.0):
        """Reads until the text has been written since the last call; gives all of it."""
        end, found = time.monotonic() + seconds, b""
        while text.encode() not in found:
            assert time.monotonic() < end, found.decode(errors="replace")
            if select.select([self._descriptor], [], [], 0.1)[0]:
                try:
                    found += os.read(self._descriptor, 65536)
                except OSError:  # the other end is closed
                    break
        self.shown += found.decode(errors="replace")
        return found.decode(errors="replace")

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_a_chat_in_a_terminal(tokenizer, tmp_path):
    terminal = Terminal(tokenizer, ANSWER)
    terminal.until("> ")
    terminal.type("كيف حالك؟\n")
    shown = re.sub(r"\x1b\[\?\d+[hl]|\r", "", terminal.until("- نقطة"))
    lines = [line for line in shown.split("\n") if line]
    assert "مرحبا بك" in lines
    (line,) = [line for line in lines if "JAX" in line]
    assert line == "\u200fJAX مكتبة \ufffd[2J للأرقام"  # runs from right to left, and commands nothing
    terminal.until("> ")
    terminal.type("/nonsense\n")
    assert "/reset" in terminal.until("> ")
    terminal.type(f"/save {tmp_path}/chat.json\n")
    assert "3 messages" in terminal.until("> ")
    saved = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    assert saved[1]["content"] == "كيف حالك؟"
    assert saved[2]["content"] == ANSWER
    terminal.type("/system be brief\n")
    assert "system: be brief" in terminal.until("> ")
    terminal.type("\x1b[A\x1b[A\n")  # the line before the last one, from the history
    terminal.until("1 messages")
    terminal.until("> ")
    assert len(json.loads((tmp_path / "chat.json").read_text())["messages"]) == 1
    terminal.type("/quit\n")
    assert "answers: 1" in terminal.until("answers: 1")
    assert terminal.wait() == 0
    assert terminal.shown.count(FIND_DIRECTION) == terminal.shown.count(KEEP_DIRECTION) == 1


def test_ctrl_c_stops_an_answer_and_not_the_chat(tokenizer, tmp_path):
    terminal = Terminal(tokenizer, "word " * 400, seconds=0.02)
    terminal.until("> ")
    terminal.type("\x03")  # at the prompt
    terminal.until("/quit or Ctrl-D leaves")
    for _ in range(2):
        terminal.type("hello\n")
        terminal.until("word word")
        terminal.type("\x03")
        terminal.until("[stopped]")
        terminal.until("> ")
    terminal.type(f"/save {tmp_path}/chat.json\n")
    terminal.until("> ")
    answers = json.loads((tmp_path / "chat.json").read_text())["messages"][2::2]
    assert all(re.fullmatch(r"(word )+", one["content"]) and len(one["content"]) < 5 * 400 for one in answers)
    terminal.type("\x04")
    terminal.until("answers: 2")
    assert terminal.wait() == 0


def test_a_hang_up_ends_the_chat(tokenizer):
    terminal = Terminal(tokenizer, "x")
    terminal.until("> ")
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.wait() == 1  # the exception of the handler; run.py makes status 0 of it
