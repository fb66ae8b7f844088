"""The proof, written out: runs theorem.py and writes proof.md and its pictures.

    python -m experiments.proof [--out docs]

Prints each of the seven results as it comes; exit code 1 if one misses its threshold.
"""

import argparse
import math
import sys
from pathlib import Path

import torch

from dpo_min.margin_losses import MARGIN_LOSSES
from dpo_min.objective import expectation, kl_divergence, objective, optimal_policy
from dpo_min.system.picture import pyplot, save
from experiments import endings_page, theorem
from experiments.pages import scale_kl
from experiments.theorem import FLIPS

plt = pyplot()

TABLE_KL, GPT_KL, SLOPE_ERROR = 1e-10, 1e-3, 0.05  # thresholds: nats, nats, distance of the fitted slope from −1


def spell(completion, end_of_text):
    """A completion in letters, with a full stop for end-of-text."""
    return "".join("." if token == end_of_text else "abcdefgh"[token] for token in completion)


# Pictures: every line has a style of its own, so that they read in black and white.


def draw_gpt(world, log_policy, distances, path):
    """Left: the GPT's distance from π_r at every step. Right: its probabilities against π_r's and the reference's."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    left.semilogy([max(d, 1e-7) for d in distances], color="black")
    left.axhline(GPT_KL, color="0.4", linestyle=":", label=f"threshold, {GPT_KL:g} nats")
    left.set(xlabel="step", ylabel="KL(π‖π_r) (nats)", title="DPO on all preferences at once")
    left.legend(fontsize=8)
    optimum = world.optimum.exp()
    right.loglog(optimum, world.log_ref.exp(), "x", color="0.6", markersize=4, label="reference, before")
    right.loglog(optimum, log_policy.exp(), ".", color="black", markersize=4, label="GPT, after")
    ends = [optimum.min().item(), 1]
    right.loglog(ends, ends, color="0.4", linewidth=0.8)
    right.set(
        xlabel="π_r(y), computed from the reward", ylabel="π(y) of the model", title="every completion is a point"
    )
    right.legend(fontsize=8)
    save(figure, path)


def draw_samples(sizes, distances, slope, half, constant, path):
    """KL(π‖π_r) against the number of sampled pairs, with the theory's line."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for n, row in zip(sizes, distances, strict=True):
        axis.loglog(
            [n] * len(row), row, "x", color="0.6", markersize=4, label="one data set" if n == sizes[0] else None
        )
    axis.loglog(sizes, distances.mean(dim=-1), "o", color="black", markersize=5, label="their mean")
    axis.loglog(sizes, [constant / n for n in sizes], color="black", label=f"theory: {constant:.1f}/N")
    axis.set(xlabel="sampled pairs N", ylabel="KL(π‖π_r) (nats)", title=f"fitted slope {slope:.3f} ± {half:.3f}")
    axis.legend(fontsize=8)
    save(figure, path)


