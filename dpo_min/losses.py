"""Every loss by its name, alone or in a weighted mix; and the loss of the supervised fit that DPO starts from."""

from dpo_min.margin_losses import MARGIN_LOSSES, Loss
from dpo_min.ratio_losses import RATIO_LOSSES, RatioLoss

LOSSES = MARGIN_LOSSES | RATIO_LOSSES

# −log π(y_w) / |y_w|: the mean over each pair's tokens (of `sft_loss`: over those of a step); below it its slopes
SFT = RatioLoss(
    lambda a, b, beta, policy_chosen_logps, chosen_lengths: -policy_chosen_logps / chosen_lengths,
    lambda a, b, beta, policy_chosen_logps, chosen_lengths: (-1 / chosen_lengths, 0 * b),
    "supervised fine-tuning",
    "a part of a mix: y_w is imitated, token by token, whatever y_l is",
)


class Mixture:
    """Σ weight · ℓ over rows of `LOSSES` and "sft", as one loss; its parts share a and b.

    Args: weights, name → weight, such as {"sigmoid": 1, "sft": 0.1}, which is `rpo` at α = 0.1.

    Raises:
        ValueError: no part compares two answers; the parts read different log-probabilities.
    """

    def __init__(self, weights):
        self.parts = [(SFT if name == "sft" else LOSSES[name], weight) for name, weight in weights.items()]
        self.arguments = {name: default for row, _ in self.parts for name, default in row.arguments.items()}
        reads = {(row.reference, row.reduce) for row, _ in self.parts if row is not SFT}
        if len(reads) != 1:
            raise ValueError(f"{', '.join(weights)}: the parts of a mix must read the same log-probabilities of a pair")
        self.reference, self.reduce = reads.pop()

    def value(self, a, b, beta, **more):
        """The weighted sum, (B,), for log-ratios a and b (B,); each part takes of `more` what it knows."""
        total = 0
        for row, weight in self.parts:
            mine = {name: more[name] for name in row.arguments.keys() & more}
            ratios = (a - b,) if isinstance(row, Loss) else (a, b)
            total = total + weight * row.value(*ratios, beta, **mine)
        return total


# w(y_w) · w(y_l) with w(y) = exp[(1/|y|) Σ_t log(π(y_t)/Σ_v π(v)²)], of which nothing is differentiated
def wpo_weights(chosen, rejected):
    """WPO's weights (arXiv:2406.11827, Section 3): how like the policy's own writing each pair is, (B,).

    Args: for each side, the mean over tokens of log π(y_t) − log Σ_v π(v)², (B,): about 0 for what the policy draws.
    """
    return (chosen + rejected).detach().exp()


def sft_loss(policy_chosen_logps, num_tokens):
    """Mean −log π(y_w|x) per token, in nats: supervised fine-tuning, which DPO starts from.

    policy_chosen_logps (B,) are sums over tokens; num_tokens > 0 counts the scored tokens of the whole
    optimiser step, of which these B rows may be a part: the parts, scalars, then add up to the whole.
    """
    return -policy_chosen_logps.sum() / num_tokens
