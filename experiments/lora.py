"""What LoRA saves: the bytes that a fit holds, by the shapes of real models, and full and LoRA runs on this machine.

    python -m experiments.lora                                         renew the table of docs/lora.md
    python -m experiments.lora --measure DIR --data prefs.jsonl …      train DIR in full and with --lora, and print both

A measured run is a process of its own, so that its peak memory is its own.
"""

import argparse
import functools
from pathlib import Path

import torch

from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.llama import Llama, LlamaConfig
from dpo_min.model.lora import linear_layers
from experiments.pages import renew, table
from experiments.real_model import metrics, run

PAGE = Path(__file__).resolve().parents[1] / "docs" / "lora.md"
RANKS = 8, 64
# Name → (class, sizes, bytes of a weight as published).
MODELS = {
    "GPT-2, 124M": (GPT, GPTConfig(), 4),
    "Qwen2.5-0.5B": (Llama, LlamaConfig(151936, 32768, 24, 14, 896, 4864, 2, rope_theta=1e6, model_type="qwen2"), 2),
    "Llama-3.2-1B": (Llama, LlamaConfig(128256, 131072, 16, 32, 2048, 8192, 8, rope_theta=5e5), 2),
    "Mistral-7B": (Llama, LlamaConfig(32768, 32768, 32, 32, 4096, 14336, 8, tied=False, model_type="mistral"), 2),
}
GB = 10**9


@functools.cache
def shapes_of(kind, sizes):
    """(D, C) of every linear layer of the blocks."""
    with torch.device("meta"):  # shapes without memory
        return [tuple(layer.weight.shape) for layer in linear_layers(kind(sizes)).values()]


def held(kind, sizes, published, rank=None):
    """What a fit holds from step to step under bfloat16's autocast, with AdamW: name → bytes, and the trained numbers.

    Weights, gradients and AdamW's two moments are float32. With a rank the matrices of the blocks are frozen, and held
    in bfloat16 if they were published so (`lora.narrow_frozen`). From a matrix in float32 autocast makes a copy in
    bfloat16, which stays from its forward to its backward; what reads frozen embeddings lets it go earlier, and is
    counted too.
    """
    shapes = shapes_of(kind, sizes)
    matrices = sum(C * D for D, C in shapes)
    adapter = sum(rank * (C + D) for D, C in shapes) if rank else 0
    trained = adapter or sizes.parameters()
    narrow = matrices if rank and published == 2 else 0
    parts = {"weights": 4 * (sizes.parameters() + adapter) - 2 * narrow, "gradients": 4 * trained, "AdamW": 8 * trained}
    parts["bfloat16 copies"] = 2 * (matrices - narrow + adapter)
    return {"trained": trained, "all, in bytes": sum(parts.values())} | parts | {"checkpoint": 12 * trained}


def memory_table():
    """The table of docs/lora.md, Markdown, in GB."""
    rows, heads = [], None
    for name, shape in MODELS.items():
        for rank in (None, *RANKS):
            found = held(*shape, rank)
            heads = ["model", "fit", *found]
            trained, bytes_held, *parts = found.values()
            cells = [f"{trained:,}", f"{bytes_held:,}", *(f"{size / GB:.2f}" for size in parts)]
            rows.append([name, f"`--lora {rank}`" if rank else "full", *cells])
    return table(heads, rows)


def measure(options):
    """Full and LoRA runs on a model directory, each a process of its own, Markdown."""
    rows = []
    for rank in (None, *options.ranks):
        out = options.out / (f"lora-{rank}" if rank else "full")
        command = ["train.py", "--data", options.data, "--init", options.measure, "--out", out, *options.flags.split()]
        seconds, peak = run([*map(str, command), *(["--lora", str(rank)] if rank else [])], out.with_suffix(".log"))
        last = metrics(out, "eval")[-1]
        pairs = sum(line["pairs"] for line in metrics(out, "train"))
        cells = [f"{pairs / seconds:.2f}", f"{peak:.2f}", f"{last['loss']:.4f}", f"{last['rewards/accuracies']:.3f}"]
        rows.append([options.measure.name, f"`--lora {rank}`" if rank else "full", *cells])
    return table(["model", "fit", "pairs/s, start included", "peak GiB", "held-out loss", "held-out accuracy"], rows)


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", type=Path, help="model directory")
    parser.add_argument("--data", type=Path, help="preferences to measure with")
    parser.add_argument("--flags", default="", help="more flags of train.py, in one text")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--out", type=Path, default=Path("runs") / "lora")
    options = parser.parse_args()
    if options.measure:
        print(measure(options))
        return
    renew(PAGE, {"calculated": memory_table()})


if __name__ == "__main__":
    main()
