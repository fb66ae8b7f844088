"""What DPO optimises: as much reward as possible, without drifting. On a finite set every step can be run.

A model answers one prompt x with y, one of finitely many completions; π(y) is the probability of y (x is
left out below: all of it holds for each prompt alone). A reward r(y) says how good y is. The reference π_ref is
the model that we start from. The distance that a policy π has drifted from it is measured in nats by

    KL(π ‖ π_ref) = Σ_y π(y) log(π(y)/π_ref(y)),     which is ≥ 0, and 0 only where π = π_ref

(log t ≤ t − 1, equal only at t = 1; with t = π_ref/π that is −KL = Σ_y π log t ≤ Σ_y (π_ref − π) ≤ 0, over π > 0). Its
price is β > 0 per nat: low β follows the reward, high β stays near the reference.

    maximise   J(π) = E_{y∼π}[r(y)] − β KL(π ‖ π_ref) = Σ_y π(y) [r(y) − β log(π(y)/π_ref(y))]     (Eq. 3)

Three moves solve it; none of them changes which π is best.

1. Negate. The π that makes J largest makes −J smallest:       −J(π) = Σ_y π(y) [β log(π(y)/π_ref(y)) − r(y)]
2. Scale by 1/β > 0. Then r/β = log e^{r/β} moves under the log: −J(π)/β = Σ_y π(y) log(π(y)/(π_ref(y) e^{r(y)/β}))
   That is nearly a KL, but the weights π_ref e^{r/β} do not sum to 1. They sum to the partition function
   Z = Σ_y π_ref(y) e^{r(y)/β}, as weights 7, 2, 1 sum to 10 and become 0.7, 0.2, 0.1: π_r = π_ref e^{r/β} / Z (Eq. 4).
3. Subtract a constant. With π_ref e^{r/β} = Z π_r,             −J(π)/β = KL(π ‖ π_r) − log Z
   and −log Z is the same for every π: without it, what is left to minimise is KL(π ‖ π_r).

A KL is least, namely 0, where its two sides are equal. So the optimum is π = π_r, and nothing had to be searched:

    J(π) = β log Z − β KL(π ‖ π_r),     max J = J(π_r) = β log Z

Z has one term per completion, far too many to add up for a real model. But take the logarithm of Eq. 4 and solve for r:

    r(y) = β log(π_r(y)/π_ref(y)) + β log Z     (Eq. 5)

The optimum says which reward it is the optimum of, up to a constant of the prompt. And every policy π is an optimum:
for r = β log(π/π_ref), Z = Σ_y π(y) = 1 and so π_r = π. Preferences compare two answers to one prompt, and the constant
cancels: preference.py goes on there.

Equations are those of DPO, arXiv:2305.18290 (the derivation is its Appendix A.1). Tensors hold natural logarithms
of probabilities; the last axis is the completions Y, the axes before it are prompts and broadcast.
"""

from math import inf

import torch


# E_{y∼p}[f(y)] = Σ_y p(y) f(y)
def expectation(log_p, f):
    """Mean of f under p, with 0 · ±∞ = 0: an impossible completion does not count. (..., Y) twice → (...).

    Errors as for `kl_divergence`.
    """
    check_completions("expectation", log_p=log_p, f=f)
    p = log_p.exp()  # (..., Y)
    p = p.clamp(min=torch.finfo(p.dtype).tiny)  # e^−1000 is rounded to 0, and 0 · ∞ is NaN: it is to be ∞
    return torch.where(log_p == -inf, 0.0, p * f).sum(dim=-1)


# KL(p ‖ q) = E_p[log p − log q]
def kl_divergence(log_p, log_q):
    """How far p is from q: (..., Y) twice → (...) nats, ≥ 0 up to rounding; ∞ where p is possible and q is not.

    Raises:
        ValueError: the last axes differ or are empty, or the axes before them do not broadcast.
    """
    check_completions("kl_divergence", log_p=log_p, log_q=log_q)
    return expectation(log_p, log_p - log_q)


# Eq. 3:  J(π) = E_{y∼π}[r(y)] − β KL(π ‖ π_ref)
def objective(log_policy, log_ref, reward, beta):
    """J(π), what is maximised: three times (..., Y) → (...), in units of reward. Errors as for `log_partition`."""
    check_beta(beta)
    check_completions("objective", log_policy=log_policy, log_ref=log_ref, reward=reward)
    return expectation(log_policy, reward) - beta * kl_divergence(log_policy, log_ref)


# Below Eq. 4:  log Z = log Σ_y π_ref(y) e^{r(y)/β}, physics' Σ e^{−E/T} with E = −r, T = β and π_ref as weights
def log_partition(log_ref, reward, beta):
    """Log Z in nats; reward is (..., Y) and finite, β is a number in units of reward per nat. → (...).

    Raises:
        ValueError: β is not positive and finite; shapes as for `kl_divergence`.
    """
    check_beta(beta)
    check_completions("log_partition", log_ref=log_ref, reward=reward)
    return (log_ref + reward / beta).logsumexp(dim=-1)


# Eq. 4:  π_r(y) = π_ref(y) e^{r(y)/β} / Z
def optimal_policy(log_ref, reward, beta):
    """Log π_r (..., Y), the maximiser of J; arguments and errors as for `log_partition`."""
    check_beta(beta)
    check_completions("optimal_policy", log_ref=log_ref, reward=reward)
    return (log_ref + reward / beta).log_softmax(dim=-1)  # z − logsumexp(z): the latter is log Z


# Eq. 5:  r(y) = β log(π(y)/π_ref(y)) + β log Z, here without the constant β log Z
def implicit_reward(log_policy, log_ref, beta):
    """The reward (..., Y), in units of reward, that `log_policy` is optimal for, up to one constant per prompt.

    A completion that both call impossible has reward 0: nothing is known of it; if only one of them does, ±∞.
    Errors as for `log_partition`.
    """
    check_beta(beta)
    check_completions("implicit_reward", log_policy=log_policy, log_ref=log_ref)
    impossible = (log_policy == -inf) & (log_ref == -inf)
    return torch.where(impossible, 0.0, beta * (log_policy - log_ref))


def check_beta(beta):
    """Raise ValueError unless β is a positive finite number."""
    if not 0 < beta < inf:
        raise ValueError(f"beta must be a positive number, got {beta}")


def check_completions(function, **tensors):
    """Raise ValueError unless the last axes are one set of completions and the axes before them broadcast."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    sizes = {shape[-1] if shape else 0 for shape in shapes.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"{function}: the last axis must be the same completions throughout, got {shapes}")
    try:
        torch.broadcast_shapes(*shapes.values())
    except RuntimeError as error:
        raise ValueError(f"{function}: the axes before the last must broadcast, got {shapes}") from error
