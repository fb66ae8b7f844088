"""The programs as a person starts them: train.py and sample.py from the command to its end, with the memory of each.

A run writes config.json when its models are loaded, the stored reference when every pair is scored, metrics.jsonl
after each step; when these files were last written says where the time went.
"""

import json
import os
import random
import shlex
import statistics
import string
import subprocess
import sys
import tempfile
import time
from itertools import islice, pairwise
from pathlib import Path
from threading import Event, Thread

import torch

from dpo_min.data.lines import read_rows
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.weights import save_model
from experiments.benchmark_rows import BATCHES, NEW_TOKENS, PROMPT_TOKENS, TOP_K, read_pairs
from experiments.pages import table

ROOT = Path(__file__).resolve().parents[1]
STAGES = "before", "reference", "steps", "after"


def gpu_bytes():
    """The bytes of the GPU's memory that are in use, by whomever."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def watch_gpu(ended, seen):
    """Append what the GPU holds, several times a second, until `ended` is set."""
    while not ended.wait(0.05):
        seen.append(gpu_bytes())


def timed(command, name, device, says=None):
    """(seconds, GiB at most, when it began) of a process; the benchmark ends where it fails.

    On CUDA the memory is the GPU's, with what the process keeps for itself there. With `says` the last of the three is
    the value of that key in the JSON object that is the last line of its output, or None.
    """
    seen, ended = [gpu_bytes()] if device == "cuda" else [], Event()
    if seen:
        Thread(target=watch_gpu, args=(ended, seen), daemon=True).start()
    begin = time.time()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        last = (output.read().splitlines() or [b""])[-1]
    seconds = time.time() - begin
    ended.set()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name}: {shlex.join(map(str, command))} ended with {process.returncode}")
    peak = usage.ru_maxrss * (1024 if sys.platform == "linux" else 1)
    said = json.loads(last).get(says) if says and last.startswith(b"{") else None
    return seconds, (max(seen) - seen[0] if seen else peak) / 2**30, said if says else begin


def make_job(options, folder):
    """(model directory, data file): what options name, or random weights and random letters of a dialogue's lengths."""
    model, data = options.model, folder / "prefs.jsonl"
    if not model:
        tokenizer, model = load_tokenizer(options.tokenizer if options.data else "bytes"), folder / "model"
        model.mkdir()
        tokenizer.save(model)
        weights = GPT(GPTConfig(*options.shape), torch.Generator().manual_seed(0))
        save_model(weights, model, tokenizer.end_of_text)
    if options.data:
        rows = [row.strip() for _, row, _ in islice(read_rows(Path(options.data)), options.pairs)]
    else:
        draw = random.Random(0)
        pairs = read_pairs(options, len(string.ascii_letters))
        sides = ("prompt", "chosen", "rejected")
        texts = (
            ["".join(draw.choices(string.ascii_letters, k=len(getattr(p, f"{s}_ids")))) for s in sides] for p in pairs
        )
        rows = [json.dumps(dict(zip(sides, three, strict=True))).encode() for three in texts]
    data.write_bytes(b"".join(row + b"\n" for row in rows))
    return Path(model).resolve(), data


def training(options, model, data, out):
    """Name of a stage → seconds of one run of train.py; "whole" and "peak" beside them."""
    command = [sys.executable, "train.py", "--init", model, "--data", data, "--out", out, "--eval-fraction", "0"]
    command += ["--batch-size", options.batch_size, "--log-every", "1", "--dtype", options.dtype, "--device"]
    command += [options.device, *shlex.split(options.flags)]
    whole, peak, begin = timed([*map(str, command)], "train.py", options.device)
    stored = [path.stat().st_mtime for path in (out.parent / "cache").glob("reference-*.npz")]
    opened, ended = ((out / name).stat().st_mtime for name in ("config.json", "metrics.jsonl"))
    marks = [begin, opened, max([opened, *stored]), ended, begin + whole]
    return dict(zip(STAGES, (b - a for a, b in pairwise(marks)), strict=True)) | {
        "whole": whole,
        "peak": peak,
    }


