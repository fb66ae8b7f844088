"""The page of frontier.py: what the finished runs say, as tables, pictures and docs/frontier.md. It trains nothing."""

import math
import statistics
from itertools import pairwise

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from dpo_min.objective import expectation, kl_divergence, log_partition, optimal_policy
from dpo_min.rl.rlhf import best_of_n, best_of_n_kl_bound, exact_gradient, likelihood_gradient, sampled_gradient
from experiments.methods import Method

# Student's t, 97.5 %, by the number of runs that a mean is over.
STUDENT = dict(zip(range(2, 11), (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262), strict=True))
STYLES = {  # one marker for each name, so that pictures read in black and white
    "DPO": ("o", "black"),
    "IPO": ("s", "tab:gray"),
    "REINFORCE": ("^", "tab:blue"),
    "PPO, learned reward": ("v", "tab:red"),
    "PPO, true reward": ("D", "tab:orange"),
    "supervised, chosen": ("P", "tab:green"),
    "unlikelihood": ("x", "tab:purple"),
}
DRAWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
LOWEST_BETA, HIGHEST_BETA = 1e-3, 1e3
WIDEST = 12  # nats that a panel shows; what lies beyond is an arrow at its edge


# max E_π[r] over KL(π‖π_ref) ≤ k, because J(π) ≤ β log Z for every β:   E_π[r] ≤ β log Z + β KL(π‖π_ref)
def optimum_reward(log_ref, reward, kl):
    """The most reward there is at a drift of `kl` nats: log_ref and reward (Y,), kl (P,) ≥ 0 → (P,).

    Every β gives a bound that no policy exceeds, and the β whose π_r has just that KL gives the least of them, which
    π_r reaches. It is found by halving an interval of log β, in which the KL of π_r falls.
    """
    low, high = (torch.full_like(kl, math.log(beta)) for beta in (LOWEST_BETA, HIGHEST_BETA))
    for _ in range(60):
        middle = (low + high) / 2
        log_optimum = (log_ref + reward * (-middle).exp()[:, None]).log_softmax(dim=-1)  # (P, Y)
        further = kl_divergence(log_optimum, log_ref) > kl
        low, high = torch.where(further, middle, low), torch.where(further, high, middle)
    betas = high.exp().tolist()
    bounds = [beta * (log_partition(log_ref, reward, beta) + k) for beta, k in zip(betas, kl, strict=True)]
    return torch.stack(bounds)


def gaps(world, points):
    """How far below the optimum's curve each point lies, a list in units of reward; points have "kl" and "reward"."""
    kl, reward = (torch.tensor([point[key] for point in points], dtype=torch.float64) for key in ("kl", "reward"))
    return (optimum_reward(world.log_ref, world.reward, kl.clamp(min=0)) - reward).tolist()


def reward_at(path, kl):
    """The reward where a run first reached `kl` nats, between its two measurements on either side; None if never."""
    for before, after in pairwise(path):
        if after["kl"] >= kl:  # and before it was less, the start being 0
            share = (kl - before["kl"]) / (after["kl"] - before["kl"])
            return before["reward"] + share * (after["reward"] - before["reward"])
    return None


