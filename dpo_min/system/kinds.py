"""The kinds of values that flags accept: a test of each, and the words for it."""

import math
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Accepts:
    """The values that a flag accepts: a test, and the words for it."""

    test: callable
    words: str


def between(least, most, words):
    """`Accepts` for the numbers from `least` to `most`."""
    return Accepts(lambda value: least <= value <= most, words)


def is_text(argument):
    """Whether a command-line argument is UTF-8; Python marks bytes that are not as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def in_directory(path):
    """Whether a file can be made under this name."""
    try:
        return not path.is_dir() and path.absolute().parent.is_dir()
    except OSError:  # a name that is too long
        return False


MOST, LEAST = 10**9, math.ulp(0)  # LEAST: above 0
COUNT = between(1, MOST, "a whole number from 1 to 10^9")
RANK = between(1, 4096, "a whole number from 1 to 4096")
SIZE = between(1, 10**5, "a whole number from 1 to 10^5")
LENGTH = between(2, 10**7, "a whole number from 2 to 10^7")
NATURAL = between(0, MOST, "a whole number from 0 to 10^9")
SEED = between(0, 2**63 - 1, "a whole number from 0 up to 2^63 - 1")
ABOVE_ZERO = between(LEAST, sys.float_info.max, "a number above 0")
POSITIVE = between(1e-6, MOST, "a number from 10^-6 to 10^9")  # nothing vanishes or overflows in float32
RATE = between(1e-12, 10, "a number from 10^-12 to 10")
NOT_NEGATIVE = between(0, MOST, "a number from 0 to 10^9")
DECAY = between(0, 10, "a number from 0 to 10")
EXPONENT = between(-10, 10, "a number from -10 to 10")
FRACTION = between(0, math.nextafter(1, 0), "a number from 0 up to, not including, 1")
PROBABILITY = between(LEAST, 1, "a number above 0 and up to 1")
NOISE_RATE = between(1e-6, 0.499, "a number from 10^-6 to 0.499")
TEXT = Accepts(is_text, "UTF-8 text")
SOME_TEXT = Accepts(lambda text: text != "" and is_text(text), "UTF-8 text of at least one character")
PAGE = Accepts(in_directory, "a file in a directory that exists")
PICTURE = Accepts(lambda path: path.suffix == ".png" and in_directory(path), "NAME.png, in a directory that exists")
