r"""How text is cut into pieces before anything is merged: by the pattern that a tokenizer was published with.

The cutting is tiktoken's, by its pattern engine, with two exceptions, for which `cut` does the same with Python's: the
engine gives up on a million blanks in a row, and it does not say where its pieces end. The sets behind `\p{L}` and
`\s` are asked of tiktoken, so that both cut by one version of Unicode.
"""

import functools
import re
import unicodedata
from itertools import pairwise, product

import tiktoken

# GPT-2's pattern as tiktoken writes it, and the same after every number, or every digit, has been set apart: there
# the blanks before it are a piece of their own.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
NUMBERS_APART = GPT2_PATTERN.replace(r" ?\p{N}++", r"\p{N}++").replace(r"\s++$", r"\s++(?=\p{N}|$)")
DIGITS_APART = NUMBERS_APART.replace(r"|\p{N}++", r"|\p{N}")
SINGLE_CHARACTERS = r"(?s:.)"  # enough where nothing is merged

# The published patterns differ in what they choose for each part; the ecosystem's engine reads all these as ours does.
BEFORE, ENDINGS = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BY_CASE = rf"{BEFORE}{UPPER}*{LOWER}+%s|{BEFORE}{UPPER}+{LOWER}*%s|"
PARTS = (
    ("", f"{ENDINGS}|", "'(?i:[sdmt]|ll|ve|re)|", "'s|'t|'re|'ve|'m|'ll|'d|"),
    (rf"{BEFORE}\p{{L}}+|", r" ?\p{L}+|", BY_CASE % ("", ""), BY_CASE % (f"{ENDINGS}?", f"{ENDINGS}?")),
    (r"\p{N}|", r"\p{N}{1,3}|", r"\p{N}+|", r" ?\p{N}+|"),
    (r" ?[^\s\p{L}\p{N}]+|", r" ?[^\s\p{L}\p{N}]+[\r\n]*|", r" ?[^\s\p{L}\p{N}]+[\r\n/]*|"),
    ("", r"\s*[\r\n]+|", r"\s*[\r\n]|"),
    (r"\s+(?!\S)|\s+", r"\s+(?!\S)|\s"),
)
PUBLISHED = {"".join(parts) for parts in product(*PARTS)}
# Qwen's newest takes marks for letters.
PUBLISHED |= {p.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"\s\p{L}", r"\s\p{L}\p{M}") for p in PUBLISHED}

LONG = 2**16  # blanks in a row; tiktoken's engine gives up between half a million and a million
MARKS = 2**5  # marks in a row, from where they are put in order before Unicode's composition does it by pairs


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
DIGITS = {(): GPT2_PATTERN, ("Digits", True): DIGITS_APART, ("Digits", False): NUMBERS_APART}


def pattern_of(pre_tokenizer):
    """The pattern for tiktoken that means what the `pre_tokenizer` of a tokenizer.json does.

    Raises:
        ValueError: it is none of those that are understood.
    """
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    *before, last = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    by_itself = last.pop("use_regex", True)  # whether the last step cuts too, by GPT-2's pattern
    step = before[0] if before else {}
    if last == BYTE_LEVEL and len(before) <= 1:
        if by_itself and (*step,) in ((), ("type", "individual_digits")) and (*step.values(),) in DIGITS:
            return DIGITS[(*step.values(),)]
        pattern = step["pattern"].get("Regex") if step.get("type") == "Split" else None
        wanted = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        same = wanted | {"behavior": "Removed", "invert": True}  # what the pattern does not match, which is nothing
        if not by_itself and pattern in PUBLISHED and step in (wanted, same):
            return pattern
    raise ValueError(f"its pre_tokenizer is none of those that are understood: {str(pre_tokenizer)[:300]}")


def has_long_run(text):
    """Whether the text has more blanks in a row than tiktoken's pattern engine is trusted with."""
    return len(text) >= LONG and any(match.end() - match.start() >= LONG for match in re.finditer(r"\s+", text))


def cut(text, pattern):
    """The pieces of a text: those that tiktoken cuts by the same pattern."""
    return [match[0] for match in python_pattern(pattern).finditer(text)]


@functools.cache
def python_pattern(pattern):
    """One of tiktoken's patterns for Python's engine, which knows no sets of characters by their Unicode names."""
    written, inside = "", False
    for part in re.findall(r"\\[ps]\{?\w*\}?|\\.|.", pattern, re.DOTALL):
        if part.startswith((r"\p", r"\s")):
            part = members(part) if inside else f"[{members(part)}]"
        elif part == r"\S":
            part = rf"[^{members(chr(92) + 's')}]"
        elif part in "[]":
            inside = part == "["
        written += part
    return re.compile(written)


@functools.cache
def members(name):
    r"""The characters that tiktoken's engine finds in a set such as `\p{L}`, as ranges for a set of Python's."""
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    single = {bytes([b]): b for b in range(256)}
    engine = tiktoken.Encoding("set", pat_str=name, mergeable_ranks=single, special_tokens={})
    found = [*map(ord, bytes(engine.encode_ordinary(everything)).decode())]
    starts = [c for before, c in pairwise([-2, *found]) if before != c - 1]
    ends = [c for c, after in pairwise([*found, -2]) if after != c + 1]
    return "".join(rf"\U{start:08x}-\U{end:08x}" for start, end in zip(starts, ends, strict=True))


def compose(text):
    """The text in Unicode's form NFC, in linear time: Python puts a long row of marks in order by exchanging pairs.

    A stable sort of the marks by class is what that form prescribes. Three marks of no class hold two that have one.
    """
    if text.isascii():
        return text
    for both in "\u0f73\u0f75\u0f81":
        text = text.replace(both, unicodedata.normalize("NFD", both))
    text = row_of_marks().sub(lambda row: "".join(sorted(row[0], key=unicodedata.combining)), text)
    return unicodedata.normalize("NFC", text)


@functools.cache
def row_of_marks():
    """The pattern of `MARKS` characters in a row that Unicode may put in another order."""
    marks = "".join(c for c in map(chr, range(0x300, 0x20000)) if unicodedata.combining(c))
    return re.compile(f"[{marks}]{{{MARKS},}}")
