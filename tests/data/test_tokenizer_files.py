"""The kinds of tokenizer that people have: ids as the ecosystem's, every file read or refused, and saved as it was."""

import gzip
import json
import re
import unicodedata
from itertools import pairwise

import pytest
import tiktoken
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_tokenizer import cut as cut_as_gpt2

from dpo_min.data import tokenizer as tokenizer_module
from dpo_min.data import tokenizer_pieces as pieces
from dpo_min.data.tokenizer import Tokenizer, load_tokenizer
from dpo_min.data.tokenizer_added import END_OF_TEXT
from dpo_min.data.tokenizer_files import BYTE_LEVEL, CLASSES, QWEN2, SPLIT
from dpo_min.data.tokenizer_merges import BYTE_TO_CHAR

PUBLISHED = ["smollm2", "qwen2.5", "llama3-tiny"]


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request, shared_data):
    """(a tokenizer that people use, its directory)."""
    directory = shared_data / "tokenizers" / request.param
    return load_tokenizer(directory), directory


def test_every_string_has_the_ids_that_the_ecosystem_gives_it(published, tmp_path):
    """Of 1,500 strings each, also once saved and loaded. Kills: whatever decides ids and is passed over."""
    tokenizer, directory = published
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    with gzip.open(directory / "expected.jsonl.gz") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) > 1500
    assert [row["text"] for row in rows if tokenizer.encode(row["text"]) != row["ids"]] == []
    assert [row["text"] for row in rows if again.encode(row["text"]) != row["ids"]] == []
    form = pieces.compose if tokenizer.nfc else str
    assert [row["text"] for row in rows if tokenizer.decode(row["ids"]) != form(row["text"])] == []
    assert again.fingerprint() == tokenizer.fingerprint()
    for path in directory.glob("tokenizer*.json"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_what_closes_a_text_and_what_makes_its_markers(published):
    tokenizer, directory = published
    name, control, end, begin, size = {
        "smollm2": ("<|im_end|>", 17, 2, None, 49152),
        "qwen2.5": ("<|im_end|>", 20, 151645, None, 151936),
        "llama3-tiny": ("<|eot_id|>", 5, 3006, None, 3007),
    }[directory.name]
    assert (tokenizer.control[name], tokenizer.end_of_text, tokenizer.begin_of_text) == (end, end, begin)
    assert (len(tokenizer.control), tokenizer.vocab_size) == (control, size)
    assert tokenizer.chat_template.startswith("{%")
    markers = "".join(tokenizer.control)
    assert {*tokenizer.encode(markers)}.isdisjoint(tokenizer.control.values())
    assert tokenizer.decode([end, *tokenizer.encode(markers), 10**6, end]) == markers


# A tokenizer.json of any kind, against the ecosystem's way written out


def spelt(text):
    return "".join(BYTE_TO_CHAR[b] for b in text.encode())


def content_of(tokens, merges, added=(), cutting="gpt2", normalizer=None, **model):
    """A tokenizer.json: ids in the order of `tokens`, then of `added`, texts that are words unless they are in <>."""
    vocab = {token: i for i, token in enumerate(tokens)}
    extra = [text for text in dict.fromkeys([END_OF_TEXT, *added]) if text not in vocab]
    ids = vocab | {text: len(vocab) + i for i, text in enumerate(extra)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    listed = [
        {"id": ids[text], "content": text, **flags, "normalized": text[:1] == "n", "special": text[:1] == "<"}
        for text in dict.fromkeys([END_OF_TEXT, *added])
    ]
    digits = {"type": "Digits", "individual_digits": cutting == "digits"}
    steps = {"gpt2": [BYTE_LEVEL], "split": CLASSES["Qwen2Tokenizer"][1]["pretokenizers"]}
    steps = steps.get(cutting, [digits, BYTE_LEVEL])
    return {
        "added_tokens": listed,
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, **model},
    }


def set_apart(text, listed):
    """[(text, None) or (word, its id)], the longest word at each place; the name of a control token is text."""
    parts, start, i = [], 0, 0
    while i < len(text):
        found = max(
            (t for t in listed if text.startswith(t["content"], i)), key=lambda t: len(t["content"]), default=None
        )
        if found and not found["special"]:
            parts += [(text[start:i], None), (found["content"], found["id"])]
        i += len(found["content"]) if found else 1
        start = i if found and not found["special"] else start
    return [*parts, (text[start:], None)]


def encode_as_published(content, text):
    """The ids, by everything that a tokenizer.json says, one thing after the other."""
    ids = []
    for part, word in set_apart(text, [t for t in content["added_tokens"] if not t["normalized"]]):
        composed = unicodedata.normalize("NFC", part) if content["normalizer"] else part
        names = {t["content"]: unicodedata.normalize("NFC", t["content"]) for t in content["added_tokens"]}
        late = [t | {"content": names[t["content"]]} if content["normalizer"] else t for t in content["added_tokens"]]
        late = set_apart(composed, [t for t in late if t["normalized"]])
        for inner, inner_word in late if word is None else [(part, word)]:
            ids += merge_as_published(content, inner) if inner_word is None else [inner_word]
    return ids


def merge_as_published(content, text):
    vocab, order = content["model"]["vocab"], {tuple(pair): i for i, pair in enumerate(content["model"]["merges"])}
    steps, ids = content["pre_tokenizer"].get("pretokenizers", [{}]), []
    numbers = {True: r"(\d)", False: r"(\d+)", None: "($)"}[steps[0].get("individual_digits")]
    for segment in re.split(numbers, text) if text else []:
        for piece in map(spelt, cut_as_gpt2(segment)):
            parts = [piece] if content["model"].get("ignore_merges") and piece in vocab else [*piece]
            parts = [part for part in parts if part in vocab]
            while len(parts) > 1 and (pair := min(pairwise(parts), key=lambda p: order.get(p, 10**9))) in order:
                i = [*pairwise(parts)].index(pair)
                parts[i : i + 2] = ["".join(pair)]
            ids += [vocab[part] for part in parts]
    return ids


@st.composite
def contents(draw):
    """A tokenizer.json: merges with one or several ways to a token, words, missing bytes, words that no merge makes."""
    lacking = {spelt(c) for c in draw(st.sets(st.sampled_from("\x04z"), max_size=2))}
    tokens, merges = [c for c in BYTE_TO_CHAR.values() if c not in lacking], []
    for _ in range(draw(st.integers(1, 6))):
        known = ["a", "b", "Ġ", "1", *(token for token in tokens if len(token) > 1)]
        pair = draw(st.tuples(st.sampled_from(known), st.sampled_from(known)))
        if pair not in merges and (draw(st.booleans()) or "".join(pair) not in tokens):
            merges.append(pair)
            tokens += ["".join(pair)] * ("".join(pair) not in tokens)
    whole = draw(st.sets(st.sampled_from(["ab", "Ġba", "abab", "b!", "[PAD7]"]), max_size=3))
    tokens += sorted(whole - {*tokens})
    return content_of(
        tokens,
        merges,
        draw(st.sets(st.sampled_from(["ab a", "b1", "ne\u0301", "a", "<|im|>", "im", "<|im|>ab"]), max_size=3)),
        draw(st.sampled_from(["gpt2", "digits", "numbers"])),
        draw(st.sampled_from([None, {"type": "NFC"}])),
        ignore_merges=draw(st.booleans()),
    )


PARTS = [*"ab1z! \n\x04é", "ab", "  ", "23", "ne\u0301", "né", "<|im|>", "im", "A\u030a"]
ODD = st.lists(st.sampled_from(PARTS)).map("".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def load(directory, content, **beside):
    """The tokenizer of a directory that holds tokenizer.json with this content, and these other JSON files."""
    for path in directory.iterdir():
        path.unlink()
    (directory / "tokenizer.json").write_text(json.dumps(content))
    for name, value in beside.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    return load_tokenizer(directory)


SINGLE = [*BYTE_TO_CHAR.values()]


@given(content=contents(), texts=st.lists(ODD, min_size=1, max_size=6))
@example(content_of([*SINGLE, "ab", "Ġab"], [("a", "b")], ignore_merges=True), ["ab  ab Ġab", "xab ab"])
@example(content_of([*SINGLE, "ab", "aba", "ba"], [("a", "b"), ("ab", "a"), ("b", "a"), ("a", "ba")]), ["abababa"])
@example(content_of(SINGLE, [], ["b1", "<|im|>b1"]), ["<|im|>b1 b1<|im|>"])
@example(content_of(SINGLE, [], ["im", "im b", "im b im"]), ["im b im b im"])
@example(content_of([*SINGLE, "ĠĠ"], [("Ġ", "Ġ")], cutting="digits"), ["a  1  ", "  12  !  "])
@example(content_of([*SINGLE, "ĠĠ", "12"], [("Ġ", "Ġ"), ("1", "2")], cutting="numbers"), ["a  12  ", " 12"])
@example(content_of([c for c in SINGLE if c != "z"] + ["ab"], [("a", "b")]), ["azb ab z"])
@example(content_of(SINGLE, [], ["né"], normalizer={"type": "NFC"}), ["ne\u0301 né"])
def test_any_tokenizer_json_is_read_as_published_or_refused(folder, content, texts):
    """Kills: a word found inside another's name, a missing byte that breaks a piece, a word's two halves joined in the
    middle of a piece, digits left with the blank before them, NFC after or before the wrong words."""
    try:
        tokenizer = load(folder, content)
    except ValueError as error:
        assert str(error).startswith(f"{folder}: ") and "\n" not in str(error)  # noqa: PT017
        return
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == encode_as_published(content, text)
        assert {*ids}.isdisjoint(tokenizer.control.values())


@settings(max_examples=30)
@given(content=contents())
def test_what_is_saved_is_the_same_tokenizer(folder, content):
    try:
        tokenizer = load(folder, content, tokenizer_config={"eos_token": END_OF_TEXT})
    except ValueError:
        assume(False)
    tokenizer.save(folder)
    assert json.loads((folder / "tokenizer.json").read_text()) == json.loads(json.dumps(content))
    assert load_tokenizer(folder).fingerprint() == tokenizer.fingerprint()


def test_tokenizers_that_differ_somewhere_have_other_fingerprints(folder):
    """Kills: pairs, or a resumed run, of a tokenizer that has another word, another form or another beginning."""
    tokens, merges, nfc = [*SINGLE, "ab", "aba"], [("a", "b")], {"type": "NFC"}
    contents = [
        content_of(tokens, merges, **more)
        for more in ({}, {"ignore_merges": True}, {"normalizer": nfc}, {"cutting": "digits"}, {"added": ["im"]},
                     {"added": ["nm"]}, {"added": ["<im>"]})
    ]  # fmt: skip
    contents.append(AB | {"post_processor": BEGIN})
    contents += [AB, content_of(tokens[:-1], [("a", "b")])]
    assert len({load(folder, content).fingerprint() for content in contents}) == len(contents)


def test_most_of_these_files_are_read(folder):
    """Kills: a reader that is right because it refuses what is difficult."""
    easy = content_of([*SINGLE, "ab", "aba", "Ġword"], [("a", "b"), ("ab", "a")], ["b1"], "digits", ignore_merges=True)
    for change in (
        {},
        {"cutting": "split"},
        {"normalizer": {"type": "NFC"}},
        {"added": ["b1", "<|im|>", "im"]},
        {"ignore_merges": False},
        {"merges": [("a", "b"), ("ab", "a"), ("b", "a"), ("a", "ba")], "tokens": [*SINGLE, "ab", "aba", "ba"]},
        {"tokens": [*SINGLE[1:], "ab", "aba"]},
    ):
        settings = {
            "tokens": [*SINGLE, "ab", "aba", "Ġword"],
            "merges": [("a", "b"), ("ab", "a")],
            "ignore_merges": True,
        }
        load(folder, content_of(**settings | change))
    assert load(folder, easy).encode(" word") == [258]


@pytest.mark.parametrize("pattern", [QWEN2, r" ?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"])
@pytest.mark.parametrize(("behavior", "invert"), [("Isolated", False), ("Removed", True)])
def test_a_published_pattern_is_accepted_in_both_ways_of_writing_it(folder, pattern, behavior, invert):
    split = SPLIT | {"pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
    content = content_of(SINGLE, [])
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL | {"use_regex": False}]}
    assert load(folder, content).encode("a1") == [BYTE_TO_CHAR_ID["a"], BYTE_TO_CHAR_ID["1"]]
    for change in ({"behavior": "MergedWithNext"}, {"invert": not invert}, {"pattern": {"String": pattern}}, {"x": 1}):
        content["pre_tokenizer"]["pretokenizers"][0] = split | change
        with pytest.raises(ValueError, match="pre_tokenizer is none of those that are understood"):
            load(folder, content)
    content["pre_tokenizer"]["pretokenizers"][0] = split | {"pattern": {"Regex": pattern + "|x"}}
    with pytest.raises(ValueError, match="pre_tokenizer is none of those that are understood"):
        load(folder, content)


BYTE_TO_CHAR_ID = {chr(b) if b < 128 else b: i for i, b in enumerate(BYTE_TO_CHAR)}


# The pieces, and text of any length


OURS = [QWEN2, pieces.GPT2_PATTERN, pieces.DIGITS_APART, pieces.NUMBERS_APART]
EVERY_KIND = sorted(pieces.PUBLISHED)[::97] + OURS
SINGLE_BYTES = {bytes([b]): b for b in range(256)}
PAIRS = SINGLE_BYTES | {bytes([a, b]): 256 * (a + 1) + b for a in range(256) for b in range(256)}
CLASSES_OF_TEXT = [*"aAsSt1²Ⅷ!' \n\r\t\x1c\x85\u0301\u3000ǅʰéſK中", "'ll", "'S", " a", "\r\n", "  "]
ANY = st.text(max_size=12) | st.lists(st.sampled_from(CLASSES_OF_TEXT)).map("".join)


@pytest.fixture(scope="module")
def engines():
    """Pattern → tiktoken with a token for every two bytes, which shows in the ids where pieces begin."""
    return {p: tiktoken.Encoding("pairs", pat_str=p, mergeable_ranks=PAIRS, special_tokens={}) for p in EVERY_KIND}


@pytest.mark.parametrize("pattern", EVERY_KIND)
@given(text=ANY)
@example("it'ſ '\u017f 12345  9\n\n x\u0301\u0301 \t")
def test_pieces_are_those_that_tiktoken_cuts(engines, pattern, text):
    """Kills: Python's white space, letters or line ends in the place of tiktoken's, and text that no piece holds."""
    found, engine = pieces.cut(text, pattern), engines[pattern]
    assert "".join(found) == text
    assert [i for piece in found for i in engine._encode_single_piece(piece)] == engine.encode_ordinary(text)


@pytest.fixture(scope="module")
def blanks():
    """Tokenizers with merges of blanks, by the way in which they cut."""
    ranks = SINGLE_BYTES | {b"  ": 256, b"    ": 257, b"\n\n": 258, b" a": 259}
    return {pattern: Tokenizer(ranks, 300, pattern=pattern, nfc=True) for pattern in OURS}


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize(
    "text", [" " * 65535 + "a", "  a" + " " * 70_000, "b" + "\n" * 66_000 + "  a", "\u3000" * 66_001 + "1"]
)
def test_a_long_run_of_blanks_has_the_ids_of_the_pattern_itself(blanks, kind, text):
    """At a length that the pattern engine still takes. Kills: a run that is cut in its middle, or at its wrong end."""
    tokenizer = blanks[OURS[kind]]
    assert tokenizer.encode(text) == tokenizer.encoding.encode_ordinary(text)


class Counting:
    """tiktoken, counting the bytes that it is given."""

    def __init__(self, encoding):
        self.encoding, self.work = encoding, 0

    def encode_ordinary(self, text):
        self.work += len(text.encode())
        return self.encoding.encode_ordinary(text)

    def _encode_single_piece(self, piece):
        self.work += len(piece)
        return self.encoding._encode_single_piece(piece)


@pytest.mark.parametrize(
    ("kind", "unit"),
    [(kind, unit) for unit in (" ", "\n") for kind in range(4)]
    + [(0, unit) for unit in (" \n", "\u3000", "a", "1", "!", "é\u0316\u0301", "\u0f73", "' ")],
)
def test_text_of_any_length_is_ids_by_work_that_grows_as_it_does(blanks, kind, unit, monkeypatch):
    """Kills: an engine that gives up on a million blanks, which is no exception of Python's; work that is quadratic."""
    tokenizer, work = blanks[OURS[kind]], []
    normalize = unicodedata.normalize

    def counted(form, text):
        marked, longest, disorder = "" if text.isascii() else text, 0, 0
        classes = [unicodedata.combining(c) for inner in marked for c in normalize("NFD", inner)]
        for before, after in pairwise(classes):  # between two characters that stay where they are
            disorder = after and disorder + (after < before)
            longest = max(longest, disorder)
        assert longest <= 2  # what Python's composition takes quadratic time for
        return normalize(form, text)

    monkeypatch.setattr(pieces.unicodedata, "normalize", counted)
    for size in (250_000, 1_000_000):
        counting = Counting(tokenizer.encoding)
        monkeypatch.setattr(tokenizer, "encoding", counting)
        text = unit * (size // len(unit)) + "x"
        ids = tokenizer.encode(text)
        monkeypatch.undo()
        monkeypatch.setattr(pieces.unicodedata, "normalize", counted)
        work.append(counting.work)
        assert len(tokenizer.decode_bytes(ids)) == counting.work
        assert ids[-1] == ord("x")
    assert work[1] <= 4 * work[0] + 8


@given(
    text=st.text(
        st.sampled_from("ae\u00e9\u0301\u0316\u0327\u0f73\u0f75\u0f81\u0344\uac00\u1161\u11a8\u1100"), max_size=90
    )
)
@example("á" + "\u0316\u0301" * 40 + "\u0f73" * 40)
def test_composed_text_is_nfc(text):
    assert pieces.compose(text) == unicodedata.normalize("NFC", text)


# What stands beside


AB = content_of([*SINGLE, "ab"], [("a", "b")], ["<|im_start|>", "<|im_end|>"])
IDS = {token["content"]: token["id"] for token in AB["added_tokens"]}
TEMPLATE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {}}
BEGIN = TEMPLATE | {
    "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, *TEMPLATE["single"]],
    "special_tokens": {
        "<|im_start|>": {"id": "<|im_start|>", "ids": [IDS["<|im_start|>"]], "tokens": ["<|im_start|>"]}
    },
}


@pytest.mark.parametrize(
    ("beside", "end"),
    [
        ({}, END_OF_TEXT),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, "<|im_end|>"),
        ({"tokenizer_config": {"eos_token": {"content": "<|im_end|>", "lstrip": False}}}, "<|im_end|>"),
        ({"special_tokens_map": {"eos_token": {"content": "<|im_end|>"}}}, "<|im_end|>"),
        ({"tokenizer_config": {"eos_token": None, "pad_token": "[PAD]"}}, END_OF_TEXT),
    ],
)
def test_what_closes_a_text_is_what_the_files_name(folder, beside, end):
    tokenizer = load(folder, AB, **beside)
    assert (tokenizer.end_of_text, {*tokenizer.control}) == (IDS[end], {*IDS})


