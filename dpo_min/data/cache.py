"""Rows of any number → `TokenizedPair`s, in parallel, in little memory, and only once.

Large data is kept in a cache, two flat files that are mapped into memory, in a directory named after everything that
decides their content: the files' bytes, the tokenizer, the limits, the seed of the split, and this code. Data that
takes a second is tokenized anew and leaves no file, and so is data that no cache can be made of: a pipe, which is read
once, or any data where nothing can be written. A cache is a convenience, not a condition.

This file does not import PyTorch, and neither do its workers.
"""

import io
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path

import numpy as np

from dpo_min.data.blocks import BLOCK, ROW, encode_files, id_type
from dpo_min.data.cache_directory import build, cache_key, is_whole, map_array
from dpo_min.data.hashed_files import data_hash, note_hash, noted_hash, stamps_of
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.data.workers import WorkerDied, default_workers
from dpo_min.system.files import Lock, make_directory, read_json
from dpo_min.system.launcher import processes

HELD_OUT = 1000  # pairs that are enough to follow a run by: its accuracy is then known to 3 %
SMALL = 2**22  # bytes of data that are not worth a file or a process: about a second's work
PATIENCE = 3600  # seconds that another program may take to make a cache; then it is done without


class Pairs(Sequence):
    """A sequence of `TokenizedPair`s, each made when it is asked for; a slice or a selection is a view."""

    def __init__(self, rows, tokens, paths, sha256=None, index=None):
        """rows: `ROW`s; tokens: ids; index: the rows of this view, in order.

        paths: the files that rows refer to; sha256: the hash of what was read from them.
        """
        self.rows, self.tokens, self.paths, self.sha256 = rows, tokens, paths, sha256
        self.index = np.arange(len(rows)) if index is None else index

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        """The pair at an integer; the view at a slice, an array of positions or an array of booleans."""
        index = self.index[i]
        if index.ndim:
            return Pairs(self.rows, self.tokens, self.paths, self.sha256, index)
        start, prompt, chosen, rejected, _, file, line = self.rows[index].item()
        ids = self.tokens[start : start + prompt + chosen + rejected].tolist()
        source = f"{self.paths[file]}:{line}"
        return TokenizedPair(ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :], source)

    @property
    def num_tokens(self):
        """(N,) tokens of every pair, the shared prompt counted once."""
        rows = self.rows[self.index]
        return rows["prompt"] + rows["chosen"] + rows["rejected"]

    def split(self, eval_fraction):
        """(train, eval), as `split_preferences` with the seed that the pairs were prepared with divides them."""
        held_out = self.rows["digest"][self.index] < np.uint64(ceil(eval_fraction * 2**64))
        return self[~held_out], self[held_out]


# From files to pairs


def prepare_pairs(
    paths, tokenizer, max_length, max_prompt_length, skip_bad_rows, directory, seed=None, workers=None, small=SMALL
):
    """(`Pairs` of the files, counts of rows by what happened to them: "skipped", "truncated", "dropped").

    The pairs are those of `tokenize(load_preferences(paths, skip_bad_rows)[0], …)`, in the same order.

    Args: `directory` holds the caches; `seed` is that of the split, None if the pairs will not be split;
    `workers` are processes, by default one a core; data of fewer than `small` bytes uses neither.

    Raises:
        ValueError: as `load_preferences`, or a file changed while it was read.
        WorkerDied: a process ended in the middle of its work.
    """
    settings = {"max_length": max_length, "max_prompt_length": max_prompt_length, "skip_bad_rows": skip_bad_rows}
    settings |= {"tokenizer": tokenizer, "seed": seed}
    stamps = stamps_of(paths)
    size, once = sum(stamp[0] for stamp in stamps if stamp), not all(stamps)
    if once and processes() > 1:
        raise ValueError(f"{paths[stamps.index([])]}: not a file, and only one process could read it")
    large = size >= small and not once
    workers = (default_workers(ceil(size / BLOCK)) if workers is None else workers) if large else 0

    def encode(files):
        return encode_files(paths, settings, files, size, workers, check_first=large and not skip_bad_rows)

    if large:
        try:
            return from_cache(Path(directory), paths, settings, stamps, encode)
        except WorkerDied:
            raise
        except OSError as error:
            reason = "another program holds its lock" if isinstance(error, BlockingIOError) else error.strerror
            print(f"data: no cache in {directory}: {reason}; what is tokenized now is not kept")
    files = io.BytesIO(), io.BytesIO()
    counts, content = encode(files)
    rows, tokens = (file.getbuffer() for file in files)
    return Pairs(np.frombuffer(rows, ROW), np.frombuffer(tokens, id_type(tokenizer)), paths, content), counts


def from_cache(directory, paths, settings, stamps, encode):
    """`prepare_pairs` by the caches in a directory; `stamps` are the files', `encode` is as for `build`.

    Raises:
        OSError: something there cannot be read or written, or another program holds it.
    """
    notes = directory / "hashes.json"
    content = noted_hash(notes, paths, stamps)
    place = directory / cache_key(paths, settings, content)
    if content is None or not is_whole(place):
        content = data_hash(paths)
        place = directory / cache_key(paths, settings, content)
        if not is_whole(place):
            make_directory(directory)
            with Lock(directory / ".lock", PATIENCE):  # of several processes one makes it, and the others find it
                if not is_whole(place):
                    build(place, paths, content, encode)
        with suppress(OSError):
            note_hash(notes, paths, stamps, content)
    rows = map_array(place / "rows.bin", ROW)
    tokens = map_array(place / "tokens.bin", id_type(settings["tokenizer"]))
    return Pairs(rows, tokens, paths, content), read_json(place / "cache.json")["counts"]


def read_pairs(config, tokenizer):
    """The `Pairs` of train.py: to train on, held out, and for the first fit; says what was left out or cut."""
    counts = Counter()

    def read(paths, seed=None):
        limits = config.max_length, config.max_prompt_length
        pairs, counted = prepare_pairs(paths, tokenizer, *limits, config.skip_bad_rows, config.cache, seed)
        counts.update(counted)
        return pairs

    if config.eval_data:
        train, held_out = read(config.data), read(config.eval_data)
    else:
        pairs, fraction = read(config.data, None if config.eval_fraction == 0 else config.seed), config.eval_fraction
        train, held_out = pairs.split(min(0.05, HELD_OUT / max(len(pairs), 1)) if fraction is None else fraction)
    sft = read(config.sft_data) if config.sft_data else train
    if counts["skipped"]:
        print(f"data: {counts['skipped']} bad rows skipped")
    print(
        f"data: {len(train)} pairs to train on, {len(held_out)} held out; "
        f"{counts['truncated']} truncated to {config.max_length} tokens, {counts['dropped']} dropped"
    )
    if not train:
        raise ValueError(f"{', '.join(config.data)}: no row is left to train on")
    return train, held_out, sft or train
