"""A file of rows → its lines: what is read, what is named for what it is, and in which time."""

import bz2
import csv
import gzip
import json
import lzma
import os
import shlex
import subprocess
import sys
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.data import lines
from dpo_min.data.lines import decode, is_array, read_rows
from dpo_min.data.rows import load_preferences

GOOD = {"prompt": "x é", "chosen": 'y, "z"\n', "rejected": "z"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.text(), value, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lines")


def numbered(path):
    return [(number, json.loads(row)) for number, row, _ in read_rows(path)]


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("missing.jsonl", None, "cannot be read: No such file"),
    (".", None, "cannot be read: Is a directory"),
    ("empty.jsonl", b"", "holds no rows"),
    ("empty.jsonl.gz", b"", "holds no rows"),
    ("blank.jsonl", b"\n \n\n", "holds no rows"),
    ("empty.json", b" [\n]\n", "holds no rows"),
    ("plain.jsonl.gz", json.dumps(GOOD).encode(), "cannot be read: Not a gzipped file"),
    ("broken.jsonl.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 40, "cannot be read"),
])  # fmt: skip
@pytest.mark.parametrize("skip_bad_rows", [False, True])
def test_a_file_without_rows_is_refused_by_name(tmp_path, name, content, reason, skip_bad_rows):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    (tmp_path / "good.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(ValueError, match=f"^{path}: {reason}"):
        load_preferences([tmp_path / "good.jsonl", path], skip_bad_rows)


# JSON arrays


@given(
    st.lists(st.dictionaries(st.text(), VALUE, max_size=3), min_size=1, max_size=5),
    st.none() | st.integers(0, 4),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["a.json", "a.jsonl", "a.json.gz"]),
)
@example([{}], None, False, False, "a.jsonl")
def test_an_array_has_the_rows_that_it_holds_however_it_is_laid_out(folder, rows, indent, mark, ascii_only, name):
    """Kills: rows cut at a bracket or a quote inside of them, numbered from 0, or lost where all stand in one line."""
    content = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    content = json.dumps(rows, indent=indent).encode() if b"\xed" in content else content  # half of a surrogate pair
    content = BYTE_ORDER_MARK * mark + b" \n" * mark + content + b"\n"
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert numbered(path) == [*enumerate(rows, 1)]
    assert is_array(path)


@pytest.mark.parametrize(("content", "words"), [
    ('[{"a": 1} {"a": 2}]', "after row 1 of its JSON array a comma"),
    ('[{"a": 1},', "row 2 of its JSON array cannot be read"),
    ('[{"a": 1},]', "row 2 of its JSON array cannot be read"),
    ('[{"a": 1}', "after row 1 of its JSON array a comma"),
    ('[{"a": 1}]\n{"a": 2}', "something follows the JSON array"),
    ("[", "row 1 of its JSON array cannot be read"),
    ('[{"a": "\xff"}]', "cannot be read as UTF-8"),
    ('[{"a": ' + "[" * 100_000, "row 1 of its JSON array cannot be read"),
])  # fmt: skip
def test_a_broken_array_is_one_line_that_names_the_row(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"\A{path}: {words}.*\Z"):
        numbered(path)


def test_a_row_that_is_a_list_is_not_an_array_of_rows(tmp_path):
    """Kills: JSON Lines taken for an array because its first row is a list."""
    path = tmp_path / "a.jsonl"
    path.write_text('[1]\n{"a": 2}\n')
    assert numbered(path) == [(1, [1]), (2, {"a": 2})]
    assert not is_array(path)


def test_an_integer_of_any_length_is_the_rows_affair_and_not_the_arrays(tmp_path):
    """Kills: Python's limit on integers ending a whole file, where JSON Lines has one bad row."""
    path = tmp_path / "a.json"
    path.write_text('[{"n": ' + "7" * 5000 + "}, " + json.dumps(GOOD) + "]")
    assert load_preferences([path], skip_bad_rows=True)[1] == 1


def test_an_array_larger_than_memory_should_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_ARRAY", 30)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD]))
    with pytest.raises(ValueError, match="a JSON array of more than 30 bytes"):
        numbered(path)


# Other kinds of files


def table(path, delimiter=",", columns=("prompt", "chosen", "rejected")):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerow(GOOD.values())