@pytest.mark.parametrize(
    ("post_processor", "begin"),
    [
        (None, None),
        (BYTE_LEVEL, None),
        (TEMPLATE, None),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, TEMPLATE]}, None),
        (BEGIN, "<|im_start|>"),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, BEGIN]}, "<|im_start|>"),
    ],
)
def test_what_is_put_before_a_text_is_known_and_not_put_there(folder, post_processor, begin):
    """Also as the ecosystem's newest version writes it, adding nothing. Kills: a begin-of-text twice, or never."""
    content = AB | {"post_processor": post_processor}
    for config in ({}, {"add_bos_token": begin is not None}):
        tokenizer = load(folder, content, tokenizer_config=config)
        assert tokenizer.begin_of_text == (begin and IDS[begin])
        assert tokenizer.encode("ab") == [256]
    with pytest.raises(ValueError, match=r"add_bos_token .* contradict"):
        load(folder, content, tokenizer_config={"add_bos_token": begin is None})


AFTER = TEMPLATE | {"single": [*TEMPLATE["single"], BEGIN["single"][0]], "special_tokens": BEGIN["special_tokens"]}
TWICE = BEGIN | {"single": [BEGIN["single"][0], *BEGIN["single"]]}
REFUSED = {
    "the text left out": ({"post_processor": BEGIN | {"single": BEGIN["single"][:1]}}, {}, "post_processor adds"),
    "something after every text": ({"post_processor": AFTER}, {}, "post_processor adds"),
    "two things before every text": ({"post_processor": TWICE}, {}, "post_processor adds"),
    "another way of adding": ({"post_processor": {"type": "RobertaProcessing"}}, {}, "post_processor adds"),
    "a blank before every text": ({}, {"tokenizer_config": {"add_prefix_space": True}}, "add_prefix_space"),
    "the end after every text": ({}, {"tokenizer_config": {"add_eos_token": True}}, "add_eos_token"),
    "an end that is no token": ({}, {"tokenizer_config": {"eos_token": "</s>"}}, "</s>"),
    "an end that is ordinary text": ({}, {"tokenizer_config": {"eos_token": "ab"}}, "'ab'"),
    "an added token with another id": ({}, {"added_tokens": {"<|im_end|>": 5}}, "added_tokens.json says of"),
    "an added token that is a word there": ({}, {"added_tokens": {"<|im_end|>": IDS["<|im_end|>"]}}, "special False"),
    "a token added with another id": (
        {}, {"tokenizer_config": {"added_tokens_decoder": {"5": {"content": "<|im_end|>", "special": True}}}},
        "tokenizer_config.json says of '<|im_end|>' id 5",
    ),
    "a word that is found by its edges": (
        {"added_tokens": [*AB["added_tokens"], {"id": 999, "content": "w w", "lstrip": True}]}, {}, "added word 'w w'",
    ),
    "another vocabulary beside it": ({}, {"vocab": {"a": 5}}, "say another vocabulary than tokenizer.json"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "beside", "words"), [pytest.param(*case, id=name) for name, case in REFUSED.items()]
)
def test_what_decides_ids_and_is_not_understood_is_refused_by_name(folder, change, beside, words):
    if "vocab" in beside:
        load(folder, AB)
        (folder / "merges.txt").write_text("a b\n")
        (folder / "vocab.json").write_text(json.dumps(beside["vocab"]))
        with pytest.raises(ValueError, match=words):
            load_tokenizer(folder)
    else:
        with pytest.raises(ValueError, match=re.escape(words)) as refused:
            load(folder, AB | change, **beside)
        assert str(refused.value).startswith(f"{folder}: ") and "\n" not in str(refused.value)


