"""The gradient of the DPO loss in closed form: which way a pair pushes, and how hard.

The margin h = [log π(y_w) − log π_ref(y_w)] − [log π(y_l) − log π_ref(y_l)] rises by 1 with log π(y_w) and
falls by 1 with log π(y_l). So every loss ℓ(h) pushes the two log-probabilities equally, in opposite directions:

    ∂ℓ/∂log π(y_w) = ℓ′(h) = −∂ℓ/∂log π(y_l)

For ℓ(h) = −log σ(βh) (DPO, arXiv:2305.18290, Eq. 7) the slope is −β σ(−βh), because (log σ)′(x) = σ(−x). The
chain rule takes it to the parameters θ (the paper's Section 4, "What does the DPO update do?", and Appendix A.4):

    ∇_θ ℓ = −β · σ(−βh) · [∇_θ log π(y_w) − ∇_θ log π(y_l)]

A step downhill pushes log π(y_w) up and log π(y_l) down, harder where the pair is still wrong. At step 0, h = 0: the
loss is log 2 for every pair, and yet the slope is −β/2, not 0. Only the difference of the two
log-probabilities is pushed; parameters are shared, so both may fall while h grows.
"""

import torch

from dpo_min.objective import check_beta


# σ(−βh) = 1 − σ(βh) = 1 − P(y_w ≻ y_l) under the implicit reward r(y) = β log(π(y)/π_ref(y))
def gradient_weight(h, beta):
    """How wrong the implicit reward is about the pair: the chance it gives to the rejected answer's winning.

    h is (B,) in nats, β a number. → (B,): near 1 where it ranks the pair the wrong way round, ½ where it is
    undecided, near 0 where it is right and there is nothing left to learn.

    Raises:
        ValueError: β is not positive and finite.
    """
    check_beta(beta)
    return torch.sigmoid(-beta * h)


# ∂ℓ/∂log π(y_w) = −β σ(−βh),   ∂ℓ/∂log π(y_l) = +β σ(−βh)
def dpo_gradient(h, beta):
    """(d_chosen, d_rejected), each (B,): the sigmoid loss's derivatives, pair by pair, by log π(y_w) and log π(y_l).

    The derivatives of the mean over B pairs are 1/B of these. Arguments and errors as for `gradient_weight`.
    """
    slope = -beta * gradient_weight(h, beta)  # (B,)
    return slope, -slope
