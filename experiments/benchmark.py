"""What a user waits for, and what each lever gains: the programs, then the textbook loop and the fast paths.

    python -m experiments.benchmark                                   GPT-2 124M, 24 pairs, on this machine
    python -m experiments.benchmark --data prefs.jsonl.gz --tokenizer gpt2/ --pairs 64
    python -m experiments.benchmark --part programs --model DIR --data prefs.jsonl --beside "python other.py {model}"
    python -m experiments.benchmark --part decoding --decoder "python other.py --batch-size {batch}"

Another program is measured by turns with ours. How many pairs or tokens a second it had, it may say itself: by the last
line of its output, {"pairs_per_second": …} or {"tokens_per_second": …}.

The programs are measured from their start to their end (benchmark_programs.py). Every row of the levers' table is a
process of its own, with the same weights, pairs and steps, so that its peak memory is its own (benchmark_rows.py).
Pairs per second count the reference's pass. Without --data the pairs have the lengths of real dialogues, and random
tokens. Decoding is measured too: prompts of 64 tokens, 64 more drawn among the 50 likeliest.
Renews the tables in --out, and the picture, which is drawn from the table; `--part` takes one of these.
"""

import argparse
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import torch

from dpo_min.model.gpt import GPTConfig
from dpo_min.system import devices
from dpo_min.system.picture import pyplot, save
from experiments import benchmark_programs, benchmark_rows
from experiments.benchmark_programs import spread
from experiments.benchmark_rows import BATCHES, DECODERS, LEVERS, NEW_TOKENS, PROMPT_TOKENS, TOP_K, read_pairs
from experiments.pages import between, renew

plt = pyplot()

PARTS = "programs", "training", "decoding"
PAGE, README = Path("docs/benchmarks.md"), Path("README.md")
STARTS = ["train.py", "--help"], ["sample.py", "--help"], ["-c", "import torch"]
ROW = re.compile(r"^\| \*\*(.+?)\*\*.*? \| ([\d.]+) \| \d+ \| .* \| ([\d.]+) GiB \|", re.MULTILINE)


def needed_flops(config, pairs):
    """The multiplications and additions that DPO needs for these pairs: a forward pass, and twice as much backwards.

    Blocks cost 24 C² a token and attention 4 T C for T tokens seen, in each layer; the head 2 V C a scored token.
    The reference adds one forward pass to the policy's three.
    """
    C, L, V = config.n_embd, config.n_layer, config.vocab_size
    forward = 0
    for pair in pairs:
        x, answers = len(pair.prompt_ids), [len(pair.chosen_ids), len(pair.rejected_ids)]
        seen = x * (x + 1) / 2 + sum(y * x + y * (y + 1) / 2 for y in answers)
        forward += L * (24 * C**2 * pair.num_tokens + 4 * C * seen) + 2 * V * C * sum(answers)
    return 4 * forward


def matmul_peak(device, dtype, size=2048):
    """The most operations a second that a square matrix product reached; a perfect step would run at this rate."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(8):
        start = time.perf_counter()
        c = a @ b
        c[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def decoding(options):
    """Measure decoding, another decoder beside it by turns, and return the text."""
    ours, theirs = [], {batch: [] for batch in BATCHES}
    for k in range(options.repetitions):
        turns = [lambda: ours.append(run_variant(options, "decoding"))]
        for batch in BATCHES if options.decoder else ():
            command = shlex.split(options.decoder.format(batch=batch, dtype=options.dtype))
            job = command, "--decoder", options.device, "tokens_per_second"
            turns.append(lambda batch=batch, job=job: theirs[batch].append(benchmark_programs.timed(*job)[2]))
        for turn in turns[:: -1 if k % 2 else 1]:
            turn()
    text = decoding_table(options, ours, theirs)
    print(text)
    return text


def decoding_table(options, results, theirs):
    """The text on decoding, Markdown; ratios are against the first row, within each repetition."""
    size, most = results[0]["bytes"], statistics.median(result["bandwidth"] for result in results)
    lines = [
        "| decoding | batch | tokens/s | ratio | GB/s of weights | of the bandwidth |",
        "|---|---|---|---|---|---|",
    ]
    for batch in BATCHES:
        rates = {options.beside_name: theirs[batch]} if theirs[batch] else {}
        rates |= {words: [result["rates"][f"{way} {batch}"] for result in results] for way, words in DECODERS.items()}
        first = next(iter(rates.values()))
        for words, measured in rates.items():
            read = statistics.median(measured) / batch * size
            ratio = spread([rate / other for rate, other in zip(measured, first, strict=True)])
            cells = words, batch, spread(measured), ratio, f"{read / 1e9:.1f}", f"{read / most:.0%}"
            lines.append(f"| {' | '.join(map(str, cells))} |")
    device = devices.choose_device(options.device, options.dtype)[0]
    return f"""{hardware(device)}, {options.threads} threads, PyTorch {torch.__version__}, {options.dtype}. Prompts of
{PROMPT_TOKENS} tokens, {NEW_TOKENS} new ones each, top-k {TOP_K}; the time of the prompts is counted. A step reads
{size / 1e6:.0f} MB of weights once, however many rows it has. Reading alone ran at {most / 1e9:.0f} GB/s, which
would be {most / size:.0f} steps a second. Medians of {options.repetitions}, with the least and the greatest.

