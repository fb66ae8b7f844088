"""Standard streams of every kind: output never ends a run, nothing foreign acts on a terminal, reports end quietly."""

import io
import json
import os
import pty
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_min.system import program, streams
from dpo_min.system.streams import OutputLost, Steady

ODD = "KL(π‖π_ref) é \udcff 😀"
CHILD = """
import sys
from dpo_min.system import program, streams
def main():
    for _ in range(3):
        print({text!r}, flush=True)
    print("to the end", file=sys.stderr)
    return 0
{start}
"""
LASTING = "streams.steady(lasting=True); sys.exit(program.guard(main))"
REPORT = "program.run(main)"


def child(start=LASTING, text=ODD, redirect="", encoding="utf-8", **more):
    """What a small program of ours does whose streams are redirected by a shell: it prints thrice, and says so."""
    code = CHILD.format(text=text, start=start)
    command = f"{shlex.quote(sys.executable)} -c '{code.replace(chr(39), chr(34))}' {redirect}"
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": "."} | more
    return subprocess.run(["bash", "-c", command], capture_output=True, env=environment)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "shift_jis", "utf-16", "cp037", "utf-8:strict"])
def test_a_character_that_the_encoding_does_not_have_is_escaped(encoding):
    """Kills: `print` that raises in the middle of a run; a question mark in the place of every such letter."""
    ended = child(encoding=encoding)
    assert ended.returncode == 0 and b"Traceback" not in ended.stderr
    name = encoding.split(":")[0]
    shown = ended.stdout.decode(name, "replace")
    assert shown.count("KL(") == 3 and "\\udcff" in shown
    assert ("😀" if name.startswith("utf") else "\\ud83d\\ude00") in shown


@given(st.text(alphabet=st.characters()), st.sampled_from(["ascii", "cp1252", "utf-8", "utf-16", "koi8-r"]))
def test_a_line_of_json_stays_what_it_is_in_every_encoding(text, encoding):
    r"""Kills: letters that are replaced in JSON; \xe9, which is none of its escapes; cp1252 bytes in a file of JSON."""
    raw = io.BytesIO()
    stream = Steady(io.TextIOWrapper(raw, encoding=encoding, newline=""), lasting=False)
    kept, sys.stdout = sys.stdout, stream
    try:
        print(streams.as_json({"text": text}), flush=True)
    finally:
        sys.stdout = kept
    line = raw.getvalue().decode(encoding)
    assert json.loads(line) == json.loads(json.dumps({"text": text}))
    assert encoding.startswith("utf") or line.isascii()


@pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", "> >(:)"])
def test_a_run_goes_on_whatever_its_streams_are(redirect, tmp_path):
    """Kills: a traceback of None; a loss that is noticed only when Python ends, with exit code 120."""
    done = tmp_path / "done"
    ended = child(LASTING.replace("sys.exit", f"open('{done}', 'w').close(); sys.exit"), redirect=redirect)
    assert (ended.returncode, done.exists()) == (0, True), ended.stderr
    assert ended.stderr in (b"", b"to the end\n")


def test_a_program_whose_output_is_all_that_it_makes_ends_with_it():
    """Kills: a report on a full disk that ends with code 0; a traceback where `head` has seen enough."""
    full = child(REPORT, redirect=">/dev/full")
    assert full.returncode == 1
    assert full.stderr.decode().endswith("error: standard output: [Errno 28] No space left on device\n")
    ended = child(REPORT, redirect="| head -c 0; exit ${PIPESTATUS[0]}")
    assert ended.returncode in (0, 141) and ended.stderr in (b"", b"to the end\n")
    closed = child(REPORT, redirect=">&-")
    assert (closed.returncode, closed.stderr) == (0, b"to the end\n")


def test_a_closed_stream_keeps_its_number(tmp_path):
    """Kills: a file of ours opened as number 1, into which whoever writes to standard output then writes."""
    code = f"""
import os
from dpo_min.system import streams
streams.steady()
file = open({str(tmp_path / "file")!r}, "w")
assert file.fileno() > 2
os.write(1, b"lost")
os.write(2, b"lost")
assert os.read(0, 1) == b""
"""
    command = f"{shlex.quote(sys.executable)} -c '{code.replace(chr(39), chr(34))}' <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], cwd=os.getcwd()).returncode == 0
    assert (tmp_path / "file").read_text() == ""


def on_terminal(code, **environment):
    """All that a program writes to a terminal of its own."""
    master, slave = pty.openpty()
    environment = os.environ | {"PYTHONPATH": ".", "TERM": "xterm"} | environment
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    seen = b""
    try:
        while block := os.read(master, 4096):
            seen += block
    except OSError:  # that is how a terminal ends
        pass
    os.close(master)
    assert process.wait() == 0, seen
    return seen.decode()


def test_nothing_foreign_acts_on_a_terminal_by_whatever_way_it_is_printed():
    """Kills: a filter in some of the places that print; one that takes our own colours, or French blanks, as well."""
    seen = on_terminal(
        "import sys\n"
        "from dpo_min.system import streams\n"
        "streams.steady()\n"
        r"evil = '\x1b]0;title\x07 \x9b2J \b\r\u202e'"
        "\n"
        "print(evil); print(evil, file=sys.stderr); sys.stdout.writelines([evil]); sys.stdout.write(evil)\n"
        r"streams.control(sys.stdout, '\x1b[1mours\x1b[0m')"
        "\n"
        r"print('deux\u00a0mots !')"
    )
    assert seen.count("\x1b") == 2 and "\x1b[1mours\x1b[0m" in seen
    assert not any(c in seen for c in "\x07\x9b\b\u202e") and "\u00a0" in seen
    assert seen.count("␛]0;title␇") == 4


@pytest.mark.parametrize(("value", "coloured"), [(None, True), ("", True), ("1", False), ("0", False)])
def test_no_color_counts_when_it_is_set_to_anything(monkeypatch, value, coloured):
    """Kills: an empty NO_COLOR taken for a wish (no-color.org); colours in a pipe or on a dumb terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_COLOR", value)
    stream = io.StringIO()
    assert not streams.has_colours(stream)
    stream.isatty = lambda: True
    assert streams.has_colours(stream) is coloured
    monkeypatch.setenv("TERM", "dumb")
    assert not streams.has_colours(stream)


class Gone(io.StringIO):
    """A stream that takes nothing more."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError(), ValueError("closed file")])
def test_what_is_lost_is_lost_once(error):
    """Kills: EIO of a terminal that is gone taken for something else than a pipe that is closed."""
    stream = Steady(Gone(error), lasting=True)
    for _ in range(3):
        assert stream.write("on and on") == 9
    stream = Steady(Gone(error), lasting=False)
    with pytest.raises(OutputLost):
        stream.write("a report")
    stream.write("what follows goes nowhere")
    stream.flush()


def test_a_lost_output_is_141_or_one_line(capsys):
    for error, code in ((BrokenPipeError(), 141), (OSError(5, "Input/output error"), 1)):

        def report(error=error):
            raise OutputLost from error

        with pytest.raises(SystemExit) as end:
            program.guard(report)
        assert end.value.code == code
        assert capsys.readouterr().err.count("\n") == (code == 1)
