"""Ten steps of a fixed run whose losses are in the tree: `make golden` remakes them, after a change that is meant.

However the same run is computed (micro-batches of any size, the prompt shared or not, the reference cached or live; in
two processes: run/test_distributed.py), it is the same trajectory: to 1e-12 in float64. In float32 the last bits are
the processor's, so that nothing is recorded of it: it follows the float64 record. A unit in the last place is 2⁻²⁴ =
6e-8 of a number; a pair's log-probabilities are sums of some 30 nats, of which a loss keeps the difference, and ten
steps carry the error on. On the processors that were tried it stays below 1e-6 of the loss, and 1e-5 are allowed.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a program, it is run from anywhere

import train
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.logprob import sequence_logprobs
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.run.loss_flags import LOSS_NAMES
from dpo_min.run.train_flags import TrainFlags
from tests.training import metrics

GOLDEN = Path(__file__).with_name("golden") / "losses.json"
STEPS, SIZES = 10, GPTConfig(vocab_size=11, block_size=16, n_layer=2, n_head=2, n_embd=8)
TOLERANCE = {"float32": {"rel": 1e-5, "abs": 1e-6}, "float64": {"rel": 1e-12, "abs": 1e-12}}
LOSSES = ["sft", *LOSS_NAMES]
pytestmark = pytest.mark.usefixtures("quickly")


def draw_pairs(n, seed):
    """n pairs of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(most):
        length = torch.randint(1, most + 1, (), generator=generator)
        return torch.randint(0, 11, (length,), generator=generator).tolist()

    return [TokenizedPair(ids(5), ids(9), ids(9), offset=i / n) for i in range(n)]


PAIRS, HELD_OUT = draw_pairs(25, 0), draw_pairs(7, 1)  # five steps an epoch, the last of one pair


class Padded(train.Stage):
    """A stage that spells its log-probabilities out: each answer a row of its own, the prompt in both."""

    def loss(self, pairs, batch, denominator):
        self.logps = lambda batch, reduce="sum": self.spelt_out(pairs, reduce)
        return super().loss(pairs, batch, denominator)

    def spelt_out(self, pairs, reduce="sum"):
        sides = [[pair.chosen_ids for pair in pairs], [pair.rejected_ids for pair in pairs]][: 2 - self.sft]
        rows = [(pair.prompt_ids, ids) for side in sides for pair, ids in zip(pairs, side, strict=True)]
        tokens = torch.zeros(len(rows), max(len(x) + len(y) for x, y in rows), dtype=torch.long)
        scored = torch.zeros_like(tokens, dtype=torch.bool)
        for i, (x, y) in enumerate(rows):
            tokens[i, : len(x) + len(y)] = torch.tensor([*x, *y])
            scored[i, len(x) : len(x) + len(y)] = True
        return sequence_logprobs(self.policy.logits(self.policy(tokens)), tokens, scored, reduce)


def trajectory(directory, dtype="float64", kind=train.Stage, cached=True, **settings):
    """The losses of the run: of every step, and of the held-out pairs before, between and after."""
    config = TrainFlags(
        data=[], batch_size=6, max_steps=STEPS, learning_rate=0.01, warmup_steps=2, weight_decay=0.1, max_grad_norm=0.5,
        log_every=1, eval_every=4, **({"loss_type": "sigmoid", "micro_batch_size": 2} | settings),
    )  # fmt: skip
    policy, reference = (
        GPT(SIZES, torch.Generator().manual_seed(seed)).to(getattr(torch, dtype)) for seed in (0, 1)
    )  # a reference of its own, so that the first loss is not log 2
    stage = kind(config, policy, reference if config.has_reference else None, Path(directory))
    if cached and stage.reference:
        stage.store_reference(PAIRS, HELD_OUT, Path(directory) / "cache", "f00")
    stage.fit(PAIRS, HELD_OUT, "golden")
    return [line["loss"] for line in metrics(Path(directory))]


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_ten_steps_have_the_losses_they_always_had(tmp_path, golden, dtype, loss_type):
    """Kills: any change of model, loss, order, schedule, optimizer or decay, however small."""
    recorded = golden[loss_type]
    assert len(recorded) == STEPS + 4 and recorded[0] != recorded[-1]
    assert trajectory(tmp_path, dtype, loss_type=loss_type) == pytest.approx(recorded, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "variant",
    [{"micro_batch_size": 1}, {"micro_batch_size": 4}, {"micro_batch_size": 6}, {"checkpoint_activations": True},
     {"cached": False}, {"kind": Padded, "cached": True}],
    ids=["one by one", "four", "whole", "recomputed", "live reference", "prompt not shared"],
)  # fmt: skip
def test_however_it_is_computed_it_is_the_same_trajectory(tmp_path, golden, variant, dtype):
    """Kills: a mean of means; a shared prompt that leaks; a cache that is not what the reference says."""
    assert trajectory(tmp_path, dtype, **variant) == pytest.approx(golden["sigmoid"], **TOLERANCE[dtype])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        found = {loss: trajectory(Path(name) / loss, loss_type=loss) for loss in LOSSES}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written: {GOLDEN}")
