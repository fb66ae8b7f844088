"""The tokens that no merging makes: control tokens, added words, what stands before a text, and who says so.

tokenizer.json lists them; tokenizer_config.json, and the older special_tokens_map.json and added_tokens.json, say which
of them are control tokens, and which one closes a text.
"""

import json
from typing import NamedTuple

from dpo_min.data.tokenizer_merges import CHAR_TO_BYTE, divide

END_OF_TEXT = "<|endoftext|>"
ONE_FILE = "tokenizer.json"
CONFIG, NAMED, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


class Files(NamedTuple):
    """What lies in a tokenizer's directory."""

    texts: dict  # name → text of every file that is there
    pair: tuple | None  # the names of the two files
    config: dict  # what tokenizer_config.json says, and the two older files; {} where they are not there
    named: dict
    legacy: dict


# Tokens that no merging makes


def text_of(value):
    """The text of a token that is given a role, alone or as an object."""
    return value["content"] if isinstance(value, dict) else value


def named_token(files, role):
    """The text of the token in a role such as "eos_token"."""
    return text_of(files.config.get(role) or files.named.get(role) or END_OF_TEXT)


def control_names(files):
    """The texts of all tokens that have a role, or are called special, outside tokenizer.json."""
    names = [END_OF_TEXT]
    for key, value in [*files.config.items(), *files.named.items()]:
        if key in ("additional_special_tokens", "extra_special_tokens"):
            names += [text_of(token) for token in (value.values() if isinstance(value, dict) else value or [])]
        elif key.endswith("_token"):
            names.append(text_of(value))
    return {name for name in names if isinstance(name, str)}


def added_token(text, i, special=True):
    """What tokenizer.json says of a token beside the vocabulary."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {"id": i, "content": text, **flags, "normalized": not special, "special": special}


def collect_added(content, files):
    """Text → what is said of each token that merging is not to make, be it control token or word.

    Raises:
        ValueError: two files say different things of one.
    """
    names, vocab, added = control_names(files), content["model"]["vocab"], {}
    decoder = [token | {"id": int(i)} for i, token in (files.config.get("added_tokens_decoder") or {}).items()]
    known = {token["content"]: token.get("special", False) for token in decoder}
    legacy = [added_token(text, i, known.get(text, text in names)) for text, i in files.legacy.items()]
    for source, tokens in ((ONE_FILE, content["added_tokens"]), (CONFIG, decoder), (ADDED, legacy)):
        for token in tokens:
            text, first = token["content"], added.setdefault(token["content"], token)
            for key, value in (("id", vocab.get(text, first["id"])), ("special", first.get("special", False))):
                other = token.get(key, False)
                if other != value:
                    raise ValueError(
                        f"{source} says of {text!r:.200} {key} {other!r:.50}, elsewhere it is {value!r:.50}"
                    )
    return added | {text: added_token(text, vocab[text]) for text in names & vocab.keys() - added.keys()}


def divide_vocabulary(model, added, names, strict):
    """Who becomes which id: the arguments of `Tokenizer` that are dictionaries. `strict`: no oddity is let pass.

    Raises:
        ValueError: it is not one byte-level BPE.
    """
    vocab, by_piece, broken = model["vocab"], model.get("ignore_merges"), "do not make one byte-level BPE: "
    merged = {first + second for first, second in model["merges"]} | CHAR_TO_BYTE.keys()
    control, words = {}, {}
    for text, token in added.items():
        if text in names or token.get("special"):
            control |= {text: token["id"]} if text not in merged else {}
        elif not text or any(token.get(key) for key in ("single_word", "lstrip", "rstrip")):
            raise ValueError(f"the added word {text!r:.200} is to be found in a way that is not supported")
        else:
            words[text] = token["id"], token.get("normalized", True)
    core = {text: i for text, i in vocab.items() if text in merged or text not in added}
    ids = [*core.values(), *control.values(), *(i for text, (i, _) in words.items() if text not in core)]
    if len(ids) != len({*ids}) or not all(type(i) is int and 0 <= i < 2**32 for i in ids):
        raise ValueError(broken + "ids must be whole numbers from 0 to 2^32, each of one token")
    made, left = divide(core, model["merges"])
    lacking = sorted(CHAR_TO_BYTE[char] for char in CHAR_TO_BYTE.keys() - core.keys())
    if strict and (left or lacking):
        raise ValueError(f"{broken}no merge makes {[*left][:3]!s:.200}, no token is one of the bytes {lacking[:3]}")
    if left and len(made) + len(lacking) == 256 and not by_piece:
        raise ValueError(broken + "the merges are missing")
    if lacking and (model.get("unk_token") or (left and by_piece)):
        raise ValueError(f"no token is one of the bytes {lacking[:3]}, and what is then to be done is not supported")
    if words:  # which are not looked for inside the text of a control token
        words |= {text: (None, added[text].get("normalized", False)) for text in control}

    def spelt(tokens):
        return {bytes(CHAR_TO_BYTE[char] for char in token): core[token] for token in tokens}

    whole = [token for token, parts in left.items() if parts == 2] if by_piece else []
    return {
        "ranks": spelt([*made, *(left.keys() - whole if by_piece else ())]),
        "whole": spelt(whole),
        "unused": spelt(() if by_piece else left),
        "control": control,
        "words": words,
    }


# Before a text


def add_before(text, i):
    """The post_processor that puts a control token before every text."""
    first, a, b = ({"SpecialToken": {"id": text, "type_id": 0}}, *({"Sequence": {"id": x, "type_id": 0}} for x in "AB"))
    tokens = {text: {"id": text, "ids": [i], "tokens": [text]}}
    return {"type": "TemplateProcessing", "single": [first, a], "pair": [first, a, b], "special_tokens": tokens}


def begin_of_text(post_processor, control):
    """The id that a post_processor puts before a text, or None.

    Raises:
        ValueError: it adds anything else.
    """
    steps, begin = [post_processor] if post_processor else [], []
    for step in post_processor["processors"] if steps and post_processor["type"] == "Sequence" else steps:
        if step["type"] == "ByteLevel":
            continue
        single = step["single"] if step["type"] == "TemplateProcessing" else []
        texts = [item["SpecialToken"]["id"] for item in single[:-1] if "SpecialToken" in item]
        begin += [i for text in texts for i in step["special_tokens"][text]["ids"]]
        if not single or len(texts) < len(single) - 1 or "Sequence" not in single[-1] or len(begin) > 1:
            raise ValueError(f"{ONE_FILE}: its post_processor adds what is not supported: {json.dumps(step)[:300]}")
    if not {*begin} <= {*control.values()}:
        raise ValueError(f"{ONE_FILE}: its post_processor adds {begin[0]!r:.50}, which is no control token")
    return begin[0] if begin else None
