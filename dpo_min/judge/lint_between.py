"""What rows share with each other: duplicates, contradictions, and what stands in two files.

What has to be compared, 22 bytes a row, goes to temporary files, by the first bits of its hash, and comes back one part
at a time: memory does not grow with the data, and time only in proportion to it.
"""

import json
import tempfile
from hashlib import blake2b

import numpy as np

PARTS = 64  # temporary files; one of them is in memory at a time
BUFFERED = 2**12  # records that wait for one of them
RECORD = np.dtype([("key", "S16"), ("side", "u1"), ("file", "u1"), ("line", "<u4")])


class Spill:
    """`RECORD`s by the first bits of their key, in temporary files: equal keys end up in the same part."""

    def __init__(self):
        self.files = [tempfile.TemporaryFile() for _ in range(PARTS)]  # noqa: SIM115
        self.waiting = [[] for _ in range(PARTS)]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """The files go."""
        for file in self.files:
            file.close()

    def add(self, key, side, file, line):
        """Keep one record: a key of 16 bytes, and where it was seen."""
        part = key[0] % PARTS
        self.waiting[part].append((key, side, file, min(line, 2**32 - 1)))
        if len(self.waiting[part]) == BUFFERED:
            self.flush(part)

    def flush(self, part):
        """Write what waits for one part."""
        self.files[part].write(np.array(self.waiting[part], RECORD).tobytes())
        self.waiting[part].clear()

    def groups(self):
        """Yield, for each part, its records sorted by key, and in the order of reading within a key."""
        for part, file in enumerate(self.files):
            self.flush(part)
            file.seek(0)
            records = np.frombuffer(file.read(), RECORD)
            yield records[np.argsort(records["key"], kind="stable")]


def key_of(*sides):
    """16 bytes that stand for some sides, texts or messages."""
    return blake2b(json.dumps(sides).encode(), digest_size=16).digest()


def compare(report, pairs, prompts, paths, own):
    """Findings between rows: duplicates, contradictions, and what the first `own` files share with the others.

    Args: `pairs` and `prompts` are `Spill`s.
    """
    for records in pairs.groups():
        for group in equal_keys(records):
            theirs, firsts = group[group["file"] >= own], {}  # the first row with either side chosen
            for row in group[group["file"] < own]:
                same, other = firsts.get(int(row["side"])), firsts.get(1 - int(row["side"]))
                for code, found in (("leaked", theirs[:1]), ("contradictory", other), ("duplicate", same)):
                    if found is not None and len(found):
                        place = found[0] if code == "leaked" else found
                        report.add(code, at(paths, row), f"with {at(paths, place)}")
                firsts.setdefault(int(row["side"]), row)
    for records in prompts.groups():
        for group in equal_keys(records):
            for theirs in group[group["file"] >= own][:1]:
                for row in group[group["file"] < own]:
                    report.add("leaked-prompt", at(paths, row), f"with {at(paths, theirs)}")


def equal_keys(records):
    """Yield each run of more than one record with the same key, of records sorted by key."""
    edges = np.flatnonzero(records["key"][1:] != records["key"][:-1]) + 1
    starts, ends = np.r_[0, edges], np.r_[edges, len(records)]
    for i in np.flatnonzero(ends - starts > 1):
        yield records[starts[i] : ends[i]]


def at(paths, record):
    """The `file:line` of a record."""
    return f"{paths[record['file']]}:{record['line']}"
