"""Small runs in forked processes, where a start of Python would take seconds; a part of torture.py.

    python tests/torture_forks.py DIRECTORY CASES SEED      faults at system calls, with torture_faults.c preloaded

One fault a run: a call fails, is cut short, or is the last that the process makes. Whatever it was, the run ends in one
line or goes on, and then, without a fault, ends in the weights and metrics of the run that was let alone.
"""

import ctypes
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torch._dynamo  # an optimizer imports it; here, so that no forked process has to
import torch.distributed.checkpoint
import torture_runs

import train
from dpo_min.run import contents  # noqa: F401
from dpo_min.run.job import begin
from dpo_min.system import program

FLAGS = """--n-layer 1 --n-head 2 --n-embd 8 --max-length 32 --batch-size 6 --sft-steps 3 --save-every 2 --log-every 1
    --eval-every 2 --eval-fraction 0.3 --learning-rate 1e-3""".split()
HALF, WHOLE, SECONDS = 3, 6, 60  # steps of a run that goes on, steps of all; seconds that a run may take

CALLS = ("open", "read", "write", "fsync", "rename", "unlink", "mkdir")  # in torture_faults.c's order
KILLS = {"kill before": -1, "kill after": -2}
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EMFILE", "EINTR")}
FAULTS = {
    "open": ["ENOSPC", "EIO", "EMFILE", "EINTR"], "read": ["EIO", "EINTR"], "fsync": ["ENOSPC", "EIO"],
    "write": ["ENOSPC", "EIO", "EINTR", "short", *KILLS], "rename": ["ENOSPC", "EIO", *KILLS],
    "unlink": ["EIO", *KILLS], "mkdir": ["ENOSPC", "EIO", *KILLS],
}  # fmt: skip
KINDS = ERRORS | KILLS | {"short": -3}


def fork_run(place, steps, before=lambda: None, after=lambda: None):
    """(exit code, negative for a signal, standard error) of a run in `place`/run, resumed if it had begun."""
    argv = ["--data", place / "prefs.jsonl", "--out", place / "run", *FLAGS, "--max-steps", steps]
    argv += torture_runs.resumed(place / "run")
    child = os.fork()
    if child == 0:
        code = 99
        try:
            signal.alarm(SECONDS)
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            train.draw_curves = lambda directory: None  # a second each, and no part of what is looked at
            before()
            code = program.guard(lambda: train.train(begin([str(a) for a in argv])))
        except SystemExit as stopped:
            code = stopped.code
        except BaseException:
            traceback.print_exc()
        finally:
            after()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), (place / "stderr").read_text(errors="replace")


def prepared(directory):
    """(a directory with a run of half the steps, the outcome of one of all)."""
    for name, steps in (("half", HALF), ("whole", WHOLE)):
        (directory / name).mkdir(parents=True)
        torture_runs.write_rows(directory / name / "prefs.jsonl", 24)
        code, error = fork_run(directory / name, steps)
        assert code == 0, error
    return directory / "half", torture_runs.outcome(directory / "whole" / "run")


# One byte of one file


def flips(directory, each, seed, say):
    """Counts of what comes of `each` flips of one byte in every file of a run that then goes on; failures raise."""
    half, (_, weights) = prepared(directory)
    files = sorted(p for p in half.rglob("*") if p.is_file() and p.stat().st_size and "std" not in p.name)
    files.remove(half / "prefs.jsonl")
    draw, counts, place = random.Random(seed), Counter(), directory / "flipped"
    for file in files:
        for _ in range(each):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(half, place)
            broken = place / file.relative_to(half)
            content = bytearray(broken.read_bytes())
            spot = draw.randrange(len(content))
            content[spot] ^= 1 << draw.randrange(8)
            broken.write_bytes(content)
            code, error = fork_run(place, WHOLE)
            what = f"{file.relative_to(half)}, byte {spot}: code {code}: {error[-600:]}"
            if code:
                assert code in (1, 2) and error.count("\n") == 1 and "Traceback" not in error, what
            else:
                same = (place / "run" / "model" / "model.safetensors").read_bytes() == weights[0]
                assert same and error == "", what
            counts["refused" if code else "result"] += 1
        say(f"{file.relative_to(half)}: {dict(counts)}")
    return len(files), counts


# Faults at system calls


def faults(directory, cases, seed, say):
    """Counts by fault of runs that met one, or None where there is no C compiler; failures raise."""
    if not shutil.which("cc"):
        return None
    directory.mkdir()
    library = directory / "faults.so"
    source = Path(__file__).with_name("torture_faults.c")
    subprocess.run(["cc", "-w", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    command = [sys.executable, __file__, directory / "runs", str(cases), str(seed)]
    environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        for line in child.stdout:
            counts = json.loads(line)
            say(f"{sum(counts.values())} of {cases} faults: {counts}")
    assert child.returncode == 0, "a run did not end as the one that was let alone"
    return counts


def main(directory, cases, seed):
    """Be the process that the faults happen to: each in a run of its own, fresh or going on; prints counts as JSON."""
    torch.set_num_threads(1)
    library, directory = ctypes.CDLL(None), Path(directory)
    half, expected = prepared(directory)
    counts, draw, place = Counter(), random.Random(seed), directory / "faulty"

    def note_totals():
        (place / "totals").write_text(json.dumps([library.counted(call) for call in range(len(CALLS))]))

    totals = {}
    for fresh in (True, False):
        renew(place, half, fresh)
        fork_run(place, WHOLE, lambda: library.arm(os.fsencode(place / "run"), 0, 0, 0), note_totals)
        totals[fresh] = dict(zip(CALLS, json.loads((place / "totals").read_text()), strict=True))
    for _ in range(int(cases)):
        fresh, call = draw.random() < 0.5, draw.choice(CALLS)
        kind, number = draw.choice(FAULTS[call]), draw.randrange(max(1, totals[fresh][call])) + 1
        renew(place, half, fresh)
        arm = (os.fsencode(place / "run"), CALLS.index(call), number, KINDS[kind])
        code, error = fork_run(place, WHOLE, lambda arm=arm: library.arm(*arm))
        what = f"{kind} at {call} {number} of {totals[fresh][call]}, {fresh=}: code {code}: {error}"
        if kind in KILLS:
            assert code in (-signal.SIGKILL, 0), what
        else:
            assert code in (0, 1, 2) and error.count("\n") == bool(code) and "Traceback" not in error, what
        for _ in range(2):  # a run that goes on; where it had not begun, one that begins
            if code:
                code, error = fork_run(place, WHOLE)
        assert code == 0 and torture_runs.outcome(place / "run") == expected, f"{what}; then {code}: {error}"
        counts[f"{kind} at {call}"] += 1
        print(json.dumps(counts), flush=True)


def renew(place, half, fresh):
    """A place as it is before a run: with nothing but the data, or with half a run."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(half, place, ignore=shutil.ignore_patterns("run", "cache") if fresh else None)


if __name__ == "__main__":
    main(*sys.argv[1:])
