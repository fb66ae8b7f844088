"""What happens to long runs, done to small ones on purpose: `make torture` writes docs/reliability.md.

    python tests/torture.py                   everything, in full: an hour or two on one core
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
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
import torture_forks
import torture_runs
from torture_runs import rows

from dpo_min.data.lines import read_rows
from dpo_min.data.messages import BadRow
from dpo_min.data.rows import parse_line
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.model import config_json
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.weights import load_model
from dpo_min.run.checkpoint import load_checkpoint, seal
from dpo_min.system.progress import Line
from experiments.pages import renew

MEMORY, CPU_SECONDS, SECONDS = 2 * 2**30, 20, 180  # of one case; a busy disk may keep one waiting


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
    policy = GPT(GPTConfig(5, 4, 1, 1, 4), torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(policy.parameters())
    return {"policy": policy, "optimizer": optimizer, "scaler": torch.amp.GradScaler("cpu", enabled=False)}


# The whole. A part takes a directory, how much of it, a seed and `say`, and returns a line of the table.


def broken_rows(directory, number, seed, say):
    """Rows with something done to their bytes."""
    return "mutated rows", told(*in_children(row_task(directory, seed), number, say, "rows"))


def broken_directories(directory, number, seed, say):
    """Model directories and checkpoints, half each."""
    counts, failures = in_children(model_task(directory, seed), number // 2, say, "model directories")
    more, others = in_children(checkpoint_task(directory, seed), number - number // 2, say, "checkpoints")
    return "mutated model directories and checkpoints", told(counts + more, failures + others)


def told(counts, failures):
    """What came of broken files, in words; failures end the torture."""
    for failure in failures[:20]:
        print(failure, file=sys.stderr)
    bad = sum(counts.values()) - counts["result"] - counts["refused"]
    if bad:
        sys.exit(f"{bad} failures")
    figure = f"{sum(counts.values())}: {counts['result']} gave a result, {counts['refused']} were refused in one"
    return f"{figure} line, {bad} tracebacks, hangs, wrong results or more than 2 GiB"


def flipped_bytes(directory, number, seed, say):
    """One byte of one file of a run that goes on."""
    files, counts = torture_forks.flips(directory, number, seed, say)
    ends = f"{counts['result']} went on to the same weights, {counts['refused']} were refused in one line"
    return f"flips of one bit, {number} in each of the {files} files of a run that then goes on", ends


def faults(directory, number, seed, say):
    """A system call of a run that fails, is cut short, or is its last."""
    counts = torture_forks.faults(directory / "faults", number, seed, say)
    if counts is None:
        return "faults at system calls", "not tried: there is no C compiler here"
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in sorted(counts))
    return "faults at system calls", f"{sum(counts.values())} ({kinds}); each run ended as the one that was let alone"


PARTS = {
    "rows": (100_000, broken_rows),
    "directories": (2000, broken_directories),
    "flips": (500, flipped_bytes),
    "faults": (1000, faults),
    "kills": (200, torture_runs.kill_and_resume),
    "disks": (12, torture_runs.full_disk),
    "storms": (20, torture_runs.storms),
    "terminals": (10, torture_runs.terminals),
    "pairs": (5, torture_runs.two_at_once),
}


def main():
    """Torture, print, and write the page."""
    parser = argparse.ArgumentParser(description="Kill runs, break files, fill disks; write docs/reliability.md.")
    for name, (number, part) in PARTS.items():
        about = f"{part.__doc__.splitlines()[0]} (default: {number})"
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N", help=about)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other instants and other mutations")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "reliability.md", metavar="FILE")
    config = parser.parse_args()
    torch.set_num_threads(1)
    begun, table = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as directory:
        for name, (_, part) in PARTS.items():
            if number := getattr(config, name):
                line = Line()
                (place := Path(directory) / name).mkdir()
                what, figure = part(place, number, config.seed, line.show)
                line.show(f"{what}: {figure}", stays=True)
                table.append(f"| {what} | {figure} |")
    minutes = (time.perf_counter() - begun) / 60
    command = " ".join(["python", "tests/torture.py", *sys.argv[1:]])
    said = f"Measured in {minutes:.0f} minutes by `{command}`."
    renew(config.out, {"measured": "\n".join([said, "", "| done to it | what came of it |", "|---|---|", *table])})
    print(f"written: {config.out}")


if __name__ == "__main__":
    main()