def test_tokens_added_beside_the_file_are_added(folder):
    """Kills: added_tokens_decoder and added_tokens.json passed over."""
    named = {"additional_special_tokens": ["<x>"], "eos_token": "<x>"}
    tokenizer = load(folder, AB, added_tokens={"<x>": 900, "word b": 901}, special_tokens_map=named)
    assert (tokenizer.control["<x>"], tokenizer.end_of_text, tokenizer.vocab_size) == (900, 900, 902)
    assert tokenizer.encode("abword b") == [256, 901]
    decoder = {"900": {"content": "<x>", "special": True}, "901": {"content": "word b"}}
    config = {"added_tokens_decoder": decoder, "eos_token": "<x>"}
    assert load(folder, AB, tokenizer_config=config).fingerprint() == tokenizer.fingerprint()


def write_two(directory, line_end="\n", mark="", **beside):
    """GPT-2's two files of the merge a b, and others."""
    for path in directory.iterdir():
        path.unlink()
    vocab = {c: b for b, c in BYTE_TO_CHAR.items()} | {"ab": 256, END_OF_TEXT: 257}
    (directory / "vocab.json").write_text(mark + json.dumps(vocab), encoding="utf-8")
    (directory / "merges.txt").write_bytes((mark + f"#version: 0.2{line_end}a b{line_end}").encode())
    for name, value in beside.items():
        (directory / f"{name}.json").write_text(json.dumps(value))


