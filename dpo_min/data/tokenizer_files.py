"""The files in which tokenizers are published → what decides ids, each of it understood or refused by name.

A directory holds tokenizer.json, or GPT-2's vocab.json and merges.txt, from which the same content is built here as the
ecosystem builds. tokenizer_added.py reads what lies beside them.
"""

import json

from dpo_min.data.tokenizer_added import (
    ADDED,
    CONFIG,
    END_OF_TEXT,
    NAMED,
    ONE_FILE,
    Files,
    add_before,
    begin_of_text,
    collect_added,
    control_names,
    divide_vocabulary,
    named_token,
)
from dpo_min.data.tokenizer_pieces import ENDINGS, pattern_of
from dpo_min.model.model_directory import mistaken_for
from dpo_min.system.files import read_json, read_text

VERSION = "#version: 0.2"  # the first line of merges.txt
TWO_FILES = ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")
TEMPLATE = "chat_template.jinja"
BESIDE = CONFIG, NAMED, ADDED, TEMPLATE

# What decides ids in a tokenizer.json, and what of it is understood; None stands for a key that is not there.
NFC = [{"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]}]
UNDERSTOOD = {
    "normalizer": [None, {"type": "Sequence", "normalizers": []}, *NFC],
    "decoder.type": ["ByteLevel"],
    "model.type": ["BPE", None],
    "model.dropout": [None],
    "model.continuing_subword_prefix": [None, ""],
    "model.end_of_word_suffix": [None, ""],
    "model.byte_fallback": [False, None],
    "model.ignore_merges": [False, True, None],
}
KEYS = {*"version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder model".split()}
KEYS |= {"model." + key for key in "vocab merges unk_token fuse_unk".split()} | UNDERSTOOD.keys()
REFUSED = "add_prefix_space", "add_eos_token", "do_lower_case"  # in tokenizer_config.json: they change every text

# What stands before merging where only vocab.json and merges.txt are there, by the class that is to read them.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
QWEN2 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLIT = {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": False}
CLASSES = {
    "GPT2Tokenizer": (None, BYTE_LEVEL),
    "Qwen2Tokenizer": (NFC[0], {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL | {"use_regex": False}]}),
}
MODELS = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}  # where no class is named


def read_directory(directory):
    """The arguments of the `Tokenizer` whose files lie in a directory.

    Raises:
        ValueError, and whatever else broken files lead to: not a byte-level BPE of a kind that is understood.
    """
    files = gather(directory)
    for key in REFUSED:
        if files.config.get(key):
            raise ValueError(f"{CONFIG} has {key}, which would change every text; it is not supported")
    whole = ONE_FILE in files.texts
    content = read_one_file(files) if whole else make_one_file(files, directory)
    added = collect_added(content, files)
    found = divide_vocabulary(content["model"], added, control_names(files), strict=not whole)
    eos, bos = named_token(files, "eos_token"), named_token(files, "bos_token")
    if eos not in found["control"]:
        raise ValueError(f"{eos!r}, which closes a text, is no control token; eos_token in {CONFIG} may name another")
    if not whole:
        content["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])
        if files.config.get("add_bos_token"):
            content["post_processor"] = add_before(bos, found["control"][bos])
    begin = begin_of_text(content.get("post_processor"), found["control"])
    if files.config.get("add_bos_token") not in (None, begin is not None):
        raise ValueError(f"add_bos_token in {CONFIG} and the post_processor in {ONE_FILE} contradict each other")
    made = {CONFIG: who_reads("PreTrainedTokenizerFast", eos)} if whole else as_files(content, eos)
    return found | {
        "end_of_text": found["control"][eos],
        "begin_of_text": begin,
        "pattern": pattern_of(content["pre_tokenizer"] or {}),
        "nfc": content.get("normalizer") in NFC,
        "chat_template": chat_template(files.texts, files.config),
        "files": made | {name: text for name, text in files.texts.items() if whole or name in BESIDE},
    }


def gather(directory):
    """The `Files` of a directory."""
    names = (ONE_FILE, *TWO_FILES[0], *TWO_FILES[1], *BESIDE)
    texts = {name: read_text(directory / name).removeprefix("\ufeff") for name in names if (directory / name).exists()}
    pair = next((pair for pair in TWO_FILES if texts.keys() >= {*pair}), None)
    if ONE_FILE not in texts and not pair:
        none = f"no vocab.json with merges.txt, nor encoder.json with vocab.bpe, nor {ONE_FILE}"
        raise ValueError(mistaken_for(directory) or f"{none}; name one with --tokenizer")
    return Files(texts, pair, *(parse(name, texts.get(name, "{}")) for name in (CONFIG, NAMED, ADDED)))


def parse(name, text):
    """The JSON in a file of that name."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error


def chat_template(texts, config):
    """The chat template in a file of its own, or in tokenizer_config.json, where there may be several; or None."""
    within = config.get("chat_template")
    if isinstance(within, list):
        within = next((entry["template"] for entry in within if entry["name"] == "default"), None)
    return texts.get(TEMPLATE, within) or None


# One file, or two of which it is made


def read_one_file(files):
    """The content of tokenizer.json, with merges as tuples.

    Raises:
        ValueError: something in it decides ids and is not understood, or the two other files contradict it.
    """
    content = parse(ONE_FILE, files.texts[ONE_FILE])
    for place, accepted in UNDERSTOOD.items():
        value = content
        for key in place.split("."):
            value = None if value is None else value.get(key)
        if value not in accepted:
            expected = " or ".join(json.dumps(v) for v in accepted if v is not None) or "null"
            raise ValueError(f"{ONE_FILE}: {place} is {json.dumps(value)[:200]}, not {expected}")
    model = content["model"]
    for key in [*content, *("model." + key for key in model)]:
        if key not in KEYS:
            raise ValueError(f"{ONE_FILE}: {key[:200]!r} is not understood")
    model["merges"] = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    if files.pair:
        vocab, merges = parse_two_files(files)
        ids = model["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
        if merges != model["merges"] or any(ids.get(token) != i for token, i in vocab.items()):
            raise ValueError(f"{' and '.join(files.pair)} say another vocabulary than {ONE_FILE} beside them")
    return content


def parse_two_files(files):
    """(vocabulary, merges as tuples) of vocab.json and merges.txt."""
    vocab, merges = (files.texts[name] for name in files.pair)
    lines = merges.replace("\r\n", "\n").split("\n")
    lines = lines[lines[0].startswith("#version") :]
    return parse(files.pair[0], vocab), [tuple(line.split(" ")) for line in lines if line]


def make_one_file(files, directory):
    """What tokenizer.json would be beside vocab.json and merges.txt, before tokens are added."""
    name, model = files.config.get("tokenizer_class"), directory / "config.json"
    if not name:
        kind = read_json(model).get("model_type") if model.exists() else None
        name = MODELS.get(kind, kind or "GPT2Tokenizer")
    if name.removesuffix("Fast") not in CLASSES:
        raise ValueError(
            f"{' and '.join(files.pair)} do not say how text is cut for {name!r:.200}, which is known only of "
            f"{' and '.join(CLASSES)}; {ONE_FILE} would say it"
        )
    return one_file(*parse_two_files(files), *CLASSES[name.removesuffix("Fast")])


def one_file(vocab, merges, normalizer=None, pre_tokenizer=BYTE_LEVEL, added=()):
    """What tokenizer.json says: how text becomes pieces, pieces become ids, and ids become text again."""
    bpe = {"type": "BPE", "byte_fallback": False, "ignore_merges": False, "fuse_unk": False}
    bpe |= dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding")),
        "added_tokens": [*added],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": bpe | {"vocab": vocab, "merges": merges},
    }


def as_files(content, eos=END_OF_TEXT):
    """Name → text of the files that say `content`: GPT-2's two, the ecosystem's one, and who reads them."""
    model, merges = content["model"], [" ".join(pair) for pair in content["model"]["merges"]]
    gpt2 = content["pre_tokenizer"] == BYTE_LEVEL
    return {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join([VERSION, *merges, ""]),
        ONE_FILE: json.dumps(content | {"model": model | {"merges": merges}}, ensure_ascii=False),
        CONFIG: who_reads("GPT2Tokenizer" if gpt2 else "Qwen2Tokenizer", eos),
    }


def who_reads(name, eos):
    """The text of tokenizer_config.json: a class of the ecosystem, and what closes a text."""
    config = {"tokenizer_class": name, "add_prefix_space": False}
    config |= {"clean_up_tokenization_spaces": False}  # decoding gives back the text as it was
    return json.dumps(config | dict.fromkeys(("bos_token", "eos_token", "unk_token"), eos), indent=2)


def with_roles(texts, eos, template):
    """The files, changed where `eos`, which closes a text, or the chat template differs from what they say."""
    config, named = (parse(name, texts.get(name, "{}")) for name in (CONFIG, NAMED))
    changed = {} if named_token(Files(texts, None, config, named, {}), "eos_token") == eos else {"eos_token": eos}
    if template != chat_template(texts, config):
        texts, changed = texts | {TEMPLATE: template or ""}, changed | {"chat_template": template}
    return texts | {CONFIG: json.dumps(config | changed, indent=2, ensure_ascii=False)} if changed else texts
