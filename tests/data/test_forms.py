"""One decoded row → its sides: every published form that can be read without guessing, and each other one by name."""

import gzip
import json

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dpo_min.data.forms import NAMES, Columns, read_prompt, read_row
from dpo_min.data.messages import ABOUT, ASSISTANT, BadRow, Message, as_turns, split_messages, split_prompt, turns
from dpo_min.data.rows import parse_row
from dpo_min.data.tokenizer import END_OF_TEXT

GOOD = {"prompt": "x", "chosen": "y", "rejected": "z"}
FRAGMENTS = st.sampled_from([ASSISTANT, "\n\nHuman:", END_OF_TEXT, " ", "a", "b", "é", "😀"])
TEXT = st.lists(FRAGMENTS | st.text(max_size=4), max_size=8).map("".join)
SIDES = st.tuples(TEXT, TEXT).filter(lambda sides: all(sides) and sides[0] != sides[1])


def message(role, content):
    return {"role": role, "content": content}


def said(*turns):
    """Messages of (role, content) pairs."""
    return tuple(Message(*turn) for turn in turns)


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
    assume(not any(ASSISTANT in text for text in sides) and not (turns and turns[-1][0] == "assistant"))
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


# Published forms

U, A, S, T = ("user", "Name a fruit"), ("assistant", "apple"), ("system", "Be kind."), ("tool", "3 found")
R = ("assistant", "rock")
TEXTS = {"chosen": "apple", "rejected": "rock"}


def listed(*turns):
    return [message(*turn) for turn in turns]


def sharegpt(*turns):
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    return [{"from": names.get(role, role), "value": content} for role, content in turns]


