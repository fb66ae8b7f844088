"""The page of rounds.py: from what was measured of each round to docs/rounds.md and its picture. It trains nothing."""

import textwrap
from statistics import fmean

from dpo_min.system.picture import pyplot, save
from experiments.demo import prompts
from experiments.pages import half_width, marked, renew, scale_kl, table

plt = pyplot()

LINES = {  # way → (what it is called, how it is drawn)
    "fixed": ("in rounds, reference fixed", {"color": "tab:blue", "linestyle": "--", "marker": "s"}),
    "following": ("in rounds, reference following", {"color": "tab:red", "linestyle": ":", "marker": "^"}),
    "once": ("once, on the reference's answers", {"color": "black", "linestyle": "-", "marker": "o"}),
}
MEASURES = {"reward": "true reward", "kl": "KL(π‖π₀) (nats)", "objective": "J = reward − β KL"}


def values(found, name, key, beta):
    """A measure of a round, one number a seed."""
    cells = [run[name] for run in found]
    if key == "objective":
        return [cell["reward"][0] - beta * cell["kl"][0] for cell in cells]
    return [cell[key][0] for cell in cells]


def labels_of(found, name):
    """How many labels had been spent by then, on average over seeds."""
    return round(fmean(run[name]["labels"] for run in found))


def path_of(way, rounds):
    """The names of the rounds that lead to where a way ends."""
    if way == "once":
        return ["start", "once"]
    return ["start", "round-1", *(f"{way}-{number}" for number in range(2, rounds + 1))]


def interval(found, name, key, beta):
    """Mean ± half-width over seeds; of a single seed the interval over its answers, which misses how runs differ."""
    numbers = values(found, name, key, beta)
    if len(numbers) == 1 and key != "objective":
        mean, low, high = found[0][name][key]
        return mean, (high - low) / 2
    return fmean(numbers), half_width(numbers)


def rows(found, settings):
    """The table's rows: every round of every way, what two ways share once."""
    shown = {}
    for way, (called, _) in LINES.items():
        for number, name in enumerate(path_of(way, settings.rounds)):
            what = called if name == "once" else f"{called}, round {number}"
            what = {"start": "π₀, the first model", "round-1": "in rounds, round 1"}.get(name, what)
            cells = []
            for key in MEASURES:
                mean, half = interval(found, name, key, settings.beta)
                cells.append(f"{mean:.2f} ± {half:.2f}" if half or name == "start" else f"{mean:.2f}")
            shown[name] = [what, f"{labels_of(found, name):,}", *cells]
    return shown.values()


def gaps(found, settings, way, key):
    """By how much a way in rounds ends above `once` in a measure, within each seed."""
    last = path_of(way, settings.rounds)[-1]
    pairs = zip(*(values(found, name, key, settings.beta) for name in (last, "once")), strict=True)
    return [ours - theirs for ours, theirs in pairs]


def headline(found, settings):
    """The answer in a sentence: J where rounds with a fixed reference end, which is what both of these maximise."""
    differences = gaps(found, settings, "fixed", "objective")
    mean, half = fmean(differences), half_width(differences)
    if len(differences) == 1 or abs(mean) <= half:
        return "these runs show no difference in J between rounds with a fixed reference and"
    return f"rounds with a fixed reference ended with a {'higher' if mean > 0 else 'lower'} J than"


def compare(found, settings, way):
    """A sentence: where a way in rounds ends beside `once`."""
    parts = []
    for key, what in (("reward", "the true reward"), ("kl", "the KL"), ("objective", "J")):
        differences = gaps(found, settings, way, key)
        mean, half = fmean(differences), half_width(differences)
        if len(differences) == 1:
            parts.append(f"{what} differs by {mean:+.2f} in this one run")
        elif abs(mean) <= half:
            parts.append(f"{what} differs by {mean:+.2f} ± {half:.2f}, which may be chance")
        else:
            parts.append(f"{what} is {abs(mean):.2f} ± {half:.2f} {'higher' if mean > 0 else 'lower'}")
    return f"With the reference {way}, " + "; ".join(parts) + "."


def answer(found, settings):
    """What came out, Markdown: of which way J is higher, and how each way in rounds ends beside `once`."""
    total, verdict = f"{labels_of(found, 'once'):,}", headline(found, settings)
    first = f"**With {total} labels, {verdict} one run on as many labels of the reference's answers.** "
    first += f"J is E[r] − β KL(π‖π₀) with β = {settings.beta:g}. Compared with that run, at the end:"
    points = [
        textwrap.fill("- " + compare(found, settings, way), 120, subsequent_indent="  ")
        for way in LINES
        if way != "once"
    ]
    return textwrap.fill(first, 120) + "\n\n" + "\n".join(points)


