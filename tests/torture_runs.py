"""Runs as processes of their own, killed, stopped, starved and doubled, until they are done; a part of torture.py.

Each must end in the weights and the metrics of the run that was let alone.
"""

import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS, SFT_STEPS = 40, 12
FLAGS = f"""--n-layer 1 --n-head 2 --n-embd 16 --max-length 48 --batch-size 6 --micro-batch-size 4 --max-steps {STEPS}
    --sft-steps {SFT_STEPS} --save-every 3 --log-every 2 --eval-every 5 --learning-rate 1e-3""".split()


def rows(n):
    """n preferences of unequal lengths."""
    return [{"prompt": f"q{i}:", "chosen": f" {'a' * (i % 7)}!!", "rejected": f" {'b' * (i % 5)}?"} for i in range(n)]


def write_rows(path, n=60):
    """A file of them."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(n)), encoding="utf-8")
    return path


# Runs, as processes


def start(data, out, *more):
    """A run as a process of its own; it has a cache of its own too, so that scoring the reference is killed as well."""
    command = [sys.executable, "train.py", "--data", str(data), "--out", str(out), *FLAGS, *map(str, more)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process, seconds=120):
    """(exit code, standard output, standard error) of a run that is let alone."""
    output, error = process.communicate(timeout=seconds)
    assert "Traceback" not in error, error
    return process.returncode, output, error


def resumed(out):
    """The flag of a run that goes on, if it had begun."""
    return ["--resume"] if (out / "config.json").exists() else []


def outcome(out):
    """What a finished run must agree in with the one that was never stopped: weights and metrics, less the clock."""
    lines = {}
    for name in ("reference/metrics.jsonl", "metrics.jsonl"):
        lines[name] = [json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines()]
        for line in lines[name]:
            del line["tokens_per_second"]
    files = [out / name / "model.safetensors" for name in ("model", "reference", "best")]
    return lines, [file.read_bytes() for file in files]


def undisturbed(directory):
    """(data, outcome, seconds) of a run that is let alone."""
    data, begun = write_rows(directory / "prefs.jsonl"), time.perf_counter()
    code, _, error = finish(start(data, directory / "whole" / "run"))
    assert code == 0, error
    return data, outcome(directory / "whole" / "run"), time.perf_counter() - begun


def kill_and_resume(directory, kills, seed, say):
    """SIGKILLs at random instants; every result is compared."""
    data, expected, seconds = undisturbed(directory)
    draw, doing, runs = random.Random(seed), Counter(), 0
    while sum(doing.values()) < kills:
        runs += 1
        out = directory / f"run-{runs}" / "run"
        code = None
        while code is None:
            process = start(data, out, *resumed(out))
            if sum(doing.values()) < kills and killed(process, draw, seconds):
                doing[phase(out)] += 1
                say(f"{sum(doing.values())} of {kills} kills, {runs} runs: {dict(doing)}")
            else:
                code, _, error = finish(process)
        assert code == 0, error
        assert outcome(out) == expected, f"run {runs} did not end as the one that was let alone"
        shutil.rmtree(out.parent)
    when = ", ".join(f"{count} {what}" for what, count in doing.most_common())
    figure = f"{kills} ({when}); all {runs} ended in the weights and metrics of the one let alone, bit for bit"
    return f"SIGKILLs of {runs} runs, each resumed until it was done", figure


def killed(process, draw, seconds):
    """Whether a run was killed before its end: at any instant, or soon after any of the lines that it prints.

    A start takes most of the seconds and writes nothing; lines are where things happen.
    """
    if draw.random() < 0.3:
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, seconds))
    else:
        for _ in range(draw.randrange(1, 25)):
            if not process.stdout.readline():
                break
        with suppress(subprocess.TimeoutExpired):
            process.wait(draw.expovariate(1 / 0.03))
    if process.poll() is not None:
        return False
    process.kill()
    process.communicate()
    return True


def phase(out):
    """What a run was doing when it was killed, by what it left."""
    if any(out.rglob("*.partial")):
        return "writing a file"
    if (out / "model" / "config.json").exists():
        return "drawing the curves"
    if (out / "model").exists():
        return "writing the model"
    if (out / "metrics.jsonl").exists():
        return "training"
    if (out / "reference" / "config.json").exists():
        return "scoring the reference"
    if (out / "reference" / "metrics.jsonl").exists():
        return "first fit"
    return "starting"


def storms(directory, count, seed, say):
    """A SIGTERM every few milliseconds for a while; each run must stop in one line and go on."""
    data, expected, seconds = undisturbed(directory)
    draw, done, codes = random.Random(seed), 0, Counter()
    out, runs = directory / "storm-1" / "run", 1
    while done < count:
        process = start(data, out, *resumed(out))
        wait = draw.uniform(0.3, 1.0) * seconds
        begun = time.perf_counter()
        while process.poll() is None and time.perf_counter() - begun < wait + 1:
            if time.perf_counter() - begun > wait:
                process.send_signal(signal.SIGTERM)
            time.sleep(draw.uniform(0.001, 0.02))
        code, output, error = finish(process)
        assert code in (0, 130, -signal.SIGTERM), (code, error)
        assert error.count("\n") <= 2 and "Traceback" not in output, error
        if "stopping after this step" in output:
            assert code == 0 or ": --resume goes on" in output, output
        codes[code] += 1
        done += code != 0
        say(f"{done} of {count} storms; exit codes {dict(codes)}")
        if code == 0:
            assert outcome(out) == expected
            runs += 1
            out = directory / f"storm-{runs}" / "run"
    code, _, error = finish(start(data, out, *resumed(out)))
    assert code == 0 and outcome(out) == expected, error
    figure = f"{sum(codes.values()) - codes[0]} stops of {runs} runs, none lost"
    return "storms of SIGTERMs, a few milliseconds apart", figure


def terminals(directory, count, seed, say):
    """A terminal that goes away while a run prints to it: with its SIGHUP, and for a run that is not to hear that."""
    data, expected, _ = undisturbed(directory)
    draw, ends = random.Random(seed), Counter()
    for i in range(count):
        out, hears = directory / f"terminal-{i}" / "run", i % 2 == 0
        child, terminal = pty.fork()
        if child == 0:
            signal.signal(signal.SIGHUP, signal.SIG_DFL if hears else signal.SIG_IGN)  # as nohup does
            os.chdir(ROOT)
            command = [sys.executable, "train.py", "--data", data, "--out", out, *FLAGS]
            os.execve(command[0], command, os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", "TERM": "xterm"})
        wanted, seen = draw.randrange(200, 4000), 0
        with suppress(OSError):  # the run was done before
            while seen < wanted:
                seen += len(os.read(terminal, 512))
        os.close(terminal)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in ((0, 130) if hears else (0,)), code
        ends["stopped and saved" if code else "done"] += 1
        if code:
            code, _, error = finish(start(data, out, *resumed(out)))
            assert code == 0, error
        assert outcome(out) == expected
        say(f"{i + 1} of {count} terminals: {dict(ends)}")
    figure = (
        f"{ends['done']} of {count} runs went on to their end; {ends['stopped and saved']} heard SIGHUP, stopped and"
    )
    return "terminals that went away under a run", f"{figure} saved, and went on later; all to the same weights"


def two_at_once(directory, count, seed, say):
    """Two runs started on one directory at the same time: one is refused, the other ends well."""
    data, expected, _ = undisturbed(directory)
    for i in range(count):
        out = directory / f"both-{i}" / "run"
        both = [start(data, out), start(data, out)]
        ends = sorted(finish(process) for process in both)
        assert [code for code, *_ in ends] == [0, 2], ends
        assert ends[1][2].count("\n") == 1 and "--out" in ends[1][2], ends
        assert outcome(out) == expected
        say(f"{i + 1} of {count} pairs of runs")
    return "two runs started on one directory", f"{count} times: one refused in one line, the other done"


@contextmanager
def small_disk(directory, size):
    """A tmpfs of `size` bytes; skipped, with None, where it may not be mounted."""
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], capture_output=True
    )
    try:
        yield None if mounted.returncode else directory
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "-l", str(directory)], check=True)


def full_disk(directory, count, seed, say):
    """Small disks that are full: each run says so, keeps its checkpoint, and goes on given room."""
    data, expected, _ = undisturbed(directory)
    draw, filled = random.Random(seed), 0
    for i in range(count):
        with small_disk(directory / f"disk-{i}", 3 * 2**20) as disk:
            if disk is None:
                return "disks of 3 MiB that fill up", "not tried: no tmpfs may be mounted here"
            out, ballast = disk / "run", disk / "ballast"
            ballast.write_bytes(bytes(draw.randrange(2**20, 3 * 2**20 - 2**16)))
            code, output, error = finish(start(data, out))
            if code:
                filled += 1
                assert code == 1 and error.count("\n") == 1 and "the disk is full" in error, (code, output, error)
            ballast.unlink()
            if code:
                code, _, error = finish(start(data, out, *resumed(out)))
            assert code == 0 and outcome(out) == expected, error
        say(f"{i + 1} of {count} small disks, {filled} of them full")
    figure = f"{filled} of {count} runs ran out of space, reported it, and went on to the same weights"
    return "disks of 3 MiB that fill up", figure
