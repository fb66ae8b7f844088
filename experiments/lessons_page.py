"""The page of lessons.py: from what the lessons measured to docs/data.md and its pictures. It trains nothing."""

from statistics import fmean

from dpo_min.system.picture import pyplot, save, typeset
from experiments.pages import marked, scale_kl, table

plt = pyplot()

SOLID, DASHED, DOTTED = (
    {"color": c, "linestyle": s} for c, s in (("black", "-"), ("tab:blue", "--"), ("tab:red", ":"))
)
DOTS = {"marker": "o", "markersize": 4}


def picture(title, rows=1, columns=1, size=(4.6, 3.7)):
    """A figure and its axes, in reading order."""
    shape = size[0] * columns, size[1] * rows
    figure, axes = plt.subplots(rows, columns, figsize=shape, layout="constrained", squeeze=False)
    figure.suptitle(title, fontsize=11)
    return figure, axes.flatten()


def finish(figure, path):
    """A legend for each new set of names, then the file."""
    shown = []
    for axis in figure.axes:
        labels = axis.get_legend_handles_labels()[1]
        if labels and labels not in shown:  # the same names again would be said twice
            shown.append(labels)
            axis.legend(fontsize=8, frameon=False)
    save(figure, path)


def draw_pairs(path, found, sizes, steps):
    """KL(π‖π_r) against N."""
    figure, (axis,) = picture(f"A GPT after {steps} steps, and where the held-out loss was lowest")
    for key, name, style, marker in (("last", "last step", DASHED, "o"), ("best", "lowest held-out loss", SOLID, "s")):
        axis.loglog(sizes, [fmean(row) for row in found[key]], marker=marker, markersize=4, label=name, **style)
    constant = found["constant"]
    axis.loglog(sizes, [constant / n for n in sizes], label=f"theory for large N: {constant:.1f}/N", **DOTTED)
    axis.set(xlabel="pairs N", ylabel="KL(π‖π_r) (nats)")
    finish(figure, path)
    rows = [
        (f"{n:,}", f"{steps * 100 / n:.1f}", f"{fmean(a):.4f}", f"{fmean(b):.4f}", f"{constant / n:.4f}")
        for n, a, b in zip(sizes, found["last"], found["best"], strict=True)
    ]
    heads = ("N", "passes", "last step", "lowest held-out loss", f"{constant:.1f}/N")
    return {
        "table": table(heads, rows),
        "constant": f"{constant:.1f}",
        "steps": steps,
        "start": f"{found['start']:.2f}",
    }


def draw_noise(path, found, rates):
    """E[r], and KL(π‖π_r), against the rate of flipped labels."""
    figure, axes = picture("Unlimited data with flipped labels", columns=2)
    for axis, index, label in zip(axes, (1, 2), ("true reward E[r]", "KL(π‖π_r) (nats)"), strict=True):
        for name, style, marker in (("sigmoid", SOLID, "o"), ("robust", DASHED, "s")):
            values = [row[index] for row in found[name]]
            axis.plot(rates, values, marker=marker, markersize=4, label=name, clip_on=False, **style)
        axis.set(xlabel="rate of flipped labels", ylabel=label)
    scale_kl(axes[1], "y")
    finish(figure, path)
    rows = [
        (f"{rate:g}", *(f"{v:.3f}" for name in ("sigmoid", "robust") for v in found[name][i]))
        for i, rate in enumerate(rates)
    ]
    heads = [f"`{name}` {v}" for name in ("sigmoid", "robust") for v in ("KL(π‖π_ref)", "E[r]", "KL(π‖π_r)")]
    return {"table": table(("flipped", *heads), rows)}


def draw_sources(path, found, pairs, repeats):
    """N · KL(π‖π_r) by where the pairs are drawn: theory, and the mean over data sets with two standard errors."""
    figure, (axis,) = picture("How far from the optimum N pairs end, by where they are drawn", size=(7.6, 3.4))
    spots = range(len(found))
    for i, f in enumerate(found.values()):
        name = f"mean of {repeats} data sets ± 2 standard errors" if i == 0 else None
        axis.errorbar(f["counted"], i, xerr=2 * f["error"], color="black", capsize=2, label=name, **DOTS)
    theory = [f["theory"] for f in found.values()]
    axis.plot(theory, spots, "D", color="tab:red", markersize=8, markerfacecolor="none", label="theory")
    axis.set_yticks(spots, map(typeset, found))
    axis.set(xlabel="N · KL(π‖π_r) for large N (nats)", xscale="log", ylim=(len(found) - 0.5, -0.5))
    axis.set_xticks([30, 100, 300, 1000, 3000], ["30", "100", "300", "1,000", "3,000"])
    axis.grid(axis="y", color="0.9")
    finish(figure, path)
    rows = [
        (name, f"{f['theory']:.0f}", f"{f['counted']:.0f} ± {f['error']:.0f}", f"{f['theory'] / 0.01:,.0f}")
        for name, f in found.items()
    ]
    heads = ("drawn from", "theory", f"counted, {repeats} sets of {pairs:,}, ± standard error", "pairs for 0.01 nats")
    widest = max(found.values(), key=lambda f: f["largest"])
    return {
        "table": table(heads, rows),
        "share": f"{widest['largest']:.0%}",
        "mean": f"{widest['theory']:,.0f}",
        "deviation": f"{widest['error'] * repeats**0.5:,.0f}",
    }