def sampling(options, model, batch):
    """(seconds, GiB) of sample.py that answers one prompt of `PROMPT_TOKENS` letters `batch` times."""
    command = [sys.executable, "sample.py", "--model", model, "--prompt", "a" * PROMPT_TOKENS, "--template", "none"]
    command += ["--num-samples", batch, "--max-new-tokens", NEW_TOKENS, "--top-k", TOP_K, "--device", options.device]
    return timed([*map(str, command), "--dtype", options.dtype], "sample.py", options.device)[:2]


def spread(values, form="{:.1f}"):
    """The median, and the least and greatest where there are several."""
    median = form.format(statistics.median(values))
    return f"{median} ({form.format(min(values))}–{form.format(max(values))})" if len(values) > 1 else median


def programs(options):
    """(Markdown, in a sentence): train.py stage by stage, another trainer beside it by turns, and sample.py."""
    ours, theirs, answers = [], [], {batch: [] for batch in BATCHES}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        folder = Path(folder)
        model, data = make_job(options, folder)
        for k in range(options.repetitions):
            turns = [lambda k=k: ours.append(training(options, model, data, folder / str(k) / "run"))]
            if options.beside:
                other = shlex.split(options.beside.format(model=model, data=data, pairs=options.pairs))
                other = other, "--beside", options.device, "pairs_per_second"
                turns.append(lambda other=other: theirs.append(timed(*other)))
            for turn in turns[:: -1 if k % 2 else 1]:  # each is first in every second repetition
                turn()
            print(
                f"repetition {k + 1}: {ours[-1]['whole']:.1f} s", *(f"{s:.1f} s" for s, *_ in theirs[-1:]), flush=True
            )
            for batch in () if options.flags else answers:
                answers[batch].append(sampling(options, model, batch))
    costs = {"train.py": [(run["whole"], run["peak"]) for run in ours], options.beside_name: theirs}
    said = [f"{name} {middle(runs, 0):.0f} s and {middle(runs, 1):.1f} GiB" for name, runs in costs.items() if runs]
    return report(options, ours, theirs, answers), ", ".join(said)


def middle(runs, place):
    """The median of one figure of several runs."""
    return statistics.median(run[place] for run in runs)


def report(options, ours, theirs, answers):
    """The text of `programs`, from what was measured."""
    name = f"`train.py{' ' + options.flags if options.flags else ''}`"
    cells = [spread([run[stage] for run in ours]) for stage in (*STAGES, "whole")]
    trained = [options.pairs / (run["reference"] + run["steps"]) for run in ours]
    rows = [[name, *cells, spread(trained, "{:.2f}"), spread([run["peak"] for run in ours])]]
    if theirs:
        seconds, peaks, rates = zip(*theirs, strict=True)
        known = None not in rates  # pairs a second, which the other trainer says itself or nobody
        rates = spread(rates, "{:.2f}") if known else "–"
        rows.append([options.beside_name, *"––––", spread(seconds), rates, spread(peaks)])
        by_turns = [*zip(theirs, ours, trained, strict=True)]
        whole = spread([second / run["whole"] for (second, _, _), run, _ in by_turns])
        memory = spread([peak / run["peak"] for (_, peak, _), run, _ in by_turns])
        faster = spread([rate / other for (_, _, other), _, rate in by_turns]) if known else "–"
        rows.append(["ratio", *"––––", whole, faster, memory])
    heads = ["program", *(f"{stage}, s" for stage in STAGES), "whole, s", "pairs/s", "GiB"]
    text = table(heads, rows)
    if any(answers.values()):
        lines = [
            [f"`sample.py --num-samples {batch}`", *(spread(column) for column in zip(*runs, strict=True))]
            for batch, runs in answers.items()
        ]
        text += "\n\n" + table([f"{NEW_TOKENS} new tokens an answer", "whole, s", "GiB"], lines)
    return text
