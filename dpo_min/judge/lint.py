"""What is wrong with a file of preferences, before anything is trained on it.

    python -m dpo_min.judge.lint prefs.jsonl                              a report, and exit code 1 if there are errors
    python -m dpo_min.judge.lint prefs.jsonl --against held-out.jsonl     and what the two files share
    python -m dpo_min.judge.lint prefs.jsonl --json                       the same for machines

An error is what training refuses, or what makes a label or a held-out figure wrong; a warning is worth a look.
The files are read once, as a stream.
"""

import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

import dpo_min.system.packages  # noqa: F401  (before all that needs one)

# isort: split
from dpo_min.data.chat_template import describe, use_template
from dpo_min.data.lines import is_array, read_rows
from dpo_min.data.messages import BadRow
from dpo_min.data.row_flags import RowFlags
from dpo_min.data.rows import parse_line
from dpo_min.data.templates import PLAIN
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import encode_pair, truncate
from dpo_min.judge.lint_between import Spill, compare, key_of
from dpo_min.judge.lint_findings import FINDINGS, Report, add_bad, check_row
from dpo_min.system import streams
from dpo_min.system.flags import flag, parse, sections
from dpo_min.system.kinds import COUNT, LENGTH, PICTURE
from dpo_min.system.program import run, stop
from dpo_min.system.progress import Progress
from dpo_min.system.text import one_line


@dataclass
class LintFlags(RowFlags):
    """Every flag of the check."""

    files: list[str] = flag(MISSING, "preferences to look at, .jsonl or .jsonl.gz", values="FILE", positional=True)
    against: list[str] = flag([], "preferences that must not share pairs with them, as held-out ones")
    tokenizer: str = flag("bytes", "by which lengths are counted: bytes, gpt2 or a directory")
    max_length: int = flag(512, "tokens of prompt + completion, as in training", LENGTH)
    max_prompt_length: int | None = flag(None, "tokens a truncated prompt keeps; default: half of --max-length", COUNT)
    json: bool = flag(False, "print one JSON object instead of the report")
    png: Path | None = flag(None, "write the report's picture to this file; needs matplotlib", PICTURE)


GROUPS = sections(LintFlags, "files against", ("how rows are read", "template"), ("output", "json"))
EXAMPLE = "python -m dpo_min.judge.lint prefs.jsonl --against held-out.jsonl"


def check_files(flags, tokenizer, template=PLAIN):
    """The `Report` of the files; says on standard error how far it is.

    Raises:
        ValueError: a file cannot be read, or holds no row.
    """
    report, columns, paths = Report(), flags.columns, [*flags.files, *flags.against]
    with Progress("read", stream=sys.stderr) as progress, Spill() as pairs, Spill() as prompts:
        for index, path in enumerate(paths):
            own = index < len(flags.files)
            for number, line, _ in read_rows(path):
                progress.at(report.rows, f"{report.rows:,} rows, in {path}")
                report.rows += own
                place = f"{path}:{number}"
                try:
                    row = parse_line(line, place, columns, template)
                except BadRow as error:
                    if own:
                        add_bad(report, place, str(error))
                    continue
                first, second = sorted((row.chosen, row.rejected))
                pairs.add(key_of(row.prompt, first, second), row.chosen == first, index, number)
                if flags.against:
                    prompts.add(key_of(row.prompt), 0, index, number)
                if own:
                    check_row(report, place, row)
                    check_length(report, place, flags, whole_ids(row, tokenizer, template))
        compare(report, pairs, prompts, paths, len(flags.files))
    return report


def whole_ids(row, tokenizer, template):
    """Prompt, chosen and rejected of a row as training takes them before it cuts: ids, or what is as good as these."""
    if tokenizer.ranks_are_bytes and isinstance(row.prompt, str):  # closed by a byte that no text has
        return row.prompt.encode() or b"\xff", row.chosen.encode() + b"\xff", row.rejected.encode() + b"\xff"
    return encode_pair(row, tokenizer, template)


def check_length(report, place, flags, whole):
    """Count the tokens of one row, and what the limits would cut."""
    kept = truncate(*whole, flags.max_length, flags.max_prompt_length)
    if kept is None:
        report.add("dropped", place)
    elif kept[1] == kept[2]:
        report.add("equal", place)
    elif kept != whole:
        report.add("truncated", place)
    report.lengths.add(prompt=len(whole[0]), chosen=len(whole[1]), rejected=len(whole[2]))


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
            "malformed_reasons": malformed, "forms": dict(report.forms.most_common()),
            "unread_columns": dict(report.unread.most_common()), "lengths": lengths}  # fmt: skip


def as_text(report, flags, about=()):
    """The report for people; `about`: lines on how the rows are read."""
    lines = [f"{', '.join(map(one_line, flags.files))}: {report.rows} rows, {report.usable} usable", *about]
    lines += [f"{one_line(path)} is one JSON array" for path in flags.files if is_array(path)]
    lines += [f"{number:>8} rows read as {form}" for form, number in report.forms.most_common()]
    if report.unread:
        lines.append(f"columns that are not read: {', '.join(map(one_line, report.unread))}")
    for code, (error, what) in FINDINGS.items():
        number = report.counts[code]
        if number:
            lines.append(f"\n{'error  ' if error else 'warning'}  {number:>8}  {what}  [{code}]")
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
        if len(flags.files) + len(flags.against) > 255:
            raise ValueError("FILE: at most 255 files at a time")
        tokenizer = load_tokenizer(flags.tokenizer)
        template = use_template(tokenizer, flags.template, flags.system)
        report = check_files(flags, tokenizer, template)
    except (ValueError, OSError) as error:
        stop(error)
    shown = as_text(report, flags, filter(None, [describe(template, tokenizer)]))
    print(streams.as_json(as_json(report), indent=2) if flags.json else shown)
    if flags.png:
        from dpo_min.judge import pictures

        pictures.draw_report(report, FINDINGS, flags.png)
    return 1 if report.errors else 0


if __name__ == "__main__":
    run(main, sys.argv[1:])