def draw_losses(world, fits, path):
    """Where each loss ends, by E[r] against KL(π‖π_ref); the line is the best that any policy can do."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    betas = torch.logspace(-0.5, 1.3, 60, dtype=torch.float64).tolist()
    best = [place(world, optimal_policy(world.log_ref, world.reward, beta)) for beta in betas]
    for axis, flips in zip(axes, (0.0, FLIPS), strict=True):
        axis.plot(*zip(*best, strict=True), color="0.7", zorder=0, label="π_r for every β")
        axis.plot(*place(world, world.optimum), "*", color="0.7", markersize=18, label=f"π_r for β = {world.beta:g}")
        for name, marker in zip(MARGIN_LOSSES, "osP^vDXph8d<>", strict=False):
            log_policy, _ = fits[name, flips]
            if not log_policy.isnan().any():
                axis.plot(*place(world, log_policy), marker, color="black", markerfacecolor="none", label=name)
        axis.set(xlabel="KL(π‖π_ref) (nats)", ylabel="E[r] (units of reward)")
        axis.set_title(f"labels flipped at rate {flips:g}" if flips else "true labels")
        axis.legend(fontsize=8, loc="lower right")
        scale_kl(axis)
    save(figure, path)


def value(world, log_policy):
    """J(π), a number."""
    return objective(log_policy, world.log_ref, world.reward, world.beta).item()


def place(world, log_policy):
    """(KL(π‖π_ref), E_π[r]), two numbers."""
    return kl_divergence(log_policy, world.log_ref).item(), expectation(log_policy, world.reward).item()


def draw_displacement(world, history, chosen, rejected, names, path):
    """Left: both log-probabilities against the step, and the margin. Right: every completion before and after."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    change = history - world.log_ref
    left.plot(change[:, chosen], color="black", label=f"chosen, {names[chosen]}")
    left.plot(change[:, rejected], color="black", linestyle="--", label=f"rejected, {names[rejected]}")
    left.plot(change[:, chosen] - change[:, rejected], color="0.5", linestyle=":", linewidth=2, label="margin h")
    left.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    left.set(xlabel="step", ylabel="log π − log π_ref (nats)", title="both sides fall, the margin grows")
    left.legend(fontsize=8)
    spots = range(len(names))
    right.bar(
        [k - 0.2 for k in spots], history[0].exp().tolist(), 0.4, color="white", edgecolor="black", label="before"
    )
    right.bar([k + 0.2 for k in spots], history[-1].exp().tolist(), 0.4, color="0.4", edgecolor="black", label="after")
    right.set(xlabel="completion", ylabel="π(y)", title="where the mass went")
    right.set_xticks(spots, names)
    right.legend(fontsize=8)
    save(figure, path)


def distance(log_policy, world):
    """KL(π‖π_r) in nats, a number; its absolute value, as rounding may leave it at −1e−16."""
    return kl_divergence(log_policy, world.optimum).abs().item()


def run_table(world, report):
    """(a) The policy that is free at every completion."""
    log_policy, _ = theorem.fit_table(world, theorem.all_preferences(world))
    found = distance(log_policy, world)
    report.result(
        "A table reaches the optimum",
        found <= TABLE_KL,
        f"KL(π‖π_r) = {found:.1e} nats, at most {TABLE_KL:g} wanted",
        f"""
The policy is one free number for each of the {len(world.completions)} completions. L-BFGS minimises DPO's loss over all
pairs in float64. At the start, KL(π_ref‖π_r) = {distance(world.log_ref, world):.3f} nats.""",
    )


def run_gpt(world, report):
    """(b) A GPT, trained as train.py trains."""
    log_policy, distances = theorem.fit_gpt(world, theorem.all_preferences(world))
    draw_gpt(world, log_policy, distances, report.picture("proof-gpt.png"))
    found = distance(log_policy, world)
    report.result(
        "A GPT reaches it too",
        found <= GPT_KL,
        f"KL(π‖π_r) = {found:.1e} nats, at most {GPT_KL:g} wanted",
        f"""
The same loss goes through the project's own path: batch → log-probabilities → margin → loss → AdamW, in float32,
{len(distances)} steps from a copy of the reference. The loss sees how often each answer is preferred to each other one,
never the reward.

![KL to the optimum by step, and every probability against the optimum's](figures/proof-gpt.png)""",
    )


def run_samples(report, repeats=100):
    """(c) Finite data."""
    world = theorem.make_world(vocab_size=5, max_new_tokens=2)
    weights = theorem.all_preferences(world)
    sizes = [round(10 ** (k / 2)) for k in range(8, 15)]  # 10⁴ … 10⁷: with fewer, some answer never wins or never loses
    distances = theorem.fit_samples(world, weights, sizes, repeats)
    slope, half = theorem.fit_slope(sizes, distances)
    constant = theorem.asymptotic_kl(world, weights)
    draw_samples(sizes, distances, slope, half, constant, report.picture("proof-samples.png"))
    errors = distances.std(dim=-1) / math.sqrt(repeats)
    rows = "\n".join(
        f"| {n:,} | {mean:.2e} | {n * mean:.1f} ± {n * error:.1f} |"
        for n, mean, error in zip(sizes, distances.mean(dim=-1), errors, strict=True)
    )
    report.result(
        "With N pairs the distance falls like 1/N",
        abs(slope + 1) <= SLOPE_ERROR,
        f"slope of log KL against log N: {slope:.3f} ± {half:.3f} (95 %), within {SLOPE_ERROR:g} of −1 wanted",
        f"""
Answers have at most two tokens ({len(world.completions)} completions). N pairs are drawn from the reference and
judged once each; there are {repeats} data sets of every size. Theory: N times the mean KL tends to ½ tr(A B⁺) =
{constant:.1f}, A and B being the matrices of second derivatives, by log π at π_r, of KL(π‖π_r) and of the mean
loss. The law is for large N: with a thousand pairs some answer may never have won or never have lost, and then no best
policy exists.

| N | mean KL(π‖π_r), nats | N · KL ± standard error |
|---|---|---|
{rows}

![KL against N on logarithmic axes, with the theory's line](figures/proof-samples.png)""",
    )


