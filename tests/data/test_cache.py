"""The cache: the pairs of the plain functions, by any number of processes, whole or absent, found only if right."""

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.data import blocks, cache, cache_directory
from dpo_min.data.cache import Pairs, prepare_pairs
from dpo_min.data.hashed_files import data_hash
from dpo_min.data.messages import is_dialogue
from dpo_min.data.rows import Preference, load_preferences, split_preferences
from dpo_min.data.tokenizer import Tokenizer, load_tokenizer
from dpo_min.data.tokenizing import tokenize
from dpo_min.run import job
from dpo_min.run.train_flags import read_flags
from dpo_min.system.files import Lock, sha256

BYTES = load_tokenizer("bytes")
MERGES = Tokenizer({bytes([b]): b for b in range(256)} | {b"ab": 70_000, b"aab": 70_001}, 256)  # ids beyond 16 bits
TEXT = st.lists(st.sampled_from(["a", "b", " ", "é", "😀", "<|endoftext|>", "\n\nAssistant:"]), max_size=6).map("".join)
GOOD = st.fixed_dictionaries({"prompt": TEXT, "chosen": TEXT.map("y".__add__), "rejected": TEXT.map("z".__add__)})
LINE = GOOD.map(lambda row: json.dumps(row).encode()) | st.sampled_from(
    [b"", b" \t", b"{", b"[1]", b'{"chosen": "\xff"}']
)
FILE = st.tuples(st.lists(LINE, max_size=6), st.booleans(), st.booleans())  # lines, gzip, byte order mark


