"""A file of rows → its lines: .jsonl or .jsonl.gz, read as bytes, a line at a time."""

import gzip
import hashlib
import zlib

MAX_ROW = 2**25  # bytes of a line; a file without line ends is refused before it fills the memory
# A .gz may expand to so many bytes, or to so many times its size if that is more: text expands three to thirty times.
EXPANSION, EXPANSION_FREE = 100, 2**26


def read_rows(path, opener=open):
    """Yield (line number, line as bytes, position) of a .jsonl or .jsonl.gz file, without blank lines.

    The position is how many bytes of the file have been read so far, 0 where that is not known, as of a pipe.
    `opener` takes the place of `open`.

    Raises:
        ValueError: the file is missing, a directory, unreadable, or broken gzip; it holds no row, a row longer than
            `MAX_ROW`, or gzip that expands beyond all text.
    """
    empty, read = True, 0
    try:
        with opener(path, "rb") as raw, gzip.GzipFile(fileobj=raw) if is_gzip(path) else raw as lines:
            seekable = raw.seekable()
            for number, line in enumerate(iter(lambda: lines.readline(MAX_ROW + 1), b""), start=1):
                read += len(line)
                if len(line) > MAX_ROW:
                    raise ValueError(f"{path}:{number}: a row of more than {MAX_ROW} bytes")
                if lines is not raw and seekable and read > max(EXPANSION_FREE, EXPANSION * raw.tell()):
                    raise ValueError(f"{path}:{number}: expands to more than {EXPANSION} times its size")
                if line.strip():
                    empty = False
                    yield number, line, raw.tell() if seekable else 0
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    if empty:
        raise ValueError(f"{path}: holds no rows")


def is_gzip(path):
    """Whether a file is read as gzip, which its name decides."""
    return str(path).endswith(".gz")


def unreadable(path, error):
    """The ValueError for a file that cannot be read."""
    return ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")


def fingerprint(paths):
    """SHA-256 of the files' bytes, one file after the other: the data a run was made from.

    Raises:
        ValueError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        except OSError as error:
            raise unreadable(path, error) from error
    return digest.hexdigest()
