"""Nothing lost: what stops a run, what it may go on with, what is broken on the disk. More of it: `make torture`."""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint  # here, so that no forked process has to
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import torture
import torture_runs

import train
from dpo_min.data.lines import read_rows
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.weights import load_model
from dpo_min.run import contents, directory, session
from dpo_min.run.checkpoint import damage, load_checkpoint, save_checkpoint
from dpo_min.run.interrupt import Interrupt
from dpo_min.run.job import prepare
from dpo_min.run.stored_reference import ReferenceLogps
from dpo_min.run.train_flags import TrainFlags
from dpo_min.run.watch import Watch, sampled_kl
from dpo_min.system import program
from dpo_min.system.files import Lock, read_json, write_atomically
from tests.training import metrics

ROOT = Path(train.__file__).parent
pytestmark = pytest.mark.usefixtures("quickly")
PAIRS = [TokenizedPair([i % 4, (i * 7) % 4], [4], [4]) for i in range(40)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with data and a model."""
    place = tmp_path_factory.mktemp("safety")
    torture_runs.write_rows(place / "prefs.jsonl", 24)
    model = GPT(GPTConfig(257, 48, 1, 2, 8), torch.Generator().manual_seed(0))
    session.save_model_directory(model, load_tokenizer("bytes"), place / "init")
    return place


def fit(place, out, *argv):
    """Run the command line in this process; returns its exit code."""
    flags = ["--data", place / "prefs.jsonl", "--init", place / "init", "--out", out, "--batch-size", 6]
    flags += ["--learning-rate", 1e-3, "--eval-fraction", 0.3, "--log-every", 2, "--eval-every", 3, *argv]
    try:
        return program.guard(train.train, prepare([str(a) for a in flags]))
    except SystemExit as stopped:
        return stopped.code


def outcome(out):
    """The lines of metrics.jsonl less the clock, and the bytes of the model and of the optimizer's moments."""
    newest = max((out / "checkpoint").glob("step-*"))
    sealed = {file.name: file.read_bytes() for file in newest.iterdir() if file.suffix == ".distcp"}
    return metrics(out), (out / "model" / "model.safetensors").read_bytes(), sealed, read_json(newest / "state.json")


# --- going on ---------------------------------------------------------------------------------------------------


@settings(max_examples=4)
@given(n=st.integers(1, 6), micro=st.integers(1, 6), save=st.integers(1, 4))
@example(n=4, micro=4, save=2)
@example(n=5, micro=2, save=200)
def test_twice_n_steps_are_n_steps_and_n_more_to_the_last_bit(tmp_path_factory, place, n, micro, save):
    """Kills: lines or sums of metrics that the end of the shorter run left; a warm-up that depends on the length."""
    tmp = tmp_path_factory.mktemp("twice")
    flags = ["--micro-batch-size", micro, "--save-every", save]
    assert fit(place, tmp / "whole", *flags, "--max-steps", 2 * n) == 0
    assert fit(place, tmp / "parts", *flags, "--max-steps", n) == 0
    assert fit(place, tmp / "parts", *flags, "--max-steps", 2 * n, "--resume") == 0
    assert outcome(tmp / "whole") == outcome(tmp / "parts")


def test_a_run_that_was_stopped_before_it_began_begins_where_it_is_resumed(place, tmp_path, capsys):
    """Kills: a run killed while PyTorch was loaded, which --resume does not know."""
    directory.claim(tmp_path / "killed")
    assert fit(place, tmp_path / "killed", "--max-steps", 2, "--resume") == 0
    assert "was stopped before it began; it begins now" in capsys.readouterr().out
    assert fit(place, tmp_path / "whole", "--max-steps", 2) == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def test_what_may_differ_on_resume_is_said_and_everything_else_is_refused_by_name(place, tmp_path, capsys):
    """Kills: a flag compared with nothing; a file compared by its path; a longer run under a schedule of its length."""
    out, data = tmp_path / "run", torture_runs.write_rows(tmp_path / "moved.jsonl", 24)
    assert fit(place, out, "--max-steps", 10) == 0
    capsys.readouterr()
    assert fit(place, out, "--max-steps", 11, "--resume", "--save-every", 1, "--micro-batch-size", 3) == 0
    shown = capsys.readouterr().out
    assert (
        "resume: 10 steps become 11: the result, except for best/, is to the last bit that of a run that has 11"
        in shown
    )
    assert "--save-every was 200, now it is 1: the weights do not depend on it" in shown
    assert "--micro-batch-size was 8, now it is 3: the same run up to rounding" in shown
    for argv, named in [
        (["--max-steps", 9], "the run has taken 11 steps, more than 9"),
        (["--max-steps", 11, "--warmup-steps", 1], "--warmup-steps was 0 when the run began, now it is 1"),
        (["--max-steps", 11, "--seed", 1], "--seed was 0"),
        (["--max-steps", 11, "--max-length", 20], "--max-length was 48"),
        (["--max-steps", 11, "--sft-data", data], "--sft-data has no effect"),
        (["--max-steps", 11, "--reference", out / "model"], "the hash of the reference was"),
        (["--max-steps", 11, "--tokenizer", reversed_bytes(tmp_path)], "the hash of the tokenizer was"),
    ]:
        capsys.readouterr()
        assert fit(place, out, *argv, "--resume") == 2, argv
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1, error
        assert json.loads((out / "config.json").read_text())["steps"] == 11  # what is refused changes nothing
    assert fit(place, tmp_path / "linear", "--max-steps", 2, "--lr-schedule", "linear") == 0
    assert fit(place, tmp_path / "linear", "--max-steps", 3, "--lr-schedule", "linear", "--resume") == 2
    assert (
        "under --lr-schedule linear the learning rate of every step depends on that number" in capsys.readouterr().err
    )


def reversed_bytes(directory):
    """A tokenizer of other ids."""
    (directory / "reversed").mkdir()
    type(load_tokenizer("bytes"))({bytes([b]): 255 - b for b in range(256)}, 256).save(directory / "reversed")
    return directory / "reversed"


def test_files_may_move_if_they_stay_what_they_are(place, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("prefs.jsonl", "init"):
        subprocess.run(["cp", "-r", place / name, moved / name], check=True)
    assert fit(place, tmp_path / "run", "--max-steps", 2) == 0
    assert fit(moved, tmp_path / "run", "--max-steps", 2, "--resume") == 0


def test_a_run_that_saved_nothing_leaves_its_directory_free(place, tmp_path, capsys):
    """Kills: a config.json of a failed first step that asks for another --out; one that a finished run is lost to."""
    bad = tmp_path / "bad"
    subprocess.run(["cp", "-r", place / "init", bad], check=True)
    model = load_model(bad)
    torch.nn.init.constant_(model.wpe.weight, torch.inf)
    session.save_model_directory(model, load_tokenizer("bytes"), bad)
    assert fit(place, tmp_path / "run", "--init", bad, "--max-steps", 2) == 1
    assert "the loss is nan on" in capsys.readouterr().err and (tmp_path / "run" / "config.json").exists()
    assert fit(place, tmp_path / "run", "--max-steps", 2) == 0
    assert fit(place, tmp_path / "run", "--max-steps", 2) == 2
    assert "already holds a run" in capsys.readouterr().err


# --- killed, stopped, doubled -----------------------------------------------------------------------------------


def die_at(calls):
    """From now on, be killed just before this process changes anything on the disk for the so manieth time."""
    count = iter(range(1, calls))
    for name in ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync"):
        setattr(os, name, partial(change, getattr(os, name), count))


def change(real, count, *arguments, **named):
    """One change of the disk, or the end."""
    if next(count, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)


def in_a_child(action):
    """The status that a forked process ends with after an action; a start of Python would take seconds."""
    with warnings.catch_warnings(action="ignore"):  # that there are threads: PyTorch's, which wait
        child = os.fork()
    if child == 0:
        code = 1
        try:
            code = action()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def test_a_run_killed_between_any_two_changes_of_the_disk_ends_as_the_one_that_was_let_alone(tmp_path):
    """Kills: a rename before the flush; a checkpoint removed before the next is there; lines written twice or lost."""
    data = torture_runs.write_rows(tmp_path / "prefs.jsonl", 24)
    flags = ["--data", data, "--n-layer", 1, "--n-head", 2, "--n-embd", 8, "--max-length", 32, "--batch-size", 6]
    flags += [
        "--eval-fraction",
        0.3,
        "--max-steps",
        6,
        "--sft-steps",
        4,
        "--save-every",
        2,
        "--log-every",
        1,
        "--eval-every",
        2,
    ]

    def fit_in(out):
        argv = [*flags, "--out", out, *torture_runs.resumed(out)]
        return program.guard(train.train, prepare([str(a) for a in argv]))

    assert in_a_child(lambda: fit_in(tmp_path / "whole" / "run")) == 0
    out, kills = tmp_path / "parts" / "run", 0
    for calls in (1, 2, 3, 9, 21, 34, 44, 52, 57, 61, 66, 70):
        kills += in_a_child(lambda calls=calls: die_at(calls) or fit_in(out)) == signal.SIGKILL
    assert kills >= 8
    assert in_a_child(lambda: fit_in(out)) == 0
    assert torture_runs.outcome(out) == torture_runs.outcome(tmp_path / "whole" / "run")
    assert not list(out.rglob("*.partial"))


def test_a_directory_is_for_one_run_at_a_time(place, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with Lock(tmp_path / "run" / directory.LOCK):
        assert fit(place, tmp_path / "run", "--max-steps", 1) == 2
        assert "another run is writing there" in capsys.readouterr().err
    assert fit(place, tmp_path / "run", "--max-steps", 1) == 0


def test_sigterms_are_one_wish_and_a_second_ctrl_c_is_obeyed():
    """Kills: a second SIGTERM that loses the step; a Ctrl-C after a SIGTERM taken for a second one."""
    with Interrupt() as interrupt:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_was_ignored_when_the_program_began_stays_ignored(number):
    """Kills: a run under nohup that stops with its terminal; one behind a script that stops with the script."""
    signal.signal(number, signal.SIG_IGN)
    with Interrupt() as interrupt:
        signal.raise_signal(number)
        assert not interrupt.requested
    assert signal.getsignal(number) is signal.SIG_IGN


# --- broken files -----------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """Two checkpoints, of steps 3 and 6, whose weights are all 3 or all 6."""
    task = torture.checkpoint_task(tmp_path, 0)
    return tmp_path / "checkpoints", task


def test_mutated_checkpoints_models_and_rows_give_their_result_or_one_line(tmp_path, two):
    """The torture's own cases, some of them. Kills: a checkpoint believed by its sizes; a file that is executed."""
    for i in range(24):
        assert two[1](i)[0] in ("result", "refused")
    (tmp_path / "rows").mkdir()
    for make, number in ((torture.row_task, 600), (torture.model_task, 25)):
        task = make(tmp_path / "rows", 1)
        assert {task(i)[0] for i in range(number)} == {"result", "refused"}


def test_an_altered_checkpoint_is_passed_over_for_the_one_before_it(two):
    """Kills: a flipped bit that sizes do not show; one checkpoint kept; a warning of more than one line."""
    newest = two[0] / "checkpoint" / "step-00000006"
    assert damage(newest) is None
    for file in sorted(newest.iterdir()):
        whole = file.read_bytes()
        for broken in (whole[:-1], b"", whole[:9] + bytes([whole[9] ^ 4]) + whole[10:]):
            file.write_bytes(broken)
            warnings = []
            assert load_checkpoint(two[0], torture.make_parts(), warnings.append)["step"] == 3
            assert len(warnings) == 1 and "step-00000006: damaged" in warnings[0], warnings
        file.write_bytes(whole)
    parts = torture.make_parts()
    assert load_checkpoint(two[0], parts, pytest.fail)["step"] == 6
    assert all((tensor == 6).all() for tensor in parts["policy"].parameters())
    (newest / "state.json").write_bytes(b"")
    save_checkpoint(two[0], parts, {"step": 6, "best": 0.1, "totals": {}, "closing": [], "overflows": 0})
    assert load_checkpoint(two[0], torture.make_parts(), pytest.fail)["best"] == 0.1  # in the damaged one's place


def test_a_table_of_contents_cannot_leave_its_directory(two):
    """Kills: a relative path of the table followed to wherever it leads."""
    newest = two[0] / "checkpoint" / "step-00000006"
    name = min(file.name for file in newest.glob("*.distcp"))
    os.rename(newest / name, two[0] / ("x" * (len(name) - 3)))
    contents = (newest / ".metadata").read_bytes().replace(name.encode(), b"../" + b"x" * (len(name) - 3))
    (newest / ".metadata").write_bytes(contents)
    (newest / name).touch()
    torture.seal_as_is(newest)
    warnings = []
    assert load_checkpoint(two[0], torture.make_parts(), warnings.append)["step"] == 3
    assert "is not a file in the same directory" in warnings[0]


def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before_it(two, monkeypatch):
    """Kills: the old one removed first; half a new one left; a disk that is full reported as something else."""
    before = sorted(path.name for path in two[0].rglob("*"))
    state = {"step": 9, "best": 0.5, "totals": {}, "closing": [], "overflows": 0}
    with monkeypatch.context() as patch:
        patch.setattr("dpo_min.run.checkpoint.seal", lambda path: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="step-00000009: cannot be written: OSError: No space left; the checkpoint"):
            save_checkpoint(two[0], torture.make_parts(), state)
    assert sorted(path.name for path in two[0].rglob("*")) == before
    save_checkpoint(two[0], torture.make_parts(), state)
    assert [path.name for path in sorted((two[0] / "checkpoint").iterdir())] == ["step-00000006", "step-00000009"]


def test_a_thread_that_cannot_write_its_file_is_heard(two, monkeypatch, capsys):
    """Either of two files, or both, of which one is late. Kills: a thread's own traceback; a file that is missing."""
    original = contents.filesystem.FileSystem.create_stream
    state = {"step": 9, "best": 0.5, "totals": {}, "closing": [], "overflows": 0}
    for failing in ("0", "1", "01"):
        first = threading.Event()

        def create_stream(self, path, mode, failing=failing, first=first):
            number = Path(path).stem[-1]
            if number not in failing:
                return original(self, path, mode)
            if number == "0":
                first.set()
            elif "0" in failing:
                first.wait(60)
            raise OSError(28, "No space left")

        with monkeypatch.context() as patch:
            patch.setattr(contents.filesystem.FileSystem, "create_stream", create_stream)
            with pytest.raises(OSError, match=r"step-00000009: cannot be written: .*No space left"):
                save_checkpoint(two[0], torture.make_parts(), state)
    assert capsys.readouterr().err == "" and load_checkpoint(two[0], torture.make_parts())["step"] == 6


def test_weights_that_are_not_finite_are_never_saved(two):
    parts = torture.make_parts()
    parts["policy"].wpe.weight.data[-1] = torch.nan  # a position that no batch may reach
    with pytest.raises(FloatingPointError, match=r"the weights are not finite: wpe\.weight"):
        save_checkpoint(two[0], parts, {"step": 9, "best": 0.5, "totals": {}})
    assert load_checkpoint(two[0], torture.make_parts())["step"] == 6


def test_what_is_read_is_bounded(tmp_path, monkeypatch):
    """Kills: a pipe waited for; JSON of any size; a row of any length; gzip that expands for ever."""
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read_json(tmp_path / "pipe.json")
    monkeypatch.setattr("dpo_min.system.files.read_text.__defaults__", (10,))
    with write_atomically(tmp_path / "long.json") as file:
        file.write(b"{" + b" " * 10 + b"}")
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        read_json(tmp_path / "long.json")
    monkeypatch.setattr("dpo_min.data.lines.MAX_ROW", 100)
    (tmp_path / "rows.jsonl").write_bytes(b"\n" + b"x" * 101)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: a row of more than 100 bytes"):
        list(read_rows(tmp_path / "rows.jsonl"))
    monkeypatch.setattr("dpo_min.data.lines.EXPANSION_FREE", 1000)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 10**5))
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz:\d+: expands to more than 100 times its size"):
        list(read_rows(tmp_path / "rows.jsonl.gz"))


def test_a_model_that_no_memory_holds_is_refused_before_it_is_built(place, tmp_path, capsys):
    argv = ["--data", place / "prefs.jsonl", "--out", tmp_path / "run", "--n-embd", 100_000, "--n-layer", 1000]
    with pytest.raises(SystemExit):
        prepare([str(a) for a in argv])
    assert "more than this machine's memory" in capsys.readouterr().err


# --- trouble in the numbers -------------------------------------------------------------------------------------

LINE = {"split": "train", "step": 5, "pairs": 40, "loss": 0.5, "rewards/accuracies": 0.9, "rewards/chosen": -0.1,
        "logps/chosen": -50.0}  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([LINE | {"split": "eval", "loss": 0.87}], "far above 0.693"),
        ([LINE | {"rewards/accuracies": 1.0}] * 3, "every pair is ranked right"),
        ([LINE | {"rewards/chosen": -3.0, "logps/chosen": -80.0}], "fell from -50.0 to -80.0 nats"),
        ([LINE | {"split": "eval", "kl": 3.1}], "past --max-kl 3"),
    ],
)
def test_trouble_is_said_once_in_one_line(lines, word):
    said = []
    watch = Watch(TrainFlags(data=[], max_kl=3.0), said.append)
    for line in lines * 3:
        watch.look(line)
    assert len(said) == 1 and word in said[0] and said[0].startswith("warning: step 5:") and "\n" not in said[0]


