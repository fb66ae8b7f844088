"""What one needs to know about preference data, each lesson from a run: writes data.md and its pictures.

    python -m experiments.lessons [--out docs]

The language can be listed, so reward, KL and the distance from π_r are exact; only the data are drawn.
"""

import argparse
import copy
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.rows import TokenizedPair
from dpo_min.losses import LOSSES
from dpo_min.objective import expectation, kl_divergence, objective, optimal_policy
from dpo_min.preference import margin
from dpo_min.rl.rlhf import update
from dpo_min.run.optimizer import schedule
from experiments import theorem
from experiments.frontier_page import table

SEEDS = (0, 1, 2)
BATCH = 100  # pairs to a step
HELD_OUT = 20_000  # pairs that only measure


def draw(weights, count, seed):
    """Preferences drawn from `weights` (Y, Y), as indices (count, 2): chosen, rejected."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.multinomial(weights.flatten(), count, replacement=True, generator=generator)
    return torch.stack([flat // len(weights), flat % len(weights)], dim=1)


def fit(world, pairs, held_out, steps, measure_every, beta=None, shape="cosine", seed=0):
    """Train a copy of the reference by DPO on `pairs` (N, 2), as many passes as `steps` take; measured as it goes.

    Returns a list of dicts: passes, exact kl, reward and distance from π_r, and on held-out and trained pairs the mean
    loss, and the implicit reward's margin.
    """
    beta, generator = beta or world.beta, torch.Generator().manual_seed(seed)
    policy = copy.deepcopy(world.reference).requires_grad_(True)
    batch = pack([TokenizedPair(theorem.PROMPT, list(y), list(y)) for y in world.completions], chosen_only=True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0)
    optimum, points, order = optimal_policy(world.log_ref, world.reward, beta), [], torch.empty(0, dtype=torch.long)

    def gap(log_policy, rows):
        (i, j), ref = rows.T, world.log_ref
        return margin(log_policy[i], log_policy[j], ref[i], ref[j])  # (B,)

    for step in range(steps + 1):
        log_policy = batch_logps(policy, batch)  # (Y,) every answer, so that the exact policy is at hand
        if step % measure_every == 0 or step == steps:
            now = log_policy.detach()
            h, outside = gap(now, pairs), gap(now, held_out)
            points.append(
                {
                    "passes": step * BATCH / len(pairs),
                    "kl": kl_divergence(now, world.log_ref).item(),
                    "reward": expectation(now, world.reward).item(),
                    "distance": kl_divergence(now, optimum).item(),
                    "held_out": LOSSES["sigmoid"].value(outside, beta).mean().item(),
                    "loss": LOSSES["sigmoid"].value(h, beta).mean().item(),
                    "margin": beta * h.mean().item(),
                }
            )
        if step == steps:
            return points
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(pairs), generator=generator)])
        rows, order = pairs[order[:BATCH]], order[BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * schedule(shape, step + 1, steps, 20)
        update(optimizer, LOSSES["sigmoid"].value(gap(log_policy, rows), beta).mean())


def mean(values):
    """Of a generator of numbers."""
    return statistics.fmean(list(values))


def picture(path, title, *axes_of):
    """A row of panels; each of `axes_of` draws one and returns its labels."""
    figure, axes = plt.subplots(1, len(axes_of), figsize=(4.6 * len(axes_of), 3.7), layout="constrained", squeeze=False)
    figure.suptitle(title, fontsize=11)
    for axis, draw_panel in zip(axes[0], axes_of, strict=True):
        draw_panel(axis)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


SOLID, DASHED, DOTTED = (
    {"color": c, "linestyle": s} for c, s in (("black", "-"), ("tab:blue", "--"), ("tab:red", ":"))
)


def run_pairs(world, path, sizes=(300, 1000, 3000, 10_000, 30_000), steps=300):
    """How many pairs: KL(π‖π_r) against N, at the end and where the held-out loss was lowest."""
    weights = theorem.all_preferences(world)
    constant, held_out = theorem.asymptotic_kl(world, weights), draw(weights, HELD_OUT, 999)
    last, best = [], []
    for n in sizes:
        runs = [fit(world, draw(weights, n, seed), held_out, steps, 10, seed=seed) for seed in SEEDS]
        last.append([run[-1]["distance"] for run in runs])
        best.append([min(run, key=lambda point: point["held_out"])["distance"] for run in runs])

    def panel(axis):
        for found, name, style, marker in (
            (last, "last step", DASHED, "o"),
            (best, "lowest held-out loss", SOLID, "s"),
        ):
            axis.loglog(sizes, [mean(row) for row in found], marker=marker, markersize=4, label=name, **style)
        axis.loglog(sizes, [constant / n for n in sizes], label=f"large N: {constant:.1f}/N", **DOTTED)
        axis.set(xlabel="pairs N", ylabel="KL(π‖π_r) (nats)")

    picture(path, f"A GPT, {steps} steps of {BATCH} pairs", panel)
    rows = [
        (f"{n:,}", f"{steps * BATCH / n:.1f}", f"{mean(a):.4f}", f"{mean(b):.4f}", f"{constant / n:.4f}")
        for n, a, b in zip(sizes, last, best, strict=True)
    ]
    heads = ("N", "passes", "last step", "lowest held-out loss", f"{constant:.1f}/N")
    start = kl_divergence(world.log_ref, world.optimum).item()
    return {"table": table(heads, rows), "start": start, "constant": f"{constant:.1f}", "steps": steps, "batch": BATCH}


def run_noise(world, path, rates=(0.0, 0.05, 0.1, 0.2, 0.3, 0.4)):
    """Label noise: where unlimited data end, with the noise ignored, and with its rate known."""
    found = {"sigmoid": [], "robust": []}
    for rate in rates:
        weights = theorem.all_preferences(world, rate)
        for name in found:
            told = (name, rate) if name == "robust" and rate else ("sigmoid", None)
            log_policy, _ = theorem.fit_table(world, weights, *told)
            found[name].append(
                (
                    kl_divergence(log_policy, world.log_ref).item(),
                    expectation(log_policy, world.reward).item(),
                    kl_divergence(log_policy, world.optimum).abs().item(),
                )
            )

    def panel(index, label):
        def fill(axis):
            for name, style, marker in (("sigmoid", SOLID, "o"), ("robust", DASHED, "s")):
                axis.plot(rates, [row[index] for row in found[name]], marker=marker, markersize=4, label=name, **style)
            axis.set(xlabel="rate of flipped labels", ylabel=label)

        return fill

    picture(path, "Unlimited data, labels flipped", panel(1, "E[r]"), panel(2, "KL(π‖π_r) (nats)"))
    rows = [
        (f"{rate:g}", *(f"{v:.3f}" for v in a), *(f"{v:.3f}" for v in b))
        for rate, a, b in zip(rates, found["sigmoid"], found["robust"], strict=True)
    ]
    heads = ("flipped", *(f"`{n}` {v}" for n in found for v in ("KL(π‖π_ref)", "E[r]", "KL(π‖π_r)")))
    return {"table": table(heads, rows)}


def run_sources(world, path, n=10_000_000, repeats=10):
    """Pairs from elsewhere: N · KL(π‖π_r) for large N, in theory and counted, by where the pairs are drawn."""
    sources = {
        "π_ref": world.log_ref,
        "π_r, the optimum": world.optimum,
        "half π_ref, half π_r": torch.logaddexp(world.log_ref, world.optimum) - torch.tensor(2.0).log(),
        "every answer alike": torch.zeros_like(world.log_ref).log_softmax(-1),
        "π_ref, sharpened (∝ π_ref²)": (2 * world.log_ref).log_softmax(-1),
        "π_ref tilted from r (∝ π_ref e^{−r})": optimal_policy(world.log_ref, -world.reward, 1.0),
    }
    names, theory, counted = list(sources), [], []
    for log_source in sources.values():
        weights = theorem.all_preferences(replace(world, log_ref=log_source))
        theory.append(theorem.asymptotic_kl(world, weights))
        counted.append(n * theorem.fit_samples(world, weights, [n], repeats)[0])

    def panel(axis):
        spots = range(len(names))
        axis.barh(spots, theory, color="0.75", edgecolor="0.4")
        means, errors = [c.mean().item() for c in counted], [2 * c.std().item() / repeats**0.5 for c in counted]
        style = {"fmt": "o", "color": "black", "markersize": 4}
        axis.errorbar(means, spots, xerr=errors, **style)
        axis.set_yticks(spots, names, fontsize=8)
        axis.set(xlabel="N · KL(π‖π_r) for large N", xscale="log")
        axis.invert_yaxis()

    picture(path, f"Pairs drawn from\n(bars: theory; dots: {repeats} data sets ± 2 s.e.)", panel)
    rows = [
        (k, f"{t:.0f}", f"{c.mean():.0f} ± {c.std() / repeats**0.5:.0f}", f"{t / 0.01:,.0f}")
        for k, t, c in zip(names, theory, counted, strict=True)
    ]
    heads = ("drawn from", "theory", f"counted, {repeats} sets of {n:,}, ± standard error", "pairs for 0.01 nats")
    return {"table": table(heads, rows)}


def run_epochs(world, path, n=100, steps=400, beta=0.05):
    """One epoch against many: the true reward and the implicit one by the number of passes over a small data set."""
    weights = theorem.all_preferences(world)
    held_out = draw(weights, HELD_OUT, 999)
    runs = [fit(world, draw(weights, n, seed), held_out, steps, 15, beta, "constant", seed) for seed in SEEDS]
    passes = [point["passes"] for point in runs[0]]

    def panel(*lines):
        def fill(axis):
            for key, name, style in lines:
                for run in runs:
                    axis.plot(
                        passes, [p[key] for p in run], label=name if run is runs[0] else None, linewidth=1, **style
                    )
            axis.set(xlabel="passes over the data", xscale="symlog", ylabel=lines[0][1])

        return fill

    picture(
        path,
        f"{n} pairs, β = {beta:g}, three data sets",
        panel(("reward", "true reward E[r]", SOLID)),
        panel(("margin", "implicit reward margin, trained pairs", DASHED)),
        panel(("held_out", "held-out loss", SOLID), ("loss", "loss on trained pairs", DASHED)),
    )
    moments = {m: passes.index(m) for m in (0, 15, 30, 60, 120, 240, 400) if m in passes}
    keys = ("reward", "margin", "kl", "held_out", "loss")
    rows = [(m, *(f"{mean(run[at][key] for run in runs):.3f}" for key in keys)) for m, at in moments.items()]
    best = [max(range(len(run)), key=lambda k, run=run: run[k]["reward"]) for run in runs]
    heads = ("passes", "true reward", "implicit margin", "KL(π‖π_ref)", "held-out loss", "loss")
    return {
        "table": table(heads, rows),
        "n": n,
        "beta": beta,
        "peaks": ", ".join(f"{run[k]['reward']:.2f} after {passes[k]:g}" for run, k in zip(runs, best, strict=True)),
        "ends": ", ".join(f"{run[-1]['reward']:.2f}" for run in runs),
        "stops": ", ".join(f"{min(run, key=lambda p: p['held_out'])['reward']:.2f}" for run in runs),
        "passes": f"{passes[-1]:.0f}",
    }


def run_length(path, prices=(0.0, 0.25, 0.5, 1.0, 2.0)):
    """Length-confounded preferences: a judge who pays for length, and a reward that does not."""
    world = theorem.make_world(vocab_size=3, max_new_tokens=4)
    lengths = torch.tensor([float(len(y)) for y in world.completions], dtype=torch.float64)
    rows = []
    for price in prices:
        judged = replace(world, reward=world.reward + price * lengths)
        log_policy, _ = theorem.fit_table(judged, theorem.all_preferences(judged))
        rows.append([expectation(log_policy, f).item() for f in (lengths, world.reward, judged.reward)])
        rows[-1].append(kl_divergence(log_policy, world.log_ref).item())
        rows[-1].append(objective(log_policy, world.log_ref, world.reward, world.beta).item())
    reference = {0: expectation(world.log_ref, lengths).item(), 4: expectation(world.log_ref, world.reward).item()}

    def panel(index, label):
        def fill(axis):
            axis.plot(prices, [row[index] for row in rows], marker="o", markersize=4, label="after DPO", **SOLID)
            axis.axhline(reference[index], label="reference", **DOTTED)
            axis.set(xlabel="what the judge pays for a token", ylabel=label)

        return fill

    picture(path, "A judge who also likes length", panel(0, "tokens an answer"), panel(4, "J(π) of the true reward"))
    heads = (
        "paid for a token",
        "tokens an answer",
        "true reward",
        "judge's reward",
        "KL(π‖π_ref)",
        "J(π) of the true reward",
    )
    text = table(heads, [(f"{price:g}", *(f"{v:.3f}" for v in row)) for price, row in zip(prices, rows, strict=True)])
    return {"table": text, "tokens": f"{reference[0]:.2f}", "reward": f"{reference[4]:.2f}"}


def run_beta(world, path, betas=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0), n=300, steps=300):
    """β too low and too high: what DPO makes of the same pairs, beside the optimum for each β."""
    weights = theorem.all_preferences(world)
    held_out = draw(weights, HELD_OUT, 999)
    ends = [[fit(world, draw(weights, n, s), held_out, steps, steps, b, seed=s)[-1] for s in SEEDS] for b in betas]
    optima = [optimal_policy(world.log_ref, world.reward, beta) for beta in betas]
    best = [(kl_divergence(o, world.log_ref).item(), expectation(o, world.reward).item()) for o in optima]
    found = [[mean(run[key] for run in runs) for key in ("kl", "reward", "distance")] for runs in ends]

    def panel(index, label):
        def fill(axis):
            axis.semilogx(betas, [b[index] for b in best], label="optimum, exactly", **DOTTED)
            axis.semilogx(betas, [f[index] for f in found], marker="o", markersize=4, label=f"DPO, {n} pairs", **SOLID)
            axis.set(xlabel="β", ylabel=label)

        return fill

    picture(path, f"The same {n} pairs, β by β", panel(1, "true reward E[r]"), panel(0, "KL(π‖π_ref) (nats)"))
    heads = ("β", "KL(π‖π_ref)", "optimum's", "E[r]", "optimum's")
    rows = [
        (f"{b:g}", f"{f[0]:.3f}", f"{o[0]:.3f}", f"{f[1]:.3f}", f"{o[1]:.3f}")
        for b, f, o in zip(betas, found, best, strict=True)
    ]
    return {"table": table(heads, rows), "n": n, "steps": steps, "passes": steps * BATCH // n}


def main():
    """Run every lesson, write its picture, then the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="directory of data.md (default: docs)")
    out = parser.parse_args().out
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # matrices this small gain nothing from a second
    world = theorem.make_world(vocab_size=5, max_new_tokens=2)
    lessons = {
        "pairs": lambda path: run_pairs(world, path),
        "noise": lambda path: run_noise(world, path),
        "sources": lambda path: run_sources(world, path),
        "epochs": lambda path: run_epochs(world, path),
        "length": lambda path: run_length(path),
        "beta": lambda path: run_beta(world, path),
    }
    sections = []
    for name, lesson in lessons.items():
        numbers = lesson(figures / f"data-{name}.png")
        sections.append(TEXT[name].format(**numbers))
        print(f"{name}\n{numbers['table']}", flush=True)
    (out / "data.md").write_text(INTRODUCTION + "\n".join(sections), encoding="utf-8")
    print(f"written: {out / 'data.md'}")


