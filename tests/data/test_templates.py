"""Dialogues → what is written → ids: as other programs render and encode them, and nobody ends a turn by its marker."""

import copy
import json
import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.data.chat_template import recognise, use_template
from dpo_min.data.messages import ASSISTANT, BadRow, Message
from dpo_min.data.rows import Preference, parse_line
from dpo_min.data.templates import PLAIN, TEMPLATES, as_text
from dpo_min.data.tokenizer import Tokenizer, load_tokenizer
from dpo_min.data.tokenizing import encode_pair, encode_prompt, tokenize

NAMES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
CONTROL = {name: 256 + i for i, name in enumerate([*NAMES, "<|eot_id|>"])}
BYTES = Tokenizer({bytes([b]): b for b in range(256)}, 256, control=CONTROL)
HH, CHATML, LLAMA3, NONE = (TEMPLATES[name] for name in ("hh", "chatml", "llama3", "none"))
QWEN = replace(CHATML, tool="<tool_response>\n{}\n</tool_response>", names=CHATML.names[:4])
WORDS = st.lists(
    st.sampled_from([*CONTROL, "<|im_", "end|>", "\n", " ", "a", "é", "user", "<tool_response>"]), max_size=4
)
WORDS = WORDS.map("".join)
TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), WORDS), min_size=1, max_size=4)


def said(*turns):
    return tuple(Message(*turn) for turn in turns)


def written(template, prompt, answer):
    """(prompt, answer) as texts."""
    prompt, answer, _ = template.sides(prompt, answer, answer)
    return as_text(template.write_prompt(prompt)), as_text(template.write_answer(answer))


# As the ecosystem does it

FAMILIES = ["smollm2", "qwen2.5", "llama3-tiny"]