def write(path, lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def rows(n, start=0):
    return [json.dumps({"prompt": f"q{i}é", "chosen": "a" * (i % 9 + 1), "rejected": "b"}) for i in range(start, n)]


def prefs(path, n=60):
    return write(path, [row.encode() for row in rows(n)])


def prepare(paths, directory, tokenizer=BYTES, length=12, prompt_length=4, skip=False, seed=7, workers=0, small=0):
    """`prepare_pairs`, through the disk whatever the size."""
    return prepare_pairs(paths, tokenizer, length, prompt_length, skip, directory, seed, workers, small)


def plainly(paths, tokenizer=BYTES, length=12, prompt_length=4, skip=False):
    """What `prepare` should give, by the plain functions."""
    preferences, skipped = load_preferences(paths, skip)
    pairs, counts = tokenize(preferences, tokenizer, length, prompt_length)
    counts.update(skipped=skipped, plain=sum(not is_dialogue(p.prompt) for p in preferences), offset=0, tie=0)
    counts.update(f"form: {p.form}" for p in preferences)
    counts.update(f"unread: {name}" for p in preferences for name in p.unread)
    return pairs, dict(counts)


def outcome(function, *args, **kwargs):
    """(list of pairs, counts), or the error's text."""
    try:
        pairs, counts = function(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return list(pairs), dict(counts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture
def no_tokenizing(monkeypatch):
    """From here on nothing can be tokenized."""

    def fail(*_):
        raise AssertionError("tokenized again")

    return lambda: monkeypatch.setattr(blocks, "tokenize", fail)


def caches(directory):
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


# Equal to the definition


@settings(max_examples=40)
@given(st.lists(FILE, min_size=1, max_size=3), st.booleans(), st.integers(2, 16), st.booleans(), st.integers(1, 200))
@example([([b"{"] * 12 + [rows(1)[0].encode()] * 3, False, False)], False, 9, True, 1)
@example([([b"{"] * 2, True, False)], True, 9, True, 1)
def test_the_pairs_are_those_of_the_plain_functions(folder, files, skip, length, disk, block):
    """Kills: a row, a count or an error that depends on where a block ends or on the file it is in."""
    paths = []
    for i, (lines, zipped, mark) in enumerate(files):
        path = write(folder / f"{i}.jsonl", lines)
        if mark:
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        if zipped:
            (folder / f"{i}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        paths.append(folder / (f"{i}.jsonl.gz" if zipped else f"{i}.jsonl"))
    directory = folder / os.urandom(8).hex()
    for tokenizer in (BYTES, MERGES):
        limits = {"tokenizer": tokenizer, "length": length, "prompt_length": length // 2, "skip": skip}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "BLOCK", block)
            prepared = outcome(prepare, paths, directory, small=0 if disk else 2**20, **limits)
        assert prepared == outcome(plainly, paths, **limits)
    assert disk or not directory.exists()


@given(st.lists(GOOD, min_size=1, max_size=8), st.floats(0, 1, exclude_max=True), st.integers(0, 2**63 - 1))
@example([json.loads(row) for row in rows(40)], 0.3, 0)
@example([json.loads(row) for row in rows(40)], 1 - 2**-53, 2**63 - 1)
def test_the_split_is_that_of_the_plain_functions(folder, values, fraction, seed):
    """Kills: the threshold rounded, digests of other rows, a split by position."""
    path = write(folder / "split.jsonl", [json.dumps(value).encode() for value in values])
    pairs, _ = prepare([path], folder, length=1000, seed=seed, small=2**20)
    sides = split_preferences(load_preferences([path])[0], fraction, seed)
    for side, expected in zip(pairs.split(fraction), sides, strict=True):
        assert list(side) == tokenize(expected, BYTES, 1000)[0]


def test_views_are_sequences_of_the_same_pairs(tmp_path):
    whole = plainly([prefs(tmp_path / "a.jsonl")])[0]
    pairs, _ = prepare([tmp_path / "a.jsonl"], tmp_path / "cache")
    assert isinstance(pairs[3:40:2], Pairs)
    assert list(pairs[3:40:2][1:-1]) == whole[3:40:2][1:-1]
    assert list(pairs[np.array([5, 0, 5])]) == [whole[5], whole[0], whole[5]]
    assert (pairs[-1], pairs[np.int64(2)], len(pairs), bool(pairs[:0])) == (whole[-1], whole[2], 60, False)
    assert sorted(pairs, key=lambda pair: pair.num_tokens) == sorted(whole, key=lambda pair: pair.num_tokens)
    with pytest.raises(IndexError):
        pairs[60]


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_change_nothing(tmp_path, monkeypatch, workers):
    """Kills: results in the order in which they are finished, blocks lost at the end. 600 rows are some 24 blocks."""
    monkeypatch.setattr(blocks, "BLOCK", 1500)
    monkeypatch.setattr(blocks, "QUICK", 0)
    paths = [prefs(tmp_path / "a.jsonl", 500), prefs(tmp_path / "b.jsonl", 100)]
    prepared = prepare(paths, tmp_path / "cache", workers=workers)
    assert outcome(lambda: prepared) == outcome(plainly, paths)
    write(paths[1], [*paths[1].read_bytes().splitlines()[:50], b"{", b"[]"])
    for skip in (False, True):
        prepared = outcome(prepare, paths, tmp_path / "cache", skip=skip, workers=workers)
        assert prepared == outcome(plainly, paths, skip=skip)
    assert len(caches(tmp_path / "cache")) == 2


def test_a_worker_that_dies_is_an_error_and_leaves_nothing(tmp_path, capfd):
    tokenizer = load_tokenizer("bytes")
    tokenizer.end_of_text = "no number"
    with pytest.raises(OSError, match="a process that tokenized the data ended too early"):
        prepare([prefs(tmp_path / "a.jsonl")], tmp_path / "cache", tokenizer, workers=2)
    assert caches(tmp_path / "cache") == []
    assert "no number" in capfd.readouterr().err  # the cause is shown


# Found again, if it is the same


def test_a_second_use_does_not_tokenize(tmp_path, no_tokenizing):
    path = prefs(tmp_path / "a.jsonl")
    first = outcome(prepare, [path], tmp_path / "cache")
    no_tokenizing()
    assert outcome(prepare, [path], tmp_path / "cache", workers=2) == first
    moved = path.rename(tmp_path / "b.jsonl")  # the rows are named by where they lie now
    pairs, counts = prepare([moved], tmp_path / "cache")
    assert counts == first[1]
    assert list(pairs) == [replace(pair, source=pair.source.replace("a.jsonl", "b.jsonl")) for pair in first[0]]
    with pytest.raises(AssertionError, match="tokenized again"):
        prepare([moved], tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "change",
    [{"tokenizer": MERGES}, {"tokenizer": Tokenizer(BYTES.ranks, 300)}, {"length": 11}, {"prompt_length": 3},
     {"skip": True}, {"seed": 8}, {"seed": None}],
)  # fmt: skip
def test_another_setting_is_another_cache(tmp_path, change, no_tokenizing):
    path = prefs(tmp_path / "a.jsonl")
    prepare([path], tmp_path / "cache")
    no_tokenizing()
    with pytest.raises(AssertionError, match="tokenized again"):
        prepare([path], tmp_path / "cache", **change)


def test_a_tokenizer_is_known_by_its_vocabulary(tmp_path):
    """Kills: a name, or an address in memory, for the tokenizer."""
    MERGES_AGAIN = Tokenizer(dict(reversed(MERGES.ranks.items())), 256)
    assert MERGES.fingerprint() == MERGES_AGAIN.fingerprint()
    swapped = MERGES.ranks | {b"ab": 70_001, b"aab": 70_000}
    assert len({t.fingerprint() for t in (BYTES, MERGES, Tokenizer(swapped, 256), Tokenizer(MERGES.ranks, 300))}) == 4


def test_the_same_bytes_cut_into_other_files_or_read_as_gzip_are_other_data(tmp_path):
    (tmp_path / "sub").mkdir()
    one, two = rows(1)[0].encode() + b"\n", rows(2, 1)[0].encode() + b"\n\n"
    keys = []
    for first, second in ((one, two), (one + two[:-1], b"\n" + one), (one + two[:-1], b"\n")):
        paths = [tmp_path / "a", tmp_path / "b.gz", tmp_path / "b"]
        for path, content in zip(paths, (first, second, second), strict=True):
            path.write_bytes(content)
        what = {"tokenizer": BYTES}
        keys += [cache_directory.cache_key([paths[0], path], what, data_hash([paths[0], path])) for path in paths[1:]]
    assert len(set(keys)) == 6


# Whole or not there


@pytest.mark.parametrize(("fail_at", "error"), [(3, KeyboardInterrupt), (10, KeyboardInterrupt), (10, ValueError)])
def test_an_interrupted_build_leaves_no_cache(tmp_path, monkeypatch, fail_at, error):
    path = prefs(tmp_path / "a.jsonl")
    monkeypatch.setattr(blocks, "BLOCK", 500)
    real, calls = blocks.encode_block, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == fail_at:  # 7 blocks are first checked, then tokenized
            assert [name for name in caches(tmp_path / "cache") if name.endswith(".partial")]
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(blocks, "encode_block", interrupted)
    with pytest.raises(error):
        prepare([path], tmp_path / "cache")
    assert caches(tmp_path / "cache") == []
    assert outcome(prepare, [path], tmp_path / "cache") == outcome(plainly, [path])


def test_a_bad_row_is_named_before_any_row_is_tokenized(tmp_path, monkeypatch):
    """Kills: minutes of tokenizing before the last of a million rows turns out to be bad."""
    path = write(tmp_path / "a.jsonl", [row.encode() for row in rows(50)] + [b"{"])
    monkeypatch.setattr(Tokenizer, "encode", lambda tokenizer, text: 1 / 0)
    with pytest.raises(ValueError, match=r"a\.jsonl:51: not JSON.*\(1 of 51 rows"):
        prepare([path], tmp_path / "cache")


def test_a_bad_row_leaves_no_cache_and_an_abandoned_one_is_removed_if_it_is_ours(tmp_path):
    path = write(tmp_path / "a.jsonl", [row.encode() for row in rows(5)] + [b"{"])
    names = {"new.dpo_min-01234567.partial": 0, "old.dpo_min-01234567.partial": 1, "someone's.partial": 1}
    for name, old in names.items():
        dead = tmp_path / "cache" / name
        dead.mkdir(parents=True)
        (dead / "tokens.bin").touch()
        os.utime(dead / "tokens.bin", (1e9, 1e9) if old else None)
    with pytest.raises(ValueError, match=r"a.jsonl:6: not JSON"):
        prepare([path], tmp_path / "cache")
    assert caches(tmp_path / "cache") == ["new.dpo_min-01234567.partial", "someone's.partial"]


@pytest.mark.parametrize("name", ["rows.bin", "tokens.bin", "cache.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "longer"])
def test_a_damaged_cache_is_made_anew(tmp_path, name, damage):
    path = prefs(tmp_path / "a.jsonl")
    expected = outcome(prepare, [path], tmp_path / "cache")
    (place,) = (tmp_path / "cache").glob("*/" + name)
    whole = place.read_bytes()
    if damage == "missing":
        place.unlink()
    else:
        place.write_bytes(whole[:-1] if damage == "cut" else whole + b"}")
    assert outcome(prepare, [path], tmp_path / "cache") == expected
    assert place.read_bytes() == whole
    assert len(caches(tmp_path / "cache")) == 1


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = prefs(tmp_path / "a.jsonl")
    real = blocks.encode_block

    def meanwhile(*args, **kwargs):
        path.write_bytes(path.read_bytes().replace(b"q59", b"q60"))
        return real(*args, **kwargs)

    monkeypatch.setattr(blocks, "encode_block", meanwhile)
    with pytest.raises(ValueError, match=r"a\.jsonl: changed while it was read"):
        prepare([path], tmp_path / "cache")
    assert caches(tmp_path / "cache") == []


def test_a_damaged_cache_in_which_somebody_else_keeps_a_file_stays(tmp_path, capsys):
    """Kills: the removal of a whole directory because of its name."""
    path = prefs(tmp_path / "a.jsonl")
    expected = outcome(prepare, [path], tmp_path / "cache")
    (place,) = (tmp_path / "cache").glob("*/cache.json")
    place.write_text("{")
    (place.parent / "notes.txt").write_text("mine")
    assert outcome(prepare, [path], tmp_path / "cache") == expected
    assert (place.parent / "notes.txt").read_text() == "mine"
    assert capsys.readouterr().out.count("\n") == 1


# A convenience, not a condition


@pytest.mark.parametrize("way", ["a file is in the way", "its lock is held", "its lock is a pipe", "the disk is full"])
def test_without_a_cache_the_pairs_are_the_same_and_a_line_says_so(tmp_path, monkeypatch, capsys, way):
    """Kills: a run that ends because of what "may be deleted", or that waits for ever."""
    path, directory, held = prefs(tmp_path / "a.jsonl"), tmp_path / "cache", nullcontext()
    directory.mkdir(exist_ok=True)
    if way == "a file is in the way":
        directory.rmdir()
        directory.write_text("mine")
    elif way == "its lock is held":
        held = Lock(directory / ".lock")
        monkeypatch.setattr(cache, "PATIENCE", 0)
    elif way == "its lock is a pipe":
        os.mkfifo(directory / ".lock")
    else:
        monkeypatch.setattr(cache_directory, "FILES", ("/dev/full", "tokens.bin"))
    with held:
        pairs, counts = prepare([path], directory)
    assert outcome(lambda: (pairs, counts)) == outcome(plainly, [path])
    assert pairs.sha256 == sha256(path)
    said = capsys.readouterr().out
    assert said.startswith(f"data: no cache in {directory}: ") and said.count("\n") == 1


def test_a_cache_that_is_there_needs_no_lock(tmp_path, no_tokenizing):
    """As where it lies on a volume that is only to be read."""
    path = prefs(tmp_path / "a.jsonl")
    first = outcome(prepare, [path], tmp_path / "cache")
    no_tokenizing()
    with Lock(tmp_path / "cache" / ".lock"):
        assert outcome(prepare, [path], tmp_path / "cache") == first


def test_two_builders_of_the_same_cache_both_end_with_it(tmp_path, monkeypatch):
    """Without a lock, which not every file system has: the second begins, and finishes, in the middle of the first."""
    monkeypatch.setattr(cache, "Lock", lambda *args, **kwargs: nullcontext())
    path = prefs(tmp_path / "a.jsonl")
    real, expected = blocks.encode_block, outcome(plainly, [path])

    def second(*args, **kwargs):
        monkeypatch.setattr(blocks, "encode_block", real)
        assert outcome(prepare, [path], tmp_path / "cache") == expected
        return real(*args, **kwargs)

    monkeypatch.setattr(blocks, "encode_block", second)
    assert outcome(prepare, [path], tmp_path / "cache") == expected
    assert len(caches(tmp_path / "cache")) == 1


# The command


def test_the_command_keeps_large_data_beside_the_run_and_small_data_nowhere(tmp_path, capsys, monkeypatch):
    path = prefs(tmp_path / "a.jsonl")
    argv = ["--data", str(path), "--out", str(tmp_path / "runs" / "x"), "--max-length", "12", "--eval-fraction", "0.4"]
    small = [list(part) for part in job.prepare(argv)[2:]]
    shown = capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(cache, "prepare_pairs", lambda *args, **more: prepare_pairs(*args, small=0, **more))
    large = [list(part) for part in job.prepare(argv)[2:]]
    assert large == small
    assert capsys.readouterr().out == shown
    assert len(caches(tmp_path / "runs" / "cache")) == 1
    preferences = load_preferences([str(path)])[0]
    assert large[:2] == [tokenize(part, BYTES, 12)[0] for part in split_preferences(preferences, 0.4, 0)]


@pytest.mark.parametrize(("argv", "out"), [
    (["--data", ".prefs.jsonl"], "runs/prefs"), (["--data", "..."], "runs/run"), (["--data", "x/a.b.jsonl"], "runs/a"),
])  # fmt: skip
def test_a_run_has_a_directory_of_its_own(tmp_path, monkeypatch, argv, out):
    """Kills: runs/ itself made the run, and cache/ beside it the cache of other people's files."""
    monkeypatch.chdir(tmp_path)
    assert read_flags(argv)[0].out == Path(out)


@pytest.mark.parametrize("argv", [["--data", "cache.jsonl"], ["--data", "a.jsonl", "--out", "x/Cache"]])
def test_no_run_is_the_cache_of_its_neighbours(tmp_path, monkeypatch, argv):
    """Kills: a run that "may be deleted", and whose lock the others wait for."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--out .*ache: the cache/ of the runs beside it"):
        read_flags(argv)


def test_of_several_processes_that_need_one_cache_one_makes_it(tmp_path, monkeypatch):
    """Kills: every process of torchrun tokenizing the same gigabyte with every core."""
    path, made, whole = prefs(tmp_path / "a.jsonl"), [], cache.build
    monkeypatch.setattr(cache, "build", lambda *args: made.append(args) or whole(*args))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: prepare([path], tmp_path / "cache"), range(4)))
    assert len(made) == 1
    assert all(list(pairs) == list(found[0][0]) for pairs, _ in found)


@pytest.mark.parametrize(("pairs", "share"), [(1000, 0.01), (10, 0.05)])
def test_of_large_data_only_as_much_is_held_out_as_tells_how_the_run_goes(tmp_path, monkeypatch, pairs, share):
    """Kills: a twentieth of a million pairs, whose evaluation takes longer than the steps between two of them."""
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": str(i), "chosen": "x", "rejected": "y"} for i in range(pairs)]
    path.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(cache, "HELD_OUT", 10)
    argv = ["--data", str(path), "--out", str(tmp_path / "run")]
    by_default, given = (job.prepare(argv + more).held_out for more in ([], ["--eval-fraction", str(share)]))
    assert list(by_default) == list(given)
    assert len(by_default) < 4 * 10


def test_a_preference_of_a_row_number_keeps_it():
    """The workers use `source` for the line's number; the plain functions must not look into it."""
    (pair,), _ = tokenize([Preference("x", "y", "z", source=7)], BYTES, 12)
    assert pair.source == 7


def test_no_prompt_that_is_held_out_is_in_the_first_fit(tmp_path, capsys):
    """Kills: rows of --sft-data that imitate answers to prompts by which the run is judged."""
    data = tmp_path / "prefs.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"q{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(60)))
    shown = job.prepare(["--data", str(data), "--sft-data", str(data), "--eval-fraction", "0.3"])
    prompts = [{tuple(pair.prompt_ids) for pair in pairs} for pairs in (shown.pairs, shown.held_out, shown.sft_pairs)]
    assert prompts[2] == prompts[0] and prompts[1] and not prompts[1] & prompts[2]
    left = f"{len(shown.held_out)} rows of --sft-data left out: their prompts are held out"
    assert left in capsys.readouterr().out
