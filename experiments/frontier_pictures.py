"""The two pictures of docs/frontier.md: where every method ends, and the policy gradient on five arms."""

from statistics import fmean

import torch

from dpo_min.objective import expectation
from dpo_min.rl.rlhf import exact_gradient, leave_one_out, likelihood_gradient, sampled_gradient
from dpo_min.system.picture import pyplot, save
from experiments.pages import half_width, scale_kl

plt = pyplot()

STYLES = {  # one marker for each name, so that pictures read in black and white
    "DPO": ("o", "black"),
    "IPO": ("s", "tab:gray"),
    "REINFORCE": ("^", "tab:blue"),
    "PPO, learned reward": ("v", "tab:red"),
    "PPO, true reward": ("D", "tab:orange"),
    "supervised, chosen": ("P", "tab:green"),
    "unlikelihood": ("X", "tab:purple"),
}
WIDEST = 12  # nats that a panel shows; a method that ends beyond them is named in the panel's corner
# Where a label may stand beside its mark, in points, in the order of preference: off the lines of its intervals first.
AROUND = [(x, y, side) for y in (8, -8, 0, 17, -17, 26, -26) for x, side in ((5, "left"), (-5, "right"))]


def draw_frontier(panels, path):
    """A panel for each language, (title, optima, best of n, groups): faint paths, and where each method ends.

    An end is the mean over runs, with its 95 % intervals of KL and of reward.
    """
    shape = 8.6, 4.9 * len(panels)
    figure, axes = plt.subplots(len(panels), 1, figsize=shape, layout="constrained", squeeze=False)
    for axis, (title, optima, best, groups) in zip(axes[:, 0], panels, strict=True):
        draw_path(axis, optima, color="0.35", linewidth=1.4, label="optimum π_r, every β")
        draw_path(axis, best, marker="*", color="0.65", markersize=6, linewidth=0.6, label="best of n")
        axis.set(xlabel="KL(π‖π_ref) (nats)", ylabel="true reward E[r]", title=title)
        scale_kl(axis)
        ends = {m: [run["path"][-1] for run in runs] for m, runs in groups.items()}
        shown = {m: points for m, points in ends.items() if fmean(p["kl"] for p in points) <= WIDEST}
        for m, runs in groups.items():
            for run in runs:
                draw_path(axis, run["path"], color=STYLES[m.name][1], linewidth=0.6, alpha=0.3, zorder=1)
        furthest = max([p["kl"] for p in optima] + [fmean(p["kl"] for p in points) for points in shown.values()])
        axis.set_xlim(0, furthest * 1.15)
        draw_ends(axis, shown)
        beyond = [f"{m.label}: ends at KL {fmean(p['kl'] for p in ends[m]):.0f} →" for m in ends if m not in shown]
        axis.text(0.99, 0.02, "\n".join(beyond), transform=axis.transAxes, ha="right", va="bottom", fontsize=8)
    axes[0][0].legend(fontsize=8, frameon=False, loc="upper left")
    save(figure, path)


def draw_path(axis, points, **style):
    """A line through points that have "kl" and "reward"."""
    axis.plot([p["kl"] for p in points], [p["reward"] for p in points], **style)


def draw_ends(axis, ends):
    """The mean end of each method with its intervals, and beside it the setting that its name does not say."""
    named, limits = set(), axis.get_ylim()  # intervals may reach beyond
    for m, points in ends.items():
        marker, color = STYLES[m.name]
        kl, reward = ([p[key] for p in points] for key in ("kl", "reward"))
        x, y = fmean(kl), fmean(reward)
        reach = [[min(half_width(kl), x)], [half_width(kl)]]  # there is no KL below 0
        style = {"color": color, "markersize": 6, "markeredgewidth": 1.2, "elinewidth": 0.8, "markerfacecolor": "white"}
        axis.errorbar(
            x, y, half_width(reward), reach, marker, label=None if m.name in named else m.name, zorder=3, **style
        )
        named.add(m.name)
    axis.set_ylim(limits)
    axis.figure.draw_without_rendering()  # from here on text has a size
    write_settings(
        axis, {m: tuple(fmean(p[key] for p in points) for key in ("kl", "reward")) for m, points in ends.items()}
    )


def write_settings(axis, places):
    """β or α beside each method's (KL, E[r]), where it covers neither a mark nor another setting, if there is room."""
    marks, boxes = axis.transData.transform([*places.values()]), []
    for m, place in places.items():
        text = m.label.removeprefix(m.name).removeprefix(", ")
        for dx, dy, side in AROUND if text else ():
            note = axis.annotate(text, place, (dx, dy), textcoords="offset points", ha=side, va="center", zorder=4)
            note.set(fontsize=8, color=STYLES[m.name][1])
            box = note.get_window_extent()
            if not any(map(box.overlaps, boxes)) and not any(box.contains(*mark) for mark in marks):
                boxes.append(box)
                break
            note.remove()


ARMS = torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0], dtype=torch.float64)  # what each of five arms is worth
START = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)  # logits: the worst arm is the likeliest


def ascend(gradient, rate=0.4, steps=150):
    """E[r] before each of `steps` steps up a gradient, and after the last; `gradient` maps logits (A,) to (A,)."""
    logits, history = START.clone(), []
    for _ in range(steps + 1):
        history.append(expectation(logits.log_softmax(-1), ARMS).item())
        logits = logits + rate * gradient(logits)
    return history


def sampled(seed, with_baseline, draws=4):
    """A function from logits to a gradient that is estimated from `draws` arms, each time drawn afresh."""
    generator = torch.Generator().manual_seed(seed)

    def gradient(logits):
        actions = torch.multinomial(logits.softmax(-1), draws, replacement=True, generator=generator)
        rewards = ARMS[actions]
        return sampled_gradient(logits, actions, leave_one_out(rewards) if with_baseline else rewards)

    return gradient


def preferred_arms(pairs=500):
    """The arms that won in pairs drawn by the starting policy and judged by Bradley and Terry, (pairs,)."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(START.softmax(-1).expand(pairs, -1), 2, replacement=True, generator=generator)
    gap = ARMS[drawn] @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    first = torch.rand(pairs, generator=generator, dtype=torch.float64) < torch.sigmoid(gap)
    return torch.where(first, drawn[:, 0], drawn[:, 1])


def draw_bandit(path, seeds=6):
    """The exact gradient, sampled ones with and without a baseline, and maximum likelihood; (exact, last) E[r]."""
    figure, axis = plt.subplots(figsize=(7.6, 4.2), layout="constrained")
    kinds = (
        ("without a baseline", False, {"color": "tab:red", "linestyle": ":"}),
        ("with a leave-one-out baseline", True, {"color": "tab:blue", "linestyle": "--"}),
    )
    for name, with_baseline, style in kinds:
        for seed in range(seeds):
            history = ascend(sampled(seed, with_baseline))
            axis.plot(history, linewidth=0.9, label=None if seed else f"4 draws a step, {name}", **style)
    exact, chosen = ascend(lambda logits: exact_gradient(logits, ARMS)), preferred_arms()
    imitated = ascend(lambda logits: likelihood_gradient(logits, chosen))
    axis.plot(exact, color="black", linewidth=2, label="exact policy gradient")
    axis.plot(imitated, color="0.5", linewidth=2, linestyle="-.", label="maximum likelihood of the preferred arms")
    axis.set(xlabel="step", ylabel="E[r]", title="Five arms worth 1, 1.5, 2, 2.5 and 3; the worst is the likeliest")
    axis.set(xlim=(0, 150), ylim=(1.3, 3.05))
    axis.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    save(figure, path)
    return exact[-1], imitated[-1]
