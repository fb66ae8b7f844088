"""Byte-level BPE: text → ids → text, and the vocabulary files both ways."""

import json
import unicodedata
from collections import Counter
from itertools import pairwise

import pytest
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizer_added import END_OF_TEXT
from dpo_min.data.tokenizer_merges import BYTE_TO_CHAR, CHAR_TO_BYTE
from dpo_min.system.files import MAX_JSON

TEXT = st.lists(st.text(max_size=8) | st.sampled_from([END_OF_TEXT, " ", "\n\n", "the", "é", "👩‍🚀"]), max_size=8).map(
    "".join
)


def write_vocabulary(directory, merges):
    """The two files of the BPE that has these merges, in GPT-2's alphabet."""
    vocab = CHAR_TO_BYTE | {"".join(pair): 256 + i for i, pair in enumerate(merges)} | {END_OF_TEXT: 256 + len(merges)}
    (directory / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (directory / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    return vocab


def apply_merges(parts, merges):
    """BPE as published: each merge in its order, wherever its two parts meet, from left to right."""
    parts = list(parts)
    for pair in merges:
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == pair:
                parts[i : i + 2] = ["".join(pair)]
            i += 1
    return parts


def learn_merges(text, count):
    """BPE as trained: again and again the most frequent pair of neighbours."""
    merges = []
    while len(merges) < count and (pairs := Counter(pairwise(apply_merges(text, merges)))):
        merges.append(max(pairs, key=pairs.get))
    return merges


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vocabulary")


@pytest.fixture(scope="module", params=["bytes", "a few merges", "gpt2 from files", "gpt2 by name"])
def tokenizer(request, tmp_path_factory):
    """Each kind of tokenizer; GPT-2's own where its files lie beside the checkout."""
    if request.param == "bytes":
        return load_tokenizer("bytes")
    if request.param == "a few merges":
        directory = tmp_path_factory.mktemp("merges")
        write_vocabulary(directory, [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ã", "©"), ("<", "|"), ("Ċ", "Ċ")])
        return load_tokenizer(directory)
    shared_data = request.getfixturevalue("shared_data")
    if request.param == "gpt2 from files":
        return load_tokenizer(shared_data / "gpt2-bpe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken-cache"))
        return load_tokenizer("gpt2")


# Text → ids → text


@given(text=TEXT)
@example(END_OF_TEXT)
@example("")
@example(" \n\t  \r\n ")
@example("\0\u0085\u2028\ufeff\ufffd\U0010ffff")
def test_text_comes_back_from_its_ids_and_no_text_is_the_control_token(tokenizer, text):
    """Kills: `<|endoftext|>` in data parsed as the control token, white space collapsed, U+FFFD for text."""
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_text not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in [*ids, tokenizer.end_of_text])


@given(text=TEXT, data=st.data())
def test_decoding_drops_control_tokens_and_replaces_what_is_not_utf8(tokenizer, text, data):
    """Kills: the control token spelt out, and an exception where a completion was cut inside a character."""
    ids = tokenizer.encode(text)
    cut = ids[: data.draw(st.integers(0, len(ids)))]
    begun = tokenizer.decode_bytes(cut)
    assert text.encode().startswith(begun)
    end = [tokenizer.end_of_text]
    place = data.draw(st.integers(0, len(cut)))
    assert tokenizer.decode(end + cut[:place] + end + end + cut[place:] + end) == begun.decode(errors="replace")


def test_the_bytes_of_a_text_are_its_ids():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.encode("hé"), tokenizer.end_of_text, tokenizer.vocab_size) == ([104, 195, 169], 256, 257)
    assert tokenizer.decode([104, 195]) == tokenizer.decode([104, 256, 195]) == "h\ufffd"
    assert tokenizer.decode([195, 256, 169]) == "é"


def test_a_million_spaces_are_bytes_like_any_others():
    """Kills: GPT-2's pattern run over text that has no merges: its engine panics on a long run of white space."""
    assert load_tokenizer("bytes").encode(" " * 1_000_000 + "a") == [32] * 1_000_000 + [97]


def test_gpt2_agrees_with_a_worked_example(shared_data):
    tokenizer = load_tokenizer(shared_data / "gpt2-bpe")
    assert tokenizer.encode("Hello world, it's  2\n") == [15496, 995, 11, 340, 338, 220, 362, 198]
    assert (tokenizer.end_of_text, tokenizer.vocab_size) == (50256, 50257)


@pytest.fixture(scope="module")
def gpt2s(shared_data):
    """The same vocabulary three times: from its files, by its name, and tiktoken's own object."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken-cache"))
        return load_tokenizer(shared_data / "gpt2-bpe"), load_tokenizer("gpt2"), tiktoken.get_encoding("gpt2")


@given(text=TEXT)
@example("I'll don't O'Reilly IT'S 'llx  a\n\n b \u3000 ½²٣ \t")
def test_gpt2_from_its_files_is_gpt2_by_name_is_tiktokens(gpt2s, text):
    """Kills: a pattern that cuts text elsewhere than the published one."""
    from_files, by_name, oracle = gpt2s
    assert from_files.encode(text) == by_name.encode(text) == oracle.encode_ordinary(text)


# Vocabulary files


def test_the_byte_alphabet_is_gpt2s():
    assert "".join(BYTE_TO_CHAR[b] for b in b" \n\0~\x7f\xad\xff") == "ĠĊĀ~ġŃÿ"
    assert sorted(CHAR_TO_BYTE.values()) == list(range(256))
    assert all(CHAR_TO_BYTE[char] == byte for byte, char in BYTE_TO_CHAR.items())


@pytest.fixture(scope="module")
def reloaded(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    tokenizer.save(directory)
    return load_tokenizer(directory)


@given(text=TEXT)
def test_a_saved_tokenizer_gives_the_same_ids(tokenizer, reloaded, text):
    """Kills: merges written in any order but that of their ranks, ids numbered anew, the control token left out."""
    assert reloaded.encode(text) == tokenizer.encode(text)
    assert reloaded.ranks == tokenizer.ranks
    assert (reloaded.end_of_text, reloaded.vocab_size) == (tokenizer.end_of_text, tokenizer.vocab_size)


def test_saving_gpt2_writes_the_published_files(shared_data, tmp_path):
    """Kills: a token split anywhere but at its merge, which shows in one of 50,000 lines."""
    published = shared_data / "gpt2-bpe"
    load_tokenizer(published).save(tmp_path)
    vocab, encoder = (json.loads(path.read_text()) for path in (tmp_path / "vocab.json", published / "encoder.json"))
    assert vocab == encoder
    assert (tmp_path / "merges.txt").read_text() == (published / "vocab.bpe").read_text()


@given(corpus=st.text("abc", max_size=60), count=st.integers(0, 8), text=st.text("abc", max_size=20))
@example(corpus="aaabcaaabac", count=3, text="aaab")
def test_a_trained_vocabulary_encodes_as_published_and_comes_back_whole(folder, corpus, count, text):
    """Kills: merges applied by length or from left to right alone; a token's parts guessed by its longest prefix."""
    merges = learn_merges(corpus, count)
    vocab = write_vocabulary(folder, merges)
    (folder / "tokenizer.json").unlink(missing_ok=True)  # of the example before
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(text) == [vocab[part] for part in apply_merges(text, merges)]
    written = (folder / "merges.txt").read_text()
    tokenizer.save(folder)
    assert (folder / "merges.txt").read_text() == "#version: 0.2\n" + written
    assert json.loads((folder / "vocab.json").read_text()) == vocab


@st.composite
def merge_lists(draw):
    """Merges of earlier tokens that no corpus need have taught."""
    tokens, merges = ["a", "b", "c"], []
    for _ in range(draw(st.integers(1, 6))):
        pair = draw(st.tuples(st.sampled_from(tokens), st.sampled_from(tokens)))
        if "".join(pair) not in tokens:
            tokens.append("".join(pair))
            merges.append(pair)
    return merges


@given(merges=merge_lists(), text=st.text("abc", max_size=20))
@example(merges=[("a", "b"), ("b", "c"), ("a", "bc")], text="abc")
def test_any_merges_are_encoded_as_published_or_refused(folder, merges, text):
    """Kills: merges taken for what their tokens spell: after (a, b), (a, bc) never happens, but (ab, c) would."""
    vocab = write_vocabulary(folder, merges)
    try:
        ids = load_tokenizer(folder).encode(text)
    except ValueError as error:
        assert str(folder) in str(error)  # noqa: PT017
    else:
        assert ids == [vocab[part] for part in apply_merges(text, merges)]


AB = CHAR_TO_BYTE | {"ab": 256, END_OF_TEXT: 257}
MALFORMED = {
    "vocabulary is empty": (b"", "a b"),
    "vocabulary is not JSON": (b"{", "a b"),
    "vocabulary is not UTF-8": (b'{"\xff": 0}', "a b"),
    "vocabulary is a list": ([], "a b"),
    "vocabulary is null": (None, "a b"),
    "vocabulary is nested a hundred thousand deep": (b"[" * 100_000, "a b"),
    "no control token": (CHAR_TO_BYTE | {"ab": 256}, "a b"),
    "a byte is missing": ({k: v for k, v in AB.items() if k != "z"}, "a b"),
    "a token outside the byte alphabet": (AB | {"☃": 258}, "a b"),
    "an id is text": (AB | {"ab": "256"}, "a b"),
    "an id is a fraction": (AB | {"ab": 256.5}, "a b"),
    "an id is negative": (AB | {"ab": -1}, "a b"),
    "an id is huge": (AB | {"ab": 2**40}, "a b"),
    "an id is used twice": (AB | {"ab": 98}, "a b"),
    "the control token's id is null": (AB | {END_OF_TEXT: None}, "a b"),
    "the control token's id is that of a byte": (AB | {END_OF_TEXT: 98}, "a b"),
    "a merge is missing": (AB, ""),
    "a merge is doubled": (AB, "a b\na b"),
    "a merge makes an unknown token": (AB, "a b\na c"),
    "a merge has one part": (AB, "ab"),
    "a merge has three parts": (AB | {"abc": 258}, "a b\na b c"),
    "a merge has a part that is no token": (AB | {"abcd": 258}, "a b\nab cd"),
    "merges stand in another order than their ids": (AB | {"bc": 258}, "b c\na b"),
    "a merge that earlier ones prevent": (AB | {"bc": 258, "abc": 259}, "a b\nb c\na bc"),
}


@pytest.mark.parametrize(("vocab", "merges"), [pytest.param(*case, id=name) for name, case in MALFORMED.items()])
def test_malformed_vocabulary_files_are_refused_with_their_directory(tmp_path, vocab, merges):
    (tmp_path / "vocab.json").write_bytes(vocab if isinstance(vocab, bytes) else json.dumps(vocab).encode())
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    with pytest.raises(ValueError, match=f"^{tmp_path}: "):
        load_tokenizer(tmp_path)


def test_the_well_formed_neighbour_of_those_files_is_accepted(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(AB))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert load_tokenizer(tmp_path).encode("abc") == [256, 99]


@pytest.mark.parametrize("present", [[], ["vocab.json"], ["merges.txt"], ["vocab.json", "vocab.bpe"]])
def test_a_directory_without_both_files_is_refused_by_name(tmp_path, present):
    for name in present:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"^{tmp_path}: no vocab.json with merges.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["GPT2", "no/such/directory", "llama", "x" * 1000])
def test_an_unknown_name_is_refused_with_what_is_known(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="not bytes, gpt2 or a directory with vocab"):
        load_tokenizer(name)


def test_gpt2_without_network_or_cache_names_the_two_ways_in(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.delitem(tiktoken.registry.ENCODINGS, "gpt2", raising=False)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")  # nothing listens there
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match=r"TIKTOKEN_CACHE_DIR.*--tokenizer to a directory"):
        load_tokenizer("gpt2")


# tokenizer.json: the same tokenizer in one file, as the ecosystem reads it

CONTRACTIONS = "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"
ASSIGNED = TEXT.filter(lambda text: all(unicodedata.category(c) != "Cn" for c in text))  # Unicode versions differ on Cn


def kind(c):
    """Which of the pattern's four classes a character is in: white space (Unicode's), letter, number, other."""
    if c.isspace() and c not in "\x1c\x1d\x1e\x1f":
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(c)[0], "other")


