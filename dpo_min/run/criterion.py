"""The loss of a run: the rows that --loss-type names, their parameters, and what they have to know of a pair."""

import torch

from dpo_min.losses import Mixture
from dpo_min.run import distributed
from dpo_min.run.log import Totals


class Criterion:
    """`Mixture` as the flags ask for it. `reference` and `reduce` say which log-probabilities it is to be given.

    BCO's shift is the mean reward of all answers that were trained on before this step, 0 at first: a number that is
    known before the step begins, so that its micro-batches may be any.
    """

    def __init__(self, flags):
        self.mixture, self.beta, self.options = Mixture(flags.losses), flags.beta, flags.loss_options
        self.reference, self.reduce = self.mixture.reference, self.mixture.reduce or flags.reduce
        if isinstance(self.reduce, float) and flags.loss_tail is not None:
            self.reduce = flags.loss_tail
        self.seen, self.step = {"rewards": 0.0, "pairs": 0}, Totals()

    @property
    def shift(self):
        """The mean reward of an answer so far."""
        return self.seen["rewards"] / (2 * self.seen["pairs"] or 1)

    def value(self, a, b, policy_logps, pairs, batch):
        """The loss of each pair, (B,); a, b and both of policy_logps (B,)."""
        chosen_lengths, rejected_lengths = batch.lengths.to(a).chunk(2)
        tokens = chosen_lengths if self.reduce == "mean" else 1
        facts = {"policy_chosen_logps": policy_logps[0] * tokens, "shift": self.shift}
        facts |= {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
        if "offset" in self.mixture.arguments:
            facts["offset"] = torch.tensor([pair.offset for pair in pairs]).to(a)
        return self.mixture.value(a, b, self.beta, **self.options, **facts)

    def see(self, metrics):
        """Take in the rewards of pairs that are being trained on; what is evaluated moves no shift."""
        if "shift" in self.mixture.arguments and torch.is_grad_enabled():
            rewards = metrics["rewards/chosen"] + metrics["rewards/rejected"]
            self.step.add({"pairs": torch.ones_like(rewards)}, rewards.sum())

    def settle(self):
        """The step is over: the next one has another shift, the same in all processes."""
        if "shift" in self.mixture.arguments:
            for name, total in distributed.sums(self.step.settle()).items():
                self.seen["rewards" if name == "loss" else name] += total
            self.step.clear()
