"""From a line of JSON to a `Preference`, and from files to all of theirs.

This file does not import PyTorch: a bad row is named before PyTorch has been loaded.
"""

import hashlib
import json
from dataclasses import dataclass

from dpo_min.data.forms import BadRow, parse_row
from dpo_min.data.lines import read_rows

ERRORS_SHOWN = 10


@dataclass(frozen=True)
class Preference:
    """One judgement: after `prompt`, `chosen` was preferred to `rejected`. `source` is "file:line"."""

    prompt: str
    chosen: str
    rejected: str
    source: str = ""


def parse_line(number, line):
    """The prompt, chosen and rejected text of the line of that number, which a byte order mark may precede if it is 1.

    Raises:
        BadRow: with the reason.
    """
    try:
        return parse_row(json.loads(line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")))
    except BadRow:
        raise
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BadRow("not JSON that can be read: nested too deeply") from error
    except ValueError as error:  # integers too long for Python to convert
        raise BadRow(str(error)) from error


def load_preferences(paths, skip_bad_rows=False):
    """Every preference of the files, in order, and the number of bad rows that were skipped.

    Raises:
        ValueError: a file cannot be read or holds no row; or as `check_rows` says.
    """
    preferences, bad = [], []
    for path in paths:
        for number, line, _ in read_rows(path):
            source = f"{path}:{number}"
            try:
                preferences.append(Preference(*parse_line(number, line), source))
            except BadRow as reason:
                bad.append(f"{source}: {reason}")
    check_rows(paths, len(preferences), len(bad), bad[:ERRORS_SHOWN], skip_bad_rows)
    return preferences, len(bad)


def check_rows(paths, good, bad, shown, skip_bad_rows):
    """Raise ValueError where rows are bad and `skip_bad_rows` is off, or where no row is good.

    Args: `good` and `bad` count rows; `shown` has the first `ERRORS_SHOWN` bad ones as "file:line: reason".
    """
    if bad and not skip_bad_rows:
        raise ValueError(
            "\n".join([*shown, *["…"] * (bad > len(shown))]) + f" ({bad} of {bad + good} rows are bad; "
            "mend them, or leave them out with --skip-bad-rows)"
        )
    if not good:
        raise ValueError(f"{', '.join(map(str, paths))}: no usable row: all {bad} are bad")


def split_preferences(preferences, eval_fraction, seed):
    """Divide into (train, eval): a row's side depends on its own text and the seed, on no other row."""
    sides = ([], [])
    for preference in preferences:
        sides[split_digest(preference, seed) < eval_fraction * 2**64].append(preference)
    return sides


def split_digest(preference, seed):
    """64 bits by which a row is held out: uniform, the row's own, and others under another seed."""
    text = "\0".join((str(seed), preference.prompt, preference.chosen, preference.rejected))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
