"""The theorem of objective.py as experiments: DPO on Bradley–Terry preferences ends in π_r.

A language so small that every completion can be listed, a real GPT as its reference, an arbitrary reward: the optimum
π_r is known exactly, and so is KL(π‖π_r), here called the distance from it, of whatever DPO finds. proof.py runs all of
it and writes the page.
"""

import copy
import math
from dataclasses import dataclass

import torch

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.exact import enumerate_completions, exact_log_policy
from dpo_min.judge.statistics import Z_95
from dpo_min.margin_losses import MARGIN_LOSSES
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.objective import kl_divergence, optimal_policy
from dpo_min.preference import bradley_terry, margin
from dpo_min.run.optimizer import schedule

PROMPT = [0]
BOTTOMLESS = -1e6  # a mean loss below this has no minimum: the losses that have one are least above −1
FLIPS = 0.1  # the rate ε at which labels are flipped, and the ε that the losses are told


@dataclass(frozen=True)
class World:
    """A language, a reference model, a reward and β: all that the optimum depends on. Y completions."""

    reference: GPT
    completions: list
    log_ref: torch.Tensor  # (Y,)
    reward: torch.Tensor  # (Y,)
    beta: float

    @property
    def optimum(self):
        """Log π_r, (Y,)."""
        return optimal_policy(self.log_ref, self.reward, self.beta)


def make_world(vocab_size, max_new_tokens, beta=0.5, seed=0):
    """A GPT in float64 with random weights, the last token being end-of-text; rewards are standard normal."""
    generator = torch.Generator().manual_seed(seed)
    reference = GPT(GPTConfig(vocab_size, len(PROMPT) + max_new_tokens, 2, 2, 32), generator).double()
    with torch.no_grad():
        for parameter in reference.parameters():  # GPT-2's initial weights alone are close to uniform
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    reference.requires_grad_(False)
    completions = enumerate_completions(vocab_size, vocab_size - 1, max_new_tokens)
    log_ref = exact_log_policy(reference, PROMPT, vocab_size - 1, max_new_tokens)
    reward = torch.randn(len(completions), generator=generator, dtype=torch.float64)
    return World(reference, completions, log_ref, reward, beta)


def all_preferences(world, flips=0.0):
    """Infinite data: entry (i, j) is the chance that a pair drawn from π_ref shows y_i chosen over y_j. (Y, Y)

    Bradley and Terry's judge decides, then the label is flipped at the rate `flips`.
    """
    drawn = (world.log_ref[:, None] + world.log_ref).exp().fill_diagonal_(0)  # two different ones, in either order
    wins = bradley_terry(world.reward[:, None], world.reward)
    return 2 * drawn / drawn.sum() * ((1 - flips) * wins + flips * (1 - wins))


def mean_loss(log_policy, world, weights, name="sigmoid", label_smoothing=None):
    """Σ_ij weights_ij ℓ(h_ij), a scalar, of log_policy (Y,): the loss in expectation over `weights` (Y, Y)."""
    i, j = (index.flatten() for index in torch.meshgrid(*[torch.arange(len(log_policy))] * 2, indexing="ij"))
    log_ref = world.log_ref.to(log_policy.dtype)
    h = margin(log_policy[i], log_policy[j], log_ref[i], log_ref[j])  # (Y²,)
    return (weights.flatten() * MARGIN_LOSSES[name].value(h, world.beta, label_smoothing)).sum()


def policy_of(world, u):
    """Log π (Y,) = log π_ref + u/√π_ref + const: of u (Y,), a loss is curved about equally in every direction."""
    return (world.log_ref + u * (-world.log_ref / 2).exp()).log_softmax(-1)


class Bottomless(Exception):
    """A loss that has passed below every minimum that there could be."""


def fit_u(world, objective, start=None, max_iter=1000):
    """(log π (Y,), lowest loss seen, u), the policy being free at every completion: where L-BFGS ends.

    That is the minimum if the loss, a function of log π (Y,), is smooth and convex and has one; log π is nan where the
    loss falls without end. It begins at `start`, by default u = 0, the reference.
    """
    u = (torch.zeros_like(world.log_ref) if start is None else start.clone()).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [u], max_iter=max_iter, tolerance_grad=1e-12, tolerance_change=0, history_size=50, line_search_fn="strong_wolfe"
    )
    lowest = math.inf

    def closure():
        nonlocal lowest
        optimizer.zero_grad()
        loss = objective(policy_of(world, u))
        loss.backward()
        lowest = min(lowest, loss.item())  # nan is never the smaller
        if lowest < BOTTOMLESS:
            raise Bottomless
        return loss

    try:
        optimizer.step(closure)
    except Bottomless:
        return torch.full_like(world.log_ref, math.nan), lowest, u.detach()
    return policy_of(world, u).detach(), lowest, u.detach()


def fit_table(world, weights, name="sigmoid", label_smoothing=None, max_iter=1000):
    """(log π (Y,), lowest loss seen): where a loss of the margin ends, from the reference; as `fit_u`."""
    return fit_u(
        world, lambda log_policy: mean_loss(log_policy, world, weights, name, label_smoothing), max_iter=max_iter
    )[:2]


