"""From a line of JSON to token ids: what is accepted, how it is tokenized, how it is cut."""

import gzip
import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dpo_min.data.forms import ASSISTANT, BadRow, parse_row, split_prompt
from dpo_min.data.lines import fingerprint
from dpo_min.data.rows import Preference, load_preferences, split_preferences
from dpo_min.data.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair, tokenize, truncate

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


# Rows


@given(TEXT, SIDES)
def test_text_rows_are_taken_as_they_are(prompt, sides):
    """Kills: texts stripped of their white space, or a prompt that is given and looked for again in the sides."""
    row = {"prompt": prompt, "chosen": sides[0], "rejected": sides[1], "score": 1}
    assert parse_row(json.loads(json.dumps(row))) == (prompt, *sides)


def test_messages_become_the_dialogue_of_the_template():
    row = {
        "prompt": [message("system", "Be brief."), message("user", "Hi")],
        "chosen": [message("assistant", "Yes")],
        "rejected": [message("assistant", "No"), message("user", "Why?"), message("assistant", "")],
    }
    prompt = "\n\nSystem: Be brief.\n\nHuman: Hi\n\nAssistant:"
    assert parse_row(row) == (prompt, " Yes", " No\n\nHuman: Why?\n\nAssistant: ")


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=4), SIDES)
def test_messages_and_the_hh_form_of_one_dialogue_are_the_same_preference(turns, sides):
    """Kills: a header left at the start of a message's completion, or the prompt's without its colon."""
    assume(not any(ASSISTANT in text for text in sides))
    prompt, chosen, rejected = parse_row(
        {"prompt": [message(*turn) for turn in turns]}
        | {key: [message("assistant", text)] for key, text in zip(("chosen", "rejected"), sides, strict=True)}
    )
    assert parse_row({"chosen": prompt + chosen, "rejected": prompt + rejected}) == (prompt, chosen, rejected)


@given(SIDES)
@example(("yes", "yep"))
@example(("A ", "B"))
@example(("A ", "A B"))
@example(("a", "aa"))
@example((ASSISTANT, ASSISTANT + " Yes"))
@example((f"\n\nHuman: q{ASSISTANT} yes", f"\n\nHuman: q{ASSISTANT} yep"))
@example((f"q{ASSISTANT} a{ASSISTANT} b", f"q{ASSISTANT} c"))
@example((f"p{ASSISTANT} a", f"q{ASSISTANT} a"))
def test_an_implicit_prompt_and_its_completions_give_back_each_text(sides):
    """Kills: the longest common prefix not cut back, which leaves ("A ", "A B") or ("a", "aa") an empty side."""
    prompt, chosen, rejected = split_prompt(*sides)
    assert (prompt + chosen, prompt + rejected) == sides
    assert chosen
    assert rejected


@given(TEXT, SIDES)
@example("", (" yes", " yep"))
@example(f"\n\nHuman: q{ASSISTANT} a\n\nHuman: r", (" yes", " yep"))
def test_the_implicit_prompt_of_a_dialogue_ends_where_the_last_answer_begins(dialogue, sides):
    """Kills: the longest common prefix of "… yes" and "… yep", and the first "Assistant:" instead of the last."""
    assume(not any(ASSISTANT in text for text in sides))
    prompt = dialogue + ASSISTANT
    assert split_prompt(prompt + sides[0], prompt + sides[1]) == (prompt, *sides)


@given(TEXT, SIDES)
@example("", ("yes", "yep"))
def test_the_implicit_prompt_outside_dialogues_is_the_longest_common_prefix(start, sides):
    """Kills: a prompt cut back to a word, or always by one character."""
    assume(not any(ASSISTANT in start + text for text in sides))
    _, chosen, rejected = split_prompt(start + sides[0], start + sides[1])
    assert chosen[0] != rejected[0] or min(len(chosen), len(rejected)) == 1


