"""How far something is, and how long it may still take: the only progress display there is.

    with Progress("reference", total=len(pairs), unit="pairs") as progress:
        for done, pair in enumerate(pairs, 1):
            …
            progress.at(done)

On a terminal a line rewrites itself; in a pipe a plain line comes now and then. What is over in a moment says nothing.
"""

import shutil
import sys
import time

from dpo_min.system.streams import control, is_terminal
from dpo_min.system.text import one_line

SILENT = 1  # seconds without a word at first
LIVE, PLAIN = 0.2, 15  # seconds between two displays, on a terminal and elsewhere


class Line:
    """The last line of a terminal, which each text replaces; elsewhere each text is a line of its own."""

    def __init__(self, stream=None):
        """`stream`: standard output if it is not given."""
        self.stream = stream or sys.stdout
        self.live, self.open = is_terminal(self.stream), False

    def show(self, text, stays=False):
        """Show a text; `stays`: whether nothing is to replace it."""
        if self.live:
            if not stays:  # a line that wraps could not be taken back
                text = text[: shutil.get_terminal_size().columns - 1]
            control(self.stream, "\r\x1b[K" + text + "\n" * stays)
            self.open = not stays
        else:
            print(text, file=self.stream, flush=True)

    def clear(self):
        """Take back what is shown."""
        if self.open:
            control(self.stream, "\r\x1b[K")
            self.open = False


class Progress:
    """A `Line` that says how much of a whole is done, if it is time to."""

    def __init__(self, what, total=0, unit="", stream=None):
        """`what` is done, and how many `unit`s there are of it, 0 if that is unknown; `stream`: as of `Line`."""
        self.what, self.total, self.unit, self.line = what, total, unit, Line(stream)
        self.start = time.perf_counter()
        self.next = self.start + SILENT

    def at(self, done, text=None):
        """So much is done; `text` stands in the place of its number."""
        now = time.perf_counter()
        if now < self.next:
            return
        text = f"{self.what} {text or f'{done:,}/{self.total:,} {self.unit}'}".rstrip()
        self.line.show(one_line(text) + left(self.start, done, self.total))
        self.next = now + (LIVE if self.line.live else PLAIN)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """Clear the line."""
        self.line.clear()


def left(start, done, total):
    """The time left, as text, of what began at `start`, at the pace so far; empty where it is not known."""
    if not 0 < done < total:
        return ""
    minutes, seconds = divmod(int((time.perf_counter() - start) / done * (total - done)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"  {hours}:{minutes:02d}:{seconds:02d} left" if hours else f"  {minutes}:{seconds:02d} left"
