"""The numbers of the interactive page: a language of seven answers, in which nothing has to be estimated but the data.

Each function returns plain lists for one section of explainer.html. Where the page asks for a prediction, the right
choice is computed here too.
"""

import copy
import functools
from itertools import permutations, product

import torch

from dpo_min.exact import exact_log_policy
from dpo_min.losses import LOSSES
from dpo_min.margin_losses import MARGIN_LOSSES
from dpo_min.objective import expectation, kl_divergence, log_partition, objective, optimal_policy
from dpo_min.preference import margin
from dpo_min.ratio_losses import MOST
from experiments import theorem

BETAS = [2 ** (k / 8) for k in range(-40, 41)]  # the slider's places, from 1/32 to 32
PAIR_STEPS, PAIR_BETA = 20, 0.1
GPT_RATE, TABLE_RATE = 0.05, 2.0
ALL_STEPS, ALL_RATE = 60, 30.0
PAIR = (4, 3)  # the pair that the page opens with: ab chosen, aa rejected
DATA_STEPS, DATA_SETS = 100, 16
NOISE, SIZES = (0.0, 0.1, 0.2, 0.3, 0.4), (30, 100, 300, 1000, 10000)
DATA_LOSSES = ("sigmoid", "cdpo", "robust")
SLIDER = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # β in section 2
# The pair of section 2: log π_ref of both answers in nats, their tokens, and facts that some losses ask for.
REFERENCE, LENGTHS, FACTS = (-12.0, -10.0), (6, 5), {"shift": 0.2, "offset": 0.5}


def make_world():
    """Two letters and a full stop, at most two tokens: seven answers, of which the best is rare."""
    return theorem.make_world(vocab_size=3, max_new_tokens=2, seed=5)


def language(world):
    """The answers, how likely the reference makes them, and their rewards."""
    names = ["".join("ab."[token] for token in completion) for completion in world.completions]
    return {"answers": names, "reference": world.log_ref.exp().tolist(), "reward": world.reward.tolist()}


def optima(world):
    """π_r at every place of the slider, with what it costs and gains."""
    return [{"beta": beta} | optimum(world, beta) for beta in BETAS]


def optimum(world, beta):
    """π_r, Z, E[r], KL and J at one β."""
    log_ref, reward = world.log_ref, world.reward
    log_policy = optimal_policy(log_ref, reward, beta)
    return {
        "policy": log_policy.exp().tolist(),
        "z": log_partition(log_ref, reward, beta).exp().item(),
        "reward": expectation(log_policy, reward).item(),
        "kl": kl_divergence(log_policy, log_ref).abs().item(),  # rounding may leave −1e−16
        "j": objective(log_policy, log_ref, reward, beta).item(),
    }


def losses():
    """What the page has to know of each row besides its formulas, which javascript.py translates."""
    kinds = {name: "margin" if name in MARGIN_LOSSES else "ratio" for name in LOSSES}
    return {
        name: {
            "kind": kinds[name],
            "about": row.about,
            "source": row.source,
            "reference": row.reference,
            "mean": row.reduce == "mean",
            "partial": isinstance(row.reduce, float),
            "arguments": {k: FACTS.get(k) if default is None else default for k, default in row.arguments.items()},
        }
        for name, row in LOSSES.items()
    }


def descend(parameters, log_policy_of, loss_of, steps, rate):
    """Log π (steps + 1, …, Y) along plain gradient descent on loss_of(log π (…, Y)), from where the parameters are."""
    optimizer = torch.optim.SGD(parameters, lr=rate)
    history = []
    for _ in range(steps):
        log_policy = log_policy_of()
        history.append(log_policy.detach())
        optimizer.zero_grad()
        loss_of(log_policy).backward()
        optimizer.step()
    with torch.no_grad():
        return torch.stack([*history, log_policy_of()])


def descend_table(world, loss_of, steps, rate, policies=1):
    """`descend` for tables: log π (steps + 1, S, Y) of S policies, each a free number for every answer."""
    z = world.log_ref.repeat(policies, 1).requires_grad_()  # (S, Y)
    return descend([z], lambda: z.log_softmax(dim=-1), loss_of, steps, rate)


