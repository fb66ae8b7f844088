"""What each lever bought: the textbook loop against the fast paths, added one at a time.

    python -m experiments.benchmark                                   GPT-2 124M, 24 pairs, on this machine
    python -m experiments.benchmark --data prefs.jsonl.gz --tokenizer gpt2/ --pairs 64

Every row is a process of its own, with the same weights, pairs and steps, so that its peak memory is its own.
Pairs per second count the reference's pass. Without --data the pairs have random tokens and the lengths of
real dialogues. Decoding is measured too: prompts of 64 tokens, 64 more drawn among the 50 likeliest. `--part` takes one
of the two. Renews the tables in --out and the picture beside it.
"""

import argparse
import copy
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.rows import TokenizedPair, load_preferences, tokenize
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.decode.decoding_weights import PackedLinear, decoding_weights
from dpo_min.decode.generate import generate
from dpo_min.exact import rectangle
from dpo_min.logprob import sequence_logprobs, token_logprobs
from dpo_min.losses import LOSSES
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.preference import margin
from dpo_min.system import devices

BETA, LEARNING_RATE = 0.1, 1e-6
BEGIN, END = "<!-- measured -->", "<!-- end -->"
BEGIN_DECODING, END_DECODING = "<!-- decoding -->", "<!-- end of decoding -->"
PROMPT_TOKENS, NEW_TOKENS, TOP_K, DECODING_RUNS = 64, 64, 50, 5
DECODERS = {
    "cast": "float32 weights, cast for every token",
    "held": "weights held in the dtype",
    "packed": "and packed, as in sample.py",
}
STARTS = ["train.py", "--help"], ["sample.py", "--help"], ["-c", "import torch"]
# name: what is added to the row above it
LEVERS = {
    "textbook": "two padded forwards for each model, all logits kept, reference live",
    "fused log-probs": "only scored positions meet the vocabulary, a slice at a time",
    "one row per pair": "the prompt is computed once",
    "reference once": "its log-probabilities before training, without gradients, then the model is freed",
    "fused AdamW": "one kernel for all of the optimiser's arithmetic",
    "heap kept": "glibc keeps freed blocks instead of returning them to the system",
    "compiled": "torch.compile of the model, the compilation itself not counted",
}


def synthetic_pairs(count, vocab_size, seed=0):
    """Random tokens; lengths log-normal like those of real dialogues: prompts about 110 tokens, answers about 45."""
    generator = torch.Generator().manual_seed(seed)

    def ids(median, spread, limit):
        length = int(median * math.exp(spread * torch.randn((), generator=generator).item()))
        return torch.randint(vocab_size, (min(max(length, 1), limit),), generator=generator).tolist()

    return [TokenizedPair(ids(80, 0.8, 350), ids(30, 0.9, 160), ids(30, 0.9, 160)) for _ in range(count)]


def read_pairs(options, vocab_size):
    """The pairs that are trained on."""
    if not options.data:
        return synthetic_pairs(options.pairs, vocab_size)
    rows, _ = load_preferences([options.data])
    return tokenize(rows[: options.pairs], load_tokenizer(options.tokenizer), 512)[0]


def padded_logps(model, pairs, side, fused):
    """Log π of one side of each pair, (B,), in rows of their own: the textbook's way, or with the fused gatherer."""
    rows = [rectangle(pair.prompt_ids, [getattr(pair, side)]) for pair in pairs]
    width = max(tokens.shape[1] for tokens, _ in rows)
    pad = torch.nn.functional.pad
    tokens, mask = (torch.cat([pad(row[k], (0, width - row[k].shape[1])) for row in rows]) for k in (0, 1))
    tokens, mask = tokens.to(model.head_weight.device), mask.to(model.head_weight.device)
    hidden = model(tokens)  # (B, T, C)
    if not fused:
        return sequence_logprobs(model.logits(hidden), tokens, mask)
    logps = token_logprobs(hidden[:, :-1][mask[:, 1:]], model.head_weight, tokens[:, 1:][mask[:, 1:]])
    return torch.segment_reduce(logps, "sum", lengths=mask.sum(dim=-1))


