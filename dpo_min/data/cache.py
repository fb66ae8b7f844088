"""Rows of any number → `TokenizedPair`s, in parallel, in little memory, and only once.

data.py is the definition: it holds every row as Python objects, ten times the size of the file. Here the
files are cut into blocks of lines, worker processes take the blocks through the same functions, and what
comes back, in order, is appended to two flat files, which are then mapped into memory:

    tokens.bin    the ids of every pair, one after the other: prompt, chosen, rejected, prompt, …
    rows.bin      one `ROW` a pair

A cache is a directory named after everything that decides its content: the files' bytes, the tokenizer,
the limits, the seed of the split, and this code. It gets that name once it is whole, so what has the name
can be used. Data that takes a second is tokenized anew and leaves no file.

This file does not import PyTorch, and neither do its workers.
"""

import hashlib
import io
import json
import os
import pickle
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import closing, suppress
from itertools import chain
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpo_min.data.rows import (
    ERRORS_SHOWN,
    BadRow,
    Preference,
    TokenizedPair,
    check_rows,
    fingerprint,
    is_gzip,
    parse_line,
    read_rows,
    split_digest,
    tokenize,
    unreadable,
)
from dpo_min.system.files import ABANDONED, Lock, crc32, read_json, sync, write_atomically
from dpo_min.system.progress import Progress

HELD_OUT = 1000  # pairs that are enough to follow a run by: its accuracy is then known to 3 %
SMALL = 2**22  # bytes of data that are not worth a file or a process: about a second's work
BLOCK = 2**20  # bytes of lines that a worker takes at a time; with its Python objects, some 30 MB
QUICK = 2**25  # bytes of data that are checked before a process has started
SETTLED = 2  # seconds after which a change of a file is sure to change its time stamp

FILES = "rows.bin", "tokens.bin"

# Where the ids begin (in tokens), how many there are of each part, the split's 64 bits, the place in the data.
ROW = np.dtype(
    {
        "names": ["start", "prompt", "chosen", "rejected", "digest", "file", "line"],
        "formats": ["<i8", "<u4", "<u4", "<u4", "<u8", "<u4", "<u4"],
    }
)


