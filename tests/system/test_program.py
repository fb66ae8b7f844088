"""How programs end: one line for whatever was foreseen, also of a Python that lacks packages and of broken pictures."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dpo_min.system import picture, program
from dpo_min.system.text import Lines

ROOT = Path(program.__file__).parents[2]
PROGRAMS = ["train.py", "sample.py", "-m dpo_min.judge.lint", "-m dpo_min.judge.evaluate", "-m dpo_min.judge.pictures"]


def ended(action, capsys):
    """(exit code, standard error) of a program that does this."""
    with pytest.raises(SystemExit) as end:
        program.guard(action)
    return end.value.code, capsys.readouterr().err


def raising(error):
    """A program that fails so."""

    def action():
        raise error

    return action


@pytest.mark.parametrize(("error", "code", "words"), [
    (OSError(errno.ENOSPC, "No space left on device", "a"), 1, "the disk is full"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 1, "no more processes may be started here"),
    (RuntimeError("can't start new thread"), 1, "no more processes may be started here"),
    (MemoryError(), 1, "out of memory: lower --micro-batch-size"),
    (FloatingPointError("step 3: the loss is nan"), 1, "step 3: the loss is nan"),
    (KeyboardInterrupt(), 130, "stopped at once"),
    (OSError(errno.EIO, "Input/output error", "evil\n\x1b[2J" + "x" * 10**6), 1, "Input/output error"),
])  # fmt: skip
def test_what_was_foreseen_is_one_short_line_in_which_nothing_acts(error, code, words, capsys):
    """Kills: a traceback for what a person can change; a message of a megabyte, of two lines, or with escapes."""
    seen = ended(raising(error), capsys)
    assert seen[0] == code and words in seen[1]
    assert seen[1].count("\n") == 1 and len(seen[1]) < 1000 and seen[1].rstrip("\n").isprintable()


def test_a_compiler_that_is_not_there_is_one_line(capsys):
    """Kills: 40 lines of traceback at the first step under --compile."""
    error = type("InvalidCxxCompiler", (RuntimeError,), {"__module__": "torch._inductor.exc"})("No compiler\n\nmore")
    assert ended(raising(error), capsys)[1].endswith(
        "error: --compile: No compiler; a C++ compiler is needed, or leave --compile out\n"
    )


def test_what_nobody_foresaw_keeps_its_traceback():
    with pytest.raises(UnicodeEncodeError):
        program.guard(lambda: "é".encode("ascii"))


def test_a_mistake_ends_the_program_where_mistakes_are_looked_for_and_only_there(capsys):
    """Kills: `except ValueError` around all of training, which makes an encoding's error a mistake of the user's."""
    with pytest.raises(SystemExit) as end, program.mistakes():
        raise ValueError("--beta")
    assert end.value.code == 2 and capsys.readouterr().err.endswith("error: --beta\n")


def test_a_line_end_in_a_message_is_quoted_unless_the_message_is_of_lines(capsys):
    for error, lines in ((ValueError("a\nb.jsonl:1: no"), 1), (Lines("a.jsonl:1: no\na.jsonl:2: no"), 2)):
        with pytest.raises(SystemExit):
            program.stop(error)
        assert capsys.readouterr().err.count("\n") == lines


def test_work_beside_the_body_runs_at_the_same_time_and_has_ended_with_it():
    """Kills: the work after the body, or before it; a body that is left while the work goes on."""
    begun, go_on, ended = threading.Event(), threading.Event(), []
    with program.beside(lambda: (begun.set(), go_on.wait(60), ended.append(1))):
        assert begun.wait(60) and not ended
        go_on.set()
    assert ended == [1]


def test_work_beside_the_body_can_neither_end_the_program_nor_hide_how_the_body_ended():
    """Kills: a picture that fails and ends the run; a disk that is full while a picture is drawn, unnoticed."""
    with program.beside(raising(SystemExit(7))):
        pass
    with pytest.raises(OSError, match="full"), program.beside(raising(MemoryError())):
        raise OSError("full")


def test_the_body_runs_where_no_thread_can_begin(capsys):
    """Kills: a limit of threads that costs the model. Here a stack larger than the address space is refused."""
    before, done = threading.stack_size(2**48), []
    try:
        with program.beside(print):
            done.append(1)
    finally:
        threading.stack_size(before)
    assert done == [1] and capsys.readouterr().out == "left out: print (can't start new thread)\n"


def test_a_program_ends_without_a_look_for_garbage_and_keeps_its_code_and_its_output():
    """Kills: most of a second at the end of every program that has loaded PyTorch."""
    code = """
class Loud:
    def __del__(self): print("collected", flush=True)
def main():
    circle = Loud()
    circle.itself = circle
    print("kept")
    return 3
"""
    last = {"plain": "main()", "ours": "from dpo_min.system.program import run\nrun(main)"}
    shown = {}
    for name, line in last.items():
        done = subprocess.run([sys.executable, "-c", code + line], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        shown[name] = done.returncode, done.stdout.split()
    assert shown == {"plain": (0, ["kept", "collected"]), "ours": (3, ["kept"])}


@pytest.mark.parametrize("arguments", PROGRAMS)
def test_a_python_without_the_packages_says_how_to_get_them(arguments, tmp_path):
    """Kills: a traceback of ModuleNotFoundError, for the commonest of all first mistakes."""
    command = [sys.executable, "-S", "-E", *arguments.split(), "--help"]  # -S: without site-packages
    seen = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert seen.returncode == 1 and seen.stdout == ""
    assert seen.stderr.count("\n") == 1 and "lacks the packages torch, numpy, tiktoken: `make setup`" in seen.stderr


@pytest.mark.parametrize("arguments", PROGRAMS[:4])
def test_python_oo_has_no_docstrings_and_needs_none(arguments):
    seen = subprocess.run([sys.executable, "-OO", *arguments.split(), "--dta", "x"], cwd=ROOT, capture_output=True)
    assert (seen.returncode, seen.stderr.count(b"\n")) == (2, 1) and b"--dta: unknown argument" in seen.stderr


def test_a_picture_is_drawn_under_a_notebooks_backend(tmp_path, monkeypatch):
    """Kills: MPLBACKEND of a notebook, which the environment's matplotlib need not know."""
    pytest.importorskip("matplotlib")
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONPATH": "."}
    code = "from dpo_min.system.picture import pyplot; plt = pyplot(); print(plt.get_backend())"
    seen = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (seen.stdout.strip(), seen.returncode) == ("agg", 0), seen.stderr


def test_whatever_matplotlib_raises_is_one_line_and_leaves_no_half_picture(tmp_path):
    """Kills: an exception of a kind that nobody named, after all the training."""

    plt = pytest.importorskip("matplotlib.pyplot")

    @picture.picture
    def draw(path):
        figure = plt.figure()
        figure.savefig = lambda file, **style: {}[file.write(b"half")]
        picture.save(figure, path)

    with pytest.raises(OSError, match="no picture could be drawn: KeyError") as error:
        draw(tmp_path / "curves.png")
    assert "\n" not in str(error.value) and not [*tmp_path.iterdir()]
