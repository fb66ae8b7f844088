"""matplotlib, wherever a program runs: it draws into files alone, and whatever it raises is one line.

A picture is never worth a run: a notebook's backend is not asked for, and a home or temporary folder that cannot be
written, which matplotlib wants, is a reason for no picture and for nothing else.
"""

import functools
import os

from dpo_min.system.files import write_atomically
from dpo_min.system.text import one_line


def pyplot():
    """`matplotlib.pyplot`; ImportError, with the reason in one line, for whatever it raises instead."""
    os.environ["MPLBACKEND"] = "agg"
    try:
        import matplotlib.pyplot as plt

        plt.switch_backend("agg")
    except Exception as error:
        raise ImportError(one_line(f"{type(error).__name__}: {error}", 300)) from error
    return plt


def picture(draw):
    """A function that draws; whatever goes wrong in it is an OSError with one line."""

    @functools.wraps(draw)
    def drawn(*arguments):
        try:
            return draw(*arguments)
        except Exception as error:
            raise OSError(f"no picture could be drawn: {one_line(f'{type(error).__name__}: {error}', 300)}") from error

    return drawn


def save(figure, path):
    """Write a figure as a PNG, whole or not at all, and forget it."""
    with write_atomically(path) as file:
        figure.savefig(file, dpi=110, format="png")
    pyplot().close(figure)