def descend_gpt(world, loss_of, steps, rate):
    """`descend` for a copy of the reference, which shares its parameters among the answers: log π (steps + 1, Y)."""
    policy = copy.deepcopy(world.reference).requires_grad_(True)
    return descend(policy.parameters(), lambda: exact_log_policy(policy, theorem.PROMPT, 2, 2), loss_of, steps, rate)


def margins(world, log_policy, chosen, rejected):
    """The margins (S, P) of S policies (S, Y) on P pairs, given by indices of answers that broadcast to (S, P)."""
    chosen, rejected = torch.broadcast_tensors(chosen, rejected)
    both = [log_policy.gather(1, index.expand(len(log_policy), -1)) for index in (chosen, rejected)]
    both += [world.log_ref[index].expand_as(both[0]) for index in (chosen, rejected)]
    return margin(*(logps.flatten() for logps in both)).view_as(both[0])


def pair_steps(world, gpt_pairs=None):
    """Every ordered pair alone, "chosen,rejected" → log π (steps + 1, Y), for a table and for a GPT (or some pairs)."""
    pairs = [*permutations(range(len(world.completions)), 2)]
    chosen, rejected = torch.tensor(pairs).T[..., None]  # (S, 1) each

    def loss_of(log_policy, chosen=chosen, rejected=rejected):
        return LOSSES["sigmoid"].value(margins(world, log_policy, chosen, rejected), PAIR_BETA).sum()

    table = descend_table(world, loss_of, PAIR_STEPS, TABLE_RATE, policies=len(pairs))
    found = {"table": {}, "gpt": {}}
    for k, (i, j) in enumerate(pairs):
        found["table"][f"{i},{j}"] = table[:, k].tolist()
        if (i, j) not in (gpt_pairs or pairs):
            continue
        one = functools.partial(loss_of, chosen=chosen[k : k + 1], rejected=rejected[k : k + 1])
        found["gpt"][f"{i},{j}"] = descend_gpt(world, lambda x, one=one: one(x[None]), PAIR_STEPS, GPT_RATE).tolist()
    return found


def mean_loss(world, log_policy, weights, name, smoothing):
    """Each of S policies' mean loss over its own preferences, weights (S, Y, Y), added up: a scalar."""
    i, j = (index.flatten()[None] for index in torch.meshgrid(*[torch.arange(weights.shape[-1])] * 2, indexing="ij"))
    h = margins(world, log_policy, i, j)  # (S, Y²)
    return (weights.flatten(1) * LOSSES[name].value(h, world.beta, smoothing)).sum()


def all_steps(world):
    """A table that sees every preference in each step: log π, and its distance from π_r, step by step."""
    weights = theorem.all_preferences(world)[None]
    loss_of = functools.partial(mean_loss, world, weights=weights, name="sigmoid", smoothing=None)
    history = descend_table(world, loss_of, ALL_STEPS, ALL_RATE)[:, 0]
    return {
        "beta": world.beta,
        "logps": history.tolist(),
        "distance": kl_divergence(history, world.optimum).abs().tolist(),
        "optimum": world.optimum.exp().tolist(),
    }


def data(world):
    """What N preferences with flipped labels teach: "noise,N" → loss → where the policy of each data set ends."""
    found = {}
    for flips in NOISE:
        preferences = theorem.all_preferences(world, flips)
        sets = [preferences]  # every preference, in expectation, then DATA_SETS of each size
        for size, seed in product(SIZES, range(DATA_SETS)):
            # A generator for each: how many numbers the last cell of a draw takes is a matter of rounding.
            sets.append(theorem.sample(preferences, size, torch.Generator().manual_seed(seed)))
        ends = {name: train_on(world, torch.stack(sets), name, flips) for name in DATA_LOSSES}
        for k, size in enumerate(SIZES):
            rows = slice(1 + k * DATA_SETS, 1 + (k + 1) * DATA_SETS)
            found[f"{flips:g},{size}"] = {name: describe(world, policy[rows]) for name, policy in ends.items()}
        found[f"{flips:g},all"] = {name: describe(world, policy[:1]) for name, policy in ends.items()}
    return found


