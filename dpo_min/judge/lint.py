"""What is wrong with a file of preferences, before anything is trained on it.

    python -m dpo_min.judge.lint prefs.jsonl                              a report, and exit code 1 if there are errors
    python -m dpo_min.judge.lint prefs.jsonl --against held-out.jsonl     and what the two files share
    python -m dpo_min.judge.lint prefs.jsonl --json                       the same for machines

An error is what training refuses, or what makes a label or a held-out figure wrong; a warning is worth a look.
The files are read once, as a stream. What has to be compared between rows, 22 bytes a row, goes to temporary files,
by the first bits of its hash, and comes back one part at a time: memory does not grow with the data.
"""

import importlib
import math
import re
import sys
import tempfile
from collections import Counter
from dataclasses import MISSING, dataclass, field
from hashlib import blake2b
from pathlib import Path

import dpo_min.system.packages  # noqa: F401  (before all that needs one)

# isort: split
import numpy as np

from dpo_min.data.forms import BadRow
from dpo_min.data.lines import read_rows
from dpo_min.data.rows import parse_line
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import truncate
from dpo_min.system import streams
from dpo_min.system.flags import COUNT, LENGTH, flag, parse, sections
from dpo_min.system.program import run, stop
from dpo_min.system.progress import Progress

SHOWN = 3  # places named for each finding
PARTS = 64  # temporary files; one of them is in memory at a time
BUFFERED = 2**12  # records that wait for one of them
REPEATED = 10  # characters from which on a prompt inside a completion is no coincidence

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
    "dropped": (False, "rows of which no completion token is left at these limits"),
    "truncated": (False, "rows truncated at these limits"),
}

# Marks of the common chat templates, and a next speaker where an answer should be over.
TEMPLATE = re.compile(
    r"<\|[A-Za-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:bos|eos|pad|unk)>|\[(?:PAD|UNK|CLS|SEP|MASK)\]"
    r"|<(?:start|end)_of_turn>|#{2,3} ?(?:Instruction|Response|Human|Assistant|Input)\b:?"
    r"|\{%.{0,80}?%\}|\{\{.{0,80}?\}\}"
)
SPEAKER = re.compile(r"(?:\A|\n)\s*(?:Human|Assistant|User|System|USER|ASSISTANT|HUMAN): ?", re.ASCII)
HEADER = re.compile(r"(?:\A|\n\n)(?:Human|Assistant|System):")
ODD = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\uffff\ue000-\uf8ff]"
    r"|[\xc2\xc3][\x80-\xbf]|\xe2\u20ac[\u2018-\u203a\u0153\u2122\xa2\xa6\x9d]"
)
# What is said of a bad row, by how its reason begins.
EMPTY, IDENTICAL = "empty completion", "chosen equals rejected"

RECORD = np.dtype([("key", "S16"), ("side", "u1"), ("file", "u1"), ("line", "<u4")])


@dataclass
class LintFlags:
    """Every flag of the check."""

    files: list[str] = flag(MISSING, "preferences to look at, .jsonl or .jsonl.gz", values="FILE", positional=True)
    against: list[str] = flag([], "preferences that must not share pairs with them, as held-out ones")
    tokenizer: str = flag("bytes", "by which lengths are counted: bytes, gpt2 or a directory")
    max_length: int = flag(512, "tokens of prompt + completion, as in training", LENGTH)
    max_prompt_length: int | None = flag(None, "tokens a truncated prompt keeps; default: half of --max-length", COUNT)
    json: bool = flag(False, "print one JSON object instead of the report")
    png: Path | None = flag(None, "write the report's picture to this file; needs matplotlib")


GROUPS = sections(LintFlags, "files against", ("how rows are read", "tokenizer"), ("output", "json"))
EXAMPLE = "python -m dpo_min.judge.lint prefs.jsonl --against held-out.jsonl"


@dataclass
class Report:
    """What was found: rows read, code → count and first places, and how long the sides are."""

    rows: int = 0
    usable: int = 0
    counts: Counter = field(default_factory=Counter)
    reasons: Counter = field(default_factory=Counter)  # of malformed rows
    places: dict = field(default_factory=dict)  # code → the first "file:line: what"
    lengths: "Lengths" = None

    def add(self, code, place, what=""):
        """Count one finding."""
        self.counts[code] += 1
        places = self.places.setdefault(code, [])
        if len(places) < SHOWN:
            places.append(f"{place}: {what}" if what else place)

    @property
    def errors(self):
        """The number of findings that are errors."""
        return sum(number for code, number in self.counts.items() if FINDINGS[code][0])


