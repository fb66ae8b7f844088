"""Where each loss ends, exactly: every row of both tables on a language whose answers can all be listed.

The policy is a free number for each answer, as in theorem.py, the data are all pairs at once, or N of them. What a loss
ends in is compared with optima that are known in closed form: of the reward, of other rewards, under other divergences.
"""

import copy
import functools
import math

import torch

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.exact import exact_log_policy
from dpo_min.losses import LOSSES, Mixture
from dpo_min.objective import expectation, kl_divergence, optimal_policy
from dpo_min.preference import bradley_terry
from experiments.theorem import FLIPS, PROMPT, fit_u, policy_of

SAME = 1e-8  # nats: a KL that is none
FLAT, FAR = 1e-7, 5.0  # the change of a loss that has no more to say of an answer, made e⁻⁵ times as likely
KINKED = "hinge", "slic", "dpop"  # where L-BFGS gets stuck, and many small steps do not


@functools.cache
def prefixes(completions, length):
    """(Y, T, Y) boolean: whether an answer begins with the first t + 1 tokens of another."""
    same = [[[y[:t] == z[:t] for z in completions] for t in range(1, length + 1)] for y in completions]
    return torch.tensor(same)


def lengths_of(world):
    """Tokens of every answer, (Y,)."""
    return torch.tensor([float(len(completion)) for completion in world.completions], dtype=torch.float64)


def read_sides(log_policy, world, name):
    """(a, b), each (Y, Y), as the loss reads them of the answers i ≻ j: log-ratios, or log-probabilities."""
    row, lengths = LOSSES[name], lengths_of(world)

    def added_up(log_p):
        """Log p of i and of j in every pair, added up over tokens as the row says."""
        if row.reduce == "mean":
            log_p = log_p / lengths
        if not isinstance(row.reduce, float):
            return log_p[:, None].expand(-1, len(log_p)), log_p.expand(len(log_p), -1)
        inside = prefixes(tuple(world.completions), int(lengths.max()))
        heads = torch.where(inside, log_p, -torch.inf).logsumexp(dim=-1)  # (Y, T) log p of the first t + 1 tokens
        shared = torch.minimum(lengths[:, None], lengths).long() - 1  # (Y, Y)
        sides = [row.reduce * log_p[:, None] + (1 - row.reduce) * heads.gather(1, shared)]
        return sides[0], sides[0].T  # `shared` is symmetric

    sides = added_up(log_policy)
    return tuple(p - q for p, q in zip(sides, added_up(world.log_ref), strict=True)) if row.reference else sides


def mean_loss(log_policy, world, weights, name, shift=0.0, **options):
    """Σ_ij weights_ij ℓ(a_ij, b_ij), a scalar: the loss in expectation over `weights` (Y, Y).

    ODPO's offset is the gap of the true rewards; `shift` is BCO's.
    """
    a, b = read_sides(log_policy, world, name)
    lengths = lengths_of(world)[:, None].expand_as(a)
    facts = {"policy_chosen_logps": log_policy[:, None], "chosen_lengths": lengths, "rejected_lengths": lengths.T}
    facts |= {"offset": world.reward[:, None] - world.reward, "shift": shift, "label_smoothing": FLIPS}
    return (weights * Mixture({name: 1.0}).value(a, b, world.beta, **facts | options)).sum()


def fit(world, weights, name, **options):
    """(log π (Y,), lowest loss) where L-BFGS ends from the reference; nan where the loss falls without end.

    BCO's shift is the mean reward of all answers, at the end: it is put in again until it no longer moves. Losses with
    kinks take many ever smaller steps afterwards.
    """
    u, shift = None, 0.0
    for _ in range(60 if "shift" in LOSSES[name].arguments else 1):
        objective = functools.partial(mean_loss, world=world, weights=weights, name=name, shift=shift, **options)
        log_policy, lowest, u = fit_u(world, objective, start=u)
        ratios = log_policy - world.log_ref
        before, shift = shift, world.beta * (weights * (ratios[:, None] + ratios) / 2).sum().item()
        if abs(shift - before) < 1e-9 or ratios.min() < -40:  # an answer dies out, and takes the mean along
            break
    return (creep(world, objective, u) if name in KINKED else log_policy), lowest