@pytest.mark.parametrize(
    "line",
    [LINE, LINE | {"split": "eval", "loss": 0.86}, LINE | {"loss": 9.0}, LINE | {"split": "eval", "kl": 2.9},
     LINE | {"rewards/chosen": -2.4, "logps/chosen": -73.0}, LINE | {"rewards/chosen": 9.0}],
)  # fmt: skip
def test_what_is_usual_is_not_warned_of(line):
    """Kills: thresholds on the wrong side; a train loss judged by one batch; right pairs counted over wrong lines."""
    watch = Watch(TrainFlags(data=[], max_kl=3.0), pytest.fail)
    for accuracy in (1.0, 1.0, 0.9) * 3:
        watch.look(line | {"rewards/accuracies": accuracy})


def test_the_sampled_kl_is_zero_at_the_reference_and_above_it_elsewhere(tiny_gpt):
    """Kills: the ratio upside down; answers drawn from the reference; draws that differ for the same policy."""
    five = SimpleNamespace(end_of_text=4, vocab_size=5)  # what is asked of a tokenizer
    assert sampled_kl(tiny_gpt, tiny_gpt, PAIRS, five, seed=0) == 0
    other = GPT(tiny_gpt.config, torch.Generator().manual_seed(5)).double()
    found = sampled_kl(other, tiny_gpt, PAIRS, five, seed=0)
    assert found > 0 and found == sampled_kl(other, tiny_gpt, PAIRS, five, seed=0)