def draw(found, settings, path):
    """Reward and KL by labels spent, and reward against KL."""
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 3.8), layout="constrained")
    figure.suptitle(f"{labels_of(found, 'once'):,} labels in {settings.rounds} rounds, and at once", fontsize=11)
    for way, (called, style) in LINES.items():
        names = path_of(way, settings.rounds)
        labels = [labels_of(found, name) for name in names]
        means, halves = {}, {}
        for key in ("reward", "kl"):
            means[key], halves[key] = zip(*(interval(found, name, key, settings.beta) for name in names), strict=True)
        bars = {"label": called, "capsize": 3, "markersize": 5, **style}
        axes[0].errorbar(labels, means["reward"], halves["reward"], **bars)
        axes[1].errorbar(labels, means["kl"], halves["kl"], **bars)
        axes[2].errorbar(means["kl"], means["reward"], halves["reward"], halves["kl"], **bars)
    axes[0].set(xlabel="labels", ylabel=MEASURES["reward"])
    axes[1].set(xlabel="labels", ylabel=MEASURES["kl"], ylim=(0, None))
    axes[2].set(xlabel=MEASURES["kl"], ylabel=MEASURES["reward"])
    scale_kl(axes[2])
    axes[0].legend(fontsize=8, frameon=False)
    save(figure, path)


def write(settings, found, out):
    """Write rounds.md and figures/rounds.png below the directory `out`, and the answer into data.md if it is there.

    Args: found, for each seed name → {"labels", "reward": (mean, low, high), "kl": the same}, as rounds.py measures.
    """
    draw(found, settings, out / "figures" / "rounds.png")
    many = len(found) > 1
    words = {
        "rounds": settings.rounds,
        "prompts": f"{settings.prompts:,}",
        "beta": f"{settings.beta:g}",
        "over": f"means of {len(found)} runs, ± half of their 95 % interval (Student's t)" if many else ONE_RUN,
        "answer": answer(found, settings),
        "table": table(("", "labels so far", *MEASURES.values()), rows(found, settings)),
        "asked": len(prompts(held_out=True)),
        "samples": settings.samples,
        "train": settings.train,
        "scorer": settings.scorer,
    }
    page, data = PAGE.format(**words), out / "data.md"
    (out / "rounds.md").write_text(page, encoding="utf-8")
    if data.exists():
        renew(data, {"rounds": marked(page, "rounds").removesuffix("\n")})


ONE_RUN = "those of one run, ± half of the 95 % interval over its answers, which does not say how runs differ"
PAGE = """# Labels in rounds, or all at once

`make rounds` wrote this page. It spends the same number of labels in two ways, on the demo's language. *Once*: the
first model π₀ draws two answers to each of {prompts} prompts, {rounds} times, and one run trains on all labels. *In
rounds*: π₀ draws two answers to each prompt only once; the policy that was trained on these labels draws the next
answers, and so on. The reference stays π₀ (*fixed*), or each round takes the policy that it begins with as its
reference (*following*). From the second round on, the policy learns from pairs of its own answers: these rounds are
on-policy.

Every step is one of the programs:

```
sample.py --model POLICY --prompts prompts.txt --pairs 2 --out candidates.jsonl
python -m dpo_min.labels candidates.jsonl --out prefs.jsonl --scorer {scorer}
train.py --data prefs.jsonl --init POLICY --reference REFERENCE --beta {beta}
    {train}
```

Each label is trained on once. Two equal answers give no label, and neither does an empty answer. The scorer errs: it
takes the better of two answers with the probability that Bradley and Terry's model gives to their true rewards. The KL
is that of the policy from π₀, in nats an answer. J = E[r] − β KL is what DPO with the reference π₀ maximises, so it
measures *once* and *fixed* alike. A following reference lets the policy go further: each round may go as far from its
own beginning as *once* may go from π₀.

## What came out

<!-- rounds -->
{answer}
<!-- end -->

{table}

The numbers are {over}.
They were measured on {samples} answers to each of {asked} prompts for which nothing was labelled.

![True reward and KL by the labels spent, and against each other](figures/rounds.png)
"""