def train_on(world, sets, name, flips):
    """Log π (S, Y) of a table that took `DATA_STEPS` steps on each data set (S, Y, Y); the loss is told `flips`."""
    smoothing = flips if LOSSES[name].arguments else None
    loss_of = functools.partial(mean_loss, world, weights=sets, name=name, smoothing=smoothing)
    return descend_table(world, loss_of, DATA_STEPS, ALL_RATE, policies=len(sets))[-1]


def describe(world, log_policy):
    """Where S policies (S, Y) lie, and their mean."""
    return {
        "kl": kl_divergence(log_policy, world.log_ref).abs().tolist(),
        "reward": expectation(log_policy, world.reward).tolist(),
        "distance": kl_divergence(log_policy, world.optimum).abs().mean().item(),
        "policy": log_policy.exp().mean(dim=0).tolist(),
    }


def truth(world, found):
    """The right choice of every question of the page, by the numbers on it."""
    kl = {point["beta"]: point["kl"] for point in found["optima"]}
    lowest, best = found["optima"][0]["policy"], found["optima"][BETAS.index(world.beta)]
    likeliest, dearest = world.log_ref.argmax().item(), world.reward.argmax().item()
    spots = {likeliest: "likely", dearest: "reward"} if max(lowest) > 0.9 else {}
    zero = torch.zeros(1)
    loss = LOSSES["sigmoid"]
    both = loss.value(margin(zero - 3, zero - 3, zero, zero), PAIR_BETA) - loss.value(zero, PAIR_BETA)
    start, end = (torch.tensor(found["steps"]["gpt"]["{},{}".format(*PAIR)][k]).exp() for k in (0, -1))
    roles = dict(zip(PAIR, ("chosen", "rejected"), strict=True))
    ends = found["data"]["ends"]
    told = [name for name in ("cdpo", "robust") if ends["0.2,all"][name]["distance"] < 1e-4]
    few = ends["0,30"]["sigmoid"]["reward"]
    return {
        "beta_kl": compare(kl[0.5] - kl[1.0], "up", "same", "down"),
        "beta_low": spots.get(max(range(len(lowest)), key=lowest.__getitem__), "none"),
        "slope_0": compare(-loss.slope(zero, PAIR_BETA).item(), "up", "no", "down"),
        "both_fall": compare(both.item(), "up", "same", "down"),
        "displaced": compare((end - start)[PAIR[0]].item(), "up", "same", "down"),
        "gains": roles.get((end - start).argmax().item(), "other"),
        "noise": compare(ends["0.2,all"]["sigmoid"]["kl"][0] - best["kl"], "further", "same", "nearer"),
        "few": compare(sum(few) / len(few) - best["reward"], "more", "same", "less"),
        "told": {0: "neither", 1: told[0] if told else "", 2: "both"}[len(told)],
    }


def compare(difference, above, equal, below):
    """The word for a difference, that of rounding being none."""
    return equal if abs(difference) < 1e-6 else above if difference > 0 else below


def numbers(gpt_pairs=None):
    """Everything that the page shows, as JSON; with the GPT's steps on some pairs alone, which is faster, if asked."""
    world = make_world()
    steps = pair_steps(world, gpt_pairs) | {"beta": PAIR_BETA, "opening": PAIR, "all": all_steps(world)}
    found = {
        "language": language(world),
        "optima": optima(world),
        "pair": {"reference": REFERENCE, "lengths": LENGTHS, "betas": SLIDER, "most": MOST},
        "losses": losses(),
        "steps": steps,
        "data": {
            "noise": NOISE,
            "sizes": [*SIZES, None],
            "losses": DATA_LOSSES,
            "steps": DATA_STEPS,
            "optimum": optimum(world, world.beta),
            "ends": data(world),
        },
    }
    return found | {"truth": truth(world, found)}