@pytest.mark.parametrize("positions", [2, 10, 60])
def test_the_sampled_kl_stays_within_the_positions_of_both_models(positions):
    """Kills: a prompt, or an answer, that only the longer one of the two has room for."""
    long, short = (GPT(GPTConfig(5, n, 1, 2, 8), torch.Generator().manual_seed(n)) for n in (100, positions))
    pairs = [TokenizedPair([i % 4 for i in range(90)], [0, 4], [1, 4])]
    for policy, reference in ((long, short), (short, long)):
        assert math.isfinite(sampled_kl(policy, reference, pairs, SimpleNamespace(end_of_text=4, vocab_size=5), 0))


@pytest.mark.parametrize("save", [np.savez_compressed, np.savez], ids=["expands", "shape"])
def test_a_file_of_reference_scores_cannot_take_the_memory(tmp_path, save, capsys):
    """Kills: entries that expand a thousand times; a header that asks for more than there is."""
    path = ReferenceLogps(tmp_path, {}).path
    with open(path, "wb") as file:
        save(file, digests=np.zeros((10**5, 16), np.uint8), logps=np.zeros((10**5, 2)))
    if save is np.savez:
        path.write_bytes(path.read_bytes().replace(b"(100000, 16)", b"(99999999,9)"))
    assert len(ReferenceLogps(tmp_path, {}).digests) == 0
    assert "is damaged" in capsys.readouterr().out
