"""Ctrl-C and SIGTERM while a run takes its steps: the step is finished and saved first."""

import os
import signal

from dpo_min.system.launcher import first_process
from dpo_min.system.signals import quit_at_once


class Interrupt:
    """Ctrl-C and SIGTERM as a wish: the step is finished and saved first; a second Ctrl-C stops at once."""

    def __enter__(self):
        """Catch the signals."""
        self.requested, self.keys = False, 0
        self.previous = {number: signal.signal(number, self.request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def request(self, number, frame):
        """Note the wish; the second Ctrl-C does what it always did, and no other signal anything more."""
        if not self.requested and first_process():
            os.write(1, "\nstopping after this step …\n".encode())  # a signal may come in the middle of a print
        self.requested = True
        self.keys += number == signal.SIGINT
        if number == signal.SIGINT and self.keys > 1:
            signal.signal(number, self.previous[number])
            signal.raise_signal(number)

    def __exit__(self, *error):
        """Restore what the signals did before; but what is left to be written is not for another SIGTERM to stop."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.requested and self.previous[signal.SIGTERM] is quit_at_once:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