INTRODUCTION = """# What one needs to know about preference data

`make frontier` wrote this page. The language can be listed, as in [proof.md](proof.md): 21 answers, a GPT with random
weights as the reference, a standard normal reward, β = 0.5 where nothing else is said. So reward, KL and the distance
from the optimum π_r are exact, and only the data are drawn.

"""
TEXT = {
    "pairs": """## How many pairs it takes

**For many pairs the distance falls like 1/N; with few it depends on when one stops.** A GPT takes {steps} steps of
{batch} pairs whatever N is, so a small data set is seen many times. At the start KL(π‖π_r) = {start:.2f}.
"{constant}/N" is what theory says of the best policy on N pairs, for large N ([proof.md](proof.md), c). Means over
three data sets.

{table}

Seeing a few hundred pairs over and over ends further from the optimum than stopping where the loss on held-out pairs
is lowest, which is what `best/` of a run holds. With more pairs the two are one. At 30,000, a single pass, it is the
number of steps that sets the distance, no longer the data.

![Distance from the optimum against the number of pairs](figures/data-pairs.png)
""",
    "noise": """## Label noise

**A wrong label is not only noise: it pulls the policy back to the reference.** With labels flipped at a rate ε,
unlimited data take `sigmoid` to a policy that believes preferences to be milder than they are. `robust`, if it is
told ε, ends in π_r.

{table}

![Where DPO ends by the rate of flipped labels](figures/data-noise.png)
""",
    "sources": """## Pairs from the reference, and from elsewhere

**With unlimited data it does not matter who wrote the answers, as long as all are compared; with limited data it
does.** For large N, N · KL(π‖π_r) tends to a number, here by theory and as counted. Half of the pairs' answers from
the reference and half from the optimum serve best of these six; answers that are bad and rare in the optimum serve
worst, as the answers that matter are then hardly ever compared.

{table}

![N times the distance, by where the pairs are drawn](figures/data-sources.png)
""",
    "epochs": """## One epoch, and many

**The implicit reward only rises; the true reward rises and then may fall.** {n} pairs, β = {beta}, a constant
learning rate, {passes} passes. In the three data sets the true reward was highest
at {peaks} passes, and ended at {ends}. Where the held-out loss was lowest it was {stops}.
The held-out loss turns; the loss on trained pairs never does.

{table}

![True reward, implicit margin and losses by the number of passes](figures/data-epochs.png)
""",
    "length": """## Preferences that go with length

**DPO learns what the labels say, not what was meant.** A judge who pays for each token besides the true reward,
unlimited data, answers of at most four tokens, 31 of them; the reference's have {tokens} tokens and earn {reward}.
The labels are consistent and the loss has nothing to complain of. The policy moves to long answers, and the KL that
it spends on length buys no true reward: J of the true reward falls.

{table}

![Length and the objective of the true reward by what the judge pays](figures/data-length.png)
""",
    "beta": """## β too low and too high

**High β stays near the reference by design; low β does not know when a pair has been learnt.** The same {n} pairs
({passes} passes), three data sets. From the top down, DPO follows the optimum. Where β is lowest the optimum's reward
is highest and DPO's falls: every pair pulls with the weight σ(−βh), which at a small β stays near ½ however large the
margin h has become, so pairs that are right already pull as hard as those that are not, and wrong labels as hard as
any.

{table}

![Reward and drift against β, DPO beside the optimum](figures/data-beta.png)
""",
}


if __name__ == "__main__":
    sys.exit(main())
