"""Data files, hashed as they are read, so that a hash is always that of the very bytes that were trained on.

A pipe can be read only once, and any file may change between two readings: pairs come from a cache that has the hash
in its name, and that was made of bytes that had it.
"""

import hashlib
import io
import os
import stat

from dpo_min.data.lines import unreadable


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


def sizes_of(paths):
    """The bytes of each file, None of a pipe.

    Raises:
        ValueError: a file cannot be read.
    """
    sizes = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise unreadable(path, error) from error
        sizes.append(status.st_size if stat.S_ISREG(status.st_mode) else None)
    return sizes
