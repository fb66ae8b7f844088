"""Data files, hashed as they are read, so that a hash is always that of the very bytes that were trained on.

A pipe can be read only once, and any file may change between two readings. Of large files the hash is noted in
hashes.json in the cache, to be computed again only if a file's stamp shows a change; whatever the note says, pairs
come from a cache that has the hash in its name, and that was made of bytes that had it.
"""

import hashlib
import io
import json
import os
import stat
import time
from contextlib import suppress

from dpo_min.data.lines import unreadable
from dpo_min.system.files import read_json, write_text

SETTLED = 2  # seconds after which a change of a file is sure to change its time stamp


class Hashed(io.FileIO):
    """A file that is read once, from its beginning to its end, and hashed on the way."""

    def __init__(self, path):
        super().__init__(path)
        self.sha256 = hashlib.sha256()

    def readinto(self, buffer):
        """As of every file."""
        size = super().readinto(buffer)
        self.sha256.update(memoryview(buffer)[:size])
        return size

    read, readall = io.RawIOBase.read, io.RawIOBase.readall  # which use it

    def seek(self, offset, whence=0):
        """No way to move where reading is."""
        raise io.UnsupportedOperation("a file that is hashed is read in one go")


class Reading:
    """One reading of several files, in their order, for the hash of all that was read."""

    def __init__(self):
        self.files = []

    def open(self, path, mode="rb"):
        """In the place of `open`."""
        self.files.append(Hashed(path))
        return io.BufferedReader(self.files[-1], 2**17)

    def sha256(self):
        """The SHA-256 of a file's bytes; of several files that of their hashes, and so of where one of them ends."""
        hashes = [file.sha256.hexdigest() for file in self.files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


NOTHING = Reading().sha256()  # the hash of no file


def data_hash(paths):
    """The hash of the files as they are now.

    Raises:
        ValueError: a file cannot be read.
    """
    reading = Reading()
    for path in paths:
        try:
            with reading.open(path) as file:
                while file.read(2**20):
                    pass
        except OSError as error:
            raise unreadable(path, error) from error
    return reading.sha256()


# Notes


def stamps_of(paths):
    """What shows that a file has changed, of each: [size, last write, last change of any kind, inode]; [] of a pipe."""
    stamps = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from error
        regular = stat.S_ISREG(status.st_mode)
        stamps.append([status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino] if regular else [])
    return stamps


def noted_hash(notes, paths, stamps):
    """The hash that the file `notes` has of the files with these stamps, or None; a damaged note is none."""
    with suppress(ValueError, LookupError, TypeError):
        noted = read_json(notes)[name_of(paths)]
        if noted["stamps"] == stamps:
            return noted["sha256"]
    return None


def note_hash(notes, paths, stamps, digest):
    """Add the hash to the file `notes`, unless one of the files may still change without a change of its stamp."""
    now = time.time_ns()
    if all(now - changed > SETTLED * 10**9 for _, *times, _ in stamps for changed in times):
        try:
            known = read_json(notes)
        except ValueError:
            known = {}
        write_text(notes, json.dumps(known | {name_of(paths): {"stamps": stamps, "sha256": digest}}, indent=1))


def name_of(paths):
    """What files are called in the notes."""
    return "\n".join(map(os.path.abspath, paths))
