"""One cache: a directory that gets its name only when it is whole, so that whatever has that name can be used.

Until then its name carries this program's mark, by which it is found and removed if the program was killed.
"""

import hashlib
import json
import os
import shutil
import time
import unicodedata
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dpo_min.data.lines import is_gzip
from dpo_min.system.files import ABANDONED, crc32, partial_name, partials, read_json, sync, write_text

FILES = "rows.bin", "tokens.bin"


def cache_key(paths, settings, content):
    """A name for everything that decides the pairs; `content` is the hash of the files.

    The code is part of it, so that no change of it meets pairs that were made without, and so are Unicode's tables.
    """
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    code += [version("tiktoken"), unicodedata.unidata_version]
    what = [content, [*map(is_gzip, paths)], code, settings | {"tokenizer": settings["tokenizer"].fingerprint()}]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=vars).encode()).hexdigest()[:32]


def build(place, paths, content, encode):
    """Make the cache `place` of files whose hash is `content`.

    `encode` writes to the two binary files that it is given, and returns counts and the hash of the data that it read.

    Raises:
        ValueError: the data that were read have another hash.
        OSError: the files cannot be written.
    """
    for old in partials(place.parent):
        with suppress(OSError):
            if time.time() - (old / "tokens.bin").stat().st_mtime > ABANDONED:
                shutil.rmtree(old)
    partial = partial_name(place)
    partial.mkdir()
    try:
        with open(partial / FILES[0], "wb") as rows, open(partial / FILES[1], "wb") as tokens:
            counts, read = encode((rows, tokens))
            for file in (rows, tokens):
                file.flush()
                os.fsync(file.fileno())
        if read != content:
            raise ValueError(f"{', '.join(map(str, paths))}: changed while it was read")
        sums = {name: crc32(partial / name) for name in FILES}
        write_text(partial / "cache.json", json.dumps({"counts": counts, "crc32": sums}))
        # Another process may have made the same one meanwhile: then this is thrown away.
        if not is_whole(place):
            discard(place)
            partial.rename(place)
            sync(place.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def discard(place):
    """Remove a damaged cache; OSError where there is anything else in it."""
    if place.exists():
        for name in (*FILES, "cache.json"):
            (place / name).unlink(missing_ok=True)
        place.rmdir()


def is_whole(place):
    """Whether a cache is there, and its files are the ones that were written, by their CRC-32."""
    try:
        noted = read_json(place / "cache.json")
        counts = all(type(number) is int for number in noted["counts"].values())
        return counts and all(crc32(place / name) == noted["crc32"][name] for name in FILES)
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        return False


def map_array(path, dtype):
    """A file as an array that is read from the disk where it is looked at."""
    if not path.stat().st_size:  # which cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