OTHERS = {
    "a.csv": (table, "a table"),
    "b.CSV": (lambda path: table(path, ";"), "a table"),
    "c.tsv": (lambda path: table(path, "\t"), "a table"),
    "d.jsonl": (table, "a table"),  # by its content
    "e.txt": (lambda path: path.write_bytes(json.dumps(GOOD).encode("utf-16")), "UTF-16"),
    "f.jsonl": (lambda path: path.write_bytes(gzip.compress(json.dumps(GOOD).encode())), "a gzip file"),
    "g.jsonl.bz2": (lambda path: path.write_bytes(bz2.compress(json.dumps(GOOD).encode())), "a bzip2 file"),
    "h.xz": (lambda path: path.write_bytes(lzma.compress(json.dumps(GOOD).encode())), "an xz file"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_another_file_is_named_with_makes_rows_of_it(tmp_path, name):
    """The command in the message is run as it stands. Kills: a delimiter, a quote or a path with blanks forgotten."""
    make, words = OTHERS[name]
    (tmp_path / "with blanks").mkdir()
    path = tmp_path / "with blanks" / name
    make(path)
    with pytest.raises(ValueError, match=words) as error:
        numbered(path)
    command = str(error.value).split("this makes rows of it: ")[1]
    assert "\n" not in command and command.startswith("python -c ")
    command = shlex.quote(sys.executable) + command.removeprefix("python")
    subprocess.run(["bash", "-c", command], check=True, env=os.environ | {"LC_ALL": "C"})
    (made,) = {*path.parent.iterdir()} - {path}
    assert numbered(made) == [(1, GOOD)]


@pytest.mark.parametrize(("content", "words"), [
    (b"PAR1\x15\x04", "a Parquet file"),
    (b"ARROW1\0\0", "an Arrow file"),
    (b"\xff\xff\xff\xff\0", "an Arrow file"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
    (b"<!DOCTYPE html>\n", "a web page"),
])  # fmt: skip
def test_a_file_of_another_kind_is_named_whatever_it_is_called(tmp_path, content, words):
    for name in ("a.jsonl", "a.parquet", "a.jsonl.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        for look in (numbered, lambda path: lines.check_kinds([path])):
            with pytest.raises(ValueError, match=rf"\A{path}: ({words}).*one object a line.*\Z"):
                look(path)
    with pytest.raises(ValueError, match="pyarrow" if b"PAR1" in content else words):
        numbered(tmp_path / "a.parquet")


@pytest.mark.parametrize("line", ['{"prompt": "a, b", "chosen": "c", "rejected": "d"}', "a, b, c", '"prompt"'])
def test_what_only_looks_a_little_like_a_table_is_read_line_by_line(tmp_path, line):
    """Kills: every line with commas a table."""
    path = tmp_path / "a.jsonl"
    path.write_text(line)
    assert [row for _, row, _ in read_rows(path)] == [line.encode()]


def test_a_pipe_is_read_once_and_looked_into_by_nobody(tmp_path):
    """Kills: a look at the kind of a file that takes the rows out of a pipe, or waits for its writer."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    lines.check_kinds([path])
    assert not is_array(path)
    thread = threading.Thread(target=lambda: path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD)))
    thread.start()
    assert numbered(path) == [(1, GOOD), (2, GOOD)]
    thread.join()


def test_text_is_decoded_without_its_mark_or_refused_by_the_place_it_is_from():
    assert decode(BYTE_ORDER_MARK + b"\xef\xbb\xbfa", "here") == "\ufeffa"  # a second one is a character
    for content in (b"\xff\xfea\0", "a".encode("utf-16"), b"a\xff"):
        with pytest.raises(ValueError, match=r"^here: .*UTF-(8|16)"):
            decode(content, "here")


# Time


def test_an_array_of_twice_the_rows_takes_twice_the_steps(tmp_path, python_steps):
    """Kills: the rest of the text copied or searched for each row. Counted in lines of Python, of which C does none."""
    steps = []
    for n in (200, 400):
        path = tmp_path / f"{n}.json"
        path.write_text(json.dumps([GOOD] * n))
        steps.append(python_steps(lambda path=path: list(read_rows(path))))
        assert sum(1 for _ in read_rows(path)) == n
    assert steps[1] < 2.2 * steps[0]


def test_a_megabyte_of_blanks_between_rows_is_passed_over_once(tmp_path):
    """Kills: a pattern that looks through a run of blanks from every one of them: 10^12 steps, which nobody awaits."""
    path = tmp_path / "a.json"
    path.write_text("[" + " " * 2**20 + json.dumps(GOOD) + "\n" * 2**20 + "," + " " * 2**20 + json.dumps(GOOD) + " ]")
    assert len(numbered(path)) == 2