class Lengths:
    """The lengths of the two sides in tokens, and what they say about the label; of fixed size."""

    WIDTH, MOST = 0.05, 200  # a bin of log(chosen / rejected), and bins to either side

    def __init__(self):
        self.bins = np.zeros(2 * self.MOST + 1, np.int64)
        self.rows = self.longer = self.equal = 0
        self.tokens = {"prompt": [0, 0], "chosen": [0, 0], "rejected": [0, 0]}  # sum, longest

    def add(self, **sizes):
        """Count one pair: tokens of prompt, chosen and rejected."""
        for side, size in sizes.items():
            total, longest = self.tokens[side]
            self.tokens[side] = [total + size, max(longest, size)]
        chosen, rejected = sizes["chosen"], sizes["rejected"]
        self.rows += 1
        self.longer += chosen > rejected
        self.equal += chosen == rejected
        place = round(math.log(chosen / rejected) / self.WIDTH)
        self.bins[max(-self.MOST, min(self.MOST, place)) + self.MOST] += 1

    def gaps(self):
        """The middle of every bin: log(chosen / rejected)."""
        return (np.arange(len(self.bins)) - self.MOST) * self.WIDTH

    def explained(self):
        """How much of the preference length alone explains: 1 − (loss of the best judge that sees lengths) / log 2.

        The judge is P(A over B) = σ(a log(length of A / length of B)), Bradley–Terry with a reward of a log length;
        `a` is fitted to these very rows. Returns (share from 0 to 1, a); a is cut off at ±50.
        """
        if self.rows == self.equal:
            return 0.0, 0.0
        d, n = self.gaps(), self.bins
        low, high = -50.0, 50.0
        for _ in range(60):  # the slope of the mean log-likelihood falls with a: bisection
            a = (low + high) / 2
            slope = (n * d / (1 + np.exp(np.clip(a * d, -700, 700)))).sum()
            low, high = (a, high) if slope > 0 else (low, a)
        loss = (n * np.logaddexp(0, -a * d)).sum() / max(1, self.rows)
        return max(0.0, 1 - loss / math.log(2)), a

    def summary(self):
        """Name → number, for the report."""
        rows, differ = self.rows, self.rows - self.equal
        share, exponent = self.explained()
        result = {f"mean_tokens_{side}": total / max(1, rows) for side, (total, _) in self.tokens.items()}
        result |= {f"longest_{side}": longest for side, (_, longest) in self.tokens.items()}
        result |= {"longer_is_chosen": self.longer, "lengths_differ": differ, "rows": rows}
        centre, half = wilson(self.longer, differ)
        result |= {"longer_is_chosen_interval": [centre - half, centre + half]}
        return result | {"explained_by_length": share, "length_exponent": exponent}


def wilson(successes, n):
    """(centre, half width) of the 95 % interval of a rate (Wilson, 1927); (1/2, 1/2) where nothing was counted."""
    if not n:
        return 0.5, 0.5
    z2 = 1.959964**2
    p = successes / n
    return (p + z2 / (2 * n)) / (1 + z2 / n), math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)


class Spill:
    """`RECORD`s by the first bits of their key, in temporary files: equal keys end up in the same part."""

    def __init__(self):
        self.files = [tempfile.TemporaryFile() for _ in range(PARTS)]  # noqa: SIM115
        self.waiting = [[] for _ in range(PARTS)]

    def add(self, key, side, file, line):
        """Keep one record: a key of 16 bytes, and where it was seen."""
        part = key[0] % PARTS
        self.waiting[part].append((key, side, file, min(line, 2**32 - 1)))
        if len(self.waiting[part]) == BUFFERED:
            self.flush(part)

    def flush(self, part):
        """Write what waits for one part."""
        self.files[part].write(np.array(self.waiting[part], RECORD).tobytes())
        self.waiting[part].clear()

    def groups(self):
        """Yield, for each part, its records sorted by key, and in the order of reading within a key."""
        for part, file in enumerate(self.files):
            self.flush(part)
            file.seek(0)
            records = np.frombuffer(file.read(), RECORD)
            file.close()
            yield records[np.argsort(records["key"], kind="stable")]


def digest(*texts):
    """16 bytes that stand for some texts."""
    return blake2b(b"\0".join(text.encode() for text in texts), digest_size=16).digest()