WHOLE = {"chosen": listed(U, A), "rejected": listed(U, R)}
ANSWERS = {"chosen": listed(A), "rejected": listed(R)}
ASKED = said(U), said(A), said(R)
ASKS = {"prompt": listed(U), "rejected": listed(R)}
FORMS = {  # a row → its sides
    "text": ({"prompt": "x", **TEXTS}, ("x", "apple", "rock")),
    "text, the prompt inside": ({"chosen": "x apple", "rejected": "x rock"}, ("x ", "apple", "rock")),
    "messages": ({"prompt": listed(U), **ANSWERS}, ASKED),
    "UltraFeedback": ({"prompt": U[1], "prompt_id": "0f", **WHOLE, "messages": listed(U, A), "score": 8.5}, ASKED),
    "TRL's implicit prompt": (WHOLE | {"score_chosen": 8.5}, ASKED),
    "distilabel": ({"prompt": U[1], **ANSWERS, "distilabel_metadata": {"raw_output": "a b c"}}, ASKED),
    "one message a side": ({"prompt": listed(U), "chosen": message(*A), "rejected": message(*R)}, ASKED),
    "messages, then texts": ({"prompt": listed(S, U), **TEXTS}, (said(S, U), *ASKED[1:])),
    "the prompt in a list, and in both lists": ({"prompt": listed(U), **WHOLE}, ASKED),
    "several turns": (
        {"chosen": listed(U, A, U, A), "rejected": listed(U, A, U, R)},
        (said(U, A, U), said(A), said(R)),
    ),
    "one side goes on": ({"chosen": listed(U, A), "rejected": listed(U, A, U, R)}, (said(U), said(A), said(A, U, R))),
    "Orca": ({"system": S[1], "question": U[1], **TEXTS}, (said(S, U), *ASKED[1:])),
    "Orca without a system text": ({"system": "", "question": U[1], **TEXTS}, ASKED),
    "Alpaca": ({"instruction": "Name", "input": "a fruit", **TEXTS}, (said(("user", "Name\na fruit")), *ASKED[1:])),
    "Alpaca without input": ({"instruction": U[1], "input": "", **TEXTS, "output": "apple"}, ASKED),
    "distilabel's Orca": ({"system": S[1], "input": U[1], **TEXTS, "rating": [9, 1]}, (said(S, U), *ASKED[1:])),
    "a system text beside a prompt": ({"system": S[1], "prompt": U[1], **TEXTS}, (said(S, U), *ASKED[1:])),
    "whole dialogues beside no prompt": ({"prompt": None, **WHOLE}, ASKED),
    "a system text beside whole dialogues": ({"system": S[1], **WHOLE}, (said(S, U), *ASKED[1:])),
    "a system text beside HH": (
        {"system_prompt": S[1], "chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        (said(S, ("user", "q")), said(("assistant", "a")), said(("assistant", "b"))),
    ),
    "ShareGPT": (
        {"conversations": sharegpt(S, U), "chosen": sharegpt(A)[0], "rejected": sharegpt(R)[0]},
        (said(S, U), *ASKED[1:]),
    ),
    "ShareGPT, whole": (
        {"chosen": sharegpt(U, A, T, A), "rejected": sharegpt(U, A, T, R)},
        (said(U, A, T), *ASKED[1:]),
    ),
    "parts": (ASKS | {"chosen": listed(("assistant", [{"type": "text", "text": t} for t in ("app", "le")]))}, ASKED),
    "the same question twice": ({"prompt": U[1], "question": U[1] + " ", **WHOLE, "source": "a b c"}, ASKED),
    "HH before messages": ({"prompt": "\n\nHuman: Name a fruit\n\nAssistant:", **ANSWERS}, ASKED),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_published_form_is_read(name):
    """Kills: a column that is passed over, a prompt that stands in the answers as well, turns divided elsewhere."""
    row, sides = FORMS[name]
    assert read_row(json.loads(json.dumps(row)))[:3] == sides
    assert read_prompt(json.loads(json.dumps(row))) == sides[0]


def test_the_form_and_the_columns_that_nothing_reads_are_named():
    row = {"id": 7, "system": "s", "question": "q", **TEXTS, "lang": "en", "scores": [1, 2]}
    assert read_row(row)[3:] == ("system + question + chosen + rejected (text)", ("id", "lang", "scores"))
    assert read_row(WHOLE)[3:] == ("chosen + rejected (whole dialogues)", ())


REFUSED = {  # a row → what its line says
    "a prompt that is the whole dialogue": (
        {"messages": [message("user", "q"), message("assistant", "y")], "chosen": "y", "rejected": "n"},
        "the last turn of the prompt is the assistant's",
    ),
    "an answer that ends with the user": (
        {"prompt": "q", "chosen": [message("assistant", "y"), message("user", "thanks")]}
        | {"rejected": [message("assistant", "n")]},
        "a completion must end with an assistant message, not user",
    ),
    "SHP": ({"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}, "two answers and a verdict"),
    "PKU-SafeRLHF": ({"prompt": "q", "response_0": "a", "response_1": "b"}, "two answers and a verdict"),
    "numbers of answers": ({"prompt": "q", "responses": ["a", "b"], "pairs": [[1, 0]]}, "answers and pairs of their"),
    "no name like it": ({"q": "q", "good": "a", "bad": "b"}, "--chosen-column and --rejected-column name those of"),
    "a context": (GOOD | {"context": "A story."}, "'context'.*--prompt-column context.*--ignore-columns context"),
    "a history": ({"instruction": "a", **TEXTS, "history": [["q", "a"]]}, "column 'history' holds text"),
    "two questions": (GOOD | {"question": "What else?"}, "column 'question' holds text that nothing reads"),
    "an odd name": (GOOD | {"a\nb": "text here"}, r"column 'a\\nb' holds"),
    "what may be the prompt": ({**TEXTS, "source": "translate me"}, "column 'source' holds text"),
    "other names": (
        {"prompt": "x", "response_chosen": "a", "response_rejected": "b"},
        "missing key: chosen, rejected; the columns are prompt, response_chosen, response_rejected: "
        "--chosen-column response_chosen --rejected-column response_rejected would read them",
    ),
    "single judgements": ({"prompt": "x", "completion": "y", "label": True}, "look like single judgements"),
    "ranked lists": ({"prompt": "x", "responses": ["a", "b"]}, "look like ranked lists"),
    "a verdict": ({"response_a": "x", "response_b": "y", "winner": "a"}, "look like two answers and a verdict"),
    "answers without a prompt": (ANSWERS, "missing key: prompt"),
    "other prompts": ({"chosen": listed(U, A), "rejected": listed(("user", "else"), R)}, "answer different prompts"),
    "a prompt that is not inside": (WHOLE | {"prompt": "else"}, "whole dialogues that do not share the prompt"),
    "a user's last word": ({"chosen": listed(U, A, U), "rejected": listed(U, A, ("user", "no"))}, "must start with"),
    "one side whole": ({"prompt": "x", "chosen": listed(U, A), "rejected": listed(R)}, "must start with an assistant"),
    "a system text alone": ({"system": "s", "chosen": "x a", "rejected": "x b"}, "a system text without a prompt"),
    "two system texts": ({"system": "s", "prompt": listed(S, U), **TEXTS}, "two different system texts"),
    "a call of a tool": (ASKS | {"chosen": [message(*A) | {"tool_calls": [{"id": 1}]}]}, "tool_calls"),
    "a picture": (ASKS | {"chosen": listed(("assistant", [{"type": "image"}]))}, "a message must be"),
    "a thought": (ASKS | {"chosen": [message(*A) | {"thinking": "hm, so"}]}, "a message's key 'thinking'"),
    "the chosen side as a list": (GOOD | {"chosen": listed(A)}, "both messages: chosen is list, rejected is str"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_cannot_be_read_is_refused_with_what_it_looks_like_and_the_flag_that_would_read_it(name):
    row, words = REFUSED[name]
    with pytest.raises(BadRow, match=rf"\A.*{words}.*\Z"):
        read_row(json.loads(json.dumps(row)))


WORDS = st.text(st.characters(categories=["L", "Zs", "P"]), min_size=1, max_size=8).filter(str.strip)
NAME = st.text(st.sampled_from("abcdefg_ "), min_size=1, max_size=6).filter(
    lambda n: not ABOUT & {*n.split("_"), *n.split()}
)


@given(
    st.dictionaries(NAME, WORDS | st.lists(WORDS, max_size=2) | st.integers() | st.none(), max_size=3), st.booleans()
)
@example({"f": "text"}, False)
@example({"f": ["text"]}, True)
@example({"_": "x"}, True)
def test_no_column_that_carries_text_is_passed_over(more, whole):
    """Kills: a text inside a list or an object that nobody looks for; a number or an empty list taken for one."""
    row = {**more, **(WHOLE if whole else GOOD)}
    known = {"Name a fruit", "apple", "rock", "user", "assistant"} if whole else {"x", "y", "z"}
    leaves = {n: [v] if isinstance(v, str) else v if isinstance(v, list) else [] for n, v in more.items()}
    text = [n for n, texts in leaves.items() if {t.strip() for t in texts} - known]
    if not text:
        assert {*read_row(row)[4]} == {*more}
        return
    with pytest.raises(BadRow, match="holds text that nothing reads"):
        read_row(row)
    assert {*read_row(row, NAMES._replace(ignore=tuple(text)))[4]} == {*more}


def test_columns_are_read_under_the_names_that_flags_give():
    row = {"q": "x", "good answer": "y", "bad": "z", "prompt": ""}
    columns = Columns("q", "good answer", "bad")
    assert read_row(row, columns)[:4] == ("x", "y", "z", "q + good answer + bad (text)")
    assert read_prompt(row, columns) == "x"
    with pytest.raises(BadRow, match="missing key: q2; the columns are q, good answer"):
        read_row(row, columns._replace(prompt="q2"))
    with pytest.raises(BadRow, match="'prompt' holds text that nothing reads"):
        read_row(row | {"prompt": "else"}, columns)


DIALOGUE = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.sampled_from("abc")), min_size=1, max_size=5)


@given(DIALOGUE, DIALOGUE)
@example([("user", "a"), ("assistant", "b")], [("user", "a"), ("assistant", "b"), ("user", "a")])
def test_dialogues_are_divided_after_the_last_turn_that_both_share(one, other):
    """Kills: an empty answer, turns lost or doubled, a cut before or after the first difference."""
    one, other = said(*one), said(*other)
    try:
        prompt, chosen, rejected = split_messages(one, other)
    except BadRow:
        assert one[0] != other[0] or min(len(one), len(other)) == 1
        return
    assert (prompt + chosen, prompt + rejected) == (one, other) and chosen and rejected
    assert chosen[0] != rejected[0] or min(len(chosen), len(rejected)) == 1


SAID = st.lists(st.sampled_from(["Human:", "\n", "\n\n", " ", "a", "é", ":"]), max_size=4).map("".join)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), SAID), min_size=1, max_size=4)


@given(TURNS, SAID, SAID)
@example([("user", "\n\n")], "a", "b")
def test_a_dialogue_in_the_form_of_hh_becomes_the_turns_that_it_was_made_of(dialogue, one, other):
    """Kills: a turn's text cut at a blank line, the space after a name kept, an answer left in the prompt."""
    names, sides = {"system": "System", "user": "Human", "assistant": "Assistant"}, (one + "a", other + "b")
    assume("\n\nHuman:" not in " ".join([*(words for _, words in dialogue), *sides]))
    text = "".join(f"\n\n{names[role]}: {words}" for role, words in dialogue)
    assert turns(text) == said(*dialogue)
    prompt, chosen, rejected = as_turns(text + ASSISTANT, " " + sides[0], " " + sides[1])
    assert (prompt, chosen, rejected) == (said(*dialogue), *(said(("assistant", side)) for side in sides))


def test_every_pair_of_the_hh_test_split_becomes_turns_that_begin_with_an_answer(shared_data):
    """2,312 rows, among them five in which the last answers do not begin at the same place."""
    with gzip.open(shared_data / "hh-harmless-test.jsonl.gz") as lines:
        for line in lines:
            row = json.loads(line)
            prompt, *sides = as_turns(*split_prompt(row["chosen"], row["rejected"]))
            assert {side[0].role for side in sides} == {"assistant"} and prompt[0].role == "user"
            for side, whole in zip(sides, (row["chosen"], row["rejected"]), strict=True):
                assert prompt + side == turns(whole)


def test_a_megabyte_in_a_row_is_read_in_one_pass():
    """Kills: a pattern or a loop that goes through a run of line ends from each of them: 10^12 steps."""
    for text in ("\n" * 2**20, "\n\nHuman:" * 2**17, " " * 2**20, "a" * 2**20):
        row = {"chosen": text + "a", "rejected": text + "b"}
        assert read_row(row)[1] != ""
        assert as_turns("\n\nHuman: " + text, " a", " b")[1]
        with pytest.raises(BadRow):
            read_row(GOOD | {"context": text + "xx"})
