"""A file of rows → its lines: JSON Lines, also gzipped, or one JSON array; another kind is named for what it is.

What comes out is bytes, a row at a time, so that a worker process can take them further.
"""

import gzip
import json
import re
import shlex
import zlib
from pathlib import Path

MAX_ROW = 2**25  # bytes of a line; a file without line ends is refused before it fills the memory
# A .gz may expand to so many bytes, or to so many times its size if that is more: text expands three to thirty times.
EXPANSION, EXPANSION_FREE = 100, 2**26
LOOK = 2**12  # bytes by which a file is recognised
MAX_ARRAY = 2**28  # bytes of a JSON array, which is held as a whole
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ARRAY = re.compile(rb"\s*\[\s*(?:[{\]]|\Z)")  # an array of objects; a row that is a list of anything else is a bad row
BLANK = re.compile(r"[ \t\r\n]*")
UTF_16 = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{", b"[\0", b"\0[")

# How other files begin, what they are, and the program that turns one into JSON Lines; {} stands for its argument.
RECODE = "import sys; print(open(sys.argv[1], encoding='utf-16').read(), file=open(sys.argv[2], 'w', encoding='utf-8'))"
PARQUET = (
    "import json, sys, pyarrow.parquet as p; open(sys.argv[2], 'w').writelines(json.dumps(row, default=str) + chr(10) "
    "for batch in p.ParquetFile(sys.argv[1]).iter_batches() for row in batch.to_pylist())"
)
UNPACK = "import sys, MODULE; open(sys.argv[2], 'wb').writelines(MODULE.open(sys.argv[1]))"
TABLE = (
    "import csv, json, sys; csv.field_size_limit(10**9); open(sys.argv[2], 'w').writelines(json.dumps(row) + chr(10) "
    "for row in csv.DictReader(open(sys.argv[1], encoding='utf-8-sig', newline=''), delimiter=chr(CODE)))"
)
KINDS = (
    (UTF_16, "text in UTF-16, not UTF-8", RECODE),
    ((b"PAR1",), "a Parquet file", PARQUET),
    ((b"ARROW1", b"\xff\xff\xff\xff"), "an Arrow file; the package that wrote it exports JSON Lines too", ""),
    ((b"\x1f\x8b",), "a gzip file that is not called .gz", UNPACK.replace("MODULE", "gzip")),
    ((b"BZh",), "a bzip2 file", UNPACK.replace("MODULE", "bz2")),
    ((b"\xfd7zXZ",), "an xz file", UNPACK.replace("MODULE", "lzma")),
    ((b"\x28\xb5\x2f\xfd",), "a Zstandard file; unpack it with zstd -d", ""),
    ((b"PK\x03\x04",), "a zip archive or a spreadsheet; unpack it, or save it as CSV", ""),
    ((b"version https://git-lfs",), "a git-lfs pointer, not the file itself; git lfs pull fetches it", ""),
    ((b"<!DOCTYPE", b"<!doctype", b"<html"), "a web page, not the file that was to be downloaded", ""),
)  # fmt: skip


def read_rows(path, opener=open):
    """Yield (number, row as bytes, position) of a file's rows, without blank lines.

    The number is that of the line, of an array that of the row. The position is how many bytes of the file have been
    read so far, 0 where that is not known, as of a pipe. `opener` takes the place of `open`.

    Raises:
        ValueError: the file is missing, a directory, unreadable, broken gzip, or of another kind; it holds no row, a
            row longer than `MAX_ROW`, or gzip that expands beyond all text.
    """
    empty = True
    try:
        with opener(path, "rb") as raw, gzip.GzipFile(fileobj=raw) if is_gzip(path) else raw as lines:
            begin = lines.peek(LOOK)[:LOOK]
            refuse_other_kinds(path, begin)
            array = ARRAY.match(begin.removeprefix(BYTE_ORDER_MARK))
            for number, row in array_rows(path, lines) if array else line_rows(path, lines, raw):
                empty = False
                yield number, row, raw.tell() if raw.seekable() else 0
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    if empty:
        raise ValueError(f"{path}: holds no rows")


def line_rows(path, lines, raw):
    """Yield (number, line) of the lines that are not blank; `raw` is the file that they are in, `lines` its text."""
    read, seekable = 0, raw.seekable()
    for number, line in enumerate(iter(lambda: lines.readline(MAX_ROW + 1), b""), start=1):
        read += len(line)
        if len(line) > MAX_ROW:
            raise ValueError(f"{path}:{number}: a row of more than {MAX_ROW} bytes")
        if lines is not raw and seekable and read > max(EXPANSION_FREE, EXPANSION * raw.tell()):
            raise ValueError(f"{path}:{number}: expands to more than {EXPANSION} times its size")
        if line.strip():
            yield number, line


def array_rows(path, file):
    """Yield (number, row) of the rows of one JSON array."""
    text = decode(file.read(MAX_ARRAY + 1), path)
    if len(text) > MAX_ARRAY:
        raise ValueError(f"{path}: a JSON array of more than {MAX_ARRAY} bytes; write one row a line instead")
    find_end = json.JSONDecoder(parse_int=len).raw_decode  # integers may have any number of digits here
    number, place, comma = 0, BLANK.match(text, text.index("[") + 1).end(), text.index("[")
    while text[place : place + 1] != "]" or text[comma] == ",":
        number += 1
        try:
            end = find_end(text, place)[1]
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: row {number} of its JSON array cannot be read: {str(error)[:200]}") from error
        yield number, text[place:end].encode()
        comma = BLANK.match(text, end).end()
        if text[comma : comma + 1] not in (",", "]"):
            raise ValueError(f"{path}: after row {number} of its JSON array a comma or ] is missing")
        place = BLANK.match(text, comma + 1).end() if text[comma] == "," else comma
    if text[place + 1 :].strip():
        raise ValueError(f"{path}: something follows the JSON array, which must be all of the file")


def refuse_other_kinds(path, begin):
    """ValueError with what the file is, and with the command that makes rows of it, unless it may be JSON."""
    for marks, kind, program in KINDS:
        if begin.startswith(marks):
            raise ValueError(other_kind(path, kind, program))
    header = (begin.removeprefix(BYTE_ORDER_MARK).splitlines() or [b"{"])[0].lower().replace(b'"', b"")
    named = str(path).lower().removesuffix(".gz").endswith((".csv", ".tsv"))
    delimiter = max(b",;\t", key=header.count)
    columns = {column.strip() for column in header.split(bytes([delimiter]))}
    if b"{" not in header and (named or (len(columns) > 1 and {b"prompt", b"chosen", b"rejected"} & columns)):
        raise ValueError(other_kind(path, "a table (CSV)", TABLE.replace("CODE", str(delimiter))))


def other_kind(path, kind, program):
    """The line that says what a file is and how it becomes JSON Lines."""
    out = Path(path).with_suffix(".jsonl")
    out = out if out != Path(path) else out.with_suffix(".rows.jsonl")
    way = f'; this makes rows of it: python -c "{program}" {shlex.quote(str(path))} {shlex.quote(str(out))}'
    way = "; unpack it with gunzip first" if is_gzip(path) else way if program else ""
    return f"{path}: {kind}; rows are JSON, one object a line, or one array{way}"


def decode(content, where):
    """Text of bytes in UTF-8, without a byte order mark; ValueError that names `where` they are from otherwise."""
    if content.startswith(UTF_16):
        raise ValueError(f"{where}: text in UTF-16, not UTF-8; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: cannot be read as UTF-8 text: {error.reason} at byte {error.start}") from error


def check_kinds(paths):
    """ValueError where a file is of another kind: before much time is spent on the others."""
    for path in paths:
        refuse_other_kinds(path, beginning(path))


def is_array(path):
    """Whether a file that can be read twice is one JSON array."""
    return bool(ARRAY.match(beginning(path).removeprefix(BYTE_ORDER_MARK)))


def beginning(path):
    """The first bytes of a file that can be read twice; of any other none."""
    if not Path(path).is_file():
        return b""
    try:
        with gzip.open(path) if is_gzip(path) else open(path, "rb") as file:
            return file.read(LOOK)
    except (OSError, EOFError, zlib.error):
        return b""


def is_gzip(path):
    """Whether a file is read as gzip, which its name decides."""
    return str(path).endswith(".gz")


def unreadable(path, error):
    """The ValueError for a file that cannot be read."""
    return ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")
