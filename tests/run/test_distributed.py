"""Two processes do what one does: real ones, started by torchrun; starting costs seconds, so few starts check much.

The file is also the program that the first start runs: `torchrun … tests/run/test_distributed.py DIRECTORY`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.llama import LlamaConfig
from dpo_min.model.lora import add_lora
from dpo_min.model.safetensors import read_safetensors
from dpo_min.model.weights import MODELS
from dpo_min.run import distributed, models, session
from dpo_min.run.train_flags import TrainFlags
from dpo_min.system import launcher
from tests import training
from tests.test_golden import GOLDEN, TOLERANCE, trajectory
from tests.training import equal, metrics, rows, weights, write

ROOT = Path(train.__file__).parent
pytestmark = pytest.mark.usefixtures("quickly")
STEPS, STOP_AT = 9, 5
SIZES = GPTConfig(vocab_size=11, block_size=16, n_layer=2, n_head=2, n_embd=6)  # nothing that two divides evenly
LLAMA = LlamaConfig(11, 16, 2, 3, 7, 5, n_kv_head=1, head_size=2, model_type="qwen2", tied=False)


def draw_pairs(n, seed):
    """n pairs of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(most):
        length = torch.randint(1, most + 1, (), generator=generator)
        return torch.randint(0, 11, (length,), generator=generator).tolist()

    return [TokenizedPair(ids(4), ids(9), ids(9)) for _ in range(n)]


# Batches of 6: the fourth step of an epoch holds one pair, fewer than there are processes. With two processes, 6 pairs
# in micro-batches of 2 are 3 a process, in 2 micro-batches; the 5 held-out ones are 3 and 2, in 2 and 1.
PAIRS, HELD_OUT = draw_pairs(19, 0), draw_pairs(5, 1)


class Interrupted(train.Stage):
    """A stage in whose last process a Ctrl-C comes in the middle of step STOP_AT: the others have to learn of it."""

    count = 0

    def step(self, *arguments):
        self.count += 1
        if self.count == STOP_AT and distributed.rank() == distributed.processes() - 1:
            signal.raise_signal(signal.SIGINT)
        return super().step(*arguments)


def fit(directory, kind=train.Stage, sizes=SIZES, **settings):
    """A run in float64 from fixed weights, with clipping and decay that matter; returns the stage."""
    settings = {"weight_decay": 0.1, "max_grad_norm": 0.05, "warmup_steps": 2, "max_steps": STEPS} | settings
    config = TrainFlags(
        data=[], batch_size=6, micro_batch_size=2, learning_rate=0.01, log_every=2, eval_every=3, save_every=4,
        **settings,
    )  # fmt: skip
    policy = MODELS[type(sizes)](sizes, torch.Generator().manual_seed(0)).double()
    reference = None
    if config.loss_type != "sft":
        reference = MODELS[type(sizes)](sizes, torch.Generator().manual_seed(0)).double()
    stage = kind(config, policy, reference, directory)
    finished = stage.fit(PAIRS, HELD_OUT, "fit")
    assert finished == (kind is train.Stage)
    whole = distributed.gather(stage.policy)
    if whole:
        torch.save(whole.state_dict(), directory / "weights.pt")
    return stage


def fit_adapter(directory, shard=False):
    """A run of LoRA in float64 whose reference is stored, except where it is live; saves what it ends with."""
    flags = TrainFlags(
        data=[], batch_size=6, micro_batch_size=2, learning_rate=0.05, weight_decay=0.1, max_grad_norm=0.05,
        shard=shard, max_steps=5, log_every=1, eval_every=2, save_every=3, lora=3, lora_alpha=6.0, out=directory,
    )  # fmt: skip
    policy = GPT(SIZES, torch.Generator().manual_seed(0)).double()
    add_lora(policy, 3, 6.0, (), torch.Generator().manual_seed(0))
    stage = train.Stage(flags, policy, policy, directory)
    if directory.name != "lora-live":
        stage.store_reference(PAIRS, PAIRS[:5], directory / "cache", "f00")
    assert stage.fit(PAIRS, PAIRS[:5], "adapter")
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in policy.parameters())
    assert shard == (held < 0.7 * sum(p.numel() for p in policy.parameters()))
    models.save_outcome(policy, load_tokenizer("bytes"), flags, "model")


def result(directory):
    """(the lines of metrics.jsonl without what a clock measured, the weights)."""
    return metrics(directory), torch.load(directory / "weights.pt")


def close(directory, expected):
    """Whether a run ended as the expected one did, every line and every weight, to 1e-9."""
    (lines, found), (expected_lines, expected_weights) = result(directory), expected
    assert [line.keys() for line in lines] == [line.keys() for line in expected_lines]
    for line, other in zip(lines, expected_lines, strict=True):
        assert line.pop("split") == other.copy().pop("split")
        assert line == pytest.approx({name: other[name] for name in line}, rel=0, abs=1e-9)
    assert found.keys() == expected_weights.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected_weights[name], rtol=0, atol=1e-9)
    return True


