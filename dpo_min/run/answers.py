"""The losses of a run that compare no pairs: supervised fine-tuning, ranked lists, single thumbs."""

import sys

import torch

from dpo_min.data.batch import pack
from dpo_min.data.judgements import TokenizedAnswers
from dpo_min.losses import sft_loss
from dpo_min.metrics import wins
from dpo_min.model import lora
from dpo_min.objective import implicit_reward
from dpo_min.ratio_losses import kto, kto_shift, plackett_luce
from dpo_min.run import distributed
from dpo_min.run.criterion import Criterion


def criterion_of(flags):
    """The loss that the flags name."""
    kinds = {"lists": Lists, "thumbs": Thumbs}
    return (Imitation if flags.loss_type == "sft" else kinds.get(flags.rows, Criterion))(flags)


class Imitation(Criterion):
    """Supervised fine-tuning on the first answer of every row; its denominator counts tokens."""

    def loss(self, stage, rows, batch, denominator):
        """The share of these rows in the loss of a step, a scalar, and their metrics: name → (B,)."""
        logps = stage.score(batch)  # (B,)
        return sft_loss(logps, denominator), {"logps/chosen": logps.detach()}


class Lists(Criterion):
    """Plackett–Luce on ranked lists; the reference is asked as the run goes on."""

    def loss(self, stage, rows, batch, denominator):
        """As `Imitation.loss`. The best answer is the chosen side, the mean of the others the rejected one."""
        policy, reference = log_probabilities(stage, batch)
        widths = torch.tensor([len(row.completions) for row in rows], device=policy.device)
        present = torch.arange(int(widths.max()), device=policy.device) < widths[:, None]  # (B, K)
        empty = policy.new_zeros(present.T.shape)  # (K, B), as the batch has all first answers before all second ones
        policy, reference = (empty.masked_scatter(present.T, x).T for x in (policy, reference))  # (B, K) best first
        loss = plackett_luce(policy - reference, self.flags.beta, present).sum() / denominator
        return loss, list_metrics(policy, reference, present, self.flags.beta)


class Thumbs(Criterion):
    """KTO on single thumbs. The rarer of the two weighs more, so that both weigh the same in all the data."""

    z, weights = 0.0, (1.0, 1.0)  # the shift; λ of a thumb down and of one up

    def before_run(self, rows):
        """Count the thumbs."""
        up = sum(row.label for row in rows)
        counts = len(rows) - up, up
        self.weights = tuple(max(counts) / (count or max(counts)) for count in counts)

    def before_step(self, stage, rows):
        """Estimate z from the step's prompts, each with the next one's answer; all processes get the same."""
        most = self.flags.max_length or sys.maxsize  # which a prompt and another's answer may exceed together
        mixed = [
            TokenizedAnswers(row.prompt_ids, [other.completions[0][: most - len(row.prompt_ids)]])
            for row, other in zip(rows, (*rows[1:], rows[0]), strict=True)
        ]
        ratios = []
        for micro, weight, _ in distributed.micro_batches(mixed, self.flags.micro_batch_size):
            with torch.no_grad(), stage.autocast:
                policy, reference = log_probabilities(stage, pack(micro).to(stage.device))
            ratios += (policy - reference).tolist() if weight else []
        sums = distributed.sums({"ratio": sum(ratios), "count": len(ratios)})
        self.z = kto_shift(torch.tensor([sums["ratio"] / sums["count"]]))

    def loss(self, stage, rows, batch, denominator):
        """As `Imitation.loss`. Thumbs up are the chosen side."""
        policy, reference = log_probabilities(stage, batch)
        label = torch.tensor([row.label for row in rows], device=policy.device)
        weights = torch.where(label, self.weights[1], self.weights[0]).to(policy)
        loss = kto(policy - reference, self.flags.beta, label, self.z, weights).sum() / denominator
        return loss, thumb_metrics(policy, reference, label, self.z, self.flags.beta)


def log_probabilities(stage, batch):
    """Log π and log π_ref of every answer of a batch, (N,) each."""
    policy = stage.score(batch, stage.criterion.reduce)
    with torch.no_grad(), lora.adapters_off(stage.reference):
        return policy, stage.score_ref(batch, stage.criterion.reduce)


def list_metrics(policy_logps, reference_logps, present, beta):
    """`preference_metrics` of ranked lists; the accuracy is over all pairs of a list's answers.

    Args: log-probabilities (B, K), best first; present (B, K) boolean, False on padding.
    """
    rewards = implicit_reward(policy_logps, reference_logps, beta)  # (B, K)
    others = present[:, 1:] / present[:, 1:].sum(dim=1, keepdim=True)  # (B, K−1) weights
    pairs = (present[:, :, None] & present[:, None]).triu(diagonal=1)  # (B, K, K)
    right = torch.where(pairs, wins(rewards[:, :, None], rewards[:, None]), 0.0)
    sides = {"rewards": rewards, "logps": policy_logps}
    metrics = {f"{name}/chosen": values[:, 0] for name, values in sides.items()}
    metrics |= {f"{name}/rejected": (values[:, 1:] * others).sum(dim=1) for name, values in sides.items()}
    metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    return metrics | {"rewards/accuracies": right.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2))}


def thumb_metrics(policy_logps, reference_logps, label, shift, beta):
    """Name → (B,) of thumbs; of a mean over one side alone, its count is under "name#".

    A thumb is right where its reward is on its side of βz.
    """
    rewards = implicit_reward(policy_logps, reference_logps, beta)
    up = label.to(rewards.dtype)
    metrics = {}
    for side, mine in (("chosen", up), ("rejected", 1 - up)):
        for name, values in (("rewards", rewards), ("logps", policy_logps)):
            metrics |= {f"{name}/{side}": values * mine, f"{name}/{side}#": mine}
    right = wins(rewards, torch.full_like(rewards, beta * shift))
    return metrics | {"rewards/accuracies": torch.where(label, right, 1 - right)}
