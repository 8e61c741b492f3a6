"""Standard streams that are closed, lose their reader or take no UTF-8: no traceback, and no file is damaged."""

import os
import signal
import subprocess
import sys

import pytest
from processes import HEARS_HANG_UPS

PROGRAM = """
import sys
from allam_jax import interrupts, streams
interrupts.leave_at_signals()
streams.protect()
{code}
"""


def shell(command, code):
    program = PROGRAM.format(code=code)
    return subprocess.run(
        [*HEARS_HANG_UPS, "bash", "-c", command],
        env={**os.environ, "P": sys.executable, "CODE": program},
        capture_output=True,
        text=True,
        errors="replace",
    )


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_gives_its_number_to_no_file(closed, tmp_path):
    code = f"""
file = open({str(tmp_path / "data")!r}, "w")
print("to stdout"); print("to stderr", file=sys.stderr, flush=True)
import os; os.write(2, b"a library's message"); os.write(1, b"another")
file.write("whole"); file.close(); sys.exit(7)"""
    done = shell(f'"$P" -c "$CODE" {closed}', code)
    assert done.returncode == 7
    assert (tmp_path / "data").read_text() == "whole"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("piped", ["|", "2>&1 |"])
def test_without_a_reader_the_process_ends_in_silence(piped):
    code = 'for n in range(100_000): print("line", n); print("line", n, file=sys.stderr) if n < 5 else 0'
    done = shell(f'"$P" -c "$CODE" {piped} head -n 1; echo "${{PIPESTATUS[0]}}"', code)
    assert done.stdout.splitlines() == ["line 0", str(128 + signal.SIGHUP)]
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_the_encoding_lacks_are_escaped(encoding):
    done = shell(f'PYTHONIOENCODING={encoding} "$P" -c "$CODE"', 'print("سلام"); print("é", file=sys.stderr)')
    assert done.returncode == 0
    assert done.stdout == ("سلام\n" if encoding == "utf-8" else "\\u0633\\u0644\\u0627\\u0645\n")


def test_a_full_disk_takes_no_messages_and_says_that_the_result_is_lost():
    done = shell('"$P" -c "$CODE" 2>/dev/full', 'print("x", file=sys.stderr, flush=True); print("result")')
    assert (done.returncode, done.stdout) == (0, "result\n")
    done = shell('"$P" -c "$CODE" >/dev/full', 'print("result", flush=True)')
    assert "No space left on device" in done.stderr
