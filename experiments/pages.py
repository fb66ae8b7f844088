"""What the pages of docs/ share: tables, folds, a mean with its interval over runs, and how a picture is finished."""

import math
import re
import statistics

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

# Student's t, 97.5 %, by the number of runs that a mean is over.
STUDENT = dict(zip(range(2, 11), (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262), strict=True))


def table(heads, rows):
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (heads, ["---"] * len(heads), *rows))


def folded(summary, text):
    """Markdown that a reader opens by a click: for what is needed only by those who want to check a result."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def half_width(values):
    """Half of the 95 % interval of a mean over runs, by Student's t; 0 for one run, whose spread is not known."""
    return STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def with_interval(values, digits=3):
    """Mean ± half of the 95 % interval, of one number a run, by Student's t; of one run the number alone."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {half_width(values):.{digits}f}" if len(values) > 1 else mean


def scale_kl(axis, which="x"):
    """Draw KL on the scale of its root, on which E[r] along the optimum starts as a straight line; 0 is at the edge."""
    root = (lambda kl: np.sqrt(np.clip(kl, 0, None)), np.square)
    getattr(axis, f"set_{which}scale")("function", functions=root)
    getattr(axis, f"set_{which}lim")(0)


def typeset(text):
    """The text with π_ref and π_r as a formula sets them, so that every picture writes the two in the same way."""
    return re.sub(r"π_(ref|r)(?![a-z])", lambda name: {"ref": r"π$_\mathrm{ref}$", "r": "π$_r$"}[name[1]], text)


def save(figure, path, dpi=110):
    """Write a figure as a PNG, the same bytes for the same picture, and forget it."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    for text in figure.findobj(plt.Text):
        text.set_text(typeset(text.get_text()))
    figure.savefig(path, dpi=dpi, format="png", metadata={"Software": None})
    plt.close(figure)
