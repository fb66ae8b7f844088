"""Several processes do what one does, on any path, with as many as there are, and go without a word."""

import os
import subprocess
import sys

import pytest

from dpo_min.data import workers
from dpo_min.data.workers import WorkerDied, default_workers, spread

MODULE = "def double(item, by=2):\n    if item == 13:\n        raise ValueError('thirteen')\n    return item * by\n"


@pytest.fixture
def double(tmp_path, monkeypatch):
    """A function that lies in a directory with a colon in its name, which PYTHONPATH could not hold."""
    (tmp_path / "we:ird").mkdir()
    (tmp_path / "we:ird" / "doubles.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "we:ird"))
    monkeypatch.delitem(sys.modules, "doubles", raising=False)
    import doubles

    return doubles.double


@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_comes_back_is_in_order_whoever_made_it(double, count):
    """Kills: results in the order in which they are finished; a path that is cut at its colon."""
    assert [*spread(double, range(20, 40), {"by": 3}, count)] == [3 * i for i in range(20, 40)]


@pytest.mark.parametrize("trouble", ["none is to be had", "each ends before it works"])
def test_without_workers_the_work_is_done_here(double, monkeypatch, trouble):
    """Kills: a run that ends because no more processes, or threads for them, are to be had."""
    if trouble == "none is to be had":
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
    else:
        monkeypatch.setattr(workers, "START", "import sys; sys.exit(3)")
    assert [*spread(double, range(5), {}, 2)] == [0, 2, 4, 6, 8]


def test_a_worker_that_fails_shows_why_and_is_an_error(double, capfd):
    with pytest.raises(WorkerDied, match="ended too early"):
        [*spread(double, [1, 13, 3], {}, 2)]
    assert "thirteen" in capfd.readouterr().err


def test_no_more_workers_than_work_and_none_for_a_single_core():
    assert default_workers(1) <= 1
    assert default_workers(10**6) != 1


PARENT = """
import os, pickle, signal, sys
from dpo_min.data.workers import Worker
from doubles import double
worker = Worker()
if {stage} > 0:
    worker.send((double, dict()))
if {stage} > 1:
    worker.receive()
if {stage} > 2:
    worker.process.stdin.write(pickle.dumps("x" * 1000)[:500])
    worker.process.stdin.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("stage", range(4))
def test_workers_whose_parent_is_killed_go_without_a_word(double, stage):
    """Kills: a traceback on the terminal; a worker that stays, as this would then wait for ever for its last word."""
    path = os.pathsep.join([os.getcwd(), *sys.path[1:]])
    code = f"import sys; sys.path.insert(0, {os.path.dirname(sys.modules['doubles'].__file__)!r})"
    code += PARENT.format(stage=stage)
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ | {"PYTHONPATH": path})
    assert (end.returncode, end.stderr) == (-9, b"")
