"""matplotlib, wherever a program runs: it draws into files alone, and whatever it raises is one line.

A picture is never worth a run: a notebook's backend is not asked for, and a home or temporary folder that cannot be
written, which matplotlib wants, is a reason for no picture and for nothing else.
"""

import functools
import os
import re

from dpo_min.system.files import write_atomically
from dpo_min.system.text import cause


def pyplot():
    """`matplotlib.pyplot`; OSError, with the reason in one line, where it is missing or whatever else it raises."""
    os.environ["MPLBACKEND"] = "agg"
    try:
        import matplotlib.pyplot as plt

        plt.switch_backend("agg")
    except Exception as error:
        raise OSError(f"matplotlib is missing or does not work ({cause(error)}); pip install matplotlib") from error
    return plt


def picture(draw):
    """A function that draws; whatever goes wrong in it is an OSError with one line."""

    @functools.wraps(draw)
    def drawn(*arguments):
        try:
            return draw(*arguments)
        except Exception as error:
            raise OSError(f"no picture could be drawn: {cause(error)}") from error

    return drawn


def typeset(text):
    """The text with π_ref and π_r as a formula sets them, so that every picture writes the two in the same way."""
    return re.sub(r"π_(ref|r)(?![a-z])", lambda name: {"ref": r"π$_\mathrm{ref}$", "r": "π$_r$"}[name[1]], text)


def save(figure, path, dpi=110):
    """Write a figure as a PNG, whole or not at all, the same bytes for the same picture, and forget it."""
    plt = pyplot()
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    for text in figure.findobj(plt.Text):
        text.set_text(typeset(text.get_text()))
    with write_atomically(path) as file:
        figure.savefig(file, dpi=dpi, format="png", metadata={"Software": None})
    plt.close(figure)
