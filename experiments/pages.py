"""What the pages of docs/ share: tables, folds, a mean with its interval over runs, and one scale for KL."""

import math
import re
import statistics

import numpy as np

# Student's t, 97.5 %, by the number of runs that a mean is over.
STUDENT = dict(zip(range(2, 11), (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262), strict=True))


def table(heads, rows):
    """A Markdown table."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (heads, ["---"] * len(heads), *rows))


def between(name, text):
    """A part of a page that a program writes, in its marks."""
    return f"<!-- {name} -->\n{text}\n<!-- end -->"


def renew(path, parts):
    """Write the parts, name → Markdown, between their marks in a page; ValueError for a part that the page lacks."""
    page = path.read_text(encoding="utf-8")
    for name, text in parts.items():
        old = re.findall(f"(?s)<!-- {name} -->\n.*?<!-- end -->", page)
        if len(old) != 1:
            raise ValueError(f"{path}: the mark <!-- {name} --> stands {len(old)} times, expected once")
        page = page.replace(old[0], between(name, text))
    path.write_text(page, encoding="utf-8")


def folded(summary, text):
    """Markdown that a reader opens by a click: for what is needed only by those who want to check a result."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def marked(text, name):
    """The part of a page between its comments <!-- name --> and <!-- end -->; empty where they are not."""
    return text.partition(f"<!-- {name} -->\n")[2].partition("<!-- end -->")[0]


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
