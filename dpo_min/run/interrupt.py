"""Ctrl-C, SIGTERM and a terminal's end while a run takes its steps: the step is finished and saved first."""

import signal

from dpo_min.system.launcher import rank
from dpo_min.system.signals import on_signals, quit_at_once
from dpo_min.system.streams import say_at_once


class Interrupt:
    """Signals as a wish: the step is finished and saved first; a second Ctrl-C stops at once."""

    def __enter__(self):
        """Catch the signals."""
        self.requested, self.keys = False, 0
        self.previous = on_signals(self.request)
        return self

    def request(self, number, frame):
        """Note the wish; the second Ctrl-C does what it always did, and no other signal anything more."""
        if not self.requested and not rank():
            say_at_once(1, "\nstopping after this step\n")  # a signal may come in the middle of a print
        self.requested = True
        self.keys += number == signal.SIGINT
        if number == signal.SIGINT and self.keys > 1:
            signal.signal(number, self.previous[number])
            signal.raise_signal(number)

    def __exit__(self, *error):
        """Restore what the signals did before; but what is left to be written is not for another one to stop."""
        for number, handler in self.previous.items():
            wait = self.requested and number != signal.SIGINT and handler is quit_at_once
            signal.signal(number, signal.SIG_IGN if wait else handler)