def in_two_processes(directory):
    """What each of the two processes does; one that fails an assertion fails the start."""
    launcher.print_once()
    with distributed.joined("cpu"):
        first = distributed.rank() == 0
        assert distributed.processes() == 2
        assert distributed.sums({"a": 1, "b": 2} if first else {"b": 3, "c": 4}) == {"a": 1, "b": 5, "c": 4}
        assert distributed.any_of(first) and distributed.any_of(not first) and not distributed.any_of(False)
        for name, shard in (("ddp", False), ("fsdp", True)):
            stage = fit(directory / f"{name}-whole", shard=shard)
            held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in stage.policy.parameters())
            total = sum(p.numel() for p in stage.policy.parameters())
            assert distributed.sums({"held": held})["held"] == (total if shard else 2 * total)
            assert held < 0.7 * total or not shard
            fit(directory / f"{name}-sft", shard=shard, loss_type="sft", optimizer="rmsprop")
            fit(directory / f"{name}-llama", sizes=LLAMA, shard=shard)
            fit(directory / f"{name}-part", Interrupted, shard=shard)
            fit(directory / f"{name}-from-one", shard=shard, resume=True)
        # A checkpoint of FSDP goes on under DDP, and the reverse.
        for name, other in (("ddp", "fsdp"), ("fsdp", "ddp")):
            if first:
                shutil.copytree(directory / f"{other}-part", directory / f"{name}-from-{other}")
            distributed.barrier()
            fit(directory / f"{name}-from-{other}", shard=name == "fsdp", resume=True)
        trajectory(directory / "golden")
        fit_adapter(directory / "lora-ddp")
        if first:  # of the reference some pairs are known, more in one process than in the other
            (path,) = (directory / "lora-ddp" / "cache").glob("reference-*.npz")
            (directory / "lora-fsdp" / "cache").mkdir(parents=True)
            with np.load(path) as file:
                half = {name: values[::2] for name, values in file.items()}
            np.savez(directory / "lora-fsdp" / "cache" / path.name, **half)
        distributed.barrier()
        for name in ("fsdp", "live"):
            fit_adapter(directory / f"lora-{name}", shard=True)


def torchrun(*command):
    """Run a program in two processes; returns what it showed."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"PYTHONPATH": "."}  # of cwd: ROOT may have a colon
    return subprocess.run(
        [*start, *map(str, command)], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300
    )


# --- float64: the same run --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directories of all runs, by one process and by two."""
    directory = tmp_path_factory.mktemp("runs")
    fit(directory / "one")
    fit(directory / "one-sft", loss_type="sft", optimizer="rmsprop")
    fit(directory / "one-llama", sizes=LLAMA)
    fit(directory / "one-part", Interrupted)
    fit_adapter(directory / "lora-one")
    for name in ("ddp", "fsdp"):
        shutil.copytree(directory / "one-part", directory / f"{name}-from-one")
    shown = torchrun(__file__, directory)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count(f"fit {STEPS}/{STEPS}  loss") == 10, shown.stdout  # by the first process alone
    return directory


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_log_and_end_as_one_does(runs, name):
    """Kills: gradients averaged where they should be added, a mean of means, metrics of the first process only,
    the norm of a shard taken for the whole, a process without pairs that is not waited for."""
    expected = result(runs / "one")
    assert expected[0][0]["rewards/margins"] == 0 and min(line["pairs"] for line in expected[0]) < 6
    assert max(line.get("grad_norm", 0) for line in expected[0]) > 0.05  # so that clipping shortens
    assert close(runs / f"{name}-whole", expected)
    assert close(runs / f"{name}-sft", result(runs / "one-sft"))
    assert close(runs / f"{name}-llama", result(runs / "one-llama"))


def test_two_processes_have_the_trajectory_that_is_recorded(runs):
    recorded = json.loads(GOLDEN.read_text(encoding="utf-8"))["sigmoid"]
    assert [line["loss"] for line in metrics(runs / "golden")] == pytest.approx(recorded, **TOLERANCE["float64"])


