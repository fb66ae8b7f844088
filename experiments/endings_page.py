"""Two sections of proof.md: where each loss ends, and what it does to one pair. `make proof` writes them."""

import torch

from dpo_min.losses import LOSSES
from dpo_min.margin_losses import MARGIN_LOSSES
from dpo_min.objective import expectation, kl_divergence
from dpo_min.system.picture import pyplot, save
from experiments import endings, theorem
from experiments.theorem import FLIPS

plt = pyplot()

FEW = 100  # pairs: some answers then never win, some never lose, one or two are never seen
BEATS, LENGTH = "the optimum of P(y beats a draw from π_ref)", "the optimum of r − 0.01·length"
# What unlimited data must end in; every other row in a minimum of its own.
NAMED = {
    0.0: {
        "sigmoid": "π_r", "robust": "nowhere", "ipo": BEATS, "apo_zero": "a boundary", "apo_down": "a boundary",
        "dpop": "π_ref", "r-dpo": LENGTH, "odpo": "the optimum of 2r", "forward_kl": "the optimum for the forward KL",
        "jensen_shannon": "the optimum for Jensen–Shannon", "alpha_divergence": "the optimum for the α-divergence",
    },
    FLIPS: {"robust": "π_r", "ipo": BEATS, "apo_zero": "a boundary", "apo_down": "a boundary", "dpop": "π_ref"},
}  # fmt: skip
KEEPS_UP = "sppo dpop rpo cpo orpo slic".split()  # the chosen answer of one pair alone, at β = 0.1
ONE_PATH = [*(name for name in MARGIN_LOSSES if name != "discopop"), "simpo", "ld", "r-dpo", "odpo"]


class Found:
    """Every loss fitted to true and to flipped labels, all pairs at once and `FEW` of them: (flips, n, loss) → …"""

    def __init__(self, world):
        self.world, self.policies, self.endings, self.figures = world, {}, {}, {}
        self.own = expectation(world.log_ref, world.reward).item()  # what the reference has without any training
        generator = torch.Generator().manual_seed(0)
        for flips in (0.0, FLIPS):
            everything = theorem.all_preferences(world, flips)
            optima = endings.known_optima(world, everything, flips)
            for n, weights in ((None, everything), (FEW, theorem.sample(everything, FEW, generator))):
                for name in LOSSES:
                    key = flips, n, name
                    self.policies[key], _ = endings.fit(world, weights, name)
                    self.endings[key] = endings.ending(world, self.policies[key], optima, weights, name)
                    self.figures[key] = endings.figures(world, self.policies[key], weights)


def number(value, digits=2):
    """A number for a table; a dash for none."""
    return "–" if value != value else f"{value:.{digits}f}"


def table_of_all_pairs(found):
    """Rows of the table of true labels and unlimited data."""
    for name in LOSSES:
        ends, more = found.endings[0.0, None, name]
        numbers = " | ".join(number(x) for x in found.figures[0.0, None, name][:5])
        yield f"| `{name}` | {f'**{ends}**' if ends == 'π_r' else ends} | {more} | {numbers} |"


def table_of_the_others(found):
    """Rows of the table of flipped labels and of few pairs."""
    for name in LOSSES:
        cells = []
        for key in ((FLIPS, None, name), (0.0, FEW, name), (FLIPS, FEW, name)):
            ends, (kl, mean, j, *_, unseen) = found.endings[key][0], found.figures[key]
            ends = {"its own minimum": "own", BEATS: "P(beats)"}.get(ends, ends.removeprefix("a "))
            cells += [ends, number(kl), number(mean), number(j), *([number(unseen)] if key[1] else [])]
        yield f"| `{name}` | {' | '.join(cells)} |"


