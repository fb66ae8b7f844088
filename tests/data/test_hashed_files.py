"""The hash of data is that of the bytes that were read, whatever becomes of the file and of the notes."""

import gzip
import hashlib
import json
import os
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.data import cache, hashed_files
from dpo_min.data.cache import prepare_pairs
from dpo_min.data.hashed_files import NOTHING, data_hash, note_hash, noted_hash, stamps_of
from dpo_min.data.tokenizer import load_tokenizer

BYTES = load_tokenizer("bytes")


def rows(*names):
    return b"".join(json.dumps({"prompt": n, "chosen": "a", "rejected": "b"}).encode() + b"\n" for n in names)


def prepare(paths, directory, small):
    return prepare_pairs(paths, BYTES, 20, 10, False, directory, 0, 0, small)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hashed")


@pytest.mark.parametrize("small", [0, 2**20])
@pytest.mark.parametrize("zipped", [False, True])
def test_the_hash_of_one_file_is_that_of_its_bytes(tmp_path, small, zipped):
    """Kills: the text hashed instead of what lies on the disk, or only what was needed of it."""
    content = gzip.compress(rows("x", "y") * 5000) if zipped else rows("x", "y") * 5000 + b"\n"
    path = tmp_path / ("a.jsonl.gz" if zipped else "a.jsonl")
    path.write_bytes(content)
    pairs = prepare([path], tmp_path / "cache", small)
    assert pairs.sha256 == pairs[:3].sha256 == pairs.split(0.5)[1].sha256 == hashlib.sha256(content).hexdigest()
    assert hashlib.sha256().hexdigest() == NOTHING


@pytest.mark.parametrize("small", [0, 2**20])
def test_where_one_file_ends_is_in_the_hash(tmp_path, small):
    """Kills: the hash of the bytes one after the other; two rows that become one bad row are then the same data."""
    found, whole = set(), rows("x", "y")
    for cut in (5, len(whole) // 2, len(whole) - 3):
        paths = [tmp_path / "a", tmp_path / "b"]
        for path, part in zip(paths, (whole[:cut], whole[cut:]), strict=True):
            path.write_bytes(part)
        found.add(data_hash(paths))
    paths[0].write_bytes(whole)
    paths[1].write_bytes(whole)
    pairs = prepare(paths, tmp_path / "cache", small)
    assert pairs.sha256 == data_hash(paths)
    assert len(found | {data_hash(paths[:1]), data_hash(paths)}) == 5


@pytest.mark.parametrize("small", [0, 2**20])
def test_a_pipe_is_read_once_and_has_the_hash_of_what_came_through_it(tmp_path, small):
    """Kills: a second opening, which waits for ever; the hash of nothing; a cache of it."""
    pipe, file, content = tmp_path / "pipe.jsonl", tmp_path / "file.jsonl", rows(*map(str, range(3000)))
    os.mkfifo(pipe)
    file.write_bytes(content)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    pairs = prepare([pipe], tmp_path / "none", small)
    writer.join()
    assert pairs.sha256 == data_hash([file])
    assert [p.prompt_ids for p in pairs] == [p.prompt_ids for p in prepare([file], tmp_path / "cache", 0)]
    assert not (tmp_path / "none").exists()


def test_of_several_processes_none_takes_its_share_of_a_pipe(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_PORT": "1",
        "MASTER_ADDR": "x",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match=r"pipe: not a file, and only one process could read it"):
        prepare([tmp_path / "pipe"], tmp_path / "cache", 0)


# Notes


@pytest.fixture
def settled(monkeypatch):
    """Any age is old enough."""
    monkeypatch.setattr(hashed_files, "SETTLED", -1)


def test_large_data_is_hashed_once_until_anything_about_it_changes(tmp_path, monkeypatch, settled):
    path = tmp_path / "a.jsonl"
    path.write_bytes(rows("x"))
    first = prepare([path], tmp_path / "cache", 0).sha256
    with monkeypatch.context() as patch:
        patch.setattr(cache, "data_hash", None)
        assert prepare([path], tmp_path / "cache", 0).sha256 == first
        os.utime(path)
        with pytest.raises(TypeError):
            prepare([path], tmp_path / "cache", 0)
    path.write_bytes(rows("y"))
    assert prepare([path], tmp_path / "cache", 0).sha256 == data_hash([path]) != first


@given(place=st.integers(0, 10**9), flip=st.integers(1, 255))
@example(place=0, flip=255)
def test_a_damaged_note_costs_another_reading_and_nothing_else(folder, place, flip):
    """Kills: a hash that is believed because it looks like one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashed_files, "SETTLED", -1)
        path, notes = folder / "a.jsonl", folder / "cache" / "hashes.json"
        path.write_bytes(rows("x"))
        notes.unlink(missing_ok=True)
        first, digest = prepare([path], folder / "cache", 0), data_hash([path])
        assert noted_hash(notes, [path], stamps_of([path])) == first.sha256 == digest
        content = bytearray(notes.read_bytes())
        content[place % len(content)] ^= flip
        notes.write_bytes(content)
        again = prepare([path], folder / "cache", 0)
        assert again.sha256 == digest and [*again] == [*first]
        assert noted_hash(notes, [path], stamps_of([path])) == digest


@given(st.integers(0, 10**9), st.integers(1, 255))
def test_any_byte_of_the_data_that_changes_is_noticed_however_soon(folder, place, flip):
    """Kills: trust in size and time of a file that was written a moment ago."""
    path, notes = folder / "changing", folder / "soon.json"
    path.write_bytes(rows("x"))
    before = stamps_of([path])
    note_hash(notes, [path], before, data_hash([path]))
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= flip
    path.write_bytes(content)
    assert noted_hash(notes, [path], before) is None


def test_a_file_that_is_not_there_is_named(tmp_path):
    for function in (stamps_of, data_hash):
        with pytest.raises(ValueError, match=r"gone.jsonl: cannot be read: No such file"):
            function([tmp_path / "gone.jsonl"])
