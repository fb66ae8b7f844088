"""The loss of a run on pairs: the rows that --loss-type names, their parameters, and the facts that they need."""

import torch

from dpo_min.losses import Mixture, wpo_weights
from dpo_min.run import distributed
from dpo_min.run.log import Totals


class Criterion:
    """`Mixture` as the flags ask for it. `reference` and `reduce` say which log-probabilities it is to be given.

    BCO's shift is the mean reward of all answers that were trained on before this step, 0 at first: a number that is
    known before the step begins, so that its micro-batches may be any.
    """

    loss = None  # where a subclass has one, it is the whole of it

    def __init__(self, flags):
        self.flags, self.mixture = flags, None if self.loss else Mixture(flags.losses)
        self.needs = self.mixture.arguments if self.mixture else {}
        self.reference, self.reduce = flags.has_reference, (self.mixture and self.mixture.reduce) or flags.reduce
        if isinstance(self.reduce, float) and flags.loss_tail is not None:
            self.reduce = flags.loss_tail
        self.seen, self.step = {"rewards": 0.0, "pairs": 0}, Totals()

    def know(self, rows):
        """Look at all rows that are to be trained on: for pairs there is nothing to learn from them together."""

    def prepare(self, stage, rows):
        """Find what the rows of a step decide together, before its first micro-batch: of pairs, nothing."""

    @property
    def shift(self):
        """The mean reward of an answer so far."""
        return self.seen["rewards"] / (2 * self.seen["pairs"] or 1)

    def value(self, a, b, policy_logps, pairs, batch, logps):
        """The loss of each pair, (B,): a, b and the two of policy_logps are (B,); `logps` is the policy's `Logps`.

        That of a tie is the mean of both ways, [ℓ(a, b) + ℓ(b, a)] / 2.
        """
        lengths, offset = batch.lengths.to(a).chunk(2), torch.tensor([pair.offset for pair in pairs]).to(a)
        ties = torch.tensor([pair.tie for pair in pairs])
        losses = self.one_way(a, b, policy_logps, lengths, offset)
        if ties.any():
            other = self.one_way(b, a, policy_logps[::-1], lengths[::-1], offset)
            losses = torch.where(ties.to(a.device), (losses + other) / 2, losses)
        if self.flags.wpo:
            with torch.no_grad():
                weights = wpo_weights(*logps(batch, "aligned").chunk(2))
            losses = losses * weights
        return losses

    def one_way(self, a, b, policy_logps, lengths, offset):
        """The loss of each pair, (B,), if its first side is the chosen one."""
        sums = policy_logps[0] * (lengths[0] if self.reduce == "mean" else 1)
        facts = {"policy_chosen_logps": sums, "chosen_lengths": lengths[0], "rejected_lengths": lengths[1]}
        facts |= {"shift": self.shift} | ({"offset": offset} if "offset" in self.needs else {})
        return self.mixture.value(a, b, self.flags.beta, **self.flags.loss_options, **facts)

    def see(self, metrics):
        """Take in the rewards of pairs that are trained on; those of held-out ones move no shift."""
        if "shift" in self.needs and torch.is_grad_enabled():
            rewards = metrics["rewards/chosen"] + metrics["rewards/rejected"]
            self.step.add({"pairs": torch.ones_like(rewards)}, rewards.sum())

    def settle(self):
        """The step is over: the next one has another shift, the same in every process."""
        if "shift" in self.needs:
            sums = distributed.sums(self.step.settle())
            self.seen = {"rewards": self.seen["rewards"] + sums["loss"], "pairs": self.seen["pairs"] + sums["pairs"]}
            self.step.clear()