def creep(world, objective, u, steps=2000):
    """Log π (Y,) after Adam's steps from u, whose length falls to 0."""
    u = u.clone().requires_grad_()
    optimizer = torch.optim.Adam([u], lr=0.03)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / steps) ** 3
        optimizer.zero_grad()
        objective(policy_of(world, u)).backward()
        optimizer.step()
    return policy_of(world, u).detach()


# Optima in closed form


def solve(increasing, low, high):
    """Where an increasing function of one number is 0, by bisection."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < 0 else (low, middle)
    return (low + high) / 2


def divergence_optimum(world, log_u, most):
    """Log of argmax E[r] − β D_f(π‖π_ref) (arXiv:2309.16240): π_ref · f′⁻¹((r − λ)/β), with λ such that it sums to 1.

    Args: log_u, (f′)⁻¹ as a logarithm; most, the bound below which its argument must stay.
    """
    policy = lambda c: world.log_ref + log_u((world.reward - world.reward.max()) / world.beta + most - c)  # noqa: E731
    c = solve(lambda c: -policy(c).logsumexp(-1).item(), 1e-12, 1e3)  # more c, less mass
    return policy(c)


def alpha_optimum(world, alpha):
    """The optimum under an α-divergence: f′(u) = (1 − u^−α)/α."""
    return divergence_optimum(world, lambda s: -(1 - alpha * s).log() / alpha, 1 / alpha)


def bare_optimum(world):
    """SimPO's at γ = 0: log π(y) = |y| (r/β + c), which knows no reference."""
    policy = lambda c: lengths_of(world) * (world.reward / world.beta + c)  # noqa: E731
    return policy(solve(lambda c: policy(c).logsumexp(-1).item(), -1e3, 1e3))


def known_optima(world, weights, flips=0.0):
    """Name → log π (Y,) of what a loss may end in; `weights` (Y, Y) are the data, whose labels are flipped so often."""
    wins = bradley_terry(world.reward[:, None], world.reward)
    beats = ((1 - flips) * wins + flips * wins.T) @ world.log_ref.exp()  # P(y beats a draw from π_ref)
    chosen = weights.sum(dim=1)
    optimum = functools.partial(optimal_policy, world.log_ref, beta=world.beta)
    optima = {"π_r": optimum(world.reward), "π_ref": world.log_ref, "the optimum of 2r": optimum(2 * world.reward)}
    optima |= {"the optimum of r − 0.01·length": optimum(world.reward - 0.01 * lengths_of(world))}
    optima |= {"the optimum of P(y beats a draw from π_ref)": optimum(beats)}
    optima |= {"the optimum for the forward KL": alpha_optimum(world, 1.0)}
    optima |= {"the optimum for the α-divergence": alpha_optimum(world, 0.5)}
    js = divergence_optimum(world, lambda s: s - (2 - s.exp()).log(), math.log(2))
    return optima | {"the optimum for Jensen–Shannon": js, "the chosen answers": (chosen / chosen.sum()).log()}


# The verdict


NEAREST = "π_r", "π_ref", "the optimum of P(y beats a draw from π_ref)", "the chosen answers"


def ending(world, log_policy, optima, weights, name):
    """(in a word or two where this policy lies, more of it): in an optimum, at a boundary, nowhere, or by itself."""
    if log_policy.isnan().any():
        return "nowhere", "the loss falls without end"
    distances = {name: kl_divergence(log_policy, other).abs().item() for name, other in optima.items()}
    exact = min(distances, key=distances.get)
    if distances[exact] <= SAME:
        return exact, ""
    if log_policy.max() > -1e-6:
        return "a boundary", "one answer takes all"
    if name not in ("hinge", "slic") and (dead := dying(world, log_policy, weights, name)):
        return "a boundary", f"{dead} answers die out"  # those two let a pair go that is right, flat as they are there
    nearest = min(NEAREST, key=distances.get)
    return "its own minimum", f"{nearest}, {distances[nearest]:.1g}"


