"""What happens to long runs, done to small ones on purpose: `make torture` writes docs/reliability.md.

    python tests/torture.py                   everything, in full: some forty minutes on one core
    python tests/torture.py --kills 20 …      less of it; the figures say how much was done

Runs are real processes that are really killed. Files are broken in this process's children, each with a limit on its
memory and its time. What a case must end in: its result, or one line that names the file, and nothing lost.
"""

import argparse
import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from dpo_min.data.lines import read_rows
from dpo_min.data.messages import BadRow
from dpo_min.data.rows import parse_line
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.model import config_json
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.weights import load_model
from dpo_min.run.checkpoint import load_checkpoint, seal

MEMORY, CPU_SECONDS, SECONDS = 2 * 2**30, 20, 180  # of one case; a busy disk may keep one waiting
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
    """(kills by what the run was doing, runs) of SIGKILLs at random instants; every result is compared."""
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
    return doing, runs


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
    """(storms, runs): a SIGTERM every few milliseconds for a while; each run must stop in one line and go on."""
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
            assert code == 0 or "the same command with --resume goes on" in output, output
        codes[code] += 1
        done += code != 0
        say(f"{done} of {count} storms; exit codes {dict(codes)}")
        if code == 0:
            assert outcome(out) == expected
            runs += 1
            out = directory / f"storm-{runs}" / "run"
    code, _, error = finish(start(data, out, *resumed(out)))
    assert code == 0 and outcome(out) == expected, error
    return codes, runs


def two_at_once(directory, say):
    """Two runs started on one directory at the same time, five times: one is refused, the other ends well."""
    data, expected, _ = undisturbed(directory)
    for i in range(5):
        out = directory / f"both-{i}" / "run"
        both = [start(data, out), start(data, out)]
        ends = sorted(finish(process) for process in both)
        assert [code for code, *_ in ends] == [0, 2], ends
        assert ends[1][2].count("\n") == 1 and "--out" in ends[1][2], ends
        assert outcome(out) == expected
        say(f"{i + 1} of 5 pairs of runs")
    return 5


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
    """How many runs filled a small disk, or None: each says so, keeps its checkpoint, and goes on given room."""
    data, expected, _ = undisturbed(directory)
    draw, filled = random.Random(seed), 0
    for i in range(count):
        with small_disk(directory / f"disk-{i}", 3 * 2**20) as disk:
            if disk is None:
                return None
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
    return filled


# Broken files, in children of this process


def in_children(task, cases, say, what):
    """Counts of results of task(i) for i < cases: in forked children with limits, several hundred cases in each.

    A result is "result" or "refused"; "traceback", "hang", "killed" and "memory" are failures, and their seeds kept.
    """
    counts, failures, done = Counter(), [], 0
    while done < cases:
        share = range(done, min(done + 250, cases))
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            work(task, share, writer)
        os.close(writer)
        with os.fdopen(reader) as lines:
            results = [line.split("\t", 2) for line in lines.read().splitlines()]
        _, status = os.waitpid(child, 0)
        for i, kind, detail in results:
            counts[kind] += 1
            if kind not in ("result", "refused"):
                failures.append((int(i), kind, detail))
        done += len(results)
        if len(results) < len(share):  # the child died in the middle of the next one
            ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
            kind = "hang" if ended in (signal.SIGALRM, signal.SIGPROF) else "killed"
            counts[kind] += 1
            failures.append((done, kind, f"status {status}"))
            done += 1
        say(f"{done} of {cases} {what}: {dict(counts)}")
    return counts, failures


