"""Text ↔ token ids, by `tiktoken`.

Every tokenizer here is a byte-level BPE: 256 single bytes, merges of them, and one control token,
`<|endoftext|>`. It comes from one of three places: nothing but the 256 bytes (`bytes`), tiktoken's own
GPT-2 (`gpt2`), or the vocabulary files beside a model. A model directory always receives the files,
so it needs no flag and no network afterwards.

They are written twice over: as GPT-2's own vocab.json and merges.txt, and as tokenizer.json, the one file that the
ecosystem's tokenizer libraries load by the directory's name alone. The ids are the same on every text but one kind:
those libraries take `<|endoftext|>` inside a text for the control token, unless told to split special tokens, and
here it is ordinary text always, because whoever writes a prompt must not be able to end it.
"""

import hashlib
import json
import os
from itertools import pairwise
from pathlib import Path

import tiktoken

from dpo_min.system.files import read_text, write_atomically

END_OF_TEXT = "<|endoftext|>"
VERSION = "#version: 0.2"  # the first line of merges.txt
# How GPT-2 cuts text into pieces before merging; tiktoken's equivalent of the published pattern.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

MAX_WORK = 2**26  # steps of `find_merges`, at most the sum of the tokens' squared lengths; GPT-2's takes 3 million
SINGLE_CHARACTERS = r"(?s:.)"  # enough where nothing is merged; long pieces exhaust the pattern engine's stack
# What decides ids in a tokenizer.json, and the values that mean GPT-2's way; None stands for a key that is not there.
BYTE_LEVEL_BPE = {
    "normalizer": [None],
    "pre_tokenizer.type": ["ByteLevel"],
    "pre_tokenizer.add_prefix_space": [False],
    "pre_tokenizer.use_regex": [True, None],
    "post_processor.type": ["ByteLevel", None],
    "decoder.type": ["ByteLevel"],
    "model.type": ["BPE", None],
    "model.dropout": [None],
    "model.continuing_subword_prefix": [None, ""],
    "model.end_of_word_suffix": [None, ""],
    "model.byte_fallback": [False, None],
    "model.ignore_merges": [False, None],
}


def printable_bytes():
    """GPT-2's one printable character for each byte, in which vocab.json and merges.txt are written."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}


BYTE_TO_CHAR = printable_bytes()
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}


class Tokenizer:
    """A byte-level BPE with one control token; text that spells the control token is ordinary text."""

    def __init__(self, ranks, end_of_text):
        """ranks: token bytes → id, merges in order of id; end_of_text: the id of the control token."""
        self.ranks = ranks
        self.end_of_text = end_of_text
        self.text_ids = set(ranks.values())
        self.vocab_size = max(end_of_text, *ranks.values()) + 1
        self.pattern = GPT2_PATTERN if len(ranks) > 256 else SINGLE_CHARACTERS
        self.encoding = tiktoken.Encoding(
            "dpo_min", pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: end_of_text}
        )

    @property
    def ranks_are_bytes(self):
        """Whether nothing is merged: a text then has as many ids as bytes."""
        return len(self.ranks) == 256

    def encode(self, text):
        """Ids of the text's own bytes; the control token never appears among them."""
        return self.encoding.encode_ordinary(text)

    def encode_batch(self, texts):
        """`encode` for each text; tiktoken's threads cost more than they save on texts as short as these."""
        return [self.encode(text) for text in texts]

    def fingerprint(self):
        """SHA-256 of what decides the ids: two tokenizers have the same one if they agree on every text."""
        content = sorted(self.ranks.items()), self.end_of_text, self.pattern
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def decode_bytes(self, ids):
        """The bytes of the ids that stand for text: a character may still be incomplete at either end.

        The control token does not, nor do the ids of an embedding that was padded beyond the vocabulary.
        """
        return self.encoding.decode_bytes([i for i in ids if i in self.text_ids])

    def decode(self, ids):
        """The text of the ids without the control token; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, directory):
        """Write the vocabulary as vocab.json with merges.txt and as tokenizer.json, and who reads it."""

        def spell(token):
            return "".join(BYTE_TO_CHAR[b] for b in token)

        vocab = {spell(token): i for token, i in self.ranks.items()} | {END_OF_TEXT: self.end_of_text}
        merges = [" ".join(map(spell, pair)) for pair in find_merges(self.ranks)]
        files = {
            "vocab.json": json.dumps(vocab, ensure_ascii=False),
            "merges.txt": "\n".join([VERSION, *merges, ""]),
            "tokenizer.json": json.dumps(self_contained(vocab, merges), ensure_ascii=False),
            "tokenizer_config.json": json.dumps(
                {
                    "tokenizer_class": "GPT2Tokenizer",
                    "add_prefix_space": False,
                    "clean_up_tokenization_spaces": False,  # decoding gives back the text as it was
                    **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
                },
                indent=2,
            ),
        }
        for name, text in files.items():
            with write_atomically(Path(directory) / name) as file:
                file.write(text.encode())


def self_contained(vocab, merges):
    """What tokenizer.json says: how text becomes pieces, pieces become ids, and ids become text again."""
    control = {"id": vocab[END_OF_TEXT], "content": END_OF_TEXT, "special": True}
    control |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bpe = {"type": "BPE", "byte_fallback": False, "ignore_merges": False, "fuse_unk": False}
    bpe |= dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer")),
        "added_tokens": [control],
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": bpe | {"vocab": vocab, "merges": merges},
    }


def find_merges(ranks):
    """The two parts that each longer token was merged from, in order of rank.

    tiktoken keeps only ranks. The parts are what is left of the token's bytes after every merge of a
    lower rank has been applied.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            lowest = min(pairs)
            if lowest == rank:
                raise ValueError(f"tokenizer: token {rank} ({token!r}) is not a merge of two earlier tokens")
            i = pairs.index(lowest)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append(tuple(parts))
    return merges


