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

from dpo_min.data.blocks import BLOCK, FORM, MOST_COUNTED, ROW, UNREAD, encode_files, id_type
from dpo_min.data.cache_directory import build, cache_key, is_whole, map_array
from dpo_min.data.chat_template import name_hh
from dpo_min.data.forms import NAMES
from dpo_min.data.hashed_files import data_hash, note_hash, noted_hash, stamps_of
from dpo_min.data.lines import is_array
from dpo_min.data.rows import USUAL
from dpo_min.data.templates import PLAIN
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
        start, prompt, chosen, rejected, _, file, line, *more = self.rows[index].item()
        ids = self.tokens[start : start + prompt + chosen + rejected].tolist()
        source = f"{self.paths[file]}:{line}"
        return TokenizedPair(ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :], source, *more)

    @property
    def num_tokens(self):
        """(N,) tokens of every pair, the shared prompt counted once."""
        rows = self.rows[self.index]
        return rows["prompt"] + rows["chosen"] + rows["rejected"]

    @property
    def ties(self):
        """(N,) whether neither side of a pair was judged better."""
        return self.rows["tie"][self.index]

    @property
    def digests(self):
        """(N,) 64 bits of every pair's prompt, under the seed that the pairs were prepared with."""
        return self.rows["digest"][self.index]

    def split(self, eval_fraction):
        """(train, eval), as `split_preferences` with the seed that the pairs were prepared with divides them."""
        held_out = self.digests < np.uint64(ceil(eval_fraction * 2**64))
        return self[~held_out], self[held_out]


# From files to pairs


def prepare_pairs(
    paths, tokenizer, max_length, max_prompt_length, skip_bad_rows, directory, seed=None, workers=None, small=SMALL,
    columns=NAMES, template=PLAIN,
):  # fmt: skip
    """(`Pairs` of the files, counts of rows by what happened to them: "skipped", "truncated", "dropped", "equal").

    The pairs are those of `tokenize(load_preferences(paths, skip_bad_rows)[0], …)`, in the same order; more counts
    are those of blocks.py.

    Args: `directory` holds the caches; `seed` is that of the split, None if the pairs will not be split;
    `workers` are processes, by default one a core; data of fewer than `small` bytes uses neither.

    Raises:
        ValueError: as `load_preferences`, or a file changed while it was read.
        WorkerDied: a process ended in the middle of its work.
    """
    settings = {"max_length": max_length, "max_prompt_length": max_prompt_length, "skip_bad_rows": skip_bad_rows}
    settings |= {"tokenizer": tokenizer, "seed": seed, "columns": columns, "template": template}
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


def read_pairs(config, tokenizer, template=PLAIN):
    """The `Pairs` of train.py: to train on, held out, and for the first fit; says what was left out or cut.

    The tokenizer gets HH's chat template to be saved with, where it has none and every prompt is in that form.
    """
    counts = Counter()

    def read(paths, seed=None):
        limits, more = (config.max_length, config.max_prompt_length), {"columns": config.columns, "template": template}
        pairs, counted = prepare_pairs(paths, tokenizer, *limits, config.skip_bad_rows, config.cache, seed, **more)
        counts.update(counted)
        return pairs[~pairs.ties] if config.ties == "drop" else pairs

    if config.eval_data:
        train, held_out = read(config.data, config.seed), read(config.eval_data, config.seed)
    else:
        pairs, fraction = read(config.data, None if config.eval_fraction == 0 else config.seed), config.eval_fraction
        train, held_out = pairs.split(min(0.05, HELD_OUT / max(len(pairs), 1)) if fraction is None else fraction)
        if fraction is None and not train:  # of few prompts all may fall to one side
            train, held_out = held_out, train
    sft = train
    if config.sft_data:
        sft = read(config.sft_data, config.seed)
        out = np.isin(sft.digests, held_out.digests)
        sft, counts["kept out"] = sft[~out], int(out.sum())
    for line in notes(config, counts, train, held_out):
        print(f"data: {line}")
    if not train:
        raise ValueError(f"{', '.join(config.data)}: no row is left to train on")
    name_hh(tokenizer, template, counts["plain"])
    return train, held_out, sft or train


def notes(config, counts, train, held_out):
    """What is said of the data, line by line.

    Raises:
        ValueError: a flag has no effect on these rows.
    """
    forms, unread = (
        Counter({k.removeprefix(w): n for k, n in counts.items() if k.startswith(w)}) for w in (FORM, UNREAD)
    )
    for name in config.columns.ignore:
        if name[:60] not in unread and len(counts) < MOST_COUNTED:
            raise ValueError(f"--ignore-columns {name}: no row has this column")
    if "odpo" in config.losses and not counts["offset"]:
        raise ValueError("--loss-type odpo: no row has a number in the column offset, which says how much better it is")
    if config.ties == "half" and not counts["tie"]:
        raise ValueError("--ties half: no row is a tie, which its column tie would say")
    if counts["tie"]:
        yield f"{counts['tie']} ties, {'left out' if config.ties == 'drop' else 'trained on both ways at half weight'}"
    for path in filter(is_array, [*config.data, *config.eval_data, *config.sft_data]):
        yield f"{path} is one JSON array"
    if [*forms] != [USUAL]:
        yield from (f"{number} rows read as {form}" for form, number in forms.most_common())
    if unread:
        yield f"columns that are not read: {', '.join(unread)}"
    if counts["kept out"]:
        yield f"{counts['kept out']} rows of --sft-data left out: their prompts are held out"
    if counts["skipped"]:
        yield f"{counts['skipped']} bad rows skipped"
    if counts["equal"]:
        yield f"{counts['equal']} pairs dropped, both sides of which are equal in the first {config.max_length} tokens"
    yield (
        f"{len(train)} pairs to train on, {len(held_out)} held out; "
        f"{counts['truncated']} truncated to {config.max_length} tokens, {counts['dropped']} dropped"
    )
    shared = np.isin(held_out.digests, train.digests).sum() if config.eval_data else 0
    if shared:
        yield f"{shared} held-out pairs have a prompt that is trained on, too"