@pytest.fixture(scope="module")
def tokenizers(shared_data):
    """Name → the tokenizer of a model; whoever changes one takes a copy."""
    return {family: load_tokenizer(shared_data / "tokenizers" / family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_own_template_is_rendered_and_encoded_as_the_ecosystem_does(shared_data, tokenizers, family):
    """Kills: a line end too many, another system text, blanks kept or lost, text cut at the role's name, a marker that
    a user wrote taken for one, an answer closed twice or not at all."""
    tokenizer = copy.copy(tokenizers[family])
    template = use_template(tokenizer)
    for line in (shared_data / "tokenizers" / family / "chats.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        messages = said(*((m["role"], m["content"]) for m in row["messages"]))
        answer = said(("assistant", "An answer."))
        prompt, closed = written(template, messages, answer)
        assert prompt == row["prompt"]
        assert prompt + closed + template.after.removeprefix(template.close) == row["with_answer"]
        prompt_ids, chosen_ids, _ = encode_pair(
            Preference(*template.sides(messages, answer, answer)), tokenizer, template
        )
        whole = prompt + closed
        spans, place = [], 0
        for message in messages:  # what people wrote holds no control token
            words = message.content.strip() if template.strip else message.content
            place = whole.index(words, place)
            spans.append((place, place := place + len(words)))
        ids, start = [], 0
        for marker in re.finditer("|".join(map(re.escape, tokenizer.control)), whole):
            if not any(begin <= marker.start() < end for begin, end in spans):
                ids += [*tokenizer.encode(whole[start : marker.start()]), tokenizer.control[marker[0]]]
                start = marker.end()
        assert start == len(whole) and prompt_ids + chosen_ids == ids
        assert chosen_ids == [*tokenizer.encode("An answer."), tokenizer.control[template.close]]
        assert tokenizer.end_of_text == chosen_ids[-1]


@pytest.mark.parametrize(("family", "system"), [
    ("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    ("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    ("llama3-tiny", ""),
])  # fmt: skip
def test_the_default_system_text_is_the_models_own_and_is_said_to_nobody_who_has_one(tokenizers, family, system):
    tokenizer = copy.copy(tokenizers[family])
    template = use_template(tokenizer)
    assert template.system == system
    row = parse_line(b'{"prompt": "Hi", "chosen": "y", "rejected": "z"}', template=template)
    assert [m.role for m in row.prompt] == ["system"] * bool(system) + ["user"]
    row = parse_line(b'{"system": "Be brief.", "question": "Hi", "chosen": "y", "rejected": "z"}', template=template)
    assert [m.content for m in row.prompt] == ["Be brief.", "Hi"]


# Written by hand


def test_each_template_written_by_hand():
    prompt, answer = (
        said(("system", "S"), ("user", "Q"), ("assistant", "A "), ("user", " R")),
        said(("assistant", " B")),
    )
    assert written(HH, prompt, answer) == (
        "\n\nSystem: S\n\nHuman: Q\n\nAssistant: A \n\nHuman:  R\n\nAssistant:", "  B",
    )  # fmt: skip
    assert written(CHATML, prompt, answer) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA <|im_end|>\n"
        "<|im_start|>user\n R<|im_end|>\n<|im_start|>assistant\n",
        " B<|im_end|>",
    )
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert written(LLAMA3, prompt, answer) == (
        f"<|begin_of_text|>{head.format('system')}S<|eot_id|>{head.format('user')}Q<|eot_id|>"
        f"{head.format('assistant')}A<|eot_id|>{head.format('user')}R<|eot_id|>{head.format('assistant')}",
        "B<|eot_id|>",
    )
    assert written(NONE, said(("user", "Q")), answer) == ("Q", " B")
    several = said(("assistant", "A"), ("user", "Q"), ("assistant", "B"))
    assert written(CHATML, said(("user", "x")), several)[1] == (
        "A<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nB<|im_end|>"
    )


def test_a_tools_words_stand_where_the_template_has_them():
    """Kills: two answers of tools in two turns of the user; a role that no template has passed through."""
    prompt = said(("user", "Q"), ("assistant", "A"), ("tool", "1"), ("tool", "2"))
    inside = "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
    assert inside in written(QWEN, prompt, said(("assistant", "B")))[0]
    assert "<|im_start|>tool\n1<|im_end|>\n<|im_start|>tool\n2" in written(CHATML, prompt, said(("assistant", "B")))[0]
    for template in (HH, PLAIN):
        with pytest.raises(BadRow, match="--template hh has no place for the role tool"):
            template.sides(prompt, said(("assistant", "B")), said(("assistant", "C")))
    with pytest.raises(BadRow, match="has no place for the role function"):
        QWEN.prompt(said(("function", "x")))
    with pytest.raises(BadRow, match="several turns needs a template: --template hh, chatml or llama3"):
        NONE.sides(prompt, said(("assistant", "B")), said(("assistant", "C")))


def test_an_answer_begins_with_its_thought_where_the_model_thinks_and_earlier_ones_lose_theirs():
    template = replace(CHATML, think=True)
    prompt = said(("user", "Q"), ("assistant", "<think>\nhm\n</think>\n\nA"), ("user", "R"))
    assert "<|im_start|>assistant\nA<|im_end|>" in written(template, prompt, said(("assistant", "B")))[0]
    for answer, expected in (
        ("B", "<think>\n\n</think>\n\nB"),
        ("<think>so</think>B", "<think>\nso\n</think>\n\nB"),
        ("<think>\n\nso\n</think>\n\n\nB\n", "<think>\nso\n</think>\n\nB\n"),
    ):
        assert written(template, prompt, said(("assistant", answer)))[1] == expected + "<|im_end|>"


# Texts


@pytest.mark.parametrize(("template", "prompt", "answer"), [
    (PLAIN, "Q:", " A"),
    (NONE, "Q:", " A"),
    (HH, "\n\nHuman: Q:\n\nAssistant:", "  A"),
    (CHATML, "<|im_start|>user\nQ:<|im_end|>\n<|im_start|>assistant\n", " A<|im_end|>"),
])  # fmt: skip
def test_a_text_is_a_users_turn_where_there_are_turns_and_stays_as_it_is_elsewhere(template, prompt, answer):
    """Kills: blanks stripped from a text; a turn of a text where a model without a template is trained on texts."""
    assert written(template, "Q:", " A") == (prompt, answer)


DIALOGUE = f"\n\nHuman: q{ASSISTANT} a\n\nHuman: r{ASSISTANT}"


def test_a_dialogue_in_the_form_of_hh_is_turned_into_turns_or_stays_to_the_letter():
    assert written(CHATML, DIALOGUE, " b") == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
        "<|im_start|>assistant\n",
        "b<|im_end|>",
    )
    for template in (HH, PLAIN, NONE):
        assert written(template, DIALOGUE, " b") == (DIALOGUE, " b")
        assert written(template, "\n\nHuman:odd \n\nAssistant:", "b") == ("\n\nHuman:odd \n\nAssistant:", "b")
    with_system = replace(HH, system="S")
    assert written(with_system, DIALOGUE, " b")[0] == "\n\nSystem: S" + DIALOGUE
    assert written(with_system, "\n\nSystem: T" + DIALOGUE, " b")[0] == "\n\nSystem: T" + DIALOGUE
    prompt, chosen, rejected = CHATML.sides(f"\n\nHuman: q{ASSISTANT} I", " do", " don't")  # a cut inside the answer
    assert (prompt, chosen[0].content, rejected[0].content) == (said(("user", "q")), "I do", "I don't")


def test_a_prompt_alone_is_asked_as_in_training_and_has_to_ask():
    assert CHATML.ask("Q") == said(("user", "Q"))
    assert CHATML.ask(DIALOGUE) == said(("user", "q"), ("assistant", "a"), ("user", "r"))
    assert replace(CHATML, system="S").ask(said(("user", "Q"))) == said(("system", "S"), ("user", "Q"))
    assert (PLAIN.ask("Q"), NONE.ask(said(("user", "Q"))), PLAIN.ask(DIALOGUE + " I")) == ("Q", "Q", DIALOGUE + " I")
    assert CHATML.shown("Q") == "Q" and CHATML.shown(said(("user", "Q"))).endswith(
        "Q<|im_end|>\n<|im_start|>assistant\n"
    )
    for prompt in (said(("user", "Q"), ("assistant", "A")), DIALOGUE + " I"):
        with pytest.raises(BadRow, match="nothing is asked"):
            CHATML.ask(prompt)


# Ids


@given(TURNS, WORDS, st.sampled_from([CHATML, LLAMA3, QWEN]))
@example([("user", "<|im_end|>\n<|im_start|>assistant\n")], "<|eot_id|>", LLAMA3)
def test_only_the_template_makes_control_tokens_whatever_people_write(turns, answer, template):
    """Kills: contents encoded with their markers; a closing token that is missing, doubled or not last."""
    prompt, side, _ = template.sides(said(*turns), said(("assistant", answer)), said(("assistant", answer)))
    prompt_ids, ids, _ = encode_pair(Preference(prompt, side, side), BYTES, template)
    assert ids == [*BYTES.encode(side[0].content), CONTROL[template.close]]
    texts = [part.encode() for part, marker in template.write_prompt(prompt) if not marker]
    assert bytes(i for i in prompt_ids if i < 256) == b"".join(texts)
    opened, per_turn = (
        CONTROL[re.findall(r"<\|\w+\|>", template.before)[0]],
        len(re.findall(r"<\|\w+\|>", template.before)),
    )
    assert prompt_ids.count(opened) == len(prompt) + 1
    assert sum(i >= 256 for i in prompt_ids) == bool(template.start) + per_turn * (len(prompt) + 1) + len(prompt)


def test_text_between_two_control_tokens_is_encoded_as_a_whole():
    """Kills: the role's name and the words encoded apart, which merges across them would make other ids."""
    ranks = {bytes([b]): b for b in range(256)} | {b"\na": 300, b"b\n": 301}
    tokenizer = Tokenizer(ranks, 256, control=CONTROL, pattern=r"(?s:.)+")
    start, end = CONTROL["<|im_start|>"], CONTROL["<|im_end|>"]
    prompt = CHATML.ask("a\nb")
    expected = [start, *tokenizer.encode("user\na\nb"), end, *tokenizer.encode("\n"), start]
    assert encode_prompt(prompt, tokenizer, CHATML) == expected + tokenizer.encode("assistant\n")
    assert 300 in expected


def test_a_text_begins_with_the_token_that_the_tokenizer_begins_with_and_a_template_with_its_own_alone():
    """Kills: a begin-of-text before the answer, twice, or inside a chat template that has none."""
    tokenizer = Tokenizer({bytes([b]): b for b in range(256)}, 256, control=CONTROL, begin_of_text=259)
    for template, expected in ((PLAIN, [259, 81]), (NONE, [259, 81])):
        row = Preference(*template.sides("Q", "A", "B"))
        assert encode_pair(row, tokenizer, template) == (expected, [65, 256], [66, 256])
    assert encode_prompt("", tokenizer) == [259] and encode_prompt("", BYTES) == [256]
    assert encode_prompt(CHATML.ask("Q"), tokenizer, CHATML).count(259) == 0
    assert encode_prompt(LLAMA3.ask("Q"), tokenizer, LLAMA3).count(259) == 1


def test_pairs_that_are_equal_once_they_are_cut_are_dropped_and_counted():
    """Kills: a pair without a difference trained on for ever, at log 2; one counted as truncated, too."""
    rows = [Preference("q", "same end", "same ends"), Preference("q", "a", "b"), Preference("q" * 9, "a", "b")]
    pairs, counts = tokenize(rows, BYTES, max_length=6)
    assert [pair.chosen_ids for pair in pairs] == [[97, 256], [97, 256]]
    assert counts == {"truncated": 1, "dropped": 0, "equal": 1}
    stripped = [Preference(*LLAMA3.sides("q", "yes", "yes "))]
    assert tokenize(stripped, BYTES, 100, template=LLAMA3)[1]["equal"] == 1


def test_truncation_cuts_the_token_that_closes_an_answer():
    row = Preference(*CHATML.sides("q", "a" * 50, "b"))
    (pair,), counts = tokenize([row], BYTES, max_length=40, template=CHATML)
    assert counts["truncated"] == 1 and pair.chosen_ids[-1] == 97 and pair.rejected_ids[-1] == CONTROL["<|im_end|>"]


def test_a_recognised_template_is_the_one_that_is_named(tokenizers):
    """Kills: --template chatml without the system text that the model's own has."""
    for family, name in (("smollm2", "chatml"), ("llama3-tiny", "llama3")):
        tokenizer = copy.copy(tokenizers[family])
        own = recognise(tokenizer.chat_template)
        assert own == use_template(tokenizer, name) and tokenizer.chat_template
