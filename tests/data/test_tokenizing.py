"""Preferences → token ids: how they are encoded, and how they are cut."""

import gzip
import json
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.data.messages import ASSISTANT
from dpo_min.data.rows import Preference, load_preferences
from dpo_min.data.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair, tokenize, truncate

# 256 bytes and four merges: enough for the ids of x + y to differ from the ids of x and the ids of y.
END = 260
BPE = Tokenizer({bytes([b]): b for b in range(256)} | {b"ab": 256, b"abab": 257, b" a": 258, b"ba": 259}, END)

FRAGMENTS = st.sampled_from([ASSISTANT, "\n\nHuman:", END_OF_TEXT, " ", "a", "b", "é", "😀"])
TEXT = st.lists(FRAGMENTS | st.text(max_size=4), max_size=8).map("".join)
SIDES = st.tuples(TEXT, TEXT).filter(lambda sides: all(sides) and sides[0] != sides[1])
PREFERENCES = st.lists(st.builds(lambda x, sides: Preference(x, *sides), TEXT, SIDES), max_size=5)

# Tokens


@given(PREFERENCES)
@example([Preference("a", "b", "bab")])
@example([Preference(END_OF_TEXT, END_OF_TEXT, "a" + END_OF_TEXT)])
@example([Preference("", " a", "é")])
def test_prompt_and_completion_are_tokenized_apart_and_closed_by_one_end_of_text(preferences):
    """Kills: ids of x + y cut at len(ids of x), a doubled or missing end-of-text, text read as the control token."""
    pairs, counts = tokenize(preferences, BPE, max_length=10_000)
    assert counts.total() == 0
    for pair, row in zip(pairs, preferences, strict=True):
        assert pair.prompt_ids == (BPE.encode(row.prompt) or [END])
        for ids, text in ((pair.chosen_ids, row.chosen), (pair.rejected_ids, row.rejected)):
            assert ids == [*BPE.encode(text), END]
            assert ids.count(END) == 1
            assert BPE.decode(pair.prompt_ids + ids) == row.prompt + text


def test_a_pair_of_tokens_worked_by_hand():
    rows = [Preference("a", "b", "ab"), Preference("", "abab", " a")]
    pairs, _ = tokenize(rows, BPE, max_length=3)
    assert pairs[0] == TokenizedPair([97], [98, END], [256, END])
    assert pairs[1] == TokenizedPair([END], [257, END], [258, END])
    assert pairs[0].num_tokens == 5


@given(PREFERENCES, st.integers(2, 30), st.none() | st.integers(1, 40))
def test_every_row_is_kept_whole_truncated_or_dropped_and_each_is_counted(preferences, limit, prompt_limit):
    """Kills: an end-of-text put back after the cut, truncated rows counted by side, dropped rows not counted."""
    rows = [Preference(p.prompt, p.chosen, p.rejected, str(i)) for i, p in enumerate(preferences)]
    whole, _ = tokenize(rows, BPE, max_length=10_000)
    pairs, counts = tokenize(rows, BPE, limit, prompt_limit)
    assert len(pairs) + counts["dropped"] + counts["equal"] == len(rows)
    assert sorted(pairs, key=lambda pair: int(pair.source)) == pairs
    assert counts["truncated"] == sum(pair != whole[int(pair.source)] for pair in pairs)
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
    pairs, counts = tokenize(preferences, tokenizer, max_length=4096)
    assert counts.total() == 0
    for pair, p in zip(pairs, preferences, strict=True):
        assert tokenizer.decode(pair.prompt_ids + pair.chosen_ids) == p.prompt + p.chosen
        assert tokenizer.decode(pair.prompt_ids + pair.rejected_ids) == p.prompt + p.rejected