class Pairs(Sequence):
    """A sequence of `TokenizedPair`s, each made when it is asked for; a slice or a selection is a view."""

    def __init__(self, rows, tokens, paths, index=None):
        """rows: `ROW`s; tokens: ids; paths: the files that rows refer to; index: the rows of this view, in order."""
        self.rows, self.tokens, self.paths = rows, tokens, paths
        self.index = np.arange(len(rows)) if index is None else index

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        """The pair at an integer; the view at a slice, an array of positions or an array of booleans."""
        index = self.index[i]
        if index.ndim:
            return Pairs(self.rows, self.tokens, self.paths, index)
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
        OSError: the cache cannot be written, or a worker died.
    """
    settings = {"max_length": max_length, "max_prompt_length": max_prompt_length, "skip_bad_rows": skip_bad_rows}
    settings |= {"tokenizer": tokenizer, "seed": seed}
    before = [stamp(path) for path in paths]
    size = total_size(before)
    if size < small:
        files = io.BytesIO(), io.BytesIO()
        counts = encode_files(paths, settings, files, size, workers=0, check_first=False)
        rows, tokens = (file.getvalue() for file in files)
        return Pairs(np.frombuffer(rows, ROW), np.frombuffer(tokens, id_type(tokenizer)), paths), counts
    place = Path(directory) / cache_key(paths, settings, data_hash(paths, directory, small))
    if not is_whole(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with Lock(place.parent / ".lock", wait=True):  # of several processes one makes it, and the others find it
            if not is_whole(place):
                build(place, paths, settings, before, default_workers(size) if workers is None else workers)
    rows, tokens = map_array(place / "rows.bin", ROW), map_array(place / "tokens.bin", id_type(tokenizer))
    return Pairs(rows, tokens, paths), read_json(place / "cache.json")["counts"]


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


def encode_files(paths, settings, files, size, workers, check_first):
    """Append every row of `paths`, `size` bytes in all, to the binary `files` (rows, tokens); returns the counts.

    `check_first` checks every row before any is tokenized, which takes ten times as long.
    """
    for wanted in (False, True) if check_first else (True,):
        counts, shown, written = Counter(), [], 0
        processes = workers if wanted or size > QUICK else 0
        results = encode_blocks(read_blocks(paths, wanted), settings, processes)
        with closing(results), Progress("data:", size) as progress:
            for result in results:
                result.rows["start"] += written
                written += len(result.tokens)
                for file, array in zip(files, (result.rows, result.tokens), strict=True):
                    file.write(array.tobytes())
                counts.update(result.counts)
                shown += [f"{paths[result.file]}:{line}: {reason}" for line, reason in result.shown]
                del shown[ERRORS_SHOWN:]
                rows = f"{counts['good'] + counts['bad']:,} rows {'tokenized' if wanted else 'checked'}"
                progress.at(result.position, f"{rows}, {result.position / size:.0%}" if result.position else rows)
        check_rows(paths, counts["good"], counts["bad"], shown, settings["skip_bad_rows"])
    return {"skipped": counts["bad"], "truncated": counts["truncated"], "dropped": counts["dropped"]}


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
    counts: dict  # good, bad, truncated, dropped
    shown: list  # (line number, reason) of the first bad rows


def read_blocks(paths, wanted):
    """Yield the files as `Block`s."""
    before = 0
    for file, path in enumerate(paths):
        lines, size = [], 0
        for number, line, position in read_rows(path):
            lines.append((number, line))
            size += len(line)
            if size >= BLOCK:
                yield Block(file, before + position, lines, wanted)
                lines, size = [], 0
        before += position
        if lines:
            yield Block(file, before, lines, wanted)


def encode_block(block, tokenizer, max_length, max_prompt_length, seed, **_):
    """Check and tokenize one block, by the functions that define both."""
    preferences, bad = [], []
    for number, line in block.lines:
        try:
            preferences.append(Preference(*parse_line(number, line), source=number))
        except BadRow as reason:
            bad.append((number, str(reason)))
    wanted = preferences if block.wanted else []
    pairs, truncated, dropped = tokenize(wanted, tokenizer, max_length, max_prompt_length)
    digests = {} if seed is None else {preference.source: split_digest(preference, seed) for preference in wanted}
    parts = [(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in pairs]
    lines = [(digests.get(pair.source, 0), block.file, pair.source) for pair in pairs]
    rows = np.array([(0, *map(len, part), *line) for part, line in zip(parts, lines, strict=True)], ROW)
    rows["start"][1:] = np.cumsum([pair.num_tokens for pair in pairs], dtype=np.int64)[:-1]
    tokens = np.fromiter(chain.from_iterable(chain.from_iterable(parts)), id_type(tokenizer))
    counts = {"good": len(preferences), "bad": len(bad), "truncated": truncated, "dropped": dropped}
    return Encoded(block.file, block.position, rows, tokens, counts, bad[:ERRORS_SHOWN])


def id_type(tokenizer):
    """The smallest type that holds every id of the tokenizer."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


# Workers


def encode_blocks(blocks, settings, workers):
    """Yield `encode_block` of each block, in order, by so many processes with one block each; 0: in this one."""
    if not workers:
        yield from (encode_block(block, **settings) for block in blocks)
        return
    pool, busy = [], deque()
    try:
        pool += (Worker() for _ in range(workers))
        for worker in pool:
            worker.send(settings)
        idle = pool.copy()
        for block in blocks:
            done = None
            if not idle:
                idle.append(busy.popleft())
                done = idle[0].receive()
            busy.append(idle.pop())
            busy[-1].send(block)
            if done:
                yield done
        yield from (worker.receive() for worker in busy)
    except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
        raise OSError("a process that tokenized the data ended too early; was it out of memory?") from error
    finally:
        for worker in pool:
            worker.close()