def run_losses(world, report):
    """(d) Every loss, with true labels and with flipped ones."""
    fits = theorem.fit_losses(world)
    draw_losses(world, fits, report.picture("proof-losses.png"))
    recovered = [key for key, (log_policy, _) in fits.items() if distance(log_policy, world) <= TABLE_KL]
    rows = []
    for (name, flips), (log_policy, lowest) in fits.items():
        kl, mean = place(world, log_policy)
        figures = f"{distance(log_policy, world):.1e} | {kl:.3f} | {mean:.3f} | {value(world, log_policy):.3f}"
        verdict = "**yes**" if (name, flips) in recovered else "no"
        if log_policy.isnan().any():
            figures, verdict = "– | – | – | –", f"no: the loss fell to {lowest:.1g} and on"
        rows.append(f"| {f'flipped at {flips:g}' if flips else 'true'} | `{name}` | {figures} | {verdict} |")
    table = "\n".join(rows)
    ipo = kl_divergence(fits["ipo", 0.0][0], theorem.ipo_optimum(world)).abs().item()
    cdpo = kl_divergence(fits["cdpo", 0.0][0], fits["sigmoid", FLIPS][0]).abs().item()
    report.result(
        "Which losses recover the optimum",
        recovered == [("sigmoid", 0.0), ("robust", FLIPS)],
        "π_r is recovered by " + " and ".join(f"`{name}` with flips at rate {flips:g}" for name, flips in recovered),
        f"""
The table is the same. The seven losses are minimised with β = {world.beta:g}, and ε = {FLIPS:g} where a loss has one. \
The largest J there is: {value(world, world.optimum):.3f}.

| labels | loss | KL(π‖π_r) | KL(π‖π_ref) | E[r] | J(π) | is it π_r? |
|---|---|---|---|---|---|---|
{table}

Two rows are π_r, and only two: `sigmoid` where labels are as Bradley and Terry's judge gave them, and `robust` where
they were then flipped at the rate that it was told. The rest, plainly:

- `sigmoid` on flipped labels takes them as true: it ends too near the reference. So does `cdpo`, on true labels
  already: its ε stands for flips, and the two end in the same policy (KL between them {cdpo:.0e} nats). `cdpo` bounds
  the margin; it does not undo the noise.
- `robust`, told of flips that did not happen, has no minimum: a pair with P(y_w ≻ y_l) > 1 − ε pulls its margin to
  infinity, and here some answers beat the rest with more than 1 − ε on average. The loss falls for ever.
- `ipo` ends at another optimum, exactly: that of the reward P(y beats a draw from π_ref), which lies between 0 and 1
  (KL to it {ipo:.0e} nats). The same β therefore keeps it nearer the reference here.
- `hinge` ends where some margins sit on its kink, βh = ±1. `exo_pair` asks of every pair βh = (2P − 1) logit(1 − ε).
- `discopop` ends below the reference's own E[r] of {place(world, world.log_ref)[1]:.3f}: at h = 0 it slopes upwards, so
  it begins by pushing pairs the wrong way, into a minimum at h < 0 that full batches do not leave.

![E[r] against KL for every loss, and the curve of all optima](figures/proof-losses.png)""",
    )


