"""Every picture of docs/derivation.md: `python -m experiments.figures` draws docs/figures/*.png from nothing.

Each function draws one picture out of the library's own functions, and returns the Figure, whose lines hold
the numbers that were drawn. Readable in black and white: a line style, a marker or a label beside each colour.
"""

import argparse
from itertools import count
from math import log10
from pathlib import Path

import torch
from matplotlib.figure import Figure

from dpo_min.exact import count_completions
from dpo_min.gradient import gradient_weight
from dpo_min.margin_losses import MARGIN_LOSSES
from dpo_min.objective import expectation, kl_divergence, log_partition, objective, optimal_policy
from experiments.pages import scale_kl

SOLID = {"color": "black", "linestyle": "-", "linewidth": 1.6}
DASHED = {"color": "tab:blue", "linestyle": "--", "linewidth": 1.6}
DASHDOT = {"color": "tab:red", "linestyle": "-.", "linewidth": 1.6}
GUIDE = {"color": "0.45", "linestyle": ":", "linewidth": 1.1}
DOT = {"color": "black", "marker": "o", "markersize": 5, "linestyle": "none"}
SMALL, HEADING = {"fontsize": 8.5}, {"fontsize": 9.5}
LEGEND = {"fontsize": 8.5, "frameon": False}


def panels(title, height, *mosaics, **options):
    """A Figure as wide as a page, and its axes by name; mosaics stand below one another, each with its own columns."""
    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = {}
    for part, mosaic in zip(figure.subfigures(len(mosaics), squeeze=False)[:, 0], mosaics, strict=True):
        axes |= part.subplot_mosaic(mosaic, **options)
    for axis in axes.values():
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8.5)
    return figure, axes


def keep_left(axis, first):
    """Show the numbers and the label of the y-axis in the first panel only of a row that shares them."""
    axis.tick_params(labelleft=first)
    axis.yaxis.label.set_visible(first)


def tensor(*values):
    """A vector of float64."""
    return torch.tensor(values, dtype=torch.float64)


def number(value):
    """Two digits, with a minus sign where a hyphen would stand."""
    return f"{value:.2f}".replace("-", "−")


def log_gaussian(mean, width, grid):
    """Log-probabilities, summing to 1, of the cells of an even grid: means (N,), grid (Y,) → (N, Y)."""
    return (-0.5 * ((grid - mean[:, None]) / width) ** 2).log_softmax(dim=-1)


def draw_gaussians():
    """One Gaussian slides past another. If they are equally wide, KL is 0 where they meet; if not, it is 0 nowhere.

    Left three positions, right `kl_divergence` of the cells' log-probabilities against the shift.
    """
    title = "KL is never negative, and it is 0 only where p and q are the same"
    mosaic = [["equal", "kl"], ["different", "kl"]]
    figure, axes = panels(title, 4.4, mosaic, width_ratios=[1, 1.25])
    cell = 0.01
    grid = torch.arange(-2500, 2501, dtype=torch.float64) * cell  # (Y,) far enough to hold the tails
    shift = torch.arange(-60, 61, dtype=torch.float64) / 20  # (N,)
    shown = [60, 90, 120]  # where the shift is 0, 1.5 and 3
    p = log_gaussian(tensor(0), 1, grid)  # (1, Y)
    same, wide = log_gaussian(shift, 1, grid), log_gaussian(shift, 2, grid)  # (N, Y)
    for name, q, heading in (("equal", same, "p and q equally wide"), ("different", wide, "q twice as wide as p")):
        axis = axes[name]
        axis.plot(grid, p[0].exp() / cell, label="p", **SOLID)
        for i, style in zip(shown, ("--", "-.", ":"), strict=True):
            axis.plot(grid, q[i].exp() / cell, linestyle=style, color="tab:blue", label=f"q, shift {shift[i]:g}")
        axis.set(xlim=(-5, 9), ylim=(0, 0.45), xlabel="y", ylabel="probability density")
        axis.set_title(heading, **HEADING)
    axes["different"].legend(loc="upper right", labelspacing=0.2, **LEGEND)
    lines = [
        ("KL(q‖p), q twice as wide", kl_divergence(wide, p), DASHDOT),
        ("KL(p‖q), q twice as wide", kl_divergence(p, wide), DASHED),
        ("KL(p‖q) = KL(q‖p), equally wide", kl_divergence(p, same), SOLID),
    ]
    axis = axes["kl"]
    for label, kl, style in lines:
        axis.plot(
            shift, kl, label=f"{label}: least {number(kl.min())}", marker="o", markersize=5, markevery=shown, **style
        )
    axis.axvline(0, ymax=0.8, **GUIDE)
    axis.set(xlabel="shift of q against p (dots: as on the left)", ylabel="KL (nats)", ylim=(-0.15, 6.8))
    axis.legend(loc="upper center", **LEGEND)
    return figure


