"""From rewards to preferences: the Bradley–Terry model, and why Z(x) never has to be computed.

Give each answer to a prompt x a strength p = e^r > 0, r being its reward. Bradley and Terry (1952) let it win
in proportion to its strength; dividing above and below by p_w turns that into the σ of a difference:

    P(y_w ≻ y_l | x) = p_w / (p_w + p_l) = 1 / (1 + e^{−(r_w − r_l)}) = σ(r_w − r_l)

Only the difference counts, so adding any f(x) to both rewards changes nothing. The reward for which a policy π
is optimal is r(x, y) = β log(π(y|x)/π_ref(y|x)) + β log Z(x) (objective.py), and β log Z(x) is such an f(x):
it cancels, and of r_w − r_l only β times the `margin` h below is left. So a policy says how likely a label is:

    P(y_w ≻ y_l | x) = σ(βh)     (DPO, arXiv:2305.18290, Eq. 6)

Training makes the labels that people gave as likely as possible: the loss of a pair is −log σ(βh) (Eq. 7).
"""

import torch
import torch.nn.functional as F


def bradley_terry(reward_chosen, reward_rejected):
    """P(y_w ≻ y_l) = σ(r_w − r_l), elementwise over broadcastable rewards in units of log-odds (DPO, Eq. 1)."""
    return torch.sigmoid(reward_chosen - reward_rejected)


def log_bradley_terry(reward_chosen, reward_rejected):
    """Log P(y_w ≻ y_l), finite where P itself underflows to zero; same shapes as `bradley_terry`."""
    return F.logsigmoid(reward_chosen - reward_rejected)


def log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """How much likelier each answer has become: a = log π(y_w) − log π_ref(y_w), and b, the same for y_l.

    Args: four tensors of log-probabilities in nats, each (B,). Returns (a, b), each (B,).

    Raises:
        ValueError: the four are not all of one shape (B,).
    """
    logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    shapes = [tuple(x.shape) for x in logps]
    if len(set(shapes)) != 1 or policy_chosen_logps.dim() != 1:
        raise ValueError(f"margin: the four log-probabilities must share one shape (B,); got {shapes}")
    return policy_chosen_logps - reference_chosen_logps, policy_rejected_logps - reference_rejected_logps


def margin(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    """The margin h = a − b (DPO, Eq. 7, inside σ, without β): (B,); arguments and errors as for `log_ratios`.

    Each side is compared with its reference first, so where the two policies are equal h is exactly zero, not rounded.
    """
    a, b = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    return a - b