def work(task, share, writer):
    """A child's life: each case, with its limits; never returns."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    for i in share:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.alarm(SECONDS)
        try:
            kind, detail = task(i)
        except MemoryError:
            kind, detail = "memory", f"more than {MEMORY} bytes"
        except BaseException:
            kind, detail = "traceback", traceback.format_exc()[-400:].replace("\n", " | ")
        signal.alarm(0)
        os.write(writer, f"{i}\t{kind}\t{detail[:600]}\n".replace("\r", " ").encode("utf-8", "replace"))
    os._exit(0)


def mutate(raw, draw):
    """Some bytes with something done to them: flipped, cut, doubled, filled, exchanged, or with a number blown up."""
    raw = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        a = draw.randrange(len(raw) + 1)
        b = min(len(raw), a + draw.choice((1, 1, 2, 8, 64, 1000)))
        kind = draw.randrange(8)
        if kind == 0 and a < len(raw):
            raw[a] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del raw[a:]
        elif kind == 2:
            del raw[a:b]
        elif kind == 3:
            raw[a:a] = raw[a:b] * draw.choice((1, 3, 1000))
        elif kind == 4:
            raw[a:b] = bytes(b - a)
        elif kind == 5:
            raw[a:a] = draw.choice(PIECES)
        elif kind == 6:
            raw[a:b] = draw.randbytes(b - a)
        else:
            digits = [i for i, c in enumerate(raw) if 48 <= c < 58]
            if digits:
                raw[(i := draw.choice(digits)) : i + 1] = draw.choice((b"999999999999", b"-1", b"0", b"1e999", b"null"))
    return bytes(raw)


PIECES = [b'"', b"{", b"}", b"[", b"]", b",", b"\\", b"\\ud800", b"\x00", b"\xff\xfe", b"NaN", b"null", b"\n", b"../",
          b"[" * 5000, b"9" * 5000, b'"chosen":', b"\xef\xbb\xbf", b"{}", b"0" * 400]  # fmt: skip


def row_task(directory, seed):
    """Case i: one row of three forms, broken; it must be a preference, or refused with a reason of one line."""
    messages = {"prompt": [{"role": "user", "content": "name a tree"}]}
    messages |= {
        side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "oak"), ("rejected", "."))
    }
    text = "\n\nHuman: name a tree\n\nAssistant:"
    forms = [rows(9)[8], {"chosen": text + " an oak", "rejected": text + " no"}, messages]
    lines = [json.dumps(form).encode() for form in forms]
    path = directory / f"row-{os.getpid()}.jsonl"

    def task(i):
        draw = random.Random(f"{seed} {i}")
        broken = mutate(draw.choice(lines), draw)
        if i % 50 == 0:  # by the file, gzip and all, where every fiftieth is broken as a file
            return file_case(path.with_suffix(".jsonl.gz"), broken, draw)
        try:
            row = parse_line(broken)
        except BadRow as reason:
            assert str(reason) and "\n" not in str(reason), reason
            return "refused", ""
        assert row.chosen and row.rejected and row.chosen != row.rejected
        assert type(row.prompt) is type(row.chosen) is type(row.rejected)
        return "result", ""

    return task


def file_case(path, line, draw):
    """A .jsonl.gz of one row, broken too."""
    path.write_bytes(mutate(gzip.compress(line + b"\n", mtime=0), draw))
    try:
        for _, row, _ in read_rows(path):
            parse_line(row)
    except BadRow:
        return "refused", ""
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error), error
        return "refused", ""
    return "result", ""


def model_task(directory, seed):
    """Case i: a model directory with one file broken, every other time one that a shard index points to."""
    source = directory / "model"
    tokenizer = load_tokenizer("bytes")
    from dpo_min.run.session import save_model_directory

    save_model_directory(GPT(GPTConfig(257, 16, 1, 2, 8), torch.Generator().manual_seed(0)), tokenizer, source)
    names = ["config.json", "model.safetensors", "vocab.json", "merges.txt", "model.safetensors.index.json"]
    weights = load_model(source).state_dict()
    header = json.loads((source / "model.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    index = {"weight_map": {name: "shard" for name in header if name != "__metadata__"}}

    def task(i):
        draw = random.Random(f"{seed} {i}")
        place = directory / f"model-{os.getpid()}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
        name = draw.choice(names)
        if name.endswith("index.json"):
            (place / "model.safetensors").rename(place / "shard")
            (place / name).write_text(json.dumps(index))
            name = draw.choice([name, "shard"])
        file = place / name
        file.write_bytes(mutate(file.read_bytes(), draw))
        try:
            model, read = load_model(place), load_tokenizer(place)
            config_json.load_config(place)
        except ValueError as error:
            assert str(place) in str(error) and "\n" not in str(error).replace("\\n", ""), error
            return "refused", ""
        if name in ("vocab.json", "merges.txt"):
            same = all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
            assert same and read.decode(read.encode("déjà vu")) == "déjà vu"
        return "result", ""

    return task


def checkpoint_task(directory, seed):
    """Case i: of two checkpoints the newer one broken: the older one is used, or the newer, whole and unchanged.

    Every fourth time its manifest is made anew, as by somebody who means it: then it is refused, or is what it says.
    """
    source = directory / "checkpoints"
    parts, states = make_parts(), []
    from dpo_min.run.checkpoint import save_checkpoint

    for step in (3, 6):
        for tensor in parts["policy"].parameters():
            parts["optimizer"].state[tensor] |= {
                "exp_avg": torch.full_like(tensor, step),
                "step": torch.tensor(1.0 * step),
            }
            torch.nn.init.constant_(tensor, step)
        state = {"step": step, "best": 0.5, "totals": {"loss": 1.0}, "closing": [], "overflows": 0}
        save_checkpoint(source, parts, state)
        states.append(state)

    def task(i):
        draw = random.Random(f"{seed} {i}")
        place = directory / f"checkpoints-{os.getpid()}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
        newest = place / "checkpoint" / "step-00000006"
        file = draw.choice(sorted(newest.iterdir()))
        before = file.read_bytes()
        file.write_bytes(mutate(before, draw))
        meant = i % 4 == 0 and file.name != "manifest.json"
        if meant:
            seal_as_is(newest)
        warnings, into = [], make_parts()
        state = load_checkpoint(place, into, warnings.append)
        step = state["step"]
        whole = all(bool((tensor == step).all()) for tensor in into["policy"].parameters())
        assert step in (3, 6) and (whole or meant) and (len(warnings) == 1) == (step == 3), (step, whole, warnings)
        assert meant or state == states[step // 6], state
        assert all("\n" not in warning for warning in warnings)
        return ("refused", "") if step == 3 else ("result", "")

    return task


def seal_as_is(path):
    """A manifest that fits the files as they are, state.json included."""
    seal(path)


def make_parts():
    """What a checkpoint is made of, small."""
    policy = GPT(GPTConfig(5, 4, 1, 1, 4), torch.Generator().manual_seed(0)).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters())
    return {"policy": policy, "optimizer": optimizer, "scaler": torch.amp.GradScaler("cpu", enabled=False)}


def broken_directories(directory, cases, seed, say):
    """(counts, failures) of model directories and checkpoints, half each."""
    counts, failures = in_children(model_task(directory, seed), cases // 2, say, "model directories")
    more, others = in_children(checkpoint_task(directory, seed), cases - cases // 2, say, "checkpoints")
    return counts + more, failures + others


# The whole


def main():
    """Torture, print, and write the page."""
    parser = argparse.ArgumentParser(description="Kill runs, break files, fill disks; write docs/reliability.md.")
    for name, number in (("kills", 200), ("rows", 100_000), ("directories", 2000), ("disks", 12), ("storms", 20)):
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N", help=f"default: {number}")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other instants and other mutations")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reliability.md", metavar="FILE")
    config = parser.parse_args()
    torch.set_num_threads(1)
    begun, table = time.perf_counter(), []

    def say(text):
        print(f"\r\x1b[K{text}" if sys.stdout.isatty() else text, end="" if sys.stdout.isatty() else "\n", flush=True)

    def note(what, figure):
        table.append(f"| {what} | {figure} |")
        print(("\r\x1b[K" if sys.stdout.isatty() else "") + f"{what}: {figure}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        for part in (broken_part, run_part):
            part(config, Path(name), say, note)
    minutes = (time.perf_counter() - begun) / 60
    command = " ".join(["python", "tests/torture.py", *sys.argv[1:]])
    config.out.write_text(PAGE.format(table="\n".join(table), minutes=minutes, command=command), encoding="utf-8")
    print(f"written: {config.out}")


def broken_part(config, directory, say, note):
    """Broken files."""
    for what, number, make in (
        ("mutated rows", config.rows, lambda d: in_children(row_task(d, config.seed), config.rows, say, "rows")),
        (
            "mutated model directories and checkpoints",
            config.directories,
            lambda d: broken_directories(d, config.directories, config.seed, say),
        ),
    ):
        if number:
            (place := directory / what.split()[1]).mkdir()
            counts, failures = make(place)
            for failure in failures[:20]:
                print(failure, file=sys.stderr)
            bad = sum(counts.values()) - counts["result"] - counts["refused"]
            figure = (
                f"{sum(counts.values())}: {counts['result']} gave a result, {counts['refused']} were refused in one"
            )
            note(what, f"{figure} line, {bad} tracebacks, hangs, wrong results or more than 2 GiB")
            if bad:
                sys.exit(f"{what}: {bad} failures")


def run_part(config, directory, say, note):
    """Runs that are killed, stopped, starved and doubled."""
    for name, number, make in (
        ("kills", config.kills, kill_and_resume),
        ("disks", config.disks, full_disk),
        ("storms", config.storms, storms),
    ):
        if not number:
            continue
        (place := directory / name).mkdir()
        found = make(place, number, config.seed, say)
        if name == "kills":
            doing, runs = found
            when = ", ".join(f"{count} {what}" for what, count in doing.most_common())
            figure = f"{sum(doing.values())} ({when}); all {runs} ended in the weights and metrics of the one let alone"
            note(f"SIGKILLs of {runs} runs, each resumed until it was done", f"{figure}, bit for bit")
        elif name == "disks":
            met = f"{found} of {number} runs ran out of space, reported it, and went on to the same weights"
            note("disks of 3 MiB that fill up", "not tried: no tmpfs may be mounted here" if found is None else met)
        else:
            codes, runs = found
            figure = f"{sum(codes.values()) - codes[0]} stops of {runs} runs, none lost"
            note("storms of SIGTERMs, a few milliseconds apart", figure)
    (place := directory / "both").mkdir()
    note(
        "two runs started on one directory", f"{two_at_once(place, say)} times: one refused in one line, the other done"
    )


PAGE = """# What a run survives

