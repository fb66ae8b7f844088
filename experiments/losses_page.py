"""The tables and the picture of docs/losses.md, out of the rows of the two tables of losses themselves.

    python -m experiments.losses_page       renew what stands between the marks of docs/losses.md, and its picture

Where each loss ends is read from docs/proof.md, which `make proof` has measured.
"""

import re
from pathlib import Path

import torch

from dpo_min.losses import LOSSES
from dpo_min.margin_losses import Loss
from dpo_min.run.loss_flags import PARAMETERS
from dpo_min.system.picture import save
from experiments.figures import HEADING, SMALL, panels
from experiments.links import find
from experiments.pages import renew, table

DOCS = Path(__file__).resolve().parents[1] / "docs"
COLUMNS = 4
BETA, FAR = 0.1, 8.0  # of the table: β of the first push; how far a and b are looked at
LENGTHS, LOG_REF = (20.0, 10.0), -20.0  # an answer of 20 tokens, chosen over one of 10; log π_ref of the chosen one
OFFSET, SHIFT = 1.0, 0.5  # ODPO's and BCO's
EDGE = 4.0  # of the picture's axes


def value_and_slopes(name, a, b, beta):
    """ℓ, ∂ℓ/∂a and ∂ℓ/∂b of a row at its default parameters, each of the shape of a and b."""
    row = LOSSES[name]
    if isinstance(row, Loss):
        slope = row.slope(a - b, beta)
        return row.value(a - b, beta), slope, -slope
    facts = {"policy_chosen_logps": a + LOG_REF, "chosen_lengths": torch.full_like(a, LENGTHS[0])}
    facts |= {"rejected_lengths": torch.full_like(a, LENGTHS[1]), "offset": torch.full_like(a, OFFSET), "shift": SHIFT}
    facts = {key: facts[key] for key, default in row.arguments.items() if default is None}
    return row.value(a, b, beta, **facts), *row.slopes(a, b, beta, **facts)


def grid(name, edge, count):
    """(a, b), each (count, count) in float64: a along the last axis. Log-probabilities are below 0."""
    ends = (-edge, edge) if LOSSES[name].reference else (-edge, -edge / 40)
    line = torch.linspace(*ends, count, dtype=torch.float64)
    return line.expand(count, count), line[:, None].expand(count, count)


def arrow(push):
    """Where an answer is pushed, over all of a grid: ↑, ↓, ↑↓ by where it is, or – where it is left alone."""
    return ("↑" if (push > 0).any() else "") + ("↓" if (push < 0).any() else "") or "–"


def choosing():
    """The table to choose from, Markdown."""
    ends, rows = endings(), []
    for name, row in LOSSES.items():
        _, by_a, by_b = value_and_slopes(name, *grid(name, FAR, 65), beta=1.0)
        start = torch.tensor([0.0 if row.reference else -1.0], dtype=torch.float64)
        _, first_a, first_b = value_and_slopes(name, start, start, BETA)
        share = 0 - (first_a / (first_a.abs() + first_b.abs())).item()  # and no −0
        sides = [arrow(-by_a), arrow(-by_b), f"{share:.0%}".replace("%", " %").replace("-", "−")]
        rows.append([link(name), row.about, *sides, ends.get(name, "not measured yet: `make proof`")])
    return table(["loss", "use it where; what it does", "y_w", "y_l", "first push on y_w", "ends in"], rows)


def link(name):
    """A loss that leads to its formula."""
    path = f"../dpo_min/{'margin' if isinstance(LOSSES[name], Loss) else 'ratio'}_losses.py"
    key = f'"{name}"'
    return f"[`{key}`]({path}#L{find(key, DOCS / path)})"


def endings():
    """Loss → where it ends, as the table of proof.md says."""
    text = (DOCS / "proof.md").read_text(encoding="utf-8")
    section = text[text.index("Where each loss ends") :]
    found = {}
    for name, ends, more in re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]*) \| ", section, re.MULTILINE):
        nearest = f"nearest: {more} nats" if ends == "its own minimum" else more
        found.setdefault(name, ends + (f" ({nearest})" if more.strip() else ""))  # the first of its tables
    return found


def running():
    """The table of what a run needs, Markdown: source, reference, how tokens are added up, flags."""
    rows = []
    for name, row in LOSSES.items():
        partly = "sum; tokens past the shorter answer count less"
        tokens = {None: "sum, or `--reduce mean`", "mean": "mean"}.get(row.reduce, partly)
        flags = [f"`--loss-{key}` {by[name]:g}" for key, by in PARAMETERS.items() if name in by]
        flags += [f"`--label-smoothing` {row.arguments[key]:g}" for key in row.arguments if key == "label_smoothing"]
        flags += ["the column `offset`"] if "offset" in row.arguments else []
        reference = "yes" if row.reference else "none"
        rows.append([f"`{name}`", row.source, reference, tokens, ", ".join(flags)])
    return table(["loss", "source", "reference", "log π(y∣x) is the", "besides `--beta`"], rows)


def draw():
    """Each loss over (a, b) at β = 1: bands of equal area from low (light) to high (dark), and arrows of descent."""
    names = [*LOSSES] + [""] * (-len(LOSSES) % COLUMNS)
    mosaic = [names[i : i + COLUMNS] for i in range(0, len(names), COLUMNS)]
    figure, axes = panels(
        "Every loss over the two log-ratios, at β = 1: darker is higher, arrows point downhill",
        2.1 * len(mosaic), *([row] for row in mosaic), empty_sentinel="",
    )  # fmt: skip
    for name in LOSSES:
        axis = axes[name]
        draw_panel(axis, name)
        axis.set_title(name, **HEADING)
        sides = ("a", "b") if LOSSES[name].reference else ("log π(y_w)", "log π(y_l)")
        axis.set_xlabel(sides[0], labelpad=1, **SMALL)
        axis.set_ylabel(sides[1], labelpad=1, **SMALL)
        axis.set_box_aspect(1)
    return figure


def draw_panel(axis, name):
    """One loss; the length of an arrow goes with the root of the slope, the longest being the same in every panel."""
    a, b = grid(name, EDGE, 161)
    value, *_ = value_and_slopes(name, a, b, beta=1.0)
    levels = value.flatten().quantile(torch.linspace(0, 1, 10, dtype=torch.float64)).unique()
    greys = [str(0.97 - 0.6 * k / (len(levels) - 1)) for k in range(len(levels) - 1)]
    axis.contourf(a, b, value, levels.tolist(), colors=greys)
    a, b = (side[8::18, 8::18] for side in (a, b))  # (9, 9)
    _, by_a, by_b = value_and_slopes(name, a, b, beta=1.0)
    steep = torch.hypot(by_a, by_b)
    scale = 1 / (steep * steep.max()).sqrt().clamp(min=1e-12)
    axis.quiver(a, b, -by_a * scale, -by_b * scale, units="width", scale=9, width=0.008, headwidth=4, minlength=0.3)
    ends = [a.min().item(), a.max().item()]
    axis.plot(ends, ends, color="0.3", linestyle=":", linewidth=0.8)


def main():
    """Renew the page and its picture."""
    renew(DOCS / "losses.md", {"choosing": choosing(), "running": running()})
    save(draw(), DOCS / "figures" / "losses-sides.png", dpi=100)
    print(f"written: {DOCS / 'losses.md'}")


if __name__ == "__main__":
    main()
