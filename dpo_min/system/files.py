"""Files that are whole or not there, and JSON that is read as data of a bounded size."""

import errno
import hashlib
import json
import os
import re
import secrets
import stat
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
PARTIAL = re.compile(r".+\.dpo_min-[0-9a-f]{8}\.partial")
BINARY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # to open a pipe without waiting for its other end
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
PATIENCE = 1  # seconds of waiting for a lock without a word


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
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise ValueError(f"{path}: larger than {limit} bytes, which no file of its kind is")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON: not UTF-8 at byte {error.start}") from error


def open_regular(path):
    """A regular file, to read its bytes; OSError for another kind: a pipe would be waited for, a device never ends."""
    return regular(os.open(path, os.O_RDONLY | BINARY), path, "rb")


def regular(descriptor, path, mode):
    """An open descriptor as a file object; OSError where it is not a regular file's."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, mode)
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def partial_name(path):
    """A name to write `path` under until it is whole, with this program's mark; another process has another."""
    return path.with_name(f"{path.name}.dpo_min-{secrets.token_hex(4)}.partial")


def partials(directory):
    """What was being written in a directory, by its mark. Nobody else's files have such a name."""
    return [path for path in directory.glob("*.partial") if PARTIAL.fullmatch(path.name)]


@contextmanager
def write_atomically(path):
    """A binary file to write; it takes the place of `path` only once it is whole and on the disk."""
    path = Path(path)
    for old in partials(path.parent):
        with suppress(OSError):
            if old.name.startswith(path.name + ".dpo_min-") and time.time() - old.stat().st_mtime > ABANDONED:
                old.unlink()
    temporary = partial_name(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            flush_to_disk(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """A file of text, whole or not at all, in the place of `path`."""
    with write_atomically(path) as file:
        file.write(text.encode())


def make_directory(path):
    """Make a directory, and those above it that are missing, and flush their names to the disk."""
    path = Path(path).absolute()
    new = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for place in reversed(new):
        sync(place.parent)


class Lock:
    """One program at a time: a lock on a file, which ends with the process that holds it, however that ends."""

    def __init__(self, path, wait=0):
        """Take it, within `wait` seconds; waiting says so.

        Raises:
            BlockingIOError: another holds it.
            OSError: the file cannot be made.
        """
        self.file = regular(os.open(path, os.O_RDWR | os.O_CREAT | BINARY, 0o666), path, "rb+")
        start, said = time.monotonic(), False
        while fcntl:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                waited = time.monotonic() - start
                if error.errno in NO_LOCKS:
                    print(f"note: {path}: {error.strerror} on this file system: start one program at a time there")
                    break
                if not isinstance(error, BlockingIOError) or waited >= wait:
                    self.file.close()
                    raise
            if waited > PATIENCE and not said:
                print(f"waiting for another program, which holds {path}", flush=True)
                said = True
            time.sleep(0.05)

    def __enter__(self):
        """It is held since it was made."""
        return self

    def __exit__(self, *error):
        """Give it back."""
        self.close()

    def close(self):
        """Give it back."""
        self.file.close()


def sync(path):
    """Flush a file, or the names in a directory, to the disk; what is not there is left out."""
    with suppress(FileNotFoundError, PermissionError):  # a system that opens no directory keeps names by itself
        descriptor = os.open(path, os.O_RDONLY | BINARY)
        try:
            flush_to_disk(descriptor)
        finally:
            os.close(descriptor)


def flush_to_disk(descriptor):
    """Flush what is open; some file systems know of no flushing, of directories above all."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def sha256(path):
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32(path):
    """The CRC-32 of a file's bytes: not against forgery, but several times as fast as a hash that is."""
    value = 0
    with open_regular(path) as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value