def draw_epochs(path, found, pairs, steps, beta):
    """True reward, implicit margin and both losses by the number of passes; a line style for each data set."""
    figure, axes = picture(f"{pairs} pairs seen many times, β = {beta:g}", rows=2, columns=2, size=(4.6, 3.0))
    labels = {"reward": "true reward E[r]", "margin": "implicit margin βh, trained pairs"}
    labels |= {"held_out": "loss on held-out pairs (nats)", "loss": "loss on trained pairs (nats)"}
    passes = [point["passes"] for point in found[0]]
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for i, (run, style) in enumerate(zip(found, (SOLID, DASHED, DOTTED), strict=True)):
            axis.plot(passes, [p[key] for p in run], linewidth=1.6, label=f"data set {i + 1}", **style)
        axis.set(xlabel="passes over the data", ylabel=label, xlim=(0, passes[-1]))
    finish(figure, path)
    shown = (0, 15, 30, 60, 120, 240, 400)
    rows = [
        (f"{passes[at]:g}", *(f"{fmean(run[at][key] for run in found):.3f}" for key in (*labels, "kl")))
        for at in range(len(passes))
        if passes[at] in shown
    ]
    best = [max(range(len(run)), key=lambda k, run=run: run[k]["reward"]) for run in found]
    heads = ("passes", "true reward", "implicit margin", "held-out loss", "loss", "KL(π‖π_ref)")
    return {
        "table": table(heads, rows),
        "pairs": pairs,
        "beta": beta,
        "passes": f"{passes[-1]:.0f}",
        "peaks": " / ".join(f"{run[k]['reward']:.2f}" for run, k in zip(found, best, strict=True)),
        "moments": " / ".join(f"{passes[k]:g}" for k in best),
        "ends": " / ".join(f"{run[-1]['reward']:.2f}" for run in found),
        "stops": " / ".join(f"{min(run, key=lambda p: p['held_out'])['reward']:.2f}" for run in found),
    }