def run_endings(report):
    """(f) Every loss of both tables."""
    world = theorem.make_world(vocab_size=4, max_new_tokens=3)
    found = Found(world)
    fits = {(flips, name): found.endings[flips, None, name][0] for flips in NAMED for name in LOSSES}
    wanted = {(flips, name): NAMED[flips].get(name, "its own minimum") for flips, name in fits}
    missed = [f"{name} at {flips:g}" for flips, name in fits if fits[flips, name] != wanted[flips, name]]
    claims, text = confront(found)
    missed += [claim for claim, holds in claims.items() if not holds]
    ended = sum(ends not in ("its own minimum", "nowhere", "a boundary") for ends in fits.values())
    report.result(
        "Where each loss ends",
        not missed,
        f"{ended} of {len(fits)} fits to all pairs end in an optimum that is known in closed form, each in its own"
        + "".join(f"; not so: {name}" for name in missed),
        f"""
There are three letters and end-of-text, and answers of at most three tokens: {len(world.completions)} of them.
β = {world.beta:g} and ε = {FLIPS:g}; the losses' own parameters have their defaults, ODPO's offset is the gap of the
true rewards, and BCO's shift the mean reward at the end. The policy is a free number for each answer. L-BFGS minimises
the loss from the reference on; losses with kinks are minimised by ever smaller steps. An optimum is reached where the
KL to it is at most {endings.SAME:g} nats. **chosen** and **rejected** are the mean log π − log π_ref of the two sides.
π_ref itself has E[r] = J = {found.own:.2f}.

| loss; true labels, all pairs | ends in | nearest known optimum and the KL to it | KL(π‖π_ref) | E[r] | J \
| chosen | rejected |
|---|---|---|---|---|---|---|---|
{chr(10).join(table_of_all_pairs(found))}

The next table has labels flipped at the rate {FLIPS:g}, {FEW} pairs, and both. **unseen** is the probability that
answers in no pair have gained.

| loss | flipped, all: ends | KL | E[r] | J | true, {FEW}: ends | KL | E[r] | J | unseen \
| flipped, {FEW}: ends | KL | E[r] | J | unseen |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(table_of_the_others(found))}

What people are told, and the row that settles it:

{text}""",
    )


def confront(found):
    """({claim: whether the figures bear out what is said of it}, the text): what people are told, against its row."""
    world, up, unseen = found.world, 3, 5
    kl, j = ({(name, n): found.figures[0.0, n, name][k] for name in LOSSES for n in (None, FEW)} for k in (0, 2))
    bare, _ = endings.fit(world, theorem.all_preferences(world), "simpo", gamma=0.0)
    bare = kl_divergence(bare, endings.bare_optimum(world)).abs().item()
    apart = kl_divergence(found.policies[0.0, FEW, "ipo"], found.policies[0.0, None, "ipo"]).item()
    nca, flipped, dpo = (
        found.figures[key][up] for key in [(0.0, None, "nca"), (FLIPS, None, "nca"), (0.0, None, "sigmoid")]
    )
    left = found.figures[0.0, FEW, "apo_down"][unseen]
    claims = {
        "SimPO ends where no reference occurs": bare <= endings.SAME and kl["simpo", None] > 2 * kl["sigmoid", None],
        "NCA keeps the chosen up, on true labels": nca > 0 > flipped and dpo < 0,
        "IPO does not overfit, and DPO does": j["ipo", FEW] > found.own > j["sigmoid", FEW] and apart < 0.2,
        "APO-down leaves both sides": left > 0.5,
    }
    return (
        claims,
        f"""\
- **"SimPO needs no reference."** It trains without one and ends without one: {kl["simpo", None]:.1f} nats from π_ref,
  where DPO ends at {kl["sigmoid", None]:.1f}, with J = {j["simpo", None]:.2f} for DPO's {j["sigmoid", None]:.2f}. At
  γ = 0 it ends exactly in π(y) ∝ e^(|y|(r/β + c)) (KL {bare:.0e}), in which π_ref does not occur: what the model knew
  is kept only by stopping early.
- **"NCA keeps the chosen answers up."** On average and with true labels, yes: {nca:+.3f} nats, where DPO's fall by
  {-dpo:.2f}. With one label in ten flipped it is {flipped:+.3f}. It draws each a to log(2)/β, far off where β is small:
  see (g).
- **"IPO does not overfit."** True of where it ends. With {FEW} pairs DPO has no minimum,
  {found.endings[0.0, FEW, "sigmoid"][1]}, and J = {j["sigmoid", FEW]:.2f} is below the reference's own. IPO ends
  {apart:.2f} nats from where all pairs lead it, with J = {j["ipo", FEW]:.2f}; `sppo` and `slic` have a minimum as well.
  The price: IPO's reward is a probability, at most 1, and all pairs lead it to J = {j["ipo", None]:.2f} of the
  {j["sigmoid", None]:.2f} that there is.
- **"DPO-Positive keeps the chosen answers up."** So well that with all pairs it ends in π_ref: every answer is the
  chosen one at times, and at λ = 50 none may fall. It is for pairs whose chosen side is right, not for tastes.
- **"APO-down lowers both."** And the mass goes where nobody looked: with {FEW} pairs, {left:.0%} of it to answers that
  no pair shows.
- A divergence other than the reverse KL has an optimum of its own, and its loss ends there; so do a price on length
  (`r-dpo`) and an offset (`odpo`: one that is the gap of the rewards doubles them). Imitation (`rpo`, `cpo`, `orpo`,
  `slic`) draws towards the distribution of the chosen answers, which no β moves.""",
    )


