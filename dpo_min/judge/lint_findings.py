"""What can be wrong with a row by itself, how it is found in its texts, and the report that counts it.

Rows are other people's: every pattern here takes time in proportion to the text, whatever it is.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from dpo_min.judge.lint_lengths import Lengths

SHOWN = 3  # places named for each finding
REPEATED = 10  # characters from which on a prompt inside a completion is no coincidence
KINDS = 100  # of reasons, forms and columns that are counted

# code → (whether it is an error, what it is). The order is the report's.
FINDINGS = {
    "malformed": (True, "malformed rows, which training refuses"),
    "empty": (True, "empty or whitespace-only completions"),
    "identical": (True, "chosen and rejected are the same"),
    "contradictory": (True, "contradictory pairs: A over B here, B over A there"),
    "leaked": (True, "pairs that are in both files"),
    "leaked-prompt": (False, "rows whose prompt is in both files"),
    "duplicate": (False, "duplicates of an earlier row"),
    "near-identical": (False, "sides that differ only in case or whitespace"),
    "prompt-repeated": (False, "completions that repeat the prompt"),
    "template": (False, "remnants of a chat template"),
    "odd-characters": (False, "control, invisible or replacement characters, or broken encoding"),
    "empty-prompt": (False, "empty or whitespace-only prompts"),
    "tie": (False, "ties, which training leaves out, or trains on both ways with --ties half"),
    "equal": (False, "pairs of which both sides are equal in the tokens that these limits leave; training drops them"),
    "dropped": (False, "rows of which no completion token is left at these limits"),
    "truncated": (False, "rows truncated at these limits"),
}

# Marks of the common chat templates, and a next speaker where an answer should be over.
TEMPLATE = re.compile(
    r"<\|[A-Za-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk)>|\[(?:PAD|UNK|CLS|SEP|MASK)\]"
    r"|<(?:start|end)_of_turn>|#{2,3} ?(?:Instruction|Response|Human|Assistant|Input)\b:?"
    r"|\{%[^%{}]{0,80}%\}|\{\{[^{}]{0,80}\}\}"
)
# No line end may be followed by any number of line ends: in a run of them each would look through all the others.
SPEAKER = re.compile(r"(?:\A|\n)[ \t]*(?:Human|Assistant|User|System|USER|ASSISTANT|HUMAN): ?", re.ASCII)
HEADER = re.compile(r"(?:\A|\n\n)(?:Human|Assistant|System):")
ODD = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\uffff\ue000-\uf8ff]"
    r"|[\xc2\xc3][\x80-\xbf]|\xe2\u20ac[\u2018-\u203a\u0153\u2122\xa2\xa6\x9d]"
)
# What is said of a bad row, by how its reason begins.
EMPTY, IDENTICAL = "empty completion", "chosen equals rejected"


@dataclass
class Report:
    """What was found: rows read, code → count and first places, what rows look like, and how long the sides are."""

    rows: int = 0
    usable: int = 0
    counts: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)  # of malformed rows
    forms: Counter = field(default_factory=Counter)  # of the others
    unread: Counter = field(default_factory=Counter)  # column → rows in which nothing reads it
    places: dict = field(default_factory=dict)  # code → the first "file:line: what"
    lengths: Lengths = field(default_factory=Lengths)

    def add(self, code, place, what=""):
        """Count one finding."""
        self.counts[code] += 1
        places = self.places.setdefault(code, [])
        if len(places) < SHOWN:
            places.append(f"{place}: {what}" if what else place)

    def count(self, counter, name):
        """Count one of the names that rows bring along, of which there may be any number."""
        if name in counter or len(counter) < KINDS:
            counter[name] += 1

    @property
    def errors(self):
        """The number of findings that are errors."""
        return sum(number for code, number in self.counts.items() if FINDINGS[code][0])


def add_bad(report, place, reason):
    """Count a row that training refuses, under what is wrong with it."""
    kind = reason.split(":")[0].split(" '")[0].split(", found")[0].split(";")[0][:80]
    code = {EMPTY: "empty", IDENTICAL: "identical"}.get(kind, "malformed")
    if code == "malformed":
        report.count(report.reasons, kind)
    report.add(code, place, reason[:200])


def check_row(report, place, preference):
    """Count the form of one row, and findings in it by itself."""
    report.usable += 1
    report.count(report.forms, preference.form)
    if preference.tie:
        report.add("tie", place)
    for name in preference.unread:
        report.count(report.unread, name[:60])
    prompt, chosen, rejected = (words(side) for side in (preference.prompt, preference.chosen, preference.rejected))
    asked = [m.content for m in preference.prompt if m.role == "user"] if isinstance(preference.prompt, tuple) else None
    core = HEADER.split(prompt.removesuffix("\n\nAssistant:"))[-1] if asked is None else "".join(asked[-1:])
    if not core.strip() and not (asked is None and prompt.strip()):
        report.add("empty-prompt", place)
    check_texts(report, place, core.strip(), prompt, {"chosen": chosen, "rejected": rejected})


def words(side):
    """All that is said in a side, as one text."""
    return side if isinstance(side, str) else "\n".join(message.content for message in side)


def check_texts(report, place, core, prompt, sides):
    """Findings in the texts of one row; `core` is what was asked last."""
    blank = [side for side, text in sides.items() if not text.strip()]
    if blank:
        report.add("empty", place, ", ".join(blank))
    if not blank and len({"".join(text.split()).casefold() for text in sides.values()}) == 1:
        report.add("near-identical", place)
    repeating = [side for side, text in sides.items() if len(core) >= REPEATED and core in text]
    if repeating:
        report.add("prompt-repeated", place, ", ".join(repeating))
    for side, text in {"prompt": prompt, **sides}.items():
        remnant = TEMPLATE.search(text) or (side != "prompt" and SPEAKER.search(text))
        if remnant:
            report.add("template", place, f"{remnant[0].strip()!r} in {side}")
            break
    for side, text in {"prompt": prompt, **sides}.items():
        odd = None if text.isascii() and text.isprintable() else ODD.search(text)
        if odd:
            report.add("odd-characters", place, f"{odd[0].encode('ascii', 'backslashreplace').decode()} in {side}")
            break
