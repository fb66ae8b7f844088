"""What only a GPU can show: the same run there and on the CPU, in each dtype, and what an overflow of float16 does.

The other tests compute on the CPU. These start the program with the GPUs that the machine has, and are skipped where it
has none.
"""

import json
import math
import os
import subprocess
import sys

import pytest
from conftest import GPUS

from tests.training import write

ROWS = [
    {"prompt": f"q{i}?", "chosen": "a" * (i % 7 + 1), "rejected": "b" * (i % 5 + 1) + "".join("cd"[i % 2])}
    for i in range(24)
]
SMALL = "--sft-steps 6 --batch-size 8 --log-every 1 --n-layer 2 --n-head 2 --n-embd 32 --learning-rate 1e-3".split()
DRAWS = """
import json, torch
from dpo_min.decode import generate
from dpo_min.model.gpt import GPT, GPTConfig
model = GPT(GPTConfig(20, 40, 2, 2, 32), torch.Generator().manual_seed(0)).double().to("{device}")
drawn = generate(model, [[1, 2, 3], [4], [5] * 9], 0, 24, torch.Generator().manual_seed(1))
print(json.dumps([(c.ids, c.logp) for c in drawn]))
"""


def gpu():
    """The environment of a process that sees the GPUs."""
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return kept if GPUS == "all" else kept | {"CUDA_VISIBLE_DEVICES": GPUS}


def on_a_gpu(*command):
    """The output of a Python command that may use one."""
    return subprocess.run([sys.executable, *command], env=gpu(), capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module", autouse=True)
def _there():
    if GPUS == "" or "True" not in on_a_gpu("-c", "import torch; print(torch.cuda.is_available())"):
        pytest.skip("needs a CUDA GPU")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function (name, flags) → the lines of metrics.jsonl of such a run; a name that comes again goes on with it."""
    directory = tmp_path_factory.mktemp("cuda")
    write(directory / "prefs.jsonl", ROWS)

    def start(name, *flags, steps=6):
        where = ["--data", directory / "prefs.jsonl", "--out", directory / name, "--max-steps", str(steps)]
        on_a_gpu("train.py", *where, *SMALL, *flags)
        return [json.loads(line) for line in (directory / name / "metrics.jsonl").read_text().splitlines()]

    return start


def losses(lines):
    return [line["loss"] for line in lines if line["split"] == "train"]


@pytest.mark.parametrize("flags", [[], ["--lora", "4"], ["--reference-refresh", "2"], ["--compile"]])
def test_a_gpu_computes_the_losses_of_the_cpu(run, flags):
    """In float32; every way of asking the reference. Kills: a mask or a copy that only the CPU has right."""
    name = "-".join(flags).strip("-")
    here = losses(run(f"cpu{name}", "--device", "cpu", "--dtype", "float32", *flags))
    there = losses(run(f"cuda{name}", "--device", "cuda", "--dtype", "float32", *flags))
    assert there == pytest.approx(here, rel=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_less_precision_moves_the_losses_a_little(run, dtype):
    exact, rough = (losses(run(f"{name}-of-{dtype}", "--dtype", name)) for name in ("float32", dtype))
    assert rough == pytest.approx(exact, rel=0.05)


def test_a_run_in_two_parts_is_the_run_in_one(run):
    whole = losses(run("whole"))
    run("parts", steps=3)
    assert losses(run("parts", "--resume")) == pytest.approx(whole, rel=1e-3)  # sums of a GPU come in any order


def test_an_overflow_of_float16_skips_its_step_and_the_run_goes_on(run):
    """A loss this steep leaves float16's range until the scaler has come down."""
    lines = run("overflow", "--dtype", "float16", "--beta", "30", steps=18)
    assert 0 < max(line["overflows"] for line in lines if line["split"] == "train") < 18
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_a_recorded_step_draws_what_a_cpu_draws():
    """In float64, prompts of several lengths. Kills: a recording that goes on with the tokens of its first call."""
    there = json.loads(on_a_gpu("-c", DRAWS.format(device="cuda")))
    here = json.loads(on_a_gpu("-c", DRAWS.format(device="cpu")))
    assert [ids for ids, _ in there] == [ids for ids, _ in here]
    assert [logp for _, logp in there] == pytest.approx([logp for _, logp in here])