class Worker:
    """A process that turns blocks into what `encode_block` makes of them.

    Not `multiprocessing`'s: a process that it spawns would import train.py, and PyTorch with it.
    """

    def __init__(self):
        path = os.pathsep.join(map(os.path.abspath, sys.path))  # "" is the working directory
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from dpo_min.data.cache import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
        )

    def send(self, message):
        """Hand over the settings, then one block at a time."""
        pickle.dump(message, self.process.stdin, protocol=5)
        self.process.stdin.flush()

    def receive(self):
        """The answer to the block that was sent last."""
        return pickle.load(self.process.stdout)

    def close(self):
        """End the process, whatever it is doing."""
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def serve():
    """A worker's life: settings, then blocks until there are no more."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # when the parent is gone, go without a word
    settings = pickle.load(sys.stdin.buffer)
    with suppress(EOFError):
        while True:
            pickle.dump(encode_block(pickle.load(sys.stdin.buffer), **settings), sys.stdout.buffer, protocol=5)
            sys.stdout.buffer.flush()


def default_workers(size):
    """One worker a usable core, none for the only core, and none without a block to work on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, ceil(size / BLOCK)) if cores > 1 else 0


# The directory of a cache


def build(place, paths, settings, before, workers):
    """Make the cache `place` of files whose stamps were `before`; until it is whole it has another name."""
    for old in place.parent.glob("*.partial/tokens.bin"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > ABANDONED:
                shutil.rmtree(old.parent)
    partial = place.with_name(f"{place.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        with open(partial / "rows.bin", "wb") as rows, open(partial / "tokens.bin", "wb") as tokens:
            check_first = not settings["skip_bad_rows"]
            counts = encode_files(paths, settings, (rows, tokens), total_size(before), workers, check_first)
            for file in (rows, tokens):
                file.flush()
                os.fsync(file.fileno())
        for path, stamped in zip(paths, before, strict=True):
            if stamp(path) != stamped:
                raise ValueError(f"{path}: changed while it was read")
        sums = {name: crc32(partial / name) for name in FILES}
        with write_atomically(partial / "cache.json") as file:
            file.write(json.dumps({"counts": counts, "crc32": sums}).encode())
        # Another process may have made the same one meanwhile: then this is thrown away.
        if not is_whole(place):
            shutil.rmtree(place, ignore_errors=True)
            partial.rename(place)
            sync(place.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_whole(place):
    """Whether a cache is there, and its files are the ones that were written, by their CRC-32."""
    try:
        noted = read_json(place / "cache.json")
        counts = all(type(noted["counts"][name]) is int for name in ("skipped", "truncated", "dropped"))
        return counts and all(crc32(place / name) == noted["crc32"][name] for name in FILES)
    except (ValueError, LookupError, TypeError, OSError):
        return False


def map_array(path, dtype):
    """A file as an array that is read from the disk where it is looked at."""
    if not path.stat().st_size:  # which cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)


def cache_key(paths, settings, content):
    """A name for everything that decides the pairs; `content` is the hash of the files' bytes, one after the other.

    The code is part of it, so that no change of it meets pairs that were made without.
    """
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    files = [(stamp(path)[0], is_gzip(path)) for path in paths]  # with their sizes, where one file ends
    what = [content, files, code, settings | {"tokenizer": settings["tokenizer"].fingerprint()}]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def data_hash(paths, directory, small=SMALL):
    """`fingerprint(paths)`; of large files it is noted in `directory`, to be computed again only if they change."""
    now, stamps = time.time_ns(), [stamp(path) for path in paths]
    if total_size(stamps) < small:
        return fingerprint(paths)
    notes, name = Path(directory) / "hashes.json", "\n".join(map(os.path.abspath, paths))
    try:
        known = read_json(notes)
    except ValueError:
        known = {}
    noted, digest = known[name] if is_note(known.get(name)) else (None, None)
    if noted == stamps:
        return digest
    digest = fingerprint(paths)
    # Time stamps have a grain: what changed just now may change again and have the same one.
    if all(now - changed > SETTLED * 10**9 for _, *times, _ in stamps for changed in times):
        notes.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(notes) as file:
            file.write(json.dumps(known | {name: [stamps, digest]}, indent=1).encode())
    return digest


def is_note(value):
    """Whether a value is what `data_hash` notes of files: their stamps and a hash."""
    pair = isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
    return pair and re.fullmatch("[0-9a-f]{64}", value[1]) is not None


def stamp(path):
    """What shows that a file has changed: [size, time of the last write, of the last change of any kind, inode]."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from error
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def total_size(stamps):
    """Bytes of the files that have these stamps."""
    return sum(size for size, *_ in stamps)
