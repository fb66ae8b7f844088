"""From a line of JSON to token ids: what is accepted, how it is tokenized, how it is cut."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.data.forms import Columns
from dpo_min.data.messages import ASSISTANT, BadRow
from dpo_min.data.rows import Preference, load_preferences, parse_line, split_preferences
from dpo_min.data.templates import TEMPLATES
from dpo_min.data.tokenizer import END_OF_TEXT, Tokenizer

GOOD = {"prompt": "x", "chosen": "y", "rejected": "z"}
# 256 bytes and four merges: enough for the ids of x + y to differ from the ids of x and the ids of y.
END = 260
BPE = Tokenizer({bytes([b]): b for b in range(256)} | {b"ab": 256, b"abab": 257, b" a": 258, b"ba": 259}, END)

FRAGMENTS = st.sampled_from([ASSISTANT, "\n\nHuman:", END_OF_TEXT, " ", "a", "b", "é", "😀"])
TEXT = st.lists(FRAGMENTS | st.text(max_size=4), max_size=8).map("".join)
SIDES = st.tuples(TEXT, TEXT).filter(lambda sides: all(sides) and sides[0] != sides[1])
PREFERENCES = st.lists(st.builds(lambda x, sides: Preference(x, *sides), TEXT, SIDES), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda value: st.lists(value, max_size=3) | st.dictionaries(st.text(), value, max_size=3),
    max_leaves=5,
)
ROLE = st.sampled_from(["system", "user", "assistant", "tool"]) | JSON
MESSAGES = st.lists(st.fixed_dictionaries({}, optional={"role": ROLE, "content": TEXT | JSON}) | JSON, max_size=3)
SIDE = TEXT | MESSAGES | JSON
ROW = JSON | st.fixed_dictionaries({}, optional={"prompt": SIDE, "chosen": SIDE, "rejected": SIDE})


def message(role, content):
    return {"role": role, "content": content}


def write(path, rows):
    """A file with one row a line: bytes stay as they are, anything else becomes JSON."""
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


def test_bad_flags_and_rows_can_be_named_before_pytorch_is_loaded():
    script = "import sys, dpo_min.data.cache, dpo_min.run.start; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2]).returncode == 0


BAD_ROWS = {
    "not UTF-8": (b'{"chosen": "\xff", "rejected": "z"}', "not UTF-8"),
    "not JSON": (b'{"chosen": "y", ', "not JSON"),
    "nested a hundred thousand deep": (b"[" * 100_000, "nested too deeply"),
    "an integer of 5,000 digits": (b'{"chosen": ' + b"7" * 5000 + b"}", "4300 digits"),
    "a row over several lines": (b"{", "a row must stand in one line, or the file be one array"),
    "the same key twice": (
        b'{"prompt": "x", "chosen": "y", "rejected": "z", "chosen": "w"}',
        "the key 'chosen' stands twice",
    ),
    "the same key twice in a message": (
        b'{"prompt": "x", "chosen": [{"role": "assistant", "content": "y", "content": ""}], "rejected": []}',
        "the key 'content' stands twice",
    ),
    "a list": ([GOOD], "found list"),
    "null": (None, "found NoneType"),
    "no rejected": ({"prompt": "x", "chosen": "y"}, "missing key: rejected"),
    "no sides": ({"prompt": "x"}, "missing key: chosen, rejected"),
    "numbers": ({"chosen": 1, "rejected": 2}, "chosen is int"),
    "prompt is null": (GOOD | {"prompt": None}, "prompt is NoneType"),
    "text and messages": (GOOD | {"chosen": [message("assistant", "y")]}, "chosen is list"),
    "empty chosen": (GOOD | {"chosen": ""}, "empty completion: chosen"),
    "empty rejected": ({"chosen": "y", "rejected": ""}, "empty completion: rejected"),
    "empty beside an answer begun": (
        {"system": "s", "prompt": "\n\nHuman: x\n\nAssistant: yes", "chosen": "y", "rejected": ""},
        "empty completion: rejected",
    ),
    "equal sides": (GOOD | {"rejected": "y"}, "chosen equals rejected"),
    "equal sides with the prompt inside": ({"chosen": "y", "rejected": "y"}, "chosen equals rejected"),
    "half a surrogate pair in the prompt": (GOOD | {"prompt": "\ud83d"}, "prompt holds half of a surrogate pair"),
    "half a surrogate pair in a side": (
        {"chosen": "a\ude00", "rejected": "b"},
        "chosen holds half of a surrogate pair",
    ),
}
MESSAGE_ROW = {"prompt": [message("user", "x")]} | {
    key: [message("assistant", text)] for key, text in (("chosen", "y"), ("rejected", "z"))
}
BAD_MESSAGES = {
    "no prompt": ({"chosen": MESSAGE_ROW["chosen"], "rejected": MESSAGE_ROW["rejected"]}, "missing key: prompt"),
    "unknown role": (MESSAGE_ROW | {"prompt": [message("critic", "x")]}, "unknown role 'critic'; known: system, user"),
    "role that HH has no name for": (MESSAGE_ROW | {"prompt": [message("tool", "x")]}, "no place for the role tool"),
    "role is a list": (MESSAGE_ROW | {"prompt": [message([], "x")]}, "unknown role []"),
    "message is text": (MESSAGE_ROW | {"prompt": ["x"]}, "a message must be"),
    "content is null": (MESSAGE_ROW | {"chosen": [message("assistant", None)]}, "a message must be"),
    "no content": (MESSAGE_ROW | {"chosen": [{"role": "assistant"}]}, "a message must be"),
    "completion by the user": (MESSAGE_ROW | {"chosen": [message("user", "y")]}, "must start with an assistant"),
    "no message": (MESSAGE_ROW | {"chosen": []}, "empty completion: chosen"),
    "empty message": (MESSAGE_ROW | {"rejected": [message("assistant", "")]}, "empty completion: rejected"),
    "equal messages": (MESSAGE_ROW | {"rejected": MESSAGE_ROW["chosen"]}, "chosen equals rejected"),
}


@pytest.mark.parametrize(("row", "reason"), [
    pytest.param(*case, id=name) for name, case in (BAD_ROWS | BAD_MESSAGES).items()
])  # fmt: skip
def test_a_malformed_row_is_named_by_file_line_and_reason_or_skipped(tmp_path, row, reason):
    path = write(tmp_path / "rows.jsonl", [GOOD, b"", row, MESSAGE_ROW])
    with pytest.raises(ValueError, match=r"1 of 3 rows are bad.*--skip-bad-rows") as error:
        load_preferences([path])
    assert str(error.value).startswith(f"{path}:3: ")
    assert reason in str(error.value)
    preferences, skipped = load_preferences([path], skip_bad_rows=True)
    assert ([preference.source for preference in preferences], skipped) == ([f"{path}:1", f"{path}:4"], 1)


@given(ROW)
@example(MESSAGE_ROW)
@example(BAD_MESSAGES["role is a list"][0])
def test_any_json_is_a_preference_or_a_bad_row_with_one_line_for_a_reason(row):
    """Kills: a role looked up before it is known to be text, and any other crash on a type nobody expected."""
    try:
        found = parse_line(json.dumps(row).encode())
    except BadRow as reason:
        assert len(str(reason).splitlines()) == 1  # noqa: PT017
    else:
        assert isinstance(found.prompt, str | tuple)
        assert len({found.chosen, found.rejected, "", ()}) == 4


# Files


@given(st.lists(st.sampled_from(["good", "bad", "blank"]), min_size=1, max_size=40))
@example(["bad"] * 10 + ["good"])
@example(["blank", "bad"] * 13 + ["good"])
def test_the_first_ten_bad_rows_and_the_total_are_reported_under_their_line_numbers(folder, kinds):
    """Kills: rows counted after blank lines were dropped, an eleventh reason, the shown instead of the total."""
    lines = {"good": GOOD, "bad": b"{", "blank": b" \t"}
    path = write(folder / "rows.jsonl", [lines[kind] for kind in kinds])
    bad, good = ([i for i, kind in enumerate(kinds, 1) if kind == wanted] for wanted in ("bad", "good"))
    if good:
        preferences, skipped = load_preferences([path], skip_bad_rows=True)
        assert [preference.source for preference in preferences] == [f"{path}:{i}" for i in good]
        assert skipped == len(bad)
    if bad:
        with pytest.raises(ValueError, match=rf"\({len(bad)} of {len(bad) + len(good)} rows") as error:
            load_preferences([path])
        named = [line.split(": ")[0] for line in str(error.value).splitlines() if line.startswith(str(path))]
        assert named == [f"{path}:{i}" for i in bad[:10]]


@given(st.lists(ROW.map(lambda row: json.dumps(row).encode()) | st.binary(), max_size=8))
@example([b"\xef\xbb\xbf" + json.dumps(GOOD).encode()])
def test_every_line_that_is_not_blank_is_a_preference_or_counted_as_skipped(folder, lines):
    """Kills: an exception other than ValueError on any bytes, and a row that vanishes."""
    path = write(folder / "any.jsonl", lines)
    rows = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    try:
        preferences, skipped = load_preferences([path], skip_bad_rows=True)
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        assert len(preferences) + skipped == len(rows)
        assert preferences


def test_a_key_that_stands_twice_is_found_in_one_pass():
    """Kills: every key compared with every other: of 200,000 keys that would take hours."""
    line = json.dumps({str(i): None for i in range(200_000)})[:-1] + ', "7": 1}'
    with pytest.raises(BadRow, match="the key '7' stands twice"):
        parse_line(line.encode())


def test_a_row_says_how_much_better_its_chosen_side_is():
    """Kills: an offset that is lost on the way, or anything that is no number taken for one."""
    for value, offset in ((1.5, 1.5), (-2, -2.0), *((x, 0.0) for x in ("3", True, None, float("inf"), 10**400))):
        row = parse_line(json.dumps(GOOD | {"offset": value}).encode(), columns=Columns(ignore=("offset",)))
        assert row.offset == offset


def test_several_files_are_read_in_order_and_a_byte_order_mark_is_no_text(tmp_path):
    first = write(
        tmp_path / "1.jsonl", [b"\xef\xbb\xbf" + json.dumps(GOOD).encode()] * 2
    )  # as of `cat a.jsonl b.jsonl`
    second = write(tmp_path / "2.jsonl", [GOOD | {"prompt": "é😀"}])
    preferences, skipped = load_preferences([second, first])
    assert [(p.prompt, p.source) for p in preferences] == [
        ("é😀", f"{second}:1"),
        ("x", f"{first}:1"),
        ("x", f"{first}:2"),
    ]
    assert skipped == 0


def test_a_gzip_file_holds_the_same_rows_and_every_cut_of_it_is_refused_by_name(tmp_path):
    plain = write(tmp_path / "rows.jsonl", [GOOD, MESSAGE_ROW])
    packed = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress(plain.read_bytes())
    packed.write_bytes(whole)
    texts = [[(p.prompt, p.chosen, p.rejected) for p in load_preferences([path])[0]] for path in (plain, packed)]
    assert texts[0] == texts[1]
    for size in range(len(whole)):
        packed.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{packed}: (cannot be read|holds no rows)"):
            load_preferences([packed])


def test_a_file_of_bad_rows_alone_is_refused_although_bad_rows_are_skipped(tmp_path):
    path = write(tmp_path / "rows.jsonl", [b"{", b"{"])
    with pytest.raises(ValueError, match=f"{path}: no usable row: all 2 are bad"):
        load_preferences([path], skip_bad_rows=True)


# Train and eval

NUMBERED = [Preference(f"p{i}", "a", "b") for i in range(400)]


@given(PREFERENCES, PREFERENCES, st.floats(0, 1, exclude_max=True), st.integers(0, 2**63 - 1))
def test_adding_rows_moves_no_other_row(rows, more, fraction, seed):
    """Kills: a shuffle and a slice, and a side drawn by the row's number."""
    alone = split_preferences(rows, fraction, seed)
    together = split_preferences(more + rows, fraction, seed)
    added = split_preferences(more, fraction, seed)
    assert together == tuple(new + old for new, old in zip(added, alone, strict=True))
    assert [row for row in rows if row in alone[0]] == alone[0]
    assert [row for row in rows if row not in alone[0]] == alone[1]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), TEXT, st.booleans()), max_size=30), st.integers(0, 2**63 - 1))
