"""The standard streams, whatever they are: what is printed never ends a run, and nothing foreign acts on a terminal.

One call, `steady`, settles it for a program. After it there are three streams even where some were closed; a character
that the encoding does not have is escaped; a terminal gets no control character but those of `control`; and an output
that is gone (a pipe without a reader, a closed terminal, a full disk) goes unnoticed where a run must go on, or ends
the program quietly where the output is all that it makes.
"""

import codecs
import json
import os
import sys
from contextlib import suppress

from dpo_min.system.text import harmless

ESCAPED = "dpo_min.escaped"  # the name of our handler of characters that an encoding does not have


class OutputLost(Exception):
    """Standard output takes no more; the cause is the OSError."""


def steady(lasting=False):
    """Make the standard streams steady; `lasting`: whether the program is to go on when nobody gets its output."""
    codecs.register_error(ESCAPED, escaped)
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python began
            stream = nowhere(number, mode)
        if number and not isinstance(stream, Steady):
            stream = Steady(stream, lasting or name == "stderr")
        setattr(sys, name, stream)


def nowhere(number, mode):
    """A stream in the place of one that is closed, under its number, so that no file that is opened later gets that."""
    try:
        os.fstat(number)
    except OSError:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.set_inheritable(number, True)  # as such streams are: programs that are started have them too
        return open(number, mode, encoding="utf-8", closefd=False)
    return open(os.devnull, mode, encoding="utf-8")  # the number is somebody's already


def silence():
    """Let nothing be printed any more."""
    sys.stdout = Steady(open(os.devnull, "w", encoding="utf-8"), lasting=True)  # noqa: SIM115


def escaped(error):
    r"""Characters that an encoding does not have, as JSON escapes them (\u20ac), so that a line of JSON stays one."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


class Steady:
    """A stream to print to that outlives whoever reads it, takes every character, and lets none act on a terminal."""

    def __init__(self, stream, lasting):
        """`lasting`: whether a loss goes unnoticed; else it is an `OutputLost`."""
        self.stream, self.lasting = stream, lasting
        with suppress(AttributeError, OSError, ValueError):  # a stream of another kind, as in a test or a notebook
            stream.reconfigure(errors=ESCAPED)
            os.set_blocking(stream.fileno(), True)  # else a slow reader is an error

    def __getattr__(self, name):
        """Whatever else a stream has."""
        return getattr(self.stream, name)

    def write(self, text):
        """Write text that anybody may have written."""
        self.control(harmless(text) if self.isatty() else text)
        return len(text)

    def writelines(self, lines):
        """Write each."""
        for line in lines:
            self.write(line)

    def control(self, text):
        """Write text of our own, whose control characters are meant."""
        self.attempt(self.stream.write, text)

    def flush(self):
        """Flush."""
        self.attempt(self.stream.flush)

    def isatty(self):
        """Whether it is a terminal; one that has gone away, or a closed stream, is none."""
        try:
            return self.stream.isatty()
        except (OSError, ValueError):
            return False

    def attempt(self, action, *arguments):
        """Do something with the stream; when it takes no more, send the rest to nowhere."""
        try:
            action(*arguments)
        except (OSError, ValueError) as error:  # ValueError: somebody has closed it
            self.divert()
            if not self.lasting:
                raise OutputLost from error

    def divert(self):
        """Let all that follows, and what is still in the buffer, go nowhere."""
        try:
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, self.stream.fileno())
            os.close(descriptor)
        except (OSError, ValueError):  # it has no number, or no descriptor is left
            self.stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def control(stream, text):
    """Write text of our own, control characters and all, and at once."""
    getattr(stream, "control", stream.write)(text)
    stream.flush()


def is_terminal(stream):
    """Whether a stream is a terminal that can rewrite a line and show colours."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colours(stream):
    """Whether text may be coloured: on a terminal, unless NO_COLOR is set to anything (no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def as_json(value, **style):
    """A value as JSON for standard output: letters of all languages where that is UTF-8, else escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return json.dumps(value, ensure_ascii=codecs.lookup(encoding).name != "utf-8", **style)


def say_at_once(number, text):
    """Write to a descriptor past Python's buffers, as a signal's handler must; whether it arrives does not matter."""
    with suppress(OSError):
        os.write(number, text.encode("ascii", "replace"))