def with_interval(values, digits=3):
    """Mean ± half of the 95 % interval, of one number a run, by Student's t; of one run the number alone."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def group(lines):
    """{method: its runs}, in the order of the table they were made from."""
    groups = {}
    for line in lines:
        if line["method"]:
            groups.setdefault(Method(**line["method"]), []).append(line)
    return groups


def table(heads, rows):
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (heads, ["---"] * len(heads), *rows))


def settings_table(groups):
    """What each method was given."""

    def size(m):
        unit = "answers" if m.kind in ("reinforce", "ppo") else "pairs"
        again = f", each used in {m.epochs} passes of {m.minibatches} parts" if m.kind == "ppo" else ""
        return f"{m.steps} × {m.batch} {unit}{again}"

    rows = [(m.label, f"{m.learning_rate:g}", size(m), len(runs)) for m, runs in groups.items()]
    return table(("method", "learning rate", "steps", "runs"), rows)


def cost_table(groups):
    """What each method cost: means over its runs."""
    offline = max((m.batch * m.steps for m in groups if m.kind not in ("reinforce", "ppo")), default=0)
    columns = {"updates": ".0f", "generated": ",.0f", "processor_seconds": ".1f", "seconds": ".1f"}
    rows = []
    for m, runs in groups.items():
        means = [format(statistics.fmean(run[key] for run in runs), spec) for key, spec in columns.items()]
        rows.append((m.label, f"{offline if m.preferences else 0:,}", *means))
    return table(("method", "labelled pairs", "gradient steps", "generated tokens", "processor s", "wall s"), rows)


def end_table(groups, world=None):
    """Where the runs ended: means over them with intervals."""
    heads = ["method", "KL(π‖π_ref)", "E[r]"] + (["below the optimum", "KL(π‖π_r)"] if world else ["tokens an answer"])
    rows = []
    for m, runs in groups.items():
        last = [run["path"][-1] for run in runs]
        row = [m.label, *(with_interval([point[key] for point in last]) for key in ("kl", "reward"))]
        if world:
            row.append(with_interval(gaps(world, last)))
            row.append(with_interval([p["distance"] for p in last], 4) if "distance" in last[0] else "")
        else:
            row.append(with_interval([point["length"] for point in last], 1))
        rows.append(row)
    return table(heads, rows)


def equal_kl_table(groups, levels, optimum, best):
    """Reward at equal KL: means over the runs that reached it, with how many they were if not all."""
    rows = [("**optimum**", *(f"{r:.3f}" for r in optimum)), ("best of n", *best)]
    for m, runs in groups.items():
        row = [m.label]
        for kl in levels:
            found = [r for r in (reward_at(run["path"], kl) for run in runs) if r is not None]
            few = f" ({len(found)} of {len(runs)})" if len(found) < len(runs) else ""
            row.append(with_interval(found) + few if found else "–")
        rows.append(row)
    return table(("method", *(f"KL = {kl:g}" for kl in levels)), rows)


def root(kl):
    """The axis of KL: near the optimum's start E[r] grows with its root."""
    return np.sqrt(np.clip(kl, 0, None))


def draw_frontier(panels, path):
    """A panel for each language: every measurement of every run is a mark, the line is the optimum, stars best of n."""
    figure, axes = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 4.9), layout="constrained", squeeze=False)
    for axis, (title, curve, best, groups) in zip(axes[0], panels, strict=True):
        axis.plot(*curve, color="0.35", linewidth=1.4, label="optimum, every β")
        axis.plot(*best, "*-", color="0.6", markersize=6, linewidth=0.6, label="best of n")
        seen, outside = set(), {}
        for m, runs in groups.items():
            marker, color = STYLES[m.name]
            for run in runs:
                points = [(p["kl"], p["reward"]) for p in run["path"]]
                label = None if m.name in seen else m.name
                seen.add(m.name)
                face = {} if marker in "x+" else {"markerfacecolor": "none"}
                style = {"color": color, "markersize": 3.6, "markeredgewidth": 0.7, "alpha": 0.75} | face
                axis.plot(*zip(*[p for p in points if p[0] <= WIDEST], strict=True), marker, label=label, **style)
                beyond = [p for p in points if p[0] > WIDEST]
                if beyond:
                    axis.plot([WIDEST] * len(beyond), [r for _, r in beyond], ">", clip_on=False, **style)
                    outside.setdefault(m.label, []).extend(kl for kl, _ in beyond)
        if outside:
            notes = [f"{label}: {len(kls)} points, up to KL {max(kls):.0f} →" for label, kls in outside.items()]
            axis.text(0.98, 0.02, "\n".join(notes), transform=axis.transAxes, ha="right", va="bottom", fontsize=7)
        axis.set_xscale("function", functions=(root, np.square))
        axis.set(xlabel="KL(π‖π_ref) (nats)", ylabel="true reward E[r]", title=title)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(fontsize=7.5, frameon=False, loc="upper left")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def ascend(gradient, start, rate, steps, reward):
    """E[r] before each of `steps` steps up a gradient, and after the last; `gradient` maps logits (A,) to (A,)."""
    logits, history = start.clone(), []
    for _ in range(steps + 1):
        history.append(expectation(logits.log_softmax(-1), reward).item())
        logits = logits + rate * gradient(logits)
    return history