@pytest.mark.parametrize("name", ["ddp", "fsdp", "live"])
def test_two_processes_train_the_adapter_that_one_trains(runs, name):
    """DDP and FSDP, the reference stored or live. Kills: an adapter's shard saved for the whole, a forward of FSDP that
    some processes leave out, base weights that are gathered and never merged."""
    one, two = runs / "lora-one", runs / f"lora-{name}"
    for line, other in zip(metrics(two), metrics(one), strict=True):
        assert line.pop("split") == other.pop("split")
        assert line == pytest.approx(other, rel=0, abs=1e-9)
    for file in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        found, expected = read_safetensors(two / file), read_safetensors(one / file)
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["ddp-from-one", "fsdp-from-one", "ddp-from-fsdp", "fsdp-from-ddp"])
def test_two_processes_go_on_where_others_stopped(runs, name):
    """Kills: a checkpoint of one process's shard, sums of metrics that are lost or counted twice on the way."""
    assert close(runs / name, result(runs / "one"))


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_one_process_goes_on_where_two_stopped(runs, name):
    """A Ctrl-C that reached one process stopped both after the same step, with a checkpoint written by both."""
    directory = runs / f"{name}-part"
    steps = sorted(path.name for path in (directory / "checkpoint").iterdir())
    assert steps == [f"step-{step:08d}" for step in (STOP_AT - 1, STOP_AT)]
    fit(directory, resume=True)
    assert close(directory, result(runs / "one"))


def test_one_process_goes_on_where_it_stopped_and_a_torn_checkpoint_is_no_checkpoint(runs):
    directory = runs / "one-part"
    torn = directory / "checkpoint" / f"step-{STOP_AT + 1:08d}.partial"
    shutil.copytree(directory / "checkpoint" / f"step-{STOP_AT:08d}", torn)
    (torn / "state.json").unlink()
    fit(directory, resume=True)
    whole, part = result(runs / "one"), result(directory)
    assert part[0] == whole[0]
    assert all(torch.equal(part[1][name], tensor) for name, tensor in whole[1].items())


# --- the command ------------------------------------------------------------------------------------------------

STEPS_OF_IT = "--max-steps 4 --batch-size 14 --log-every 2 --eval-every 2"


def test_the_command_under_torchrun_writes_and_prints_once_and_one_process_can_go_on(tmp_path, prefs):
    """The first fit included; with --shard, which is no part of what --resume compares."""
    flags = ["--data", prefs, *training.TINY, *STEPS_OF_IT.split()]
    shown = torchrun("train.py", *flags, "--out", tmp_path / "two", "--shard")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("done:") == shown.stdout.count("pairs to train on") == 1
    assert "2 processes on cpu" in shown.stdout
    assert training.fit(*flags, "--out", tmp_path / "one") == 0
    two, one = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert two[0]["rewards/margins"] == 0 and two[0]["loss"] == pytest.approx(0.6931472, abs=1e-7)
    for line, other in zip(two, one, strict=True):
        del line["split"]
        assert line == pytest.approx({name: other[name] for name in line}, rel=1e-3, abs=1e-4)
    for name in ("model", "best", "reference"):
        assert load_tokenizer(tmp_path / "two" / name).vocab_size == 257
        before = weights(tmp_path / "two" / name)
        for key, tensor in weights(tmp_path / "one" / name).items():
            torch.testing.assert_close(before[key], tensor, rtol=0, atol=1e-3)
    before = weights(tmp_path / "two" / "model")
    assert training.fit(*flags, "--out", tmp_path / "two", "--resume") == 0
    assert equal(before, weights(tmp_path / "two" / "model"))


def test_trouble_in_one_process_ends_all_with_one_message(tmp_path, prefs):
    """The loss is nan on the rows that one process holds; the other waits for it, and fails in turn, silently."""
    tokenizer = load_tokenizer("bytes")
    model = GPT(GPTConfig(tokenizer.vocab_size, 48, 1, 2, 16))
    with torch.no_grad():
        model.wpe.weight[10:] = torch.nan
    session.save_model_directory(model, tokenizer, tmp_path / "nan")
    write(tmp_path / "two.jsonl", [rows(7)[6], rows(1)[0]])  # one for each process: 14 tokens and more, and 7
    flags = ["--init", tmp_path / "nan", "--eval-fraction", "0", "--max-length", "48"]
    shown = torchrun("train.py", "--data", tmp_path / "two.jsonl", *flags, "--out", tmp_path / "run")
    assert shown.returncode != 0
    assert [line for line in shown.stderr.splitlines() if "error: " in line] == [
        f"train.py: error: step 1: the loss is nan on {tmp_path / 'two.jsonl'}:1; "
        "begin again with a lower --learning-rate and another --out"
    ]
    assert shown.stderr.count("Traceback") == 1  # torchrun's own
    assert not (tmp_path / "run" / "checkpoint").exists()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_micro_batches_of_one_process_are_the_pairs_in_order(size):
    cut = list(distributed.micro_batches(PAIRS, size))
    assert [pair for micro, *_ in cut for pair in micro] == PAIRS
    assert {weight for _, weight, _ in cut} == {1} and max(len(micro) for micro, *_ in cut) == size
    assert [last for *_, last in cut] == [False] * (len(cut) - 1) + [True]


if __name__ == "__main__":
    in_two_processes(Path(sys.argv[1]))
