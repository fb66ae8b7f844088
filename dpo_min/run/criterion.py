"""The loss of a run on pairs: the rows that --loss-type names, their parameters, and the facts that they need."""

import torch

from dpo_min.losses import Mixture, wpo_weights
from dpo_min.run import distributed
from dpo_min.run.log import Totals


class Criterion:
    """`Mixture` as the flags ask for it. `reduce` says which log-probabilities it is to be given (`batch_logps`).

    BCO's shift is the mean reward of all answers that were trained on before this step, 0 at first: a number that is
    known before the step begins, so that its micro-batches may be any.
    """

    loss = None  # a subclass that compares no pairs has a method here, which `Stage.loss` calls in the place of `value`

    def __init__(self, flags):
        self.flags, self.needs, self.reduce = flags, {}, flags.reduce
        if not self.loss:
            self.mixture = Mixture(flags.losses)
            self.needs, self.reduce = self.mixture.arguments, self.mixture.reduce or flags.reduce
        if isinstance(self.reduce, float) and flags.loss_tail is not None:
            self.reduce = flags.loss_tail
        self.seen, self.now = {"rewards": 0.0, "pairs": 0}, Totals()  # sums for the shift: before this step, and in it

    def before_run(self, rows):
        """Look at all rows that are to be trained on: for pairs there is nothing to learn from them together."""

    def before_step(self, stage, rows):
        """Find what the rows of a step decide together, before its first micro-batch: of pairs, nothing."""

    @property
    def shift(self):
        """The mean reward of an answer so far."""
        return self.seen["rewards"] / (2 * self.seen["pairs"] or 1)  # 0 / 1 before the first step

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
        chosen = policy_logps[0] * (lengths[0] if self.reduce == "mean" else 1)  # log π(y_w) itself, a sum over tokens
        facts = {"policy_chosen_logps": chosen, "chosen_lengths": lengths[0], "rejected_lengths": lengths[1]}
        facts |= {"shift": self.shift, "offset": offset}  # `Mixture` leaves aside what none of its parts asks for
        return self.mixture.value(a, b, self.flags.beta, **self.flags.loss_options, **facts)

    def after_batch(self, metrics):
        """Take in the rewards of pairs that are trained on; those of held-out ones move no shift."""
        if "shift" in self.needs and torch.is_grad_enabled():
            rewards = metrics["rewards/chosen"] + metrics["rewards/rejected"]
            self.now.add({"rewards": rewards, "pairs": torch.ones_like(rewards)})

    def after_step(self):
        """The step is over: the next one has another shift, the same in every process."""
        if "shift" in self.needs:
            sums = distributed.sums(self.now.settle())
            self.seen = {name: total + sums[name] for name, total in self.seen.items()}
            self.now.clear()