def draw_argmax():
    """J, −J, −J/β and −J/β + log Z = KL(π‖π_r) over all policies (p, 1−p) on two completions: one p* throughout.

    By `objective`, `log_partition` and `kl_divergence`, and p* by `optimal_policy`.
    """
    log_ref, reward, beta = tensor(0.4, 0.6).log(), tensor(1, 0), 0.5
    log_z, log_best = log_partition(log_ref, reward, beta), optimal_policy(log_ref, reward, beta)
    best = log_best[0].exp().item()
    title = f"No move changes which policy is the best: p* = {number(best)} in all four"
    figure, axes = panels(title, 5, [["J", "negated"], ["scaled", "kl"]])
    p = torch.linspace(0, 1, 1001, dtype=torch.float64)
    log_policy = torch.stack([p, 1 - p], dim=-1).log()  # (1001, 2)
    j, kl = objective(log_policy, log_ref, reward, beta), kl_divergence(log_policy, log_best)
    curves = [
        ("J", j, beta * log_z, "J(π), to be maximised", "units of reward", "largest: β log Z = "),
        ("negated", -j, -beta * log_z, "1. negate: −J(π)", "units of reward", "least: −β log Z = "),
        ("scaled", -j / beta, -log_z, "2. scale: −J(π)/β", "nats", "least: −log Z = "),
        ("kl", kl, kl_divergence(log_best, log_best), "3. subtract −log Z: KL(π‖π$_r$)", "nats", "least: "),
    ]
    axes["kl"].plot(p, -j / beta + log_z, color="0.75", linewidth=6, label="−J(π)/β + log Z")
    for name, curve, extreme, heading, unit, note in curves:
        axis = axes[name]
        axis.plot(p, curve, label="KL(π‖π$_r$)" if name == "kl" else heading, **SOLID)
        axis.axvline(best, **GUIDE)
        axis.plot(best, extreme, **DOT)
        offset, side = (7, "bottom") if name == "J" else (-7, "top")
        style = {"textcoords": "offset points", "ha": "right", "va": side, **SMALL}
        axis.annotate(note + number(extreme), (best, extreme), (-6, offset), **style)
        axis.set_title(heading, **HEADING)
        axis.set(xlabel="p, the first completion's probability", ylabel=unit, xlim=(0, 1))
        axis.set_ylim((-0.9, 0.9) if unit == "units of reward" else (-1.8, 2.2))
    axes["J"].text(best + 0.015, -0.8, "p*")
    axes["kl"].legend(loc=(0.34, 0.76), **LEGEND)
    return figure


