"""Files that are whole or not there, and JSON that is read as data of a bounded size."""

import hashlib
import json
import os
import secrets
import time
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nobody is kept out
    fcntl = None

MAX_JSON = 2**26  # bytes; GPT-2's vocabulary takes one million, and Python needs up to 30 times as much
ABANDONED = 3600  # seconds without a write after which an unfinished file is taken for a dead process's


def read_json(path):
    """The object in a JSON file; ValueError where there is none, or where it is larger than `MAX_JSON`."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also of a number of too many digits
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return value


def read_text(path, limit=MAX_JSON):
    """The text of a regular file of at most `limit` bytes; ValueError with the path where there is none."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device never ends
            raise ValueError(f"{path}: cannot be read: not a regular file")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise ValueError(f"{path}: larger than {limit} bytes, which no file of its kind is")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON: not UTF-8 at byte {error.start}") from error


@contextmanager
def write_atomically(path):
    """A binary file to write; it takes the place of `path` only once it is whole and on the disk."""
    path = Path(path)
    for old in path.parent.glob("*.partial"):
        with suppress(OSError):
            if old.name.startswith(path.name + ".") and time.time() - old.stat().st_mtime > ABANDONED:
                old.unlink()
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")  # another process may write it too
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


class Lock:
    """One program at a time: a lock on a file, which ends with the process that holds it, however that ends."""

    def __init__(self, path, wait=False):
        """Take it; `wait` until it is free.

        Raises:
            BlockingIOError: another holds it.
            OSError: the file cannot be made.
        """
        self.file = open(path, "ab")  # noqa: SIM115
        if fcntl:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                self.file.close()
                raise

    def __enter__(self):
        """It is held since it was made."""

    def __exit__(self, *error):
        """Give it back."""
        self.file.close()


def sync(path):
    """Flush a file, or the names in a directory, to the disk; what is not there is left out."""
    with suppress(FileNotFoundError, PermissionError):  # a system that opens no directory keeps names by itself
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def crc32(path):
    """The CRC-32 of a file's bytes: not against forgery, but ten times as fast as a hash that is."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value


def sha256(path):
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