def cut(text):
    """GPT-2's pieces, without a pattern engine: contractions, runs of one class with the space before, white space."""
    pieces, i = [], 0
    while i < len(text):
        found = next((c for c in CONTRACTIONS if text.startswith(c, i)), "")
        end, first = i + len(found), i + (text[i] == " ")
        if not found and first < len(text) and kind(text[first]) != "space":
            end = next((k for k in range(first, len(text)) if kind(text[k]) != kind(text[first])), len(text))
        elif not found:
            end = next((k for k in range(i, len(text)) if kind(text[k]) != "space"), len(text))
            end -= end < len(text) and end - i > 1  # the last blank belongs to the word behind it
        pieces.append(text[i:end])
        i = end
    return pieces


def read_alone(vocab, ranks, text):
    """Ids by a vocabulary and merges alone: cut, spell in the byte alphabet, merge the lowest pair, again and again."""
    ids = []
    for piece in cut(text):
        parts = [BYTE_TO_CHAR[b] for b in piece.encode()]
        while len(parts) > 1 and (pair := min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))) in ranks:
            i = list(pairwise(parts)).index(pair)
            parts[i : i + 2] = ["".join(pair)]
        ids += [vocab[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def written(tokenizer, tmp_path_factory):
    """(a directory with nothing but the tokenizer.json of `tokenizer`, what it says, its merges' ranks)."""
    directory = tmp_path_factory.mktemp("written")
    tokenizer.save(directory)
    for path in directory.iterdir():
        if path.name != "tokenizer.json":
            path.unlink()
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    return directory, content, {tuple(m.split(" ")): rank for rank, m in enumerate(content["model"]["merges"])}


KINDS = pytest.mark.parametrize("tokenizer", ["bytes", "a few merges", "gpt2 from files"], indirect=True)


@KINDS
@given(text=ASSIGNED)
@example("I'll say it's  2 \u2167 naïve\n\n \t words 'twas ")
@example("\x1c\x1d a\x85\u2028b\u00a0 c\u200bd")
@example("'S 'sa ' s ’s")
@example(END_OF_TEXT)
def test_tokenizer_json_means_the_same_ids_to_one_who_has_only_it(tokenizer, written, text):
    """Kills: merges in another order, a space put before the text, pieces that are not GPT-2's, a wrong id."""
    _, content, ranks = written
    assert read_alone(content["model"]["vocab"], ranks, text) == tokenizer.encode(text)


@KINDS
def test_a_directory_with_only_tokenizer_json_is_the_same_tokenizer(tokenizer, written):
    """Kills: an id or a merge lost on the way, or an end-of-text that is not the file's."""
    loaded = load_tokenizer(written[0])
    assert loaded.fingerprint() == tokenizer.fingerprint()
    content = written[1]
    assert content["added_tokens"][0]["id"] == content["model"]["vocab"][END_OF_TEXT] == tokenizer.end_of_text
    assert sorted(content["model"]["vocab"].values()) == list(range(tokenizer.vocab_size))


def with_change(content, place, value):
    """A deep copy of `content` in which the value at a dotted place is another; no value: the key is deleted."""
    copy = json.loads(json.dumps(content))
    *path, last = place.split(".")
    inner = copy
    for key in path:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return copy


@pytest.fixture(scope="module")
def ab(tmp_path_factory):
    """What the tokenizer.json of the one merge a b says."""
    directory = tmp_path_factory.mktemp("ab")
    write_vocabulary(directory, [("a", "b")])
    load_tokenizer(directory).save(directory)
    return json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))


