"""The chat in a pseudo-terminal: lines, commands, Ctrl-C, Arabic; the model's part is played by a script."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
import traceback

import pytest
from small_server import ScriptedEngine, make_tokenizer

from allam_jax import interrupts, streams
from allam_jax.generation.requests import Sampling
from allam_jax.generation.terminal_text import FIND_DIRECTION, KEEP_DIRECTION
from allam_jax.tasks import chat
from allam_jax.tokenizer.chat_template import ChatTemplate
from allam_jax.tokenizer.ready_templates import READY

PROMPT = "> "
ANSWER = "مرحبا بك\nJAX مكتبة \x1b[2J للأرقام\n- نقطة"


class Terminal:
    """A child that talks, and what it has written."""

    def __init__(self, tokenizer, answer, *, seconds=0.0):
        self.shown, self._unread = "", b""
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 500, 0, 0))  # no line is broken
                self._talk(tokenizer, answer, seconds)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)

    @staticmethod
    def _talk(tokenizer, answer, seconds):
        # pytest has put others in place. They must not close their descriptors when they are replaced again.
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            for number, mode in enumerate("rww")
        )
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

    def until(self, *texts, seconds=20.0, again=None):
        """What is written up to and with one of the texts; what lies behind it is for the next call.

        `again` is called every second: `input` does not hear a signal that comes just before it waits for a key.
        """
        begun, wanted = time.monotonic(), re.compile("|".join(map(re.escape, texts)).encode())
        while not (match := wanted.search(self._unread)):
            assert time.monotonic() < begun + seconds, self._unread.decode(errors="replace")
            if not select.select([self._descriptor], [], [], 1.0)[0]:
                if again:
                    again()
                continue
            try:
                self._unread += os.read(self._descriptor, 65536)
            except OSError:  # EIO: the other end is closed
                pytest.fail(f"has ended: {self._unread.decode(errors='replace')}")
        found = self._unread[: match.end()].decode(errors="replace")
        self._unread = self._unread[match.end() :]
        self.shown += found
        return found

    def ask(self, line):
        """Types a line; what is written behind it up to the next prompt."""
        self.type(f"{line}\n")
        self.until("\n")  # before it the line itself is shown, in pieces with the prompt
        return self.until(PROMPT)

    def rest(self):
        """What is written until the process closes the terminal."""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while piece := os.read(self._descriptor, 65536):
                self._unread += piece
        self.shown += self._unread.decode(errors="replace")
        return self._unread.decode(errors="replace")

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def test_a_chat_in_a_terminal(tokenizer, tmp_path):
    terminal = Terminal(tokenizer, ANSWER)
    terminal.until(PROMPT)
    shown = re.sub(r"\x1b\[\?\d+[hl]|\r", "", terminal.ask("كيف حالك؟"))
    # The second line runs from right to left, and commands nothing.
    assert shown.split("\n")[:3] == ["مرحبا بك", "\u200fJAX مكتبة \ufffd[2J للأرقام", "- نقطة"]
    assert re.search(r"/nonsense is no command.*/reset", terminal.ask("/nonsense"), re.DOTALL)
    assert "give the name of a file" in terminal.ask("/save")
    assert "3 messages" in terminal.ask(f"/save {tmp_path}/chat.json")
    saved = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    assert saved[1]["content"] == "كيف حالك؟"
    assert saved[2]["content"] == ANSWER
    assert "Is a directory" in terminal.ask(f"/save {tmp_path}")
    assert "system: be brief" in terminal.ask("/system be brief")
    up = "\x1b[A"
    assert "1 messages" in terminal.ask(up * 3)  # the first /save again, from the history
    assert len(json.loads((tmp_path / "chat.json").read_text())["messages"]) == 1
    terminal.type("/quit\n")
    assert "answers: 1" in terminal.rest()
    assert terminal.wait() == 0
    assert terminal.shown.count(FIND_DIRECTION) == terminal.shown.count(KEEP_DIRECTION) == 1


def test_ctrl_c_stops_an_answer_and_not_the_chat(tokenizer, tmp_path):
    terminal = Terminal(tokenizer, "word " * 400, seconds=0.02)
    terminal.until(PROMPT)
    terminal.type("a line that is dropped\x03")
    terminal.until("/quit or Ctrl-D leaves", again=lambda: terminal.type("\x03"))
    terminal.until(PROMPT)
    for _ in range(2):
        terminal.type("hello\n")
        terminal.until("word word")
        terminal.type("\x03")
        terminal.until("[stopped]")
        terminal.until(PROMPT)
    assert "5 messages" in terminal.ask(f"/save {tmp_path}/chat.json")
    messages = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [one["content"] for one in messages[1::2]] == ["hello"] * 2
    assert all(re.fullmatch(r"(word )+", one["content"]) and len(one["content"]) < 5 * 400 for one in messages[2::2])
    terminal.type("\x04")
    assert "answers: 2" in terminal.rest()
    assert terminal.wait() == 0


def test_ctrl_c_at_any_moment_ends_no_chat(tokenizer):
    """Also between a line and its answer, and between the answer and the next prompt."""
    terminal = Terminal(tokenizer, "word")
    terminal.until(PROMPT)
    for moment in range(30):
        terminal.type("hello\n")
        time.sleep(moment * 2e-4)
        os.kill(terminal.pid, signal.SIGINT)
        terminal.until("[stopped]", "/quit or Ctrl-D leaves", again=lambda: os.kill(terminal.pid, signal.SIGINT))
    terminal.type("/nonsense\n")
    terminal.until("/reset", again=lambda: terminal.type("/nonsense\n"))
    terminal.type("\x04")
    terminal.until("answers: ", again=lambda: terminal.type("\x04"))
    assert terminal.wait() == 0


def test_a_hang_up_ends_the_chat(tokenizer):
    terminal = Terminal(tokenizer, "x")
    terminal.until(PROMPT)
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.wait() == 1  # the exception of the handler; run.py makes status 143 of it


@pytest.mark.parametrize(
    ("reason", "most", "said"),
    [
        ("length", 99, "word\n[cut off after chat.max_new_tokens = 99 tokens]\n"),
        ("length", 9999, "word\n[the context of 512 tokens is full; /reset forgets the conversation]\n"),
        ("stop", 99, "word\n"),
    ],
)
def test_an_answer_that_is_cut_off_says_so(tokenizer, reason, most, said):
    template = ChatTemplate(READY["allam"], tokenizer=tokenizer, name="allam")
    sampling, shown = Sampling(max_new_tokens=most), []
    talk = chat.Conversation(ScriptedEngine("word", reason=reason), template, sampling=sampling, system="")
    talk.answer("hello", write=shown.append, stopped=lambda: False)
    assert "".join(shown) == said