def run_displacement_by_loss(report):
    """(g) One pair, the same margin, every loss."""
    world = theorem.make_world(vocab_size=3, max_new_tokens=2)
    names = ["".join("ab."[token] for token in completion) for completion in world.completions]
    pair = names.index("ab"), names.index("aa")
    moved = {name: endings.displace(world, name, *pair, beta=0.1) for name in LOSSES}
    moved = {name: change for name, change in moved.items() if change}
    one = [moved[name] for name in ONE_PATH]
    spread = max(abs(x - y) for change in one for x, y in zip(change, one[0], strict=True))
    groups = {f"every loss of h, {', '.join(ONE_PATH[-4:])}": one[0]}
    groups |= {name: change for name, change in moved.items() if name not in ONE_PATH}
    groups = dict(sorted(groups.items(), key=lambda item: item[1][0]))
    up = [name for name, change in moved.items() if change[0] > 0]
    nca = moved["nca"][0], endings.displace(world, "nca", *pair, beta=1.0)[0]
    draw_displacement(groups, report.picture("proof-displacement-losses.png"))
    rows = "\n".join(f"| {name} | {a:+.2f} | {b:+.2f} | {left:+.2f} |" for name, (a, b, left) in groups.items())
    report.result(
        "Displacement by loss",
        spread < 1e-6 and up == KEEPS_UP and nca[0] < 0 < nca[1],
        f"the chosen answer rises under {', '.join(f'`{name}`' for name in up)}, and falls under every other",
        f"""
The pair of (e), ab ≻ aa, on the GPT of (e), β = 0.1. Steps of one length go down the gradient of the loss until the
margin h has grown by 3 nats: this is how the losses divide it between the two sides. `discopop` begins the wrong way
and never gets there.

| loss | log π − log π_ref of the chosen answer | of the rejected one | mass that left both |
|---|---|---|---|
{rows}

Losses of h alone differ in how hard they push, never in the direction: on one pair they all take the same path (to
{spread:.0e}), and both answers fall. A loss that sees a and b apart can hold the chosen one up if it pulls hard enough:
under NCA it fell by {-nca[0]:.2f} nats here, and rises by {nca[1]:.2f} at β = 1, where the target log(2)/β is near.

![Both sides' change and the mass that left them, by loss](figures/proof-displacement-losses.png)""",
    )


def draw_displacement(groups, path):
    """Bars for both sides of the pair, one group a loss."""
    figure, axis = plt.subplots(figsize=(9, 4.8), layout="constrained")
    spots = torch.arange(len(groups))
    for shift, k, label, colour in ((0.2, 0, "chosen", "black"), (-0.2, 1, "rejected", "0.75")):
        axis.barh(spots + shift, [change[k] for change in groups.values()], 0.4, color=colour, label=label)
    for spot, (_, _, left) in zip(spots.tolist(), groups.values(), strict=True):
        axis.text(3.2, spot, f"{left:+.2f}", va="center", fontsize=8)
    axis.text(3.2, len(groups) - 0.4, "mass that\nleft both", fontsize=8)
    axis.axvline(0, color="0.5", linewidth=0.8)
    axis.set(xlabel="log π − log π_ref (nats), when the margin has grown by 3", xlim=(-5.2, 4))
    axis.set_yticks(spots, [name.replace(", simpo", ",\nsimpo") for name in groups], fontsize=8)
    axis.legend(fontsize=8, loc=(0.62, 0.03))
    save(figure, path)