def check_text(report, place, prompt, chosen, rejected):
    """Findings in one row by itself."""
    sides = {"chosen": chosen, "rejected": rejected}
    blank = [side for side, text in sides.items() if not text.strip()]
    if blank:
        report.add("empty", place, ", ".join(blank))
    if not prompt.strip():
        report.add("empty-prompt", place)
    if not blank and "".join(chosen.split()).casefold() == "".join(rejected.split()).casefold():
        report.add("near-identical", place)
    core = HEADER.split(prompt.removesuffix("\n\nAssistant:"))[-1].strip()  # what was asked last
    if len(core) >= REPEATED:
        repeating = [side for side, text in sides.items() if core in text]
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


def check_files(flags, tokenizer, show=lambda rows, text: None):
    """The `Report` of the files; `show` is called now and then with the rows read and the file.

    Raises:
        ValueError: a file cannot be read, or holds no row.
    """
    report = Report(lengths=Lengths())
    pairs, prompts = Spill(), Spill()
    paths = [*flags.files, *flags.against]
    for index, path in enumerate(paths):
        own = index < len(flags.files)
        for number, line, _ in read_rows(path):
            show(report.rows, path)
            report.rows += own
            place = f"{path}:{number}"
            try:
                prompt, chosen, rejected = parse_line(number, line)
            except BadRow as error:
                if own:
                    add_bad(report, place, str(error))
                continue
            first, second = sorted((chosen, rejected))
            pairs.add(digest(prompt, first, second), chosen == first, min(index, 255), number)
            if flags.against:
                prompts.add(digest(prompt), 0, min(index, 255), number)
            if own:
                report.usable += 1
                check_text(report, place, prompt, chosen, rejected)
                check_length(report, place, flags, tokenizer, (prompt, chosen, rejected))
    compare(report, pairs, prompts, paths, len(flags.files))
    return report


def add_bad(report, place, reason):
    """Count a row that training refuses, under what is wrong with it."""
    kind = reason.split(":")[0].split(" '")[0].split(", found")[0][:80]
    code = {EMPTY: "empty", IDENTICAL: "identical"}.get(kind, "malformed")
    if code == "malformed" and (kind in report.reasons or len(report.reasons) < 100):
        report.reasons[kind] += 1
    report.add(code, place, reason[:200])


def check_length(report, place, flags, tokenizer, texts):
    """Count the tokens of one row, and what the limits would cut."""
    if tokenizer.ranks_are_bytes:
        sizes = [len(text.encode()) for text in texts]
    else:
        sizes = [len(ids) for ids in tokenizer.encode_batch(texts)]
    whole = tuple(map(range, (sizes[0] or 1, sizes[1] + 1, sizes[2] + 1)))  # with their end-of-text
    kept = truncate(*whole, flags.max_length, flags.max_prompt_length)
    if kept is None:
        report.add("dropped", place)
    elif kept != whole:
        report.add("truncated", place)
    report.lengths.add(prompt=len(whole[0]), chosen=len(whole[1]), rejected=len(whole[2]))


def compare(report, pairs, prompts, paths, own):
    """Findings between rows: duplicates, contradictions, and what the first `own` files share with the others."""
    found = []
    for records in pairs.groups():
        for group in equal_keys(records):
            ours = group[group["file"] < own]
            if not len(ours):
                continue
            if len(ours) < len(group):
                found += [("leaked", at(paths, row), at(paths, group[group["file"] >= own][0])) for row in ours]
            for i, row in enumerate(ours[1:], 1):
                same = ours[:i][ours["side"][:i] == row["side"]]
                other = ours[:i][ours["side"][:i] != row["side"]]
                if len(other):
                    found.append(("contradictory", at(paths, row), at(paths, other[0])))
                if len(same):
                    found.append(("duplicate", at(paths, row), at(paths, same[0])))
        tally(report, found)
    for records in prompts.groups():
        for group in equal_keys(records):
            theirs = group[group["file"] >= own]
            if len(theirs):
                found += [("leaked-prompt", at(paths, row), at(paths, theirs[0])) for row in group[group["file"] < own]]
        tally(report, found)


def equal_keys(records):
    """Yield each run of more than one record with the same key, of records sorted by key."""
    edges = np.flatnonzero(records["key"][1:] != records["key"][:-1]) + 1
    starts, ends = np.r_[0, edges], np.r_[edges, len(records)]
    for i in np.flatnonzero(ends - starts > 1):
        yield records[starts[i] : ends[i]]