def measure(options):
    """Train with the first levers up to `options.variant`; prints a JSON line: seconds, losses, peak memory."""
    torch.set_num_threads(options.threads)
    level = list(LEVERS).index(options.variant)
    has = {name: i <= level for i, name in enumerate(LEVERS)}
    device, dtype = devices.choose_device(options.device, options.dtype)
    if has["heap kept"]:
        devices.keep_heap()
    policy = GPT(GPTConfig(*options.shape), torch.Generator().manual_seed(0)).to(device)
    pairs = read_pairs(options, policy.config.vocab_size)
    size = options.batch_size
    steps = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    fused = has["fused AdamW"] or None
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0, fused=fused)
    autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)
    if has["compiled"]:
        policy.compile(dynamic=True)

    def logps(model, chunk):
        with autocast:
            if has["one row per pair"]:
                return batch_logps(model, pack(chunk).to(device)).chunk(2)
            return [padded_logps(model, chunk, side, has["fused log-probs"]) for side in ("chosen_ids", "rejected_ids")]

    def synchronize():
        if device == "cuda":
            torch.cuda.synchronize()

    if device == "cuda" or options.compile:  # kernels are loaded, or compiled, at first use: not in the figures
        for chunk in steps[:2]:
            with torch.no_grad():
                logps(policy, chunk)
            sum(side.sum() for side in logps(policy, chunk)).backward()
    losses = []
    synchronize()
    start = time.perf_counter()
    stored = None
    if has["reference once"]:
        with torch.no_grad():
            stored = [[side.clone() for side in logps(policy, chunk)] for chunk in steps]
    else:
        reference = GPT(policy.config).to(device).requires_grad_(False)
        reference.load_state_dict(policy.state_dict())
    for k, chunk in enumerate(steps):
        optimizer.zero_grad(set_to_none=True)
        ours = logps(policy, chunk)
        with torch.no_grad():
            theirs = stored[k] if stored else logps(reference, chunk)
        loss = LOSSES["sigmoid"].value(margin(*ours, *theirs), BETA).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    synchronize()
    seconds = time.perf_counter() - start
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)
    print(json.dumps({"seconds": seconds, "losses": [x.item() for x in losses], "peak": peak}))