def run_displacement(report):
    """(e) Both log-probabilities fall."""
    world = theorem.make_world(vocab_size=3, max_new_tokens=2)
    found = theorem.displacements(world)
    count, names = len(world.completions), [spell(completion, 2) for completion in world.completions]
    worst = min(found, key=lambda pair: (found[pair][-1] - world.log_ref)[pair[0]].item())
    chosen, rejected = worst
    before, after = found[worst][0], found[worst][-1]
    draw_displacement(world, found[worst], *worst, names, report.picture("proof-displacement.png"))
    shared = "The two answers share parameters: the push away from one takes the other along."
    if (first := names[chosen][0]) == names[rejected][0]:
        shared = f"""Both begin with {first}, so the probability of that token
cancels in the margin and nothing holds it up. The pair teaches only what comes after it; the network shares its
parameters between positions, and says the same at the first token too."""
    gained = (after.exp() - before.exp()).argmax()
    roles = {chosen: "chosen", rejected: "rejected"}
    rows = "\n".join(
        f"| {name} | {p.exp():.4f} | {q.exp():.4f} | {q - p:+.3f} | {roles.get(k, '')} |"
        for k, (name, p, q) in enumerate(zip(names, before, after, strict=True))
    )
    report.result(
        "Likelihood displacement: both log-probabilities fall, and the margin grows",
        bool(found),
        f"{len(found)} of the {count * (count - 1)} ordered pairs show it",
        f"""
There are two letters, end-of-text is written as a full stop, and answers have at most two tokens, so that there
are {count} completions. A GPT takes 30 plain gradient steps on one pair alone (β = 0.1, learning rate
0.05), for each ordered pair. The clearest case,
{names[chosen]} preferred to {names[rejected]}:

| y | π_ref(y) | π(y) | log π − log π_ref | |
|---|---|---|---|---|
{rows}

The loss asks only that log π({names[chosen]}) − log π({names[rejected]}) grow. {shared} The mass goes
to {names[gained]}, which nobody mentioned. The gradient is right; one pair is too little to say where the mass should
go. A run reports it as `logps/chosen` falling.

![Both log-probabilities and the margin by step; every completion before and after](figures/proof-displacement.png)""",
    )


class Report:
    """The results as they come, printed and collected for proof.md; pictures lie in figures/ beside it."""

    def __init__(self, directory):
        self.directory, self.sections, self.missed = directory, [], 0
        (directory / "figures").mkdir(parents=True, exist_ok=True)

    def picture(self, name):
        """Where a picture is written."""
        return self.directory / "figures" / name

    def result(self, title, met, verdict, text):
        """Print one result, and keep it for the page."""
        self.missed += not met
        heading = f"({'abcdefg'[len(self.sections)]}) {title}"
        verdict = f"{verdict}: {'met' if met else 'MISSED'}"
        print(f"{heading}\n    {verdict}", flush=True)
        self.sections.append(f"## {heading}\n\n**{verdict}**\n{text}\n")

    def write(self):
        """Write proof.md."""
        (self.directory / "proof.md").write_text(INTRODUCTION + "\n".join(self.sections), encoding="utf-8")


INTRODUCTION = """# The theorem, run

`make proof` wrote this page. The language has five tokens, one of them end-of-text, and answers of at most four: every
answer can be listed, so π_r ∝ π_ref e^{r/β} is known exactly and so is KL(π‖π_r), how far a trained policy is from it.
The reference is a GPT with random weights, the reward a random number for each answer, β = 0.5. Preferences are
Bradley–Terry's over pairs drawn from the reference; "all pairs" means in expectation, each weighted by its probability.
Results (c), (e), (f) and (g) use smaller languages of the same kind.

"""


def main():
    """Run the seven parts, print each as it ends, write the page; 1 if a threshold is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs"), help="directory of proof.md (default: docs)")
    torch.set_num_threads(1)  # matrices this small gain nothing from a second
    report = Report(parser.parse_args().out)
    world = theorem.make_world(vocab_size=5, max_new_tokens=4)
    run_table(world, report)
    run_gpt(world, report)
    run_samples(report)
    run_losses(world, report)
    run_displacement(report)
    endings_page.run_endings(report)
    endings_page.run_displacement_by_loss(report)
    report.write()
    print(f"written: {report.directory / 'proof.md'}")
    return int(report.missed > 0)


if __name__ == "__main__":
    sys.exit(main())