def dying(world, log_policy, weights, name):
    """How many answers of the data may become as unlikely as can be, and the loss loses nothing."""
    ratios = world.beta * (log_policy - world.log_ref)
    shift = (weights * (ratios[:, None] + ratios) / 2).sum().item()
    loss = lambda log_p: mean_loss(log_p, world, weights, name, shift=shift).item()  # noqa: E731
    here, seen = loss(log_policy), weights.sum(dim=0) + weights.sum(dim=1) > 0
    lower = [loss((log_policy - FAR * one).log_softmax(-1)) for one in torch.eye(len(ratios), dtype=ratios.dtype)[seen]]
    if name == "discopop":  # not convex: lower still, elsewhere, says nothing of where this is
        return sum(abs(value - here) <= FLAT for value in lower)
    return sum(value <= here + FLAT for value in lower)


def figures(world, log_policy, weights):
    """KL(π‖π_ref), E[r], J, the mean log-ratio of chosen and of rejected sides, and mass won by answers in no pair."""
    ratio = log_policy - world.log_ref
    kl, mean = kl_divergence(log_policy, world.log_ref).item(), expectation(log_policy, world.reward).item()
    sides = [(weights.sum(dim=axis) * ratio).sum().item() for axis in (1, 0)]
    unseen = (weights.sum(dim=0) + weights.sum(dim=1)) == 0
    return kl, mean, mean - world.beta * kl, *sides, (log_policy.exp() - world.log_ref.exp())[unseen].sum().item()


# Displacement


def displace(world, name, chosen, rejected, beta, margin=3.0, step=0.03, most=300):
    """(log-ratio of the chosen answer, of the rejected one, mass that left both) once their difference is `margin`.

    A GPT takes steps of one length down the gradient of the loss of one pair alone, so that only the direction counts.
    None where the margin is not reached.
    """
    policy, row = copy.deepcopy(world.reference).requires_grad_(True), LOSSES[name]
    batch = pack(
        [TokenizedPair(PROMPT, list(world.completions[i]), list(world.completions[j])) for i, j in [(chosen, rejected)]]
    )
    reduce, (chosen_lengths, rejected_lengths) = row.reduce or "sum", batch.lengths.double().chunk(2)
    reference = batch_logps(world.reference, batch), batch_logps(world.reference, batch, reduce)
    for _ in range(most):
        sums = batch_logps(policy, batch)  # (2,)
        change = (sums - reference[0]).detach()
        if change[0] - change[1] >= margin:
            with torch.no_grad():
                after = exact_log_policy(
                    policy, PROMPT, policy.config.vocab_size - 1, policy.config.block_size - len(PROMPT)
                )
            left = [(world.log_ref.exp() - after.exp())[k].item() for k in (chosen, rejected)]
            return (*(after - world.log_ref)[[chosen, rejected]].tolist(), sum(left))
        ratios = batch_logps(policy, batch, reduce) - (reference[1] if row.reference else 0)
        facts = {
            "policy_chosen_logps": sums[:1],
            "chosen_lengths": chosen_lengths,
            "rejected_lengths": rejected_lengths,
        }
        loss = Mixture({name: 1.0}).value(*ratios.chunk(2), beta, offset=0.5, shift=0.0, **facts).sum()
        gradient = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
        length = math.sqrt(sum(g.square().sum().item() for g in gradient if g is not None))
        with torch.no_grad():
            for parameter, g in zip(policy.parameters(), gradient, strict=True):
                if g is not None and length > 0:
                    parameter -= step * g / length
    return None