def fit_gpt(world, weights, steps=800, learning_rate=1e-2):
    """A copy of the reference, trained by the path of train.py: batch → log-probs → margin → loss → AdamW.

    Returns the exact log π (Y,) in float64 and the KL to π_r at every step. float32 as in training.
    """
    reference = copy.deepcopy(world.reference).float()
    policy = copy.deepcopy(reference).requires_grad_(True)
    batch = pack([TokenizedPair(PROMPT, list(y), list(y)) for y in world.completions], chosen_only=True)
    world = World(reference, world.completions, batch_logps(reference, batch), world.reward, world.beta)
    weights, optimum = weights.float(), world.optimum
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0)
    distances = []
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule("cosine", step, steps, 50)
        log_policy = batch_logps(policy, batch)  # (Y,)
        distances.append(kl_divergence(log_policy.detach().double(), optimum).item())
        optimizer.zero_grad()
        mean_loss(log_policy, world, weights).backward()
        optimizer.step()
    with torch.no_grad():
        return batch_logps(policy.double(), batch), distances


def sample(weights, n, generator):
    """The shares of n preferences drawn from `weights` (Y, Y): a finite data set in the infinite one's place. (Y, Y)

    A multinomial draw, cell by cell: each takes a binomial share of what the cells before it left.
    """
    left, rest, counts = torch.tensor(float(n), dtype=torch.float64), 1.0, []
    for weight in weights.flatten().tolist():
        share = torch.tensor(min(1.0, weight / rest) if rest > 0 else 1.0, dtype=torch.float64)
        counts.append(torch.binomial(left, share, generator=generator))
        left, rest = left - counts[-1], rest - weight
    return torch.stack(counts).view_as(weights) / n


def asymptotic_spread(world, weights):
    """∇²KL (∇²L)⁺ at the optimum, (Y, Y), as M: after many pairs, N, N · KL(π‖π_r) has mean ½ tr M, variance ½ tr M².

    Both second derivatives are by log π, (Y, Y); ⁺ is the pseudo-inverse, as adding a constant to every log π changes
    neither. The estimate scatters about π_r with covariance (∇²L)⁺/N, L being a mean −log-likelihood (Fisher 1922).
    """
    loss = torch.autograd.functional.hessian(lambda z: mean_loss(z, world, weights), world.optimum)  # (Y, Y)
    kl = torch.autograd.functional.hessian(lambda z: kl_divergence(z.log_softmax(-1), world.optimum), world.optimum)
    return kl @ torch.linalg.pinv(loss, hermitian=True)


def asymptotic_kl(world, weights):
    """N times the expected KL(π‖π_r) after N pairs, for large N."""
    return asymptotic_spread(world, weights).trace().item() / 2


def fit_samples(world, weights, sizes, repeats, seed=0):
    """KL(π‖π_r) of the best table on N sampled pairs, (sizes, repeats)."""
    generator = torch.Generator().manual_seed(seed)

    def distance(n):
        log_policy, _ = fit_table(world, sample(weights, n, generator), max_iter=200)
        return kl_divergence(log_policy, world.optimum)

    return torch.stack([torch.stack([distance(n) for _ in range(repeats)]) for n in sizes])


def fit_slope(sizes, distances):
    """(slope, half of its 95 % interval) of log KL (sizes, repeats) against log N, by least squares over every fit."""
    x = torch.tensor(sizes, dtype=torch.float64).log()[:, None].expand_as(distances).flatten()
    y = distances.log().flatten()
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y / (x @ x)).item()
    residual = y - slope * x
    return slope, Z_95 * ((residual @ residual) / (len(x) - 2) / (x @ x)).sqrt().item()


def fit_losses(world):
    """{(name, flips): (log π (Y,), lowest loss)} for each loss, with clean labels and with flipped ones."""
    return {
        (name, flips): fit_table(world, all_preferences(world, flips), name, FLIPS if loss.smoothing else None)
        for flips in (0.0, FLIPS)
        for name, loss in MARGIN_LOSSES.items()
    }


def ipo_optimum(world):
    """Log π (Y,) of IPO's optimum (arXiv:2310.12036): its reward is the chance to beat a draw from π_ref."""
    wins = bradley_terry(world.reward[:, None], world.reward)
    return optimal_policy(world.log_ref, wins @ world.log_ref.exp(), world.beta)


def fit_pair(world, chosen, rejected, steps=30, learning_rate=0.05, beta=0.1):
    """Plain gradient descent on one pair of completions (two indices): exact log π (steps + 1, Y) at every step."""
    policy = copy.deepcopy(world.reference).requires_grad_(True)
    batch = pack([TokenizedPair(PROMPT, list(world.completions[chosen]), list(world.completions[rejected]))])
    reference_logps = batch_logps(world.reference, batch).chunk(2)
    optimizer = torch.optim.SGD(policy.parameters(), lr=learning_rate)
    vocab_size, length = policy.config.vocab_size, policy.config.block_size - len(PROMPT)
    history = []
    for _ in range(steps + 1):
        with torch.no_grad():
            history.append(exact_log_policy(policy, PROMPT, vocab_size - 1, length))
        h = margin(*batch_logps(policy, batch).chunk(2), *reference_logps)
        optimizer.zero_grad()
        MARGIN_LOSSES["sigmoid"].value(h, beta).sum().backward()
        optimizer.step()
    return torch.stack(history)


def displaced(world, history, chosen, rejected):
    """Whether both sides have become less likely than under the reference, although the margin grew."""
    change = history[-1] - world.log_ref
    return bool(change[chosen] < 0 and change[rejected] < change[chosen])


def displacements(world):
    """{(chosen, rejected): history} of `fit_pair`, for every ordered pair after which both sides are less likely."""
    count = len(world.completions)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    histories = {pair: fit_pair(world, *pair) for pair in pairs}
    return {pair: history for pair, history in histories.items() if displaced(world, history, *pair)}
