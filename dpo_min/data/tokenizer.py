"""Text ↔ token ids, by `tiktoken`.

Every tokenizer here is a byte-level BPE: single bytes, merges of them, and control tokens such as `<|endoftext|>`,
which no text becomes. It comes from one of three places: nothing but the 256 bytes (`bytes`), tiktoken's own GPT-2
(`gpt2`), or the files beside a model. A model directory always receives the files, so it needs no flag and no network
afterwards, and the ecosystem's libraries load them to the same ids on every text but one kind: those libraries take a
control token's name inside a text for the token, unless told to split special tokens, and here it is ordinary text
always, because whoever writes a prompt must not be able to end it.
"""

import hashlib
import os
import re
from pathlib import Path

import tiktoken

from dpo_min.data.tokenizer_added import END_OF_TEXT, added_token
from dpo_min.data.tokenizer_files import as_files, one_file, read_directory, with_roles
from dpo_min.data.tokenizer_merges import find_merges, spell
from dpo_min.data.tokenizer_pieces import GPT2_PATTERN, SINGLE_CHARACTERS, compose, cut, has_long_run
from dpo_min.system.files import write_text


class Tokenizer:
    """A byte-level BPE: text that spells a control token is ordinary text.

    Attributes:
        end_of_text: the id that closes a completion.
        begin_of_text: the id that stands once before a prompt, or None; `encode` does not put it there.
        control: text → id of every control token; `encode` never gives such an id.
        vocab_size: one more than the highest id.
        chat_template: the text of the template that came with the files, or None.
    """

    def __init__(
        self, ranks, end_of_text, *, pattern=None, nfc=False, control=None, words=None, whole=None, unused=None,
        begin_of_text=None, chat_template=None, files=None,
    ):  # fmt: skip
        """As follows.

        Args:
            ranks: token bytes → id of what tiktoken merges, the lowest id first.
            pattern: by which text is cut into pieces, within which it merges; by default GPT-2's.
            nfc: whether text is brought into Unicode's form NFC before.
            words: text → (id, whether it is looked for after NFC) of what becomes one id before all else; an id of
                None is that of text in which no other word is looked for.
            whole, unused: token bytes → id of tokens that only a whole piece becomes, and of those no text becomes.
            files: name → text of the files that say all this; by default they are made when it is saved.
        """
        self.ranks, self.end_of_text, self.begin_of_text = ranks, end_of_text, begin_of_text
        self.control, self.words, self.whole = control or {END_OF_TEXT: end_of_text}, words or {}, whole or {}
        merged = self.whole or any(len(token) > 1 for token in ranks)
        self.pattern = (pattern or GPT2_PATTERN) if merged else SINGLE_CHARACTERS
        self.nfc, self.chat_template, self.files = nfc, chat_template, files
        spelt = {text.encode(): i for text, (i, _) in self.words.items() if i is not None}
        self.bytes_of = {i: token for tokens in (ranks, self.whole, unused or {}, spelt) for token, i in tokens.items()}
        self.vocab_size = max(*self.bytes_of, *self.control.values()) + 1
        self.lacking = bytes(b for b in range(256) if bytes([b]) not in ranks)  # which become nothing, as everywhere
        self.word_finders = [word_finder(self.words, late, compose if late and nfc else str) for late in (False, True)]
        self.encoding = tiktoken.Encoding("dpo_min", pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={})

    @property
    def ranks_are_bytes(self):
        """Whether nothing is merged: a text then has as many ids as bytes."""
        return len(self.ranks) == 256 and not (self.words or self.whole or self.lacking or self.nfc)

    def encode(self, text):
        """Ids of the text's own bytes; no control token is ever among them."""
        if not self.words:
            return self.encode_part(text, self.nfc)
        ids, (as_written, composed) = [], self.word_finders
        for part, word in set_apart(text, *as_written):
            for inner, inner_word in set_apart(compose(part) if self.nfc else part, *composed):
                ids += self.encode_part(inner) + inner_word
            ids += word
        return ids

    def encode_part(self, text, nfc=False):
        """`encode` for text in which there are no words."""
        text = compose(text) if nfc else text
        odd = self.whole or (self.lacking and len(data := text.encode()) > len(data.translate(None, self.lacking)))
        if odd or (has_long_run(text) and self.pattern != SINGLE_CHARACTERS):
            return [i for piece in cut(text, self.pattern) for i in self.encode_piece(piece.encode())]
        return self.encoding.encode_ordinary(text)

    def encode_piece(self, piece):
        """The ids of the bytes of one piece."""
        if piece in self.whole:
            return [self.whole[piece]]
        piece = piece.translate(None, self.lacking)
        return self.encoding._encode_single_piece(piece) if piece else []

    def fingerprint(self):
        """SHA-256 of what decides the ids: two tokenizers have the same one if they agree on every text."""
        content = sorted(self.ranks.items()), self.end_of_text, self.pattern
        more = [self.nfc, self.begin_of_text, *(sorted(x.items()) for x in (self.control, self.words, self.whole))]
        if more != [False, None, [(END_OF_TEXT, self.end_of_text)], [], []]:
            content = *content, more
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def decode_bytes(self, ids):
        """The bytes of the ids that stand for text: a character may still be incomplete at either end.

        Control tokens do not, nor do the ids of an embedding that was padded beyond the vocabulary.
        """
        return b"".join(self.bytes_of.get(i, b"") for i in ids)

    def decode(self, ids):
        """The text of the ids without control tokens; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, directory):
        """Write the files that it came from, or that say the same, but for `end_of_text` and `chat_template`."""
        names = {i: text for text, i in self.control.items()}
        files = with_roles(self.files or self.make_files(), names[self.end_of_text], self.chat_template)
        for name, text in files.items():
            write_text(Path(directory) / name, text)

    def make_files(self):
        """Name → text of the files of a tokenizer that has none."""
        vocab = {spell(token): i for token, i in self.ranks.items()} | self.control
        merges = [tuple(map(spell, pair)) for pair in find_merges(self.ranks)]
        return as_files(one_file(vocab, merges, added=[added_token(text, i) for text, i in self.control.items()]))


def word_finder(words, late, form):
    """(pattern, text → id) of the `words` that are looked for early, or late; of two at a place the longer counts."""
    ids = {form(text): i for text, (i, after_nfc) in words.items() if after_nfc is late}
    return re.compile("|".join(map(re.escape, sorted(ids, key=len, reverse=True))) or "(?!)"), ids


def set_apart(text, pattern, ids):
    """Yield (text before a word, ids of the word), at last with no ids; a word whose id is None is none."""
    start = 0
    for match in pattern.finditer(text):
        if ids[match[0]] is not None:
            yield text[start : match.start()], [ids[match[0]]]
            start = match.end()
    yield text[start:], []


def load_tokenizer(name):
    """The tokenizer called `bytes` or `gpt2`, or the one whose files lie in the directory `name`.

    Raises:
        ValueError: no such name or directory, or files that are not a byte-level BPE of a kind that is understood.
    """
    if name == "bytes":
        return Tokenizer({bytes([b]): b for b in range(256)}, end_of_text=256)
    if name == "gpt2":
        return load_gpt2()
    if not os.path.isdir(name):
        raise ValueError(f"tokenizer {str(name)!r}: not bytes, gpt2 or a directory with vocab.json and merges.txt")
    try:
        return Tokenizer(**read_directory(Path(name)))
    except KeyError as error:
        raise ValueError(f"{name}: {error} is missing, or is not spelled in GPT-2's byte alphabet") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except (AttributeError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{name}: a file of the tokenizer cannot be read: {error}") from error


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
