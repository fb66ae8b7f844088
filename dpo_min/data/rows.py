"""From a line of JSON to a `Preference`, and from files to all of theirs.

This file does not import PyTorch: a bad row is named before PyTorch has been loaded.
"""

import hashlib
import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from dpo_min.data.forms import NAMES, read_row
from dpo_min.data.lines import read_rows
from dpo_min.data.messages import BadRow, Message
from dpo_min.data.templates import PLAIN, as_text
from dpo_min.system.text import Lines

ERRORS_SHOWN = 10
USUAL = "prompt + chosen + rejected (text)"  # the form of which nobody needs to be told


@dataclass(frozen=True)
class Preference:
    """One judgement: after `prompt`, `chosen` was preferred to `rejected`. `source` is "file:line".

    Each side is a text, or a tuple of `Message`s as its template writes them.
    """

    prompt: str | tuple[Message, ...]
    chosen: str | tuple[Message, ...]
    rejected: str | tuple[Message, ...]
    source: str = ""
    offset: float = 0.0  # by how much `chosen` was judged better, in log-odds; 0 where rows do not say
    tie: bool = False  # neither side was judged better
    form: str = field(default=USUAL, compare=False)  # what the row looked like
    unread: tuple[str, ...] = field(default=(), compare=False)  # its columns that were not read


def parse_line(line, source="", columns=NAMES, template=PLAIN):
    """The `Preference` in a line of JSON, as bytes; a byte order mark before it is no text.

    Raises:
        BadRow: with the reason.
    """
    with reasons(line):
        row = decoded(line)
        *sides, form, unread = read_row(row, columns)
        offset = float(row["offset"]) if is_number(row.get("offset")) else 0.0
        return Preference(*template.sides(*sides), source, offset, row.get("tie") is True, form, unread)


@contextmanager
def reasons(line):
    """What is wrong with a line of JSON that is read meanwhile becomes a BadRow."""
    try:
        yield
    except BadRow:
        raise
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        whole = "; a row must stand in one line, or the file be one array" if line.strip() == b"{" else ""
        raise BadRow(f"not JSON: {error.msg} at column {error.colno}{whole}") from error
    except RecursionError as error:
        raise BadRow("not JSON that can be read: nested too deeply") from error
    except ValueError as error:  # integers too long for Python to convert
        raise BadRow(str(error)) from error


def is_number(value):
    """Whether a decoded value is a finite number that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # an integer may be larger


def decoded(line):
    """The value in a line of JSON, as bytes."""
    return json.loads(line.decode("utf-8-sig"), object_pairs_hook=without_doubles)


def without_doubles(pairs):
    """An object of JSON as a dict; BadRow where one key stands twice, of which a dict would keep only the last."""
    row = {}
    for key, value in pairs:
        if key in row:
            raise BadRow(f"the key {ascii(key)[:60]} stands twice")
        row[key] = value
    return row


def parse_row(row, columns=NAMES, template=PLAIN):
    """The prompt, chosen and rejected text of one decoded row, as the template writes them; BadRow as `read_row`."""
    prompt, *sides = template.sides(*read_row(row, columns)[:3])
    return as_text(template.write_prompt(prompt)), *(as_text(template.write_answer(side)) for side in sides)


def load_preferences(paths, skip_bad_rows=False, columns=NAMES, template=PLAIN):
    """Every preference of the files, in order, and the number of bad rows that were skipped.

    Raises:
        ValueError: a file cannot be read or holds no row; or as `check_rows` says.
    """
    bad = []
    preferences = [*parse_files(paths, partial(parse_line, columns=columns, template=template), bad)]
    check_rows(paths, len(preferences), len(bad), bad[:ERRORS_SHOWN], skip_bad_rows)
    return preferences, len(bad)


def parse_files(paths, parse, bad, opener=open):
    """Yield parse(line, "file:line") of each row of the files; the reason of a BadRow is added to the list `bad`."""
    for path in paths:
        for number, line, _ in read_rows(path, opener):
            source = f"{path}:{number}"
            try:
                yield parse(line, source)
            except BadRow as reason:
                bad.append(f"{source}: {reason}")


def check_rows(paths, good, bad, shown, skip_bad_rows):
    """Raise ValueError where rows are bad and `skip_bad_rows` is off, or where no row is good.

    Args: `good` and `bad` count rows; `shown` has the first `ERRORS_SHOWN` bad ones as "file:line: reason".
    """
    if bad and not skip_bad_rows:
        raise Lines(
            "\n".join([*shown, *["…"] * (bad > len(shown))]) + f" ({bad} of {bad + good} rows are bad; "
            "mend them, or leave them out with --skip-bad-rows)"
        )
    if not good:
        raise ValueError(f"{', '.join(map(str, paths))}: no usable row: all {bad} are bad")


def split_preferences(preferences, eval_fraction, seed):
    """Divide into (train, eval) by prompt: a row's side depends on its prompt and the seed, on no other row."""
    sides = ([], [])
    for preference in preferences:
        sides[split_digest(preference, seed) < eval_fraction * 2**64].append(preference)
    return sides


def split_digest(preference, seed):
    """64 bits by which a row is held out: uniform, the prompt's own, and others under another seed."""
    return digest(seed, preference.prompt)


def digest(seed, *sides):
    """64 bits that stand for some sides, under a seed."""
    return int.from_bytes(hashlib.sha256(json.dumps([str(seed), *sides]).encode()).digest()[:8])
