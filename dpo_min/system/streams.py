"""Standard output that outlives whoever reads it."""

import os


class Steady:
    """Standard output that outlives its reader: `train.py | head` goes on, unseen."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        """Whatever else a stream has."""
        return getattr(self.stream, name)

    def write(self, text):
        """Write, or go on into nothing."""
        self.attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self):
        """Flush, or go on into nothing."""
        self.attempt(self.stream.flush)

    def attempt(self, action):
        """Do something with the stream; when nobody reads it any more, send the rest to nowhere."""
        try:
            action()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