def load_alone(directory, content):
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return load_tokenizer(directory)


ADDED = {"id": 257, "content": END_OF_TEXT, "special": True}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("normalizer", {"type": "NFKC"}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer", None),
        ("pre_tokenizer.add_prefix_space", True),
        ("pre_tokenizer.add_prefix_space", None),
        ("pre_tokenizer.use_regex", False),
        ("pre_tokenizer", [1]),
        ("post_processor", {"type": "TemplateProcessing"}),
        ("decoder", {"type": "Metaspace"}),
        ("decoder", None),
        ("model", None),
        ("model", "BPE"),
        ("model.type", "Unigram"),
        ("model.dropout", 0.1),
        ("model.continuing_subword_prefix", "##"),
        ("model.end_of_word_suffix", "</w>"),
        ("model.byte_fallback", True),
        ("model.ignore_merges", 2),
        ("model.added_later", 1),
        ("added_later", 1),
        ("model.vocab", None),
        ("model.vocab", ["a"]),
        ("model.merges", None),
        ("model.merges", []),
        ("model.merges", ["a b c"]),
        ("model.merges", [["a", "b"], ["a", "c"]]),
        ("model.merges", [1]),
        ("added_tokens", None),
        ("added_tokens", [ADDED, {"id": 256, "content": "<pad>"}]),
        ("added_tokens", [ADDED, {"id": 258, "content": "word", "lstrip": True}]),
        ("added_tokens", [ADDED | {"content": "</s>"}]),
        ("added_tokens", [ADDED | {"id": 258}]),
        ("added_tokens", [1]),
    ],
)
def test_a_tokenizer_json_of_another_kind_is_refused_with_its_directory(tmp_path, ab, place, value):
    """Kills: a key that changes ids and is passed over."""
    with pytest.raises(ValueError, match=f"^{tmp_path}: ") as refused:
        load_alone(tmp_path, with_change(ab, place, value))
    assert "\n" not in str(refused.value)


def test_harmless_differences_of_a_tokenizer_json_are_accepted(tmp_path, ab):
    """Merges as pairs, keys that older or newer writers leave out, another caller's padding."""
    model = {"vocab": dict(ab["model"]["vocab"]), "merges": ab["model"]["merges"]}  # other tests have ab too
    older = ab | {"model": model, "padding": {"length": 8}}
    older["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    del older["post_processor"]
    for content in (ab, older, with_change(ab, "model.merges", [["a", "b"]])):
        assert load_alone(tmp_path, content).encode("abc") == [256, 99]
    del older["model"]["vocab"][END_OF_TEXT]  # its id stands among the added tokens
    assert load_alone(tmp_path, older).end_of_text == 257


def test_a_vocabulary_file_without_end_and_a_token_without_end_are_refused(tmp_path, ab):
    """Kills: a file read whole however large; minutes spent on a token of a million bytes."""
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(MAX_JSON + 1)  # a hole, which takes no space
    with pytest.raises(ValueError, match="larger than"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="one byte-level BPE"):
        load_alone(tmp_path, with_change(ab, "model.vocab." + "a" * 10**6, 300))