@example([(x, y, z) for x in "abcdefgh" for y in "123" for z in (False, True)], 0)
def test_no_prompt_is_on_both_sides_whatever_form_its_rows_have(rows, seed):
    """Kills: a side drawn from the answers too; a prompt in a list of messages taken for another than in a text."""
    preferences = []
    for x, y, as_list in rows:
        row = {"prompt": [message("user", x)] if as_list else x, "chosen": f"a{y}", "rejected": "b"}
        preferences.append(parse_line(json.dumps(row).encode(), template=TEMPLATES["hh"]))
    train, held_out = ({row.prompt for row in side} for side in split_preferences(preferences, 0.5, seed))
    assert train.isdisjoint(held_out) and len(train | held_out) == len({x for x, _, _ in rows})


@given(st.sampled_from([0.05, 0.2, 0.5, 0.9]), st.integers(0, 2**63 - 1))
def test_the_share_held_out_is_the_one_asked_for(fraction, seed):
    """Kills: eval_fraction taken for the train fraction. (Six standard deviations of 400 draws.)"""
    _, held_out = split_preferences(NUMBERED, fraction, seed)
    assert abs(len(held_out) - 400 * fraction) <= 6 * (400 * fraction * (1 - fraction)) ** 0.5


def test_the_rows_held_out_are_the_same_in_every_process_and_version():
    """Kills: Python's `hash`, which differs between processes, and a split that ignores the seed."""
    held_out = [[int(p.prompt[1:]) for p in split_preferences(NUMBERED[:40], 0.2, seed)[1]] for seed in (0, 1)]
    assert held_out == [[0, 6, 14, 17, 19, 20, 21, 24, 26], [9, 31, 37]]


def test_nothing_is_held_out_at_0_and_nearly_all_just_below_1():
    assert split_preferences(NUMBERED, 0, 0) == (NUMBERED, [])
    assert split_preferences(NUMBERED, 1 - 2**-53, 0) == ([], NUMBERED)