def draw_length(path, found, prices):
    """Tokens of an answer, and J of the true reward, by what the judge pays for a token."""
    figure, axes = picture("A judge who also likes length", columns=2)
    labels = {"tokens": "tokens of an answer", "objective": "J(π) of the true reward"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        axis.plot(prices, [end[key] for end in found["ends"]], label="after DPO", **DOTS, **SOLID)
        axis.axhline(found["reference"][key], label="reference", **DOTTED)
        axis.set(xlabel="what the judge pays for a token", ylabel=label)
    finish(figure, path)
    heads = ("paid for a token", *"tokens|true reward|judge's reward|KL(π‖π_ref)|J(π) of the true reward".split("|"))
    rows = [
        (f"{price:g}", *(f"{v:.3f}" for v in end.values())) for price, end in zip(prices, found["ends"], strict=True)
    ]
    reference = found["reference"]
    return {"table": table(heads, rows), "tokens": f"{reference['tokens']:.2f}", "reward": f"{reference['reward']:.2f}"}


def draw_beta(path, found, betas, pairs, steps):
    """Reward and drift against β: DPO on the same pairs, and the optimum as a curve."""
    figure, axes = picture(f"The same {pairs} pairs under six β", columns=2)
    for axis, key, label in zip(axes, ("reward", "kl"), ("true reward E[r]", "KL(π‖π_ref) (nats)"), strict=True):
        curve = [(point["beta"], point[key]) for point in found["curve"]]
        axis.semilogx(*zip(*curve, strict=True), label="optimum, exact", **DOTTED)
        axis.semilogx(betas, [end[key] for end in found["ends"]], label=f"DPO, {pairs} pairs", **DOTS, **SOLID)
        axis.set(xlabel="β", ylabel=label)
    scale_kl(axes[1], "y")
    finish(figure, path)
    rows = [
        (f"{beta:g}", *(f"{point[key]:.3f}" for key in ("kl", "reward") for point in (end, optimum)))
        for beta, end, optimum in zip(betas, found["ends"], found["optima"], strict=True)
    ]
    heads = ("β", "KL(π‖π_ref), DPO", "KL(π‖π_ref), optimum", "E[r], DPO", "E[r], optimum")
    return {"table": table(heads, rows), "pairs": pairs, "passes": steps * 100 // pairs}


DRAWS = {
    "pairs": draw_pairs,
    "noise": draw_noise,
    "sources": draw_sources,
    "epochs": draw_epochs,
    "length": draw_length,
    "beta": draw_beta,
}


def section(name, settings, found, figures):
    """A lesson's part of the page, Markdown; its picture goes to the directory `figures`."""
    return TEXT[name].format(**DRAWS[name](figures / f"data-{name}.png", found, **settings))


INTRODUCTION = """# What one needs to know about preference data

`make frontier` wrote this page. Every answer of its small language can be listed, as in [proof.md](proof.md): there are
21 answers, the reference is a GPT with random weights, each answer's reward is a standard normal number, and β is 0.5
unless a section says otherwise. So reward, KL and the distance from the optimum π_r are exact. Only the data are drawn.

"""
TEXT = {
    "pairs": """## How many pairs it takes

**With many pairs the distance from the optimum falls like 1/N. With few pairs it depends on when the training stops.**
A GPT takes {steps} steps of 100 pairs whatever N is, so it sees a small data set many times. At the start KL(π‖π_r) is
{start}. The last column is what theory says of the best policy on N pairs when N is large
([proof.md](proof.md), c). The numbers are means over three data sets.

{table}

If a few hundred pairs are seen over and over, the last step lies further from the optimum than the step at which the
loss on held-out pairs was lowest. A run keeps the weights of that step in `best/`. With more pairs the two steps
coincide. At 30,000 pairs, which is a single pass, the number of steps limits the distance, and the data no longer do.

![Distance from the optimum against the number of pairs](figures/data-pairs.png)
""",
    "noise": """## Label noise

**A wrong label does not only add noise: it pulls the policy back to the reference.** If labels are flipped at a rate ε,
unlimited data take `sigmoid` to a policy that believes preferences to be milder than they are. `robust` ends in π_r if
it is told ε.

{table}

![Where DPO ends by the rate of flipped labels](figures/data-noise.png)
""",
    "sources": """## Pairs from the reference, and from elsewhere

**With unlimited data it does not matter who wrote the answers, as long as all of them are compared. With limited data
it does.** For large N, N · KL(π‖π_r) tends to a number. The table shows this number by theory, and as it was counted.
Of the six sources, the best is the one that takes half of its answers from the reference and half from the optimum. The
worst draws answers that are bad and that the optimum hardly ever gives: the answers that matter are then hardly ever
compared.

{table}

The last row scatters most. There a single direction in the space of policies carries {share} of the mean, and along one
direction the distance is a squared normal number: one data set has N · KL of {mean} ± {deviation} (mean and standard
deviation). The mean of a few such data sets mostly lies well below the true mean, and so does a standard error that is
estimated from them. For that reason the standard errors here come from the theory, not from the data sets.

![N times the distance, by where the pairs are drawn](figures/data-sources.png)
""",
    "epochs": """## One epoch, and many

**The implicit reward only rises. The true reward rises, and then it may fall.** {pairs} pairs, β = {beta}, a constant
learning rate, {passes} passes. In the three data sets the true reward was highest at {peaks}, after {moments} passes.
It ended at {ends}. At the pass with the lowest held-out loss it was {stops}. The held-out loss turns upwards; the loss
on the trained pairs never does.

{table}

![True reward, implicit margin and losses by the number of passes](figures/data-epochs.png)
""",
    "length": """## Preferences that go with length

**DPO learns what the labels say, even where they reward something that nobody wanted.** Here the judge pays for each
token in addition to the true reward. Data are unlimited, and answers have at most four tokens, so that there are 31 of
them. The reference's answers have {tokens} tokens on average and earn {reward}. The labels are consistent, so the loss
shows nothing wrong. The policy moves to long answers. The KL that it spends on length buys no true reward, and J of the
true reward falls.

{table}

![Length and the objective of the true reward by what the judge pays](figures/data-length.png)
""",
    "beta": """## β too low and too high

**A high β stays near the reference by design. A low β does not notice when a pair has been learnt.** The same {pairs}
pairs ({passes} passes) under six β; means over three data sets. From β = 3 down to 0.1 DPO follows the optimum. At
lower β the optimum's reward is highest, and DPO's falls: every pair pulls with the weight σ(−βh), and at a small β this
weight stays near ½ however large the margin h has become. So pairs that are already right pull as hard as pairs that
are not, and wrong labels pull as hard as right ones.

{table}

![Reward and drift against β, DPO beside the optimum](figures/data-beta.png)
""",
}
ON_POLICY = """## Pairs from the policy itself

The same number of labels can be spent at once on the reference's answers, or in rounds, each on the answers of the
policy that the round before trained. This was measured on the demo's language; [rounds.md](rounds.md) has the table and
the picture.

<!-- rounds -->
{answer}<!-- end -->
"""


def on_policy(rounds):
    """The last part of the page: the answer that stands in rounds.md, a path, which `make rounds` writes."""
    answer = marked(rounds.read_text(encoding="utf-8"), "rounds") if rounds.exists() else ""
    return ON_POLICY.format(answer=answer or "`make rounds` has not been run.\n")