def at(paths, record):
    """The `file:line` of a record."""
    return f"{paths[record['file']]}:{record['line']}"


def tally(report, found):
    """Add (code, place, other place) to the report and forget them."""
    for code, place, other in found:
        report.add(code, place, f"with {other}")
    found.clear()


def as_json(report):
    """The report as plain values."""
    findings = {
        code: {"severity": "error" if error else "warning", "count": report.counts[code], "about": about,
               "examples": report.places.get(code, [])}
        for code, (error, about) in FINDINGS.items()
    }  # fmt: skip
    malformed = dict(report.reasons.most_common())
    lengths = report.lengths.summary() if report.usable else None
    return {"rows": report.rows, "usable": report.usable, "errors": report.errors, "findings": findings,
            "malformed_reasons": malformed, "lengths": lengths}  # fmt: skip


def as_text(report, flags):
    """The report for people."""
    lines = [f"{', '.join(flags.files)}: {report.rows} rows, {report.usable} usable"]
    for code, (error, about) in FINDINGS.items():
        number = report.counts[code]
        if number:
            lines.append(f"\n{'error  ' if error else 'warning'}  {number:>8}  {about}  [{code}]")
            if code == "malformed":
                lines += [f"{'':21}{count:>6} × {reason}" for reason, count in report.reasons.most_common()]
            lines += [f"{'':21}{place}" for place in report.places[code]]
            if number > len(report.places[code]):
                lines.append(f"{'':21}…")
    if report.usable:
        numbers = report.lengths.summary()
        low, high = numbers["longer_is_chosen_interval"]
        differ, longer = numbers["lengths_differ"], numbers["longer_is_chosen"]
        lines.append(f"\nlengths in tokens ({flags.tokenizer}), end-of-text included: mean, longest")
        for side in ("prompt", "chosen", "rejected"):
            lines.append(f"  {side:<9}{numbers[f'mean_tokens_{side}']:>9.1f}{numbers[f'longest_{side}']:>9}")
        if differ:
            lines.append(
                f"the longer side is chosen in {longer} of {differ} rows where they differ: {longer / differ:.3f} "
                f"[{low:.3f}, {high:.3f}]; 0.5 would be blind to length"
            )
        lines.append(
            f"length alone explains {numbers['explained_by_length']:.1%} of the preference: the best judge that sees "
            f"only the two lengths, σ({numbers['length_exponent']:.2f} · log ratio), in its loss against log 2"
        )
    lines.append(f"\n{report.errors} errors" if report.errors else "\nno errors")
    return "\n".join(lines)


def main(argv):
    """Check, print, and return the exit code: 0, or 1 where errors were found."""
    try:
        flags, _ = parse(LintFlags, argv, "Look for what is wrong with a file of preferences.", GROUPS, EXAMPLE)
        if flags.max_prompt_length and flags.max_prompt_length >= flags.max_length:
            raise ValueError(f"--max-prompt-length must stay below --max-length, which is {flags.max_length}")
        if flags.png and (flags.png.suffix != ".png" or not flags.png.absolute().parent.is_dir()):
            raise ValueError(f"--png {flags.png}: expected a file NAME.png in a directory that exists")
        if len(flags.files) + len(flags.against) > 255:
            raise ValueError("FILE: at most 255 files at a time")
        tokenizer = load_tokenizer(flags.tokenizer)
        with Progress("read", stream=sys.stderr) as progress:
            report = check_files(flags, tokenizer, lambda rows, path: progress.at(rows, f"{rows:,} rows, in {path}"))
    except ValueError as error:
        stop(error)
    except OSError as error:
        stop(f"the check stopped: {error}", code=2)
    except KeyboardInterrupt:
        stop("stopped before the end of the data", code=130)
    print(streams.as_json(as_json(report), indent=2) if flags.json else as_text(report, flags))
    if flags.png:
        draw(report, flags.png)
    return 1 if report.errors else 0


def draw(report, path):
    """The report's picture; OSError where matplotlib is missing or fails."""
    try:
        plots = importlib.import_module("dpo_min.judge.lint_picture")
    except ImportError as error:
        raise OSError(f"--png {path}: {error}; pip install matplotlib") from error
    plots.draw_report(report, FINDINGS, path)


if __name__ == "__main__":
    run(main, sys.argv[1:])
