"""Pictures of runs, evaluations and data: `python -m dpo_min.judge.pictures runs/demo` draws runs/demo/curves.png."""

import sys
from pathlib import Path

import dpo_min.system.packages  # noqa: F401  (before all that needs one)

# isort: split
import numpy as np

from dpo_min.judge.intervals import wilson_interval
from dpo_min.judge.trained_with import metric_lines
from dpo_min.system.picture import picture, pyplot, save
from dpo_min.system.program import run

plt = pyplot()
# Readable in black and white: a line style for each role, beside its colour.
TRAIN = {"color": "0.6", "linewidth": 1.0}
EVAL = {"color": "black", "linewidth": 1.6, "marker": "o", "markersize": 3.5}
CHOSEN, REJECTED = {"color": "tab:blue", "linestyle": "-"}, {"color": "tab:red", "linestyle": "--"}


@picture
def draw_curves(directory):
    """Draw a run's metrics.jsonl as curves.png in the same directory; a line that is not whole is left out."""
    lines = [values for _, values in metric_lines(Path(directory) / "metrics.jsonl") if values]
    splits = {split: [line for line in lines if line["split"] == split] for split in ("train", "eval")}
    panels = [("loss", "loss (nats)"), ("rewards/margins", "reward margin (nats)"), ("rewards/accuracies", "accuracy")]
    panels = [panel for panel in panels if any(panel[0] in line for line in lines)]
    figure, axes = plt.subplots(1, len(panels) + 1, figsize=(4.2 * (len(panels) + 1), 3.8), layout="constrained")
    for axis, (key, label) in zip(axes, panels, strict=False):
        for split, style in (("train", TRAIN), ("eval", EVAL)):
            plot(axis, splits[split], key, label="held out" if split == "eval" else "train", **style)
        axis.set(xlabel="step", ylabel=label)
    preferences = len(panels) > 1
    if preferences:
        axes[0].axhline(0.693147, color="0.3", linestyle=":", linewidth=1, label="log 2: no preference")
        axes[2].axhline(0.5, color="0.3", linestyle=":", linewidth=1, label="chance")
        axes[2].set_ylim(0, 1)
    shown = splits["eval"] if len(splits["eval"]) > 1 else splits["train"]
    for key, style in (("logps/chosen", CHOSEN), ("logps/rejected", REJECTED)):
        plot(axes[-1], shown, key, label=key.removeprefix("logps/"), marker="o", markersize=3.5, **style)
    axes[-1].set(xlabel="step", ylabel="log π(y|x) (nats)")
    if preferences:
        note = "DPO widens the gap between the sides;\nthe chosen side may fall too (likelihood displacement)"
        axes[-1].set_title(note, fontsize=8)
    for axis in axes:
        axis.legend(fontsize=8)
    save(figure, Path(directory) / "curves.png")


@picture
def draw_evaluation(figures, bins, margins, gaps, path):
    """The page of `python -m dpo_min.judge.evaluate`: its figures, margins, calibration, and margin against length.

    Args: name → `Figure`, the `Bin`s, reward margins and length gaps, each (N,).
    """
    figure, axes = plt.subplots(2, 2, figsize=(8.3, 8.3), layout="constrained")
    (words, left), (right, below) = axes
    words.axis("off")
    lines = [f"{name}\n    {f.value:.3f}  [{f.low:.3f}, {f.high:.3f}]  n = {f.n}" for name, f in figures.items()]
    words.text(0, 1, "\n".join(["value  [95 % interval]", *lines]), fontsize=8.5, va="top", linespacing=1.5)
    left.hist(margins.tolist(), 40, color="0.75", edgecolor="0.4")
    left.axvline(0, color="black", linewidth=1)
    left.set(xlabel="reward margin βh (nats)", ylabel="pairs", title="right of the line: as preferred")
    full = [b for b in bins if b.n]
    sure, often = [b.confidence for b in full], [b.accuracy for b in full]
    ends = [wilson_interval(b.accuracy * b.n, b.n) for b in full]
    error = [[abs(end[side] - p) for end, p in zip(ends, often, strict=True)] for side in (0, 1)]
    right.plot([0.5, 1], [0.5, 1], color="0.45", linestyle=":", label="calibrated")
    right.errorbar(sure, often, error, color="black", marker="o", markersize=4, capsize=2, label="95 % interval")
    right.set(
        xlabel="how sure: σ(|βh|)", ylabel="how often right", xlim=(0.48, 1.02), ylim=(0, 1.02), title="calibration"
    )
    right.legend(fontsize=8, loc="lower right")
    below.scatter(gaps.tolist(), margins.tolist(), s=8, color="black", alpha=0.4)
    below.set(xlabel="tokens, chosen − rejected", ylabel="reward margin βh (nats)", title="is length what it learnt?")
    for axis in (left, right, below):
        axis.title.set_fontsize(9)
    save(figure, path)


@picture
def draw_report(report, findings, path):
    """Draw a `dpo_min.judge.lint.Report` as a PNG; `findings`: code → (whether it is an error, what it is)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    codes = [code for code in findings if report.counts[code]][::-1]
    numbers, errors = [report.counts[code] for code in codes], [findings[code][0] for code in codes]
    colours, hatches = ["tab:red" if e else "0.6" for e in errors], ["//" if e else "" for e in errors]
    bars = left.barh(codes, numbers, color=colours, hatch=hatches, edgecolor="white")
    left.bar_label(bars, padding=3)
    left.set(xlabel="findings")
    left.set_title(f"{report.rows} rows: {report.errors} errors (red, hatched), the rest warnings", fontsize=10)
    left.margins(x=0.15)
    gaps, rows = report.lengths.gaps(), report.lengths.bins
    seen = np.flatnonzero(rows)
    if len(seen):
        edge = max(abs(gaps[seen[[0, -1]]]).max(), 0.5)
        right.bar(gaps, rows, width=report.lengths.WIDTH, color=np.where(gaps > 0, "tab:blue", "tab:orange"))
        right.axvline(0, color="black", linewidth=1)
        right.set_xlim(-edge, edge)
        share, _ = report.lengths.explained()
        right.set_title(f"length alone explains {share:.1%} of the preference", fontsize=10)
    right.set(xlabel="log(tokens of chosen / rejected); right of 0 the longer is chosen", ylabel="rows")
    save(figure, path)


def plot(axis, lines, key, **style):
    """One metric of the lines that have it, against the step."""
    lines = [line for line in lines if key in line]
    if lines:
        axis.plot([line["step"] for line in lines], [line[key] for line in lines], **style)


def main():
    """Draw the runs that are named; returns the exit code."""
    for directory in sys.argv[1:]:
        draw_curves(directory)
        print(Path(directory) / "curves.png")


if __name__ == "__main__":
    run(main)
