"""Text that others wrote, made safe to show: of models, of rows, names of files and tensors, errors that quote them.

Escape sequences, carriage returns, bells and marks that turn the direction of writing are data here, and never act.
"""

import unicodedata

JOINERS = "\u200c\u200d"  # without which Persian, Hindi and many emoji are written wrongly


class Lines(ValueError):
    """A mistake whose message takes several lines; of every other message a line end is part of what it quotes."""


def visible(text):
    """The text with a sign for each character that would act or hide instead of being seen; a line still ends."""
    return "".join(c if c.isprintable() else picture(c) for c in text)


def picture(c):
    """What stands for a character that is not printable."""
    if c == "\n":
        return "⏎\n"
    return chr(0x2400 + ord(c)) if ord(c) < 32 else "␡" if c == "\x7f" else f"<U+{ord(c):04X}>"


def harmless(text):
    """As `visible`, but for reading: blanks of every kind, line ends and joiners stay what they are."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or is_blank(c) else picture(c) for c in text)


def is_blank(c):
    """Whether a character that is not printable does nothing but part or join others."""
    return c in "\n\t" or c in JOINERS or unicodedata.category(c) == "Zs"


def one_line(text, limit=600):
    """What anything says, visible, in one line of at most about `limit` characters: of a longer one its two ends."""
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit - limit // 3]} … {text[-limit // 3 :]}"
    return "".join(c if c.isprintable() else picture(c).rstrip("\n") for c in text)


def cause(error):
    """What an exception that is not ours says: its type, and its message in one line."""
    return one_line(f"{type(error).__name__}: {error}", 300)