Measured in {minutes:.0f} minutes by `{command}`, on the CPU, with runs of two stages: a
first fit, the reference's scores, and preference training with a checkpoint every three steps. Nothing here is
simulated: the processes are killed, the disk is a tmpfs that is full, and the files are broken. `make torture` does all
of it again. With `TORTURE="--seed 1"` it breaks other files at other places and kills at other instants.

| done to it | what came of it |
|---|---|
{table}

## What it rests on

- Every file is written under another name, flushed to the disk and then renamed. A checkpoint is a directory. Its
  manifest.json holds the SHA-256 of its files and is written last. The last two checkpoints are kept.
- If a checkpoint is cut short or altered, the program warns and takes the one before it.
- A resumed run takes back the weights, the optimizer's moments, the scaler, the sums behind the next line of metrics
  and its place in the data. It drops the lines of metrics.jsonl after that place and writes them again.
- A run holds a lock on its directory. The lock ends with the process.
- Nothing that is read can execute. Sizes are checked before anything is allocated: those of rows, JSON and headers,
  those of tensors by config.json, and the size to which gzip expands.

## What it does not show

- A power failure: files and the names in their directories are flushed before they count, but no plug was pulled.
- GPUs and several machines. "Bit for bit" holds for the same number of threads and processes, the same PyTorch and the
  same kind of CPU.
"""

if __name__ == "__main__":
    main()