def needed_flops(config, pairs):
    """Multiplications and additions that DPO on these pairs needs: each token once, and its gradient twice as much.

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
    """The most operations a second of a square matrix product, of some: what a perfect step would run at."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(8):
        start = time.perf_counter()
        c = a @ b
        c[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def bandwidth(device, size=2**28):
    """The most bytes a second that a pass over a large array reads: a sum, or on a CPU a packed matrix times a row."""
    x = torch.ones(size, dtype=torch.bfloat16, device=device)
    passes = [x.view(torch.int32).sum]
    if device == "cpu":
        packed = PackedLinear(x.view(-1, 1024))
        passes.append(lambda row=x[None, :1024]: packed(row)[0, 0])
    best = math.inf
    for _ in range(8):
        for run_once in passes:
            start = time.perf_counter()
            run_once().item()  # waits for a GPU
            best = min(best, time.perf_counter() - start)
    return 2 * size / best


def measure_decoding(options):
    """Prints a JSON line: the bytes of weights, the bytes that can be read a second, and tokens a second."""
    torch.set_num_threads(options.threads)
    device, dtype = devices.choose_device(options.device, options.dtype)
    model = GPT(GPTConfig(*options.shape), torch.Generator().manual_seed(0)).to(device)
    config, rates = model.config, {}
    size = sum(p.numel() for name, p in model.named_parameters() if name != "wpe.weight") * dtype.itemsize
    for batch in (1, 8):
        prompts = torch.randint(config.vocab_size - 1, (batch, PROMPT_TOKENS)).tolist()
        for way in DECODERS:
            decoder = {"cast": lambda: model, "held": lambda: copy.deepcopy(model).to(dtype)}.get(way)
            decoder = decoder() if decoder else decoding_weights(model, dtype)
            seconds = []
            for _ in range(1 + DECODING_RUNS):
                start = time.perf_counter()
                with torch.autocast(device, dtype, enabled=way == "cast" and dtype != torch.float32):
                    generate(
                        decoder, prompts, config.vocab_size - 1, NEW_TOKENS, top_k=TOP_K, min_new_tokens=NEW_TOKENS
                    )
                seconds.append(time.perf_counter() - start)
            rates[f"{way} {batch}"] = batch * NEW_TOKENS / statistics.median(seconds[1:])  # the first warms up
    print(json.dumps({"bytes": size, "bandwidth": bandwidth(device), "rates": rates}))


def decoding_table(options, result):
    """The text on decoding, Markdown."""
    size, most = result["bytes"], result["bandwidth"]
    lines = [
        "| decoding | batch | tokens/s | ratio | GB/s of weights | of the bandwidth |",
        "|---|---|---|---|---|---|",
    ]
    for batch in (1, 8):
        for way, words in DECODERS.items():
            rate = result["rates"][f"{way} {batch}"]
            ratio, read = rate / result["rates"][f"cast {batch}"], rate / batch * size
            lines.append(f"| {words} | {batch} | {rate:.1f} | {ratio:.1f} | {read / 1e9:.1f} | {read / most:.0%} |")
    device = devices.choose_device(options.device, options.dtype)[0]
    return f"""{hardware(device)}, {options.threads} threads, PyTorch {torch.__version__}, {options.dtype}. Prompts of
{PROMPT_TOKENS} tokens, {NEW_TOKENS} new ones each, top-k {TOP_K}; the time of the prompts is counted. A step reads
{size / 1e6:.0f} MB of weights once, however many rows it has; reading alone ran at {most / 1e9:.0f} GB/s, which
would be {most / size:.0f} steps a second.

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


def table(options, rows):
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


def draw(rows, path):
    """Seconds of each row, and its peak memory."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    names, results = list(rows)[::-1], list(rows.values())[::-1]
    axes[0].barh(names, [row["seconds"] for row in results], color="0.4")
    axes[0].set(xlabel="seconds for the same pairs")
    axes[1].barh(names, [row["peak"] / 2**30 for row in results], color="0.8", edgecolor="black")
    axes[1].set(xlabel="peak memory (GiB)")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main():
    """Measure one variant, or all of them and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=["training", "decoding"], help="measure only this (default: both)")
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
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"), help="the page; its table is replaced")
    options = parser.parse_args()
    if options.variant:
        measure_decoding(options) if options.variant == "decoding" else measure(options)
        return
    page = options.out.read_text(encoding="utf-8") if options.out.exists() else ""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.part != "decoding":
        page = renewed(page, BEGIN, END, training(options))
    if options.part != "training":
        text = decoding_table(options, run_variant(options, "decoding"))
        print(text)
        page = renewed(page, BEGIN_DECODING, END_DECODING, text + "\n")
    options.out.write_text(page, encoding="utf-8")
    print(f"written: {options.out}")


def training(options):
    """Measure every lever of training, draw the picture, and return the text."""
    rows = {}
    for name in [name for name in LEVERS if name != "compiled" or options.compile]:
        rows[name] = run_variant(options, name)
        print(f"{name}: {rows[name]['seconds']:.1f} s, {rows[name]['peak'] / 2**30:.1f} GiB", flush=True)
    start = [f"`python {' '.join(c)}` takes {seconds_of(sys.executable, *c):.2f} s" for c in STARTS]
    text = table(options, rows) + "\n\n" + ", ".join(start) + ".\n"
    print(text)
    picture = options.out.parent / "figures" / f"{options.out.stem}.png"
    picture.parent.mkdir(exist_ok=True)
    draw(rows, picture)
    print(f"written: {picture}")
    return text


def renewed(page, begin, end, text):
    """The page with what stands between two marks replaced; both are put at its end where it has none."""
    if begin not in page:
        page += f"\n{begin}\n{end}\n"
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    main()