@pytest.mark.parametrize(("line_end", "mark"), [("\r\n", ""), ("\n", "\ufeff"), ("\r\n", "\ufeff")])
def test_two_files_from_another_system_are_the_same(folder, line_end, mark):
    """Kills: merges of which every second part ends in a carriage return; a mark that makes JSON no JSON."""
    write_two(folder)
    first = load_tokenizer(folder)
    write_two(folder, line_end, mark)
    assert load_tokenizer(folder).fingerprint() == first.fingerprint()


def test_two_files_are_cut_as_the_class_that_is_to_read_them_cuts(folder):
    """Kills: GPT-2's pattern for whatever has two files."""
    for beside, ids in (
        ({}, [101, 204, 129, 32, 49]),
        ({"tokenizer_config": {"tokenizer_class": "GPT2TokenizerFast"}}, [101, 204, 129, 32, 49]),
        ({"tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"}}, [195, 169, 32, 49]),
        ({"config": {"model_type": "qwen3"}}, [195, 169, 32, 49]),
    ):
        write_two(folder, **beside)
        tokenizer = load_tokenizer(folder)
        assert tokenizer.encode("e\u0301 1") == ids
        tokenizer.save(folder)
        assert load_tokenizer(folder).fingerprint() == tokenizer.fingerprint()
    write_two(folder, tokenizer_config={"tokenizer_class": "BartTokenizer"})
    with pytest.raises(ValueError, match=r"do not say how text is cut for 'BartTokenizer'.*tokenizer\.json would"):
        load_tokenizer(folder)


