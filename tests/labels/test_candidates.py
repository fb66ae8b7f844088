"""The candidates' lines: what is read is what was written, and a torn line is never more than a torn line."""

import json
import resource

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.labels.candidates import Candidates, read_candidates
from dpo_min.labels.choices import Choices
from dpo_min.labels.journal import Journal, encode

TEXT = st.text(st.characters(codec="utf-8"))
LINES = st.builds(
    lambda prompt, drawn, model: Candidates(prompt, *map(list, zip(*drawn, strict=True)), model),
    TEXT,
    st.lists(st.tuples(TEXT, st.floats(-1e6, 0)), min_size=1, max_size=4),
    st.sampled_from(["a", "b"]),
)


@given(st.lists(LINES, min_size=1, max_size=4, unique_by=lambda line: line.key), st.data())
def test_a_file_cut_anywhere_reads_as_the_whole_lines_before_the_cut_and_grows_on(tmp_path_factory, lines, data):
    """Kills: a torn line that is an error, that is read, or that the next line is glued to."""
    path = tmp_path_factory.mktemp("cut") / "candidates.jsonl"
    rows = [encode(line.as_row()) for line in lines]
    whole = b"".join(rows)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = [line for i, line in enumerate(lines) if sum(map(len, rows[: i + 1])) - 1 <= cut]
    if kept:
        assert read_candidates(path) == kept
    more = Candidates("another prompt", ["x"], [-1.0], "c")
    with Journal(path) as journal:
        journal.append(more.as_row())
    assert read_candidates(path) == [*kept, more]
    assert path.read_bytes().count(b"\n") == len(kept) + 1


def test_a_line_that_comes_twice_is_read_once(tmp_path):
    line = Candidates("x", ["a", "b"], [-1.0, -2.0], ["m", "n"])
    path = tmp_path / "candidates.jsonl"
    path.write_bytes(2 * encode(line.as_row()))
    assert read_candidates(path) == [line]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "expected an object"),
        ({"prompt": "x"}, "expected an object"),
        ({"prompt": "x", "answers": ["a"], "system": "s"}, "expected an object"),
        ({"prompt": {"role": "user"}, "answers": ["a"]}, "prompt must be"),
        ({"prompt": 3, "answers": ["a"]}, "expected a text"),
        ({"prompt": "x", "answers": []}, "answers must be"),
        ({"prompt": "x", "answers": ["a", 1]}, "answers must be"),
        ({"prompt": "x", "answers": ["\ud800"]}, "surrogate"),
        ({"prompt": "x", "answers": ["a"], "logps": [1, 2]}, "logps must be"),
        ({"prompt": "x", "answers": ["a"], "logps": [True]}, "logps must be"),
        ({"prompt": "x", "answers": ["a"], "logps": [float("nan")]}, "logps must be"),
        ({"prompt": "x", "answers": ["a"], "logps": [10**400]}, "logps must be"),
        ({"prompt": "x", "answers": ["a"], "model": ["m", "n"]}, "model must be"),
        ({"prompt": "x", "answers": ["a"], "model": 3}, "model must be"),
    ],
)
def test_what_is_not_candidates_is_refused_by_file_and_line(tmp_path, row, reason):
    path = tmp_path / "candidates.jsonl"
    path.write_text('{"prompt": "x", "answers": ["a"]}\n' + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=f"candidates.jsonl:2: .*{reason}"):
        read_candidates(path)


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=6), st.data())
@example(["a", "a", "b"], None)
def test_pairs_are_of_two_different_texts_each_once(answers, data):
    """Kills: a pair that train.py refuses, and one that is shown twice because it was drawn twice."""
    models = data.draw(st.lists(st.sampled_from("mn"), min_size=len(answers), max_size=len(answers))) if data else "m"
    line = Candidates("x", answers, None, models)
    texts = [frozenset((answers[i], answers[j])) for i, j in line.pairs()]
    different = {*answers} - {""}
    assert len(texts) == len({*texts}) == len(different) * (len(different) - 1) // 2
    assert all(len(pair) == 2 and "" not in pair for pair in texts)


def test_answers_of_two_models_are_compared_before_those_of_one():
    assert Candidates("x", ["a", "b", "c", "d"], None, ["m", "m", "n", "n"]).pairs()[:4] == [
        (1, 2),
        (0, 2),
        (1, 3),
        (0, 3),
    ]


def test_one_program_writes_at_a_time(tmp_path):
    with Journal(tmp_path / "x.jsonl"), pytest.raises(ValueError, match="another program is writing"):
        Journal(tmp_path / "x.jsonl")


@pytest.mark.parametrize("content", [b"Dear diary,\nthe end", b'[{"prompt": "x"}]', b'[{"prompt": "x"}]\n', b"{\n}"])
def test_a_file_that_is_somebody_elses_stays_as_it_is(tmp_path, content):
    """Kills: its last line, or an array in one line, taken for a torn row and cut away."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.txt: (its last line is not a row|one JSON array)"):
        Journal(path)
    assert path.read_bytes() == content


def test_a_line_that_a_power_failure_made_zeros_of_is_cut_away(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(encode({"a": 1}) + bytes(2**21 + 5))
    Journal(path).close()
    assert path.read_bytes() == encode({"a": 1})


def test_a_name_that_says_gzip_is_refused_before_anything_is_written(tmp_path):
    """Kills: labels that train.py cannot read, because the name says that they are compressed."""
    for open_file in (Journal, Choices):
        with pytest.raises(ValueError, match=r"leave \.gz out"):
            open_file(tmp_path / "x.jsonl.gz")
    assert not [*tmp_path.iterdir()]


def test_a_row_that_the_disk_does_not_take_leaves_no_trace(tmp_path):
    """Kills: a torn line in the middle of the file after the disk was full for a while."""
    path, (soft, hard) = tmp_path / "x.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        journal.append({"a": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(encode({"a": 1})) + 3, hard))
        try:
            with pytest.raises(OSError, match="too large"):
                journal.append({"a": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        journal.append({"a": 3})
    assert path.read_bytes() == encode({"a": 1}) + encode({"a": 3})