def draw_optimal_policy():
    """π_r for five β between arg max r and the reference; below, how far it has drifted and what reward it earns.

    By `optimal_policy`, and `kl_divergence` and `expectation` of what that returns.
    """
    ref, reward = tensor(0.30, 0.22, 0.16, 0.12, 0.08, 0.06, 0.04, 0.02), tensor(0.2, 1, -0.5, 1.6, 0.6, 2, -1, 1.2)
    log_ref, betas = ref.log(), tensor(0.05, 0.3, 1, 3, 30)
    bars = [f"π$_r$, β = {beta:g}" for beta in betas] + ["π$_\\mathrm{ref}$"]
    title = "Low β follows the reward, high β stays near the reference"
    figure, axes = panels(title, 4.8, [bars], [["reward", "kl", "mean"]])

    def policies(betas):
        """Log π_r for each β, (N, 8)."""
        return torch.stack([optimal_policy(log_ref, reward, beta.item()) for beta in betas])

    best = reward.argmax().item()
    style = {"tick_label": list("abcdefgh"), "color": ["black" if y == best else "0.65" for y in range(8)]}
    for name, policy in zip(bars, [*policies(betas).exp(), ref], strict=True):
        axes[name].bar(range(8), policy.tolist(), **style)
        axes[name].set(xlabel="completion y", ylabel="probability", ylim=(0, 1.02))
        axes[name].set_title(name, **HEADING)
        keep_left(axes[name], name == bars[0])
    axes["reward"].bar(range(8), reward.tolist(), **style)
    axes["reward"].axhline(0, color="black", linewidth=0.8)
    axes["reward"].set(xlabel="completion y", ylabel="units of reward")
    axes["reward"].set_title("reward r(y); black: arg max r", **HEADING)
    beta = torch.logspace(-2, 3, 201, dtype=torch.float64)
    quantities = [
        ("kl", lambda log_p: kl_divergence(log_p, log_ref), "nats", "KL(π$_r$‖π$_\\mathrm{ref}$)"),
        ("mean", lambda log_p: expectation(log_p, reward), "units of reward", "mean reward under π$_r$"),
    ]
    for name, quantity, unit, heading in quantities:
        axes[name].plot(beta, quantity(policies(beta)), **SOLID)
        axes[name].plot(betas, quantity(policies(betas)), **DOT)
        axes[name].set(xscale="log", xlabel="β (units of reward per nat)", ylabel=unit)
        axes[name].set_title(heading, **HEADING)
        axes[name].margins(y=0.18)
    scale_kl(axes["kl"], "y")
    # What both quantities tend to, each written beside its line
    low, high = {"ha": "right", "va": "bottom"}, {"ha": "left", "va": "top"}
    limits = [
        ("kl", (1000, -log_ref[best]), "−log π$_\\mathrm{ref}$(arg max r)", (0, 2), low),
        ("mean", (1000, reward[best]), "max r", (0, 2), low),
        ("mean", (0.01, expectation(log_ref, reward)), "mean under π$_\\mathrm{ref}$", (0, -3), high),
    ]
    for name, place, note, offset, side in limits:
        axes[name].axhline(place[1], **GUIDE)
        axes[name].annotate(note, place, offset, textcoords="offset points", **side, **SMALL)
    return figure


def draw_completions():
    """How many terms Z has, by `count_completions`, against the length; dots mark the first length past 10^80."""
    title = "Z has one term per completion: soon more than there are atoms"
    figure, axes = panels(title, 3.8, [["count"]])
    axis, atoms, lengths = axes["count"], 10**80, range(1, 151)
    # V, its line style, and where to write V: beside the line
    for vocab_size, style, place in ((5, SOLID, (104, 54)), (256, DASHED, (53, 120)), (50257, DASHDOT, (28, 120))):
        terms = [log10(count_completions(vocab_size, length)) for length in lengths]
        axis.plot(lengths, terms, label=f"V = {vocab_size:,}", **style)
        axis.text(*place, f"V = {vocab_size:,}")
        first = next(length for length in count(1) if count_completions(vocab_size, length) > atoms)
        axis.plot(first, log10(count_completions(vocab_size, first)), **DOT)
        axis.annotate(f"T = {first}", (first, 80), (3, -5), textcoords="offset points", va="top", **SMALL)
    axis.axhline(log10(atoms), **GUIDE)
    axis.text(83, 82, "atoms in the observable universe, about", ha="center", va="bottom", **SMALL)
    axis.set(xlabel="length T (tokens, at most)", ylabel="number of completions", xlim=(0, 150), ylim=(0, 160))
    axis.set_yticks(range(0, 161, 20), [f"$10^{{{k}}}$" for k in range(0, 161, 20)])
    return figure