BAD_ROWS = {
    "not UTF-8": (b'{"chosen": "\xff", "rejected": "z"}', "not UTF-8"),
    "not JSON": (b'{"chosen": "y", ', "not JSON"),
    "nested a hundred thousand deep": (b"[" * 100_000, "nested too deeply"),
    "an integer of 5,000 digits": (b'{"chosen": ' + b"7" * 5000 + b"}", "4300 digits"),
    "a list": ([GOOD], "found list"),
    "null": (None, "found NoneType"),
    "no rejected": ({"prompt": "x", "chosen": "y"}, "missing key: rejected"),
    "no sides": ({"prompt": "x"}, "missing key: chosen, rejected"),
    "numbers": ({"chosen": 1, "rejected": 2}, "chosen is int, rejected is int"),
    "prompt is null": (GOOD | {"prompt": None}, "prompt is NoneType"),
    "text and messages": (GOOD | {"chosen": [message("assistant", "y")]}, "chosen is list"),
    "empty chosen": (GOOD | {"chosen": ""}, "empty completion: chosen"),
    "empty rejected": ({"chosen": "y", "rejected": ""}, "empty completion: rejected"),
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
    "unknown role": (MESSAGE_ROW | {"prompt": [message("tool", "x")]}, "unknown role 'tool'"),
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
        prompt, chosen, rejected = parse_row(json.loads(json.dumps(row)))
    except BadRow as reason:
        assert len(str(reason).splitlines()) == 1  # noqa: PT017
    else:
        assert isinstance(prompt, str)
        assert len({chosen, rejected, ""}) == 3


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


def test_several_files_are_read_in_order_and_a_byte_order_mark_is_no_text(tmp_path):
    first = write(tmp_path / "1.jsonl", [b"\xef\xbb\xbf" + json.dumps(GOOD).encode()])
    second = write(tmp_path / "2.jsonl", [GOOD | {"prompt": "é😀"}])
    preferences, skipped = load_preferences([second, first])
    assert [(p.prompt, p.source) for p in preferences] == [("é😀", f"{second}:1"), ("x", f"{first}:1")]
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


@pytest.mark.parametrize(("name", "content", "reason"), [
    ("missing.jsonl", None, "cannot be read: No such file"),
    (".", None, "cannot be read: Is a directory"),
    ("empty.jsonl", b"", "holds no rows"),
    ("empty.jsonl.gz", b"", "holds no rows"),
    ("blank.jsonl", b"\n \n\n", "holds no rows"),
    ("plain.jsonl.gz", json.dumps(GOOD).encode(), "cannot be read: Not a gzipped file"),
    ("broken.jsonl.gz", gzip.compress(b"")[:10] + b"\xff" * 40, "cannot be read"),
])  # fmt: skip
@pytest.mark.parametrize("skip_bad_rows", [False, True])
def test_a_file_without_rows_is_refused_by_name(tmp_path, name, content, reason, skip_bad_rows):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: {reason}"):
        load_preferences([write(tmp_path / "good.jsonl", [GOOD]), path], skip_bad_rows)


def test_a_file_of_bad_rows_alone_is_refused_although_bad_rows_are_skipped(tmp_path):
    path = write(tmp_path / "rows.jsonl", [b"{", b"{"])
    with pytest.raises(ValueError, match=f"{path}: no usable row: all 2 are bad"):
        load_preferences([path], skip_bad_rows=True)


@given(st.binary(min_size=1, max_size=20), st.integers(0, 19), st.integers(1, 255))
def test_the_fingerprint_follows_every_byte_and_not_the_name(folder, content, place, flip):
    """Kills: a hash of the path, of the size or of the first rows."""
    one, other, changed = (folder / name for name in "abc")
    one.write_bytes(content)
    other.write_bytes(content)
    place %= len(content)
    changed.write_bytes(content[:place] + bytes([content[place] ^ flip]) + content[place + 1 :])
    assert fingerprint([one]) == fingerprint([other])
    assert fingerprint([one]) != fingerprint([changed])


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


@given(st.sampled_from([0.05, 0.2, 0.5, 0.9]), st.integers(0, 2**63 - 1))
def test_the_share_held_out_is_the_one_asked_for(fraction, seed):
    """Kills: eval_fraction taken for the train fraction. (Six standard deviations of 400 draws.)"""
    _, held_out = split_preferences(NUMBERED, fraction, seed)
    assert abs(len(held_out) - 400 * fraction) <= 6 * (400 * fraction * (1 - fraction)) ** 0.5


def test_the_rows_held_out_are_the_same_in_every_process_and_version():
    """Kills: Python's `hash`, which differs between processes, and a split that ignores the seed."""
    held_out = [[int(p.prompt[1:]) for p in split_preferences(NUMBERED[:40], 0.2, seed)[1]] for seed in (0, 1)]
    assert held_out == [[10, 30, 32, 33, 37, 38], [9, 13, 15, 21, 24, 27]]


def test_nothing_is_held_out_at_0_and_nearly_all_just_below_1():
    assert split_preferences(NUMBERED, 0, 0) == (NUMBERED, [])
    assert split_preferences(NUMBERED, 1 - 2**-53, 0) == ([], NUMBERED)


# Tokens


@given(PREFERENCES)
@example([Preference("a", "b", "bab")])
@example([Preference(END_OF_TEXT, END_OF_TEXT, "a" + END_OF_TEXT)])
@example([Preference("", " a", "é")])
def test_prompt_and_completion_are_tokenized_apart_and_closed_by_one_end_of_text(preferences):
    """Kills: ids of x + y cut at len(ids of x), a doubled or missing end-of-text, text read as the control token."""
    pairs, truncated, dropped = tokenize(preferences, BPE, max_length=10_000)
    assert (truncated, dropped) == (0, 0)
    for pair, row in zip(pairs, preferences, strict=True):
        assert pair.prompt_ids == (BPE.encode(row.prompt) or [END])
        for ids, text in ((pair.chosen_ids, row.chosen), (pair.rejected_ids, row.rejected)):
            assert ids == [*BPE.encode(text), END]
            assert ids.count(END) == 1
            assert BPE.decode(pair.prompt_ids + ids) == row.prompt + text


def test_a_pair_of_tokens_worked_by_hand():
    rows = [Preference("a", "b", "ab"), Preference("", "abab", " a")]
    pairs, _, _ = tokenize(rows, BPE, max_length=3)
    assert pairs[0] == TokenizedPair([97], [98, END], [256, END])
    assert pairs[1] == TokenizedPair([END], [257, END], [258, END])
    assert pairs[0].num_tokens == 5


@given(PREFERENCES, st.integers(2, 30), st.none() | st.integers(1, 40))
def test_every_row_is_kept_whole_truncated_or_dropped_and_each_is_counted(preferences, limit, prompt_limit):
    """Kills: an end-of-text put back after the cut, truncated rows counted by side, dropped rows not counted."""
    rows = [Preference(p.prompt, p.chosen, p.rejected, str(i)) for i, p in enumerate(preferences)]
    whole, _, _ = tokenize(rows, BPE, max_length=10_000)
    pairs, truncated, dropped = tokenize(rows, BPE, limit, prompt_limit)
    assert len(pairs) + dropped == len(rows)
    assert sorted(pairs, key=lambda pair: int(pair.source)) == pairs
    assert truncated == sum(pair != whole[int(pair.source)] for pair in pairs)
    for pair in pairs:
        before = whole[int(pair.source)]
        for ids, full in ((pair.chosen_ids, before.chosen_ids), (pair.rejected_ids, before.rejected_ids)):
            assert 1 <= len(ids) <= limit - len(pair.prompt_ids)
            assert (ids[-1] == END) == (ids == full)
            assert END not in ids[:-1]


# Truncation

LENGTH = st.integers(1, 40)


def ids_of(*lengths):
    """Ids that differ from each other, so that it shows which were kept."""
    return tuple(list(range(100 * i, 100 * i + length)) for i, length in enumerate(lengths))


def truncate_slowly(prompt, chosen, rejected, max_length, max_prompt_length):
    """The rule of the design, a token at a time."""
    while len(prompt) > max_prompt_length and len(prompt) + max(len(chosen), len(rejected)) > max_length:
        prompt = prompt[1:]
    while chosen and len(prompt) + len(chosen) > max_length:
        chosen = chosen[:-1]
    while rejected and len(prompt) + len(rejected) > max_length:
        rejected = rejected[:-1]
    return (prompt, chosen, rejected) if prompt and chosen and rejected else None


@pytest.mark.parametrize("max_length", range(12))
def test_truncation_is_the_rule_of_the_design_for_all_small_lengths(max_length):
    """Kills: a negative slice bound, which keeps a whole list where nothing should be left of it."""
    for lengths in product(range(1, 8), repeat=3):
        ids = ids_of(*lengths)
        assert truncate(*ids, max_length) == truncate_slowly(*ids, max_length, max_length // 2)
        for max_prompt_length in range(10):
            expected = truncate_slowly(*ids, max_length, max_prompt_length)
            assert truncate(*ids, max_length, max_prompt_length) == expected


@given(LENGTH, LENGTH, LENGTH, st.integers(2, 90), st.none() | st.integers(1, 90))
@example(9, 9, 1, 10, 9)
@example(9, 9, 1, 10, 10)
def test_truncation_keeps_the_end_of_the_prompt_and_the_start_of_the_completions(x, y_w, y_l, limit, prompt_limit):
    """Kills: sides cut apart (`keep_end` after concatenation), and completions cut before the prompt was."""
    whole = ids_of(x, y_w, y_l)
    kept = truncate(*whole, limit, prompt_limit)
    smallest = min(x, limit // 2 if prompt_limit is None else prompt_limit)
    if kept is None:
        assert smallest >= limit
        return
    prompt, chosen, rejected = kept
    longest = max(len(chosen), len(rejected))
    assert 1 <= len(chosen) <= limit - len(prompt)
    assert 1 <= len(rejected) <= limit - len(prompt)
    assert prompt == whole[0][x - len(prompt) :]
    assert chosen == whole[1][: len(chosen)]
    assert rejected == whole[2][: len(rejected)]
    assert len(prompt) >= smallest
    if kept == whole:
        assert x + max(y_w, y_l) <= limit
    else:
        assert len(prompt) + longest == limit  # not a token was lost that had room
    if (chosen, rejected) != whole[1:]:
        assert len(prompt) == smallest


# Real preferences


def test_every_pair_of_the_hh_test_split_gives_back_its_two_dialogues(shared_data):
    path = shared_data / "hh-harmless-test.jsonl.gz"
    preferences, skipped = load_preferences([path])
    assert (len(preferences), skipped) == (2312, 0)
    with gzip.open(path) as lines:
        for line, p in zip(lines, preferences, strict=True):
            row = json.loads(line)
            assert (p.prompt + p.chosen, p.prompt + p.rejected) == (row["chosen"], row["rejected"])
    # In five rows the last answers do not begin at the same place.
    assert sum(p.prompt.endswith(ASSISTANT) for p in preferences) >= 2307


def test_every_pair_of_the_hh_test_split_survives_gpt2s_tokens(shared_data):
    tokenizer = load_tokenizer(shared_data / "gpt2-bpe")
    preferences, _ = load_preferences([shared_data / "hh-harmless-test.jsonl.gz"])
    pairs, truncated, dropped = tokenize(preferences, tokenizer, max_length=4096)
    assert (truncated, dropped) == (0, 0)
    for pair, p in zip(pairs, preferences, strict=True):
        assert tokenizer.decode(pair.prompt_ids + pair.chosen_ids) == p.prompt + p.chosen
        assert tokenizer.decode(pair.prompt_ids + pair.rejected_ids) == p.prompt + p.rejected
