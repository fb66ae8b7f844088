"""Lines of rows → token ids in arrays, a block of lines at a time: what a worker makes, and how blocks are joined.

rows.py and tokenizing.py are the definition, which holds every row as Python objects, ten times the size of the file.
Here the files are cut into blocks, worker processes take the blocks through the same functions, and what comes back,
in order, is appended to two flat files: the ids of every pair, prompt, chosen, rejected, prompt, …, and one `ROW` a
pair.
"""

from collections import Counter
from contextlib import closing
from itertools import chain
from typing import NamedTuple

import numpy as np

from dpo_min.data.forms import NAMES
from dpo_min.data.hashed_files import Reading
from dpo_min.data.lines import read_rows
from dpo_min.data.messages import BadRow, is_dialogue
from dpo_min.data.rows import ERRORS_SHOWN, check_rows, parse_line, split_digest
from dpo_min.data.templates import PLAIN
from dpo_min.data.tokenizing import tokenize
from dpo_min.data.workers import spread
from dpo_min.system.progress import Progress

BLOCK = 2**20  # bytes of lines that a worker takes at a time; with its Python objects, some 30 MB
QUICK = 2**25  # bytes of data that are checked before a process has started

FORM, UNREAD = "form: ", "unread: "  # rows are counted under these and what they look like
MOST_COUNTED = 200  # names, which are the data's, and so any number

# Where the ids begin, how many there are of each part, the split's 64 bits, the place in the data, ODPO's Δ, a tie?
ROW = np.dtype(
    {
        "names": ["start", "prompt", "chosen", "rejected", "digest", "file", "line", "offset", "tie"],
        "formats": ["<i8", "<u4", "<u4", "<u4", "<u8", "<u4", "<u4", "<f8", "?"],
    }
)


def encode_files(paths, settings, files, size, workers, check_first):
    """Append every row of `paths`, `size` bytes in all, to the binary `files` (rows, tokens).

    Returns the counts and the hash of what was read. `check_first` checks every row before any is tokenized, which
    takes ten times as long.
    """
    for wanted in (False, True) if check_first else (True,):
        counts, shown, written, reading = Counter(), [], 0, Reading()
        processes = workers if wanted or size > QUICK else 0
        results = spread(encode_block, read_blocks(paths, wanted, reading.open), settings, processes)
        with closing(results), Progress("data:", size) as progress:
            for result in results:
                result.rows["start"] += written
                written += len(result.tokens)
                for file, array in zip(files, (result.rows, result.tokens), strict=True):
                    file.write(array.tobytes())
                counts.update({k: n for k, n in result.counts.items() if k in counts or len(counts) < MOST_COUNTED})
                shown += [f"{paths[result.file]}:{line}: {reason}" for line, reason in result.shown]
                del shown[ERRORS_SHOWN:]
                rows = f"{counts['good'] + counts['bad']:,} rows {'tokenized' if wanted else 'checked'}"
                progress.at(result.position, f"{rows}, {result.position / size:.0%}" if result.position else rows)
        check_rows(paths, counts["good"], counts["bad"], shown, settings["skip_bad_rows"])
    counts["skipped"] = counts.pop("bad", 0)
    return {name: number for name, number in counts.items() if name != "good"}, reading.sha256()


class Block(NamedTuple):
    """Lines of one file, for a worker."""

    file: int  # index of the path
    position: int  # bytes read of all files, for the progress
    lines: list  # (line number, line)
    wanted: bool  # False: only to be checked


class Encoded(NamedTuple):
    """What a worker makes of a `Block`; starts are counted from the block's own first token."""

    file: int
    position: int
    rows: np.ndarray  # of ROW
    tokens: np.ndarray  # of id_type
    counts: dict  # good, bad, those of `tokenize`, "plain" prompts, which are no turns, "offset", "tie", and forms
    shown: list  # (line number, reason) of the first bad rows


def read_blocks(paths, wanted, opener):
    """Yield the files as `Block`s; `opener` takes the place of `open`."""
    before = 0
    for file, path in enumerate(paths):
        lines, size = [], 0
        for number, line, position in read_rows(path, opener):
            lines.append((number, line))
            size += len(line)
            if size >= BLOCK:
                yield Block(file, before + position, lines, wanted)
                lines, size = [], 0
        before += position
        if lines:
            yield Block(file, before, lines, wanted)


def encode_block(block, tokenizer, max_length, max_prompt_length, seed, columns=NAMES, template=PLAIN, **_):
    """Check and tokenize one block, by the functions that define both."""
    preferences, bad, counts = [], [], Counter()
    for number, line in block.lines:
        try:
            preferences.append(parse_line(line, number, columns, template))
        except BadRow as reason:
            bad.append((number, str(reason)))
    wanted = preferences if block.wanted else []
    pairs, found = tokenize(wanted, tokenizer, max_length, max_prompt_length, template)
    for preference in preferences:
        counts[FORM + preference.form] += 1
        counts.update(UNREAD + name[:60] for name in preference.unread)
        counts["plain"] += isinstance(preference.prompt, str) and not is_dialogue(preference.prompt)
        counts["offset"] += preference.offset != 0
        counts["tie"] += preference.tie
    counts.update(found, good=len(preferences), bad=len(bad))
    digests = {} if seed is None else {preference.source: split_digest(preference, seed) for preference in wanted}
    parts = [(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in pairs]
    lines = [(digests.get(pair.source, 0), block.file, pair.source, pair.offset, pair.tie) for pair in pairs]
    rows = np.array([(0, *map(len, part), *line) for part, line in zip(parts, lines, strict=True)], ROW)
    rows["start"][1:] = np.cumsum([pair.num_tokens for pair in pairs], dtype=np.int64)[:-1]
    tokens = np.fromiter(chain.from_iterable(chain.from_iterable(parts)), id_type(tokenizer))
    return Encoded(block.file, block.position, rows, tokens, counts, bad[:ERRORS_SHOWN])


def id_type(tokenizer):
    """The smallest type that holds every id of the tokenizer."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
