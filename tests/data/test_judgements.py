"""Ranked lists and thumbs: what is read, what is refused in which words, and what a batch of them holds."""

import json

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.data.batch import batch_logps, batch_token_logps, pack
from dpo_min.data.chat_template import use_template
from dpo_min.data.judgements import TokenizedAnswers, read_judgements, split_row
from dpo_min.data.messages import BadRow
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.run.train_flags import TrainFlags

BYTES = load_tokenizer("bytes")
LIST = {"prompt": "p", "responses": ["one", "two", "three"]}
THUMB = {"prompt": "p", "completion": "yes", "label": True}
SAID = [{"role": "assistant", "content": "yes"}]


def read(tmp_path, rows, kind, **flags):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    settings = {"eval_fraction": 0.0, "max_length": 64, "max_prompt_length": 32} | flags
    flags = TrainFlags(data=[str(path)], loss_type="kto" if kind == "thumbs" else "plackett_luce", **settings)
    tokenizer = load_tokenizer("bytes")  # which may be given a template
    return read_judgements(flags, tokenizer, use_template(tokenizer, flags.template, flags.system))


def ids(text):
    return [*text.encode(), BYTES.end_of_text]


def test_each_kind_becomes_token_ids_closed_by_end_of_text(tmp_path):
    """Kills: an order turned round, a prompt of another answer, a label or an offset that is lost."""
    (row,), *_ = read(tmp_path, [LIST], "lists")
    assert row == TokenizedAnswers([*b"p"], [ids("one"), ids("two"), ids("three")], None, f"{tmp_path}/rows.jsonl:1")
    assert (row.chosen_ids, row.num_tokens) == (ids("one"), 1 + 4 + 4 + 6)
    (row,), *_ = read(tmp_path, [THUMB], "thumbs")
    assert row == TokenizedAnswers([*b"p"], [ids("yes")], True, f"{tmp_path}/rows.jsonl:1")


def test_messages_are_rendered_as_in_pairs(tmp_path):
    """Kills: a second reader of messages, with a template of its own."""
    question = [{"role": "user", "content": "why?"}]
    answers = [SAID, [{"role": "assistant", "content": "no"}]]
    (row,), *_ = read(tmp_path, [{"prompt": question, "responses": answers}], "lists")
    (thumb,), *_ = read(tmp_path, [{"prompt": question, "completion": SAID, "label": False}], "thumbs")
    assert bytes(row.prompt_ids).decode() == "\n\nHuman: why?\n\nAssistant:" and row.prompt_ids == thumb.prompt_ids
    assert row.completions == [ids(" yes"), ids(" no")] and thumb.completions == [ids(" yes")]


@pytest.mark.parametrize(("row", "kind"), [
    ({"completion": "The sky is blue", "label": True}, "thumbs"),
    ({"responses": ["abc x", "abc y", "zzz"]}, "lists"),
])  # fmt: skip
def test_answers_without_a_prompt_are_refused(tmp_path, row, kind):
    """Kills: a prompt made of what a text shares with another one that nobody wrote, or of what two of three share."""
    with pytest.raises(ValueError, match="missing key: prompt; --prompt-column"):
        read(tmp_path, [row], kind)


def test_whole_dialogues_that_part_at_different_turns_are_refused(tmp_path):
    """Kills: an answer that is scored after turns it never saw."""
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "hello"}]
    said = [*said, {"role": "user", "content": "more"}]
    ends = [[*said, {"role": "assistant", "content": text}] for text in ("bye", "no")]
    other = [said[0], {"role": "assistant", "content": "go away"}]
    with pytest.raises(ValueError, match="the responses do not share one prompt"):
        read(tmp_path, [{"responses": [*ends, other]}], "lists")


def test_columns_that_are_not_read_are_named(tmp_path, capsys):
    """Kills: a column that is dropped in silence; a flag that asks for one that is not there."""
    read(tmp_path, [LIST | {"source_text": "an article"}], "lists")
    assert "columns that are not read: source_text" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--ignore-columns zz: no row has this column"):
        read(tmp_path, [LIST], "lists", ignore_columns=["zz"])