""" + "\n".join(lines)


def run_variant(options, variant):
    """One row, {"seconds", "losses", "peak"}, in a process of its own."""
    arguments = [sys.executable, "-m", "experiments.benchmark", "--variant", variant]
    for name in ("pairs", "batch_size", "data", "tokenizer", "device", "dtype", "threads"):
        if (value := getattr(options, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    arguments += ["--compile"] * options.compile
    shown = subprocess.run([*arguments, "--shape", *map(str, options.shape)], stdout=subprocess.PIPE, text=True)
    if shown.returncode:
        raise SystemExit(f"{variant}: the process ended with {shown.returncode}")
    return json.loads(shown.stdout.splitlines()[-1])


def seconds_of(*command):
    """The wall time of a command, the least of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    return min(times)


def hardware(device):
    """The name of what it ran on."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def training_table(options, rows):
    """The page's text from name → result, Markdown; ratios are against the first row."""
    device, dtype = devices.choose_device(options.device, options.dtype)
    config = GPTConfig(*options.shape)
    pairs = read_pairs(options, config.vocab_size)
    tokens, flops, peak = sum(p.num_tokens for p in pairs), needed_flops(config, pairs), matmul_peak(device, dtype)
    first = rows["textbook"]
    lines = [
        "| lever, on top of those above | pairs/s | tokens/s | ratio | of matmul peak | peak memory | loss off by |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        off = max(abs(a - b) for a, b in zip(row["losses"], first["losses"], strict=True))
        cells = [
            f"**{name}**: {LEVERS[name]}",
            f"{len(pairs) / row['seconds']:.2f}",
            f"{tokens / row['seconds']:.0f}",
            f"{first['seconds'] / row['seconds']:.2f}",
            f"{flops / row['seconds'] / peak:.0%}",
            f"{row['peak'] / 2**30:.1f} GiB",
            f"{off:.1e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    data = "real dialogues" if options.data else "random tokens, the lengths of dialogues"
    return f"""{hardware(device)}, {options.threads} threads, PyTorch {torch.__version__},
{options.dtype} over float32 weights. {len(pairs)} pairs ({data}; {tokens} tokens, prompts counted once)
in steps of {options.batch_size}, each one forward. GPT-2's shape, {config.n_layer} layers of {config.n_embd},
vocabulary {config.vocab_size:,}. The job needs {flops / 1e12:.2f} TFLOP; a matrix product alone ran at
{peak / 1e12:.2f} TFLOP/s.

""" + "\n".join(lines)


def draw_levers(page, path):
    """Pairs a second of each row of a page's table, and its peak memory."""
    rows = [(name, float(rate), float(peak)) for name, rate, peak in ROW.findall(page)]
    names, rates, peaks = zip(*rows, strict=True)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    figure.suptitle("Each lever on top of those above it", fontsize=11)
    bars = axes[0].barh(names, rates, color="0.4"), axes[1].barh(names, peaks, color="0.8", edgecolor="black")
    for axis, bar, label, form in zip(
        axes, bars, ("pairs a second", "peak memory (GiB)"), ("%.2f", "%.1f"), strict=True
    ):
        axis.bar_label(bar, fmt=form, padding=3, fontsize=8)
        axis.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
        axis.margins(x=0.12)
    save(figure, path)


def main():
    """Measure one variant, or all of them and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--part",
        choices=[*PARTS, "picture"],
        help="only this; picture: from the table on the page",
    )
    parser.add_argument(
        "--variant", choices=[*LEVERS, "decoding"], help="measure this one in this process and print JSON"
    )
    parser.add_argument("--pairs", type=int, default=24, help="how many (default: 24)")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs of a step, which is one forward (default: 8)")
    parser.add_argument("--compile", action="store_true", help="add a row with torch.compile; every row warms up")
    parser.add_argument("--data", help="real preferences, .jsonl or .jsonl.gz; default: random tokens")
    parser.add_argument("--tokenizer", default="gpt2", help="for --data: gpt2, bytes or a directory")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU (default: all)")
    parser.add_argument("--shape", type=int, nargs=5, default=[50257, 1024, 12, 12, 768], help="V, block, L, heads, C")
    parser.add_argument("--model", help="programs: a model directory; default: --shape with random weights")
    parser.add_argument("--flags", default="", help="programs: more flags of train.py")
    parser.add_argument("--beside", help="programs: another trainer's command, with {model}, {data} and {pairs}")
    parser.add_argument("--beside-name", default="the other", help="what the tables call the other")
    parser.add_argument("--decoder", help="decoding: another decoder's command, with {batch} and {dtype}")
    parser.add_argument("--repetitions", type=int, default=3, help="of the programs and of decoding (default: 3)")
    parser.add_argument("--folder", help="programs: where to write models and runs; default: that of temporary files")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; its table is replaced")
    options = parser.parse_args()
    if options.variant:
        measure = {"decoding": benchmark_rows.measure_decoding}.get(options.variant, benchmark_rows.measure_training)
        measure(options)
        return
    if not options.out.exists():
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n\n".join(between(part, "") for part in PARTS), encoding="utf-8")
    if options.part in (None, "programs"):
        text, said = programs_text(options)
        renew(options.out, {"programs": text})
        if options.out == PAGE:
            renew(README, {"speed": said})
    if options.part in (None, "training"):
        renew(options.out, {"training": training(options)})
    if options.part in (None, "decoding"):
        renew(options.out, {"decoding": decoding(options)})
    page, picture = options.out.read_text(encoding="utf-8"), options.out.parent / "figures" / f"{options.out.stem}.png"
    if ROW.search(page):
        picture.parent.mkdir(exist_ok=True)
        draw_levers(page, picture)
    print(f"written: {options.out}, {picture}")


def programs_text(options):
    """Measure the programs; returns (the text, its sentence for the first page)."""
    device, _ = devices.choose_device(options.device, options.dtype)
    shape = f"GPT-2's shape, {options.shape[2]} layers of {options.shape[4]}, random weights"
    if options.model:
        shape = Path(options.model).name
    measured, cost = benchmark_programs.programs(options)
    machine = f"{hardware(device)}, {os.cpu_count()} cores"
    said = f"On {options.pairs} pairs ({shape}; {machine}), from the command to its end, {cost}."
    said = textwrap.fill(said, 116)
    text = f"""{said}

PyTorch {torch.__version__}, {options.dtype}, steps of {options.batch_size} pairs. Medians of {options.repetitions},
with the least and the greatest.

{measured}
"""
    print(text)
    return text, said


def training(options):
    """Measure every lever of training, and return the text."""
    rows = {}
    for name in [name for name in LEVERS if name != "compiled" or options.compile]:
        rows[name] = run_variant(options, name)
        print(f"{name}: {rows[name]['seconds']:.1f} s, {rows[name]['peak'] / 2**30:.1f} GiB", flush=True)
    start = [f"`python {' '.join(c)}` takes {seconds_of(sys.executable, *c):.2f} s" for c in STARTS]
    text = training_table(options, rows) + "\n\n" + ", ".join(start) + ".\n"
    print(text)
    return text


if __name__ == "__main__":
    main()