def draw_losses():
    """Each of the `MARGIN_LOSSES`, value and slope, against x = βh at β = 1, where a slope by h is one by x as well.

    A dot marks a value that is least at a finite x, and says at which.
    """
    names, half = [*MARGIN_LOSSES, "key"], (len(MARGIN_LOSSES) + 2) // 2
    mosaic = [names[:half], names[half:]]
    figure, axes = panels("The losses of the margin, at β = 1", 5.2, *([row] for row in mosaic))
    h = torch.linspace(-4, 6, 10001, dtype=torch.float64)
    sigmoid = MARGIN_LOSSES["sigmoid"].value(h, beta=1)
    for name, loss in MARGIN_LOSSES.items():
        axis, value = axes[name], loss.value(h, beta=1)
        axis.axhline(0, color="0.85", linewidth=0.8)
        axis.plot(h, sigmoid, label="sigmoid's value", color="0.65", linewidth=1)
        axis.plot(h, value, label="value ℓ (nats; ipo: nats²)", **SOLID)
        axis.plot(h, loss.slope(h, beta=1), label="slope ℓ′ (per nat of h)", **DASHED)
        least = value.argmin()
        if value[least] < min(value[0], value[-1]):
            axis.plot(h[least], value[least], label="least value at a finite x", **DOT)
            note = f"x = {number(h[least])}"
            axis.annotate(note, (h[least], value[least]), (3, -9), textcoords="offset points", va="top", **SMALL)
        axis.set_title(name if loss.smoothing is None else f"{name}, ε = {loss.smoothing}", **HEADING)
        axis.set(xlim=(-4, 6), ylim=(-2.2, 4.2), xticks=range(-4, 7, 2))
        axis.set_xlabel("x = βh (units of reward)", **SMALL)
        axis.set_ylabel("ℓ, ℓ′")
        keep_left(axis, name in (mosaic[0][0], mosaic[1][0]))
    key = axes["key"].legend(
        handles=axes["cdpo"].get_legend_handles_labels()[0], loc="center", handlelength=1.7, **LEGEND
    )
    key.set_in_layout(False)
    axes["key"].axis("off")
    return figure


def draw_weight():
    """How hard a pair is pushed, `gradient_weight`, against its margin: how wrong the implicit reward is about it."""
    title = "The gradient's weight σ(−βh): how wrong the implicit reward is"
    figure, axes = panels(title, 3.8, [["weight"]])
    axis, h = axes["weight"], torch.arange(-600, 601, dtype=torch.float64) / 10
    axis.axvspan(-60, 0, color="0.93", linewidth=0)
    axis.axvline(0, **GUIDE)
    for beta, style in ((0.05, SOLID), (0.1, DASHED), (0.5, DASHDOT)):
        axis.plot(h, gradient_weight(h, beta), label=f"β = {beta:g}", **style)
    axis.plot(0, gradient_weight(tensor(0), beta=0.1), **DOT)
    axis.annotate("h = 0: weight ½,\nundecided", (0, 0.5), (10, 4), textcoords="offset points", **SMALL)
    axis.text(-30, 0.2, "ranked wrongly: weight above ½", ha="center")
    axis.text(30, 0.8, "ranked rightly: weight below ½", ha="center")
    axis.legend(loc="center right", **LEGEND)
    axis.set(xlabel="margin h (nats)", ylabel="weight (a probability)", xlim=(-60, 60), ylim=(-0.02, 1.02))
    return figure


FIGURES = {
    "gaussians": draw_gaussians,
    "argmax": draw_argmax,
    "optimal_policy": draw_optimal_policy,
    "completions": draw_completions,
    "losses": draw_losses,
    "weight": draw_weight,
}


def main():
    """Write each picture as NAME.png and print its path."""
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/derivation.md.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), metavar="DIR", help="default: %(default)s")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        # Without the writer's version in it, the same picture is the same file.
        draw().savefig(out / f"{name}.png", dpi="figure", metadata={"Software": None})
        print(out / f"{name}.png")


if __name__ == "__main__":
    main()