@pytest.mark.parametrize(("row", "kind", "reason"), [
    ({"prompt": "p"}, "lists", "missing key: responses"),
    ([], "lists", "missing key: responses"),
    ({"prompt": "p", "completion": "c"}, "thumbs", "missing key: label"),
    ({}, "thumbs", "missing key: completion, label"),
    (LIST | {"responses": ["one"]}, "lists", "responses must be a list of 2 to 100 answers, the best one first"),
    (LIST | {"responses": "one"}, "lists", "responses must be a list of 2 to 100 answers"),
    (LIST | {"responses": [str(i) for i in range(101)]}, "lists", "responses must be a list of 2 to 100 answers"),
    (LIST | {"responses": ["a", "b", "a"]}, "lists", "two responses are equal"),
    (THUMB | {"label": 1}, "thumbs", "label must be true or false"),
    (THUMB | {"label": "yes"}, "thumbs", "label must be true or false"),
])  # fmt: skip
def test_a_row_that_is_something_else_is_refused_with_the_reason(row, kind, reason):
    with pytest.raises(BadRow, match=reason):
        split_row(row, kind)


def test_bad_rows_are_named_by_file_and_line_or_skipped(tmp_path):
    """Kills: a first bad row that hides the others; a row that is dropped in silence."""
    rows = [THUMB, "not json\n", THUMB | {"label": 0}, THUMB | {"completion": ""}]
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: not JSON") as error:
        read(tmp_path, rows, "thumbs")
    assert [f"rows.jsonl:{n}:" in str(error.value) for n in (1, 2, 3, 4)] == [False, True, True, True]
    train, *_ = read(tmp_path, rows, "thumbs", skip_bad_rows=True)
    assert len(train) == 1


def test_all_answers_are_cut_alike_and_a_row_that_the_cut_makes_equal_is_dropped(tmp_path, capsys):
    """Kills: a prompt cut for one answer and not for another; two equal answers, one of them called better."""
    long = {"prompt": "q" * 20, "responses": ["a" * 30, "b", "c" * 40]}
    (row,), *_ = read(tmp_path, [long, {"prompt": "p", "responses": ["same" * 9 + "1", "same" * 9 + "2"]}], "lists",
                      max_length=32, max_prompt_length=10)  # fmt: skip
    assert len(row.prompt_ids) == 10 and [len(c) for c in row.completions] == [22, 2, 22]
    assert "1 truncated to 32 tokens, 1 dropped" in capsys.readouterr().out


def test_rows_are_held_out_by_their_prompt_and_thumbs_down_are_not_imitated(tmp_path):
    """Kills: a prompt on both sides of the split; a first fit to what was disliked."""
    rows = [{"prompt": f"p{i % 20}", "completion": f"c{i}", "label": i % 3 == 0} for i in range(60)]
    train, held_out, sft = read(tmp_path, rows, "thumbs", eval_fraction=0.4)
    assert len(train) + len(held_out) == 60 and held_out
    prompts = [{tuple(row.prompt_ids) for row in side} for side in (train, held_out)]
    assert prompts[0].isdisjoint(prompts[1])
    assert sft == [row for row in train if row.label]


IDS = st.lists(st.integers(0, 10), min_size=1, max_size=5)
ROWS = st.lists(st.builds(TokenizedAnswers, IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=4)
SIZES = GPTConfig(vocab_size=11, block_size=32, n_layer=2, n_head=2, n_embd=8)
MODEL = GPT(SIZES, torch.Generator().manual_seed(0)).double()


@given(ROWS)
@example([TokenizedAnswers([1, 2], [[3], [4, 5, 6], [7]]), TokenizedAnswers([8], [[9, 10]])])
def test_k_answers_share_their_prompt_and_have_the_log_probabilities_that_they_have_alone(rows):
    """All first answers, then all second ones. Kills: an answer that sees another, positions that run on."""
    with torch.no_grad():
        found = batch_token_logps(MODEL, pack(rows))
        order = [(row, k) for k in range(4) for row in rows if k < len(row.completions)]
        single = [pack([TokenizedAnswers(row.prompt_ids, [row.completions[k]])]) for row, k in order]
        alone = [batch_token_logps(MODEL, batch)[0] for batch in single]
    for together, single in zip(found, alone, strict=True):
        torch.testing.assert_close(together, single, rtol=1e-9, atol=1e-9)


@given(st.lists(st.builds(TokenizedPair, IDS, IDS, IDS), min_size=1, max_size=4))
def test_a_pair_is_the_list_of_two(pairs):
    """To the bit. Kills: another layout for pairs."""
    lists = [TokenizedAnswers(pair.prompt_ids, [pair.chosen_ids, pair.rejected_ids]) for pair in pairs]
    with torch.no_grad():
        assert torch.equal(batch_logps(MODEL, pack(pairs)), batch_logps(MODEL, pack(lists)))