def test_two_files_with_tokens_beside_them_are_saved_as_one(folder):
    """Kills: a tokenizer.json that lacks what the other files add."""
    write_two(
        folder,
        added_tokens={"<|im_end|>": 258, "a word": 259},
        special_tokens_map={"eos_token": "<|im_end|>", "bos_token": END_OF_TEXT},
        tokenizer_config={"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True},
    )
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.end_of_text, tokenizer.begin_of_text, tokenizer.vocab_size) == (258, 257, 260)
    assert tokenizer.encode("<|im_end|>a word") == [60, 124, 105, 109, 95, 101, 110, 100, 124, 62, 259]
    tokenizer.save(folder)
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (folder / name).unlink()
    assert load_tokenizer(folder).fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize("place", ["in the configuration", "one of several", "in a file"])
def test_the_chat_template_is_found_and_kept(folder, place):
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ y }}"}]
    within = {"in the configuration": "{{ y }}", "one of several": several, "in a file": "old"}[place]
    load(folder, AB, tokenizer_config={"chat_template": within})
    if place == "in a file":
        (folder / "chat_template.jinja").write_text("{{ y }}")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template == "{{ y }}"
    tokenizer.save(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"chat_template": within}
    assert load_tokenizer(folder).chat_template == "{{ y }}"


@pytest.mark.parametrize("template", ["{{ new }}", None])
def test_another_end_and_another_template_are_saved(folder, template):
    """As a run has them that trains with --template. Kills: files that say what the tokenizer said when it came."""
    tokenizer = load(folder, AB, tokenizer_config={"chat_template": "{{ old }}", "eos_token": END_OF_TEXT})
    tokenizer.chat_template, tokenizer.end_of_text = template, IDS["<|im_end|>"]
    tokenizer.save(folder)
    again = load_tokenizer(folder)
    assert (again.chat_template, again.end_of_text) == (template, IDS["<|im_end|>"])
    bytes_alone = load_tokenizer("bytes")
    bytes_alone.chat_template = template
    bytes_alone.save(folder)
    assert tokenizer_module.load_tokenizer(folder).chat_template == template