def draw_bandit(path, steps=150, rate=0.4, draws=4, seeds=6):
    """Five arms: the exact gradient, sampled ones with and without a baseline, and maximum likelihood of good arms."""
    reward = torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0], dtype=torch.float64)
    start = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)

    def sampled(seed, with_baseline):
        generator = torch.Generator().manual_seed(seed)

        def gradient(logits):
            actions = torch.multinomial(logits.softmax(-1), draws, replacement=True, generator=generator)
            rewards = reward[actions]
            others = (rewards.sum() - rewards) / (draws - 1)  # leave one out
            return sampled_gradient(logits, actions, rewards - with_baseline * others)

        return gradient

    generator = torch.Generator().manual_seed(0)
    pairs = torch.multinomial(start.softmax(-1).expand(500, -1), 2, replacement=True, generator=generator)
    wins = torch.rand(500, generator=generator, dtype=torch.float64) < torch.sigmoid(
        reward[pairs] @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    )
    chosen = torch.where(wins, pairs[:, 0], pairs[:, 1])
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    kinds = (
        ("no baseline", False, {"color": "tab:red", "linestyle": ":"}),
        ("leave-one-out", True, {"color": "tab:blue", "linestyle": "--"}),
    )
    for name, with_baseline, style in kinds:
        for seed in range(seeds):
            history = ascend(sampled(seed, with_baseline), start, rate, steps, reward)
            axis.plot(history, linewidth=0.9, label=None if seed else f"{draws} draws a step, {name}", **style)
    exact = ascend(lambda logits: exact_gradient(logits, reward), start, rate, steps, reward)
    axis.plot(exact, color="black", linewidth=2, label="exact policy gradient")
    imitated = ascend(lambda logits: likelihood_gradient(logits, chosen), start, rate, steps, reward)
    axis.plot(imitated, color="0.5", linewidth=2, linestyle="-.", label="maximum likelihood of the preferred arms")
    axis.set(xlabel="step", ylabel="E[r]", title="Five arms worth 1, 1.5, 2, 2.5, 3; the likeliest is the worst")
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return exact[-1], imitated[-1]


def curves(log_ref, reward, highest=None):
    """((KL, E[r]) of π_r for every β, the same of best of n), each two lists; up to a KL of `highest` nats."""
    optima = [optimal_policy(log_ref, reward, beta) for beta in torch.logspace(2, -1.7, 120).tolist()]
    best = [best_of_n(log_ref, reward, n) for n in DRAWS]
    places = [[(kl_divergence(p, log_ref).item(), expectation(p, reward).item()) for p in ps] for ps in (optima, best)]
    return [list(zip(*[p for p in part if highest is None or p[0] <= highest], strict=True)) for part in places]


def best_at(log_ref, reward, levels):
    """The reward of best of n at each KL, between two n, as text; – where no n gets there."""
    policies = [best_of_n(log_ref, reward, n) for n in DRAWS]
    path = [{"kl": kl_divergence(p, log_ref).item(), "reward": expectation(p, reward).item()} for p in policies]
    found = [reward_at(path, kl) for kl in levels]
    return [f"{r:.3f}" if r is not None else "–" for r in found]


def best_table(log_ref, reward):
    """Best of n: its reward, its KL and the bound on it."""
    rows = []
    for n in DRAWS:
        log_policy = best_of_n(log_ref, reward, n)
        kl = kl_divergence(log_policy, log_ref).abs().item()
        rows.append((n, f"{expectation(log_policy, reward):.3f}", f"{kl:.3f}", f"{best_of_n_kl_bound(n):.3f}"))
    return table(("n", "E[r]", "KL", "log n − (n − 1)/n"), rows)
