"""A file of JSON lines that only grows: a line that was appended is on the disk, whatever happens next."""

import json
import os
from collections import deque
from contextlib import suppress

from dpo_min.data.lines import is_array
from dpo_min.system.files import Lock, flush_to_disk, make_directory, sync


class Journal(Lock):
    """One program's hold on such a file. A last line that a crash left without its end is mended when it is opened."""

    def __init__(self, path):
        """Open the file, or make it.

        Raises:
            ValueError: another program appends to it now, or it is no such file.
            OSError: it cannot be written.
        """
        if ".gz" in path.suffixes:  # also of a journal beside such a file
            raise ValueError(f"{path}: lines are not appended to gzip; leave .gz out of the name")
        if path.is_file() and is_array(path):
            raise ValueError(f"{path}: one JSON array, to which no lines are appended; name another file")
        make_directory(path.absolute().parent)
        try:
            super().__init__(path)
        except BlockingIOError as error:
            raise ValueError(f"{path}: another program is writing to it") from error
        self.descriptor = self.file.fileno()
        mend(self.file, path)
        sync(path.absolute().parent)

    def append(self, row):
        """Write one row and flush it to the disk; whatever goes wrong leaves the file as it was before."""
        line, end = encode(row), os.lseek(self.descriptor, 0, os.SEEK_END)
        try:
            while line:
                line = line[os.write(self.descriptor, line) :]
            flush_to_disk(self.descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self.descriptor, end)
            raise


def encode(row):
    """A row as one line of bytes."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def mend(file, path):
    """Give a last line without an end its end if it is whole, and cut it away if it is the beginning of a row.

    Raises:
        ValueError: it is neither, so the file is not one of ours, and stays as it is.
    """
    last, end = b"".join(deque(file, maxlen=1)), file.seek(0, os.SEEK_END)
    if not last or last.endswith(b"\n"):
        return
    if is_whole(last):
        file.write(b"\n")
    elif last.strip(b"\0")[:1] in (b"", b"{"):  # where the power failed, a line may have become NULs
        file.truncate(end - len(last))
    else:
        file.close()
        raise ValueError(f"{path}: its last line is not a row; name another file")
    file.flush()
    flush_to_disk(file.fileno())


def is_whole(line):
    """Whether bytes are one object of JSON. No beginning of an object is one, so this finds every torn line."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