def load_tokenizer(name):
    """The tokenizer called `bytes` or `gpt2`, or the one whose files lie in the directory `name`.

    Raises:
        ValueError: no such name or directory, or files that are not a byte-level BPE.
    """
    if name == "bytes":
        return Tokenizer({bytes([b]): b for b in range(256)}, end_of_text=256)
    if name == "gpt2":
        return load_gpt2()
    if os.path.isdir(name):
        return load_directory(Path(name))
    raise ValueError(f"tokenizer {str(name)!r}: not bytes, gpt2 or a directory with vocab.json and merges.txt")


def load_gpt2():
    """Tiktoken's GPT-2, which tiktoken downloads at its first use unless its cache holds the files."""
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as error:  # tiktoken passes on whatever its download raised
        raise ValueError(
            f"tokenizer gpt2: tiktoken could not fetch its vocabulary ({type(error).__name__}). Offline, set "
            "TIKTOKEN_CACHE_DIR to a filled cache, or --tokenizer to a directory with encoder.json and vocab.bpe"
        ) from error
    return Tokenizer(encoding._mergeable_ranks, encoding.eot_token)


def load_directory(directory):
    """A tokenizer from vocab.json + merges.txt, GPT-2's first names for them, or tokenizer.json."""
    for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"), ("tokenizer.json",)):
        if all((directory / name).exists() for name in names):
            break
    else:
        raise ValueError(
            f"{directory}: no vocab.json with merges.txt, nor encoder.json with vocab.bpe, nor tokenizer.json; "
            "name one with --tokenizer"
        )
    try:
        texts = [read_text(directory / name) for name in names]
        vocab, merges = parse_two_files(*texts) if len(names) == 2 else parse_self_contained(*texts)
        end_of_text = vocab.pop(END_OF_TEXT)
        ranks = {bytes(CHAR_TO_BYTE[c] for c in token): i for token, i in vocab.items()}
        pairs = [tuple(bytes(CHAR_TO_BYTE[c] for c in part) for part in merge) for merge in merges]
        ids = {end_of_text, *ranks.values()}
        singles = sum(len(token) == 1 for token in ranks)
        # tiktoken keeps only ids, so the files' merges must be the ones that the ids imply, in the same order.
        sound = singles == 256 and len(ids) == len(ranks) + 1 and all(type(i) is int and 0 <= i < 2**32 for i in ids)
        sound = sound and sum(len(token) ** 2 for token in ranks) <= MAX_WORK
        sound = sound and find_merges(ranks) == pairs
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{directory}: {' or '.join(names)} cannot be read: {error}") from error
    except KeyError as error:
        raise ValueError(f"{directory}: {error} is missing, or is not spelled in GPT-2's byte alphabet") from error
    if not sound:
        does = "do not" if len(names) == 2 else "does not"
        raise ValueError(f"{directory}: {' and '.join(names)} {does} make one byte-level BPE")
    return Tokenizer(ranks, end_of_text)


def parse_two_files(vocab, merges):
    """(vocabulary, merges as tuples) of vocab.json and merges.txt."""
    lines = merges.split("\n")
    return json.loads(vocab), [tuple(line.split(" ")) for line in lines[lines[0].startswith("#version") :] if line]


def parse_self_contained(text):
    """(vocabulary, merges as tuples) of a tokenizer.json; padding and truncation are its users' affair.

    Raises:
        ValueError: it is not a byte-level BPE in GPT-2's way, with `<|endoftext|>` as its one control token.
    """
    content = json.loads(text)
    for place, accepted in BYTE_LEVEL_BPE.items():
        value = content
        for key in place.split("."):
            value = None if value is None else value.get(key)
        if value not in accepted:
            expected = " or ".join(json.dumps(v) for v in accepted if v is not None) or "null"
            raise ValueError(f"tokenizer.json is not GPT-2's kind: {place} is {json.dumps(value)}, not {expected}")
    vocab, added = content["model"]["vocab"], {token["content"]: token["id"] for token in content["added_tokens"]}
    if [*added] != [END_OF_TEXT] or vocab.get(END_OF_TEXT, added[END_OF_TEXT]) != added[END_OF_TEXT]:
        raise ValueError(f"tokenizer.json has other added tokens than {END_OF_TEXT}: {json.dumps(added)[:200]}")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"]]
    return vocab | added, [tuple(merge) for merge in merges]
