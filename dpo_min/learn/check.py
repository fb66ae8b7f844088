"""The check itself: a program of its own, so that a learner's loop without end can be stopped, wherever it loops.

    python -m dpo_min.learn.check FOLDER SECONDS TRACE [EXERCISE]

goes through the exercises, or tries one alone, prints what it finds, and ends with 0 where all are right, 3 where all
that are written are right, and 1 where a law fails. An exercise that takes longer than SECONDS is ended by Python's own
watchdog, which leaves in the file TRACE where it was; __main__.py makes a sentence of it.
"""

import faulthandler
import sys
from pathlib import Path

from dpo_min.learn import cut, folder
from dpo_min.learn.course import ROOT, exercises
from dpo_min.learn.folder import near
from dpo_min.learn.judge import examine
from dpo_min.system.program import mistakes, run

RIGHT, WRONG, UNFINISHED = 0, 1, 3


def source_of(exercise, path, line):
    """Where the equation stands: in the learner's file, and on a page that explains it."""
    explained = exercise.explained
    return f"{near(path)}:{line}; {explained if explained.startswith('arXiv') else near(ROOT / explained)}"


def report(exercise, finding, path, text):
    """A finding in words: the law, a small counterexample, why, and where the equation stands."""
    try:
        place, (line, equation) = cut.place(text, exercise.name), cut.equation(text, exercise.name)
    except (SyntaxError, ValueError):
        place, line, equation = None, None, ""
    at = finding.line or place
    code = text.split("\n")[at - 1].strip() if finding.line else ""
    rows = (
        ("law" if finding.says else "error", finding.sentence),
        ("line", code),
        ("input", finding.given),
        ("yours", finding.got),
        ("law says", finding.says),
    )
    unread = finding.line and not place  # and so nobody knows which function it is in
    lines = [":".join(filter(None, [near(path), str(at or ""), "" if unread else f" {exercise.name}"])), ""]
    lines += [f"    {name:10}{words}" for name, words in rows if words]
    lines += ["", f"    {finding.why}"] if finding.why else []
    if equation:
        lines += ["", f"    {'equation':10}{equation}", f"    {'':10}{source_of(exercise, path, line)}"]
    return "\n".join(lines)


def come_next(exercise, path, text):
    """What is to be written next."""
    line, equation = cut.equation(text, exercise.name)
    begun = "" if all(cut.missing(text, exercise.name)) else " (one of its two bodies is still missing)"
    place = f"{near(path)}:{cut.place(text, exercise.name)}{begun}"
    return (
        f"{exercise.name}\n\n    {'write':10}{place}\n"
        f"    {'equation':10}{equation}\n    {'':10}{source_of(exercise, path, line)}"
    )


def check(where, seconds, trace, alone=""):
    """Go through the exercises, or try the one of a name alone; returns the exit code."""
    course = exercises()
    for right, exercise in enumerate(course):
        if alone not in ("", exercise.name):
            continue
        so_far = ("" if alone else f"{right} of {len(course)}; ") + "next: "
        with mistakes():
            path, text = folder.path_of(where, exercise), folder.text_of(where, exercise)
            folder.remember(where, at=exercise.name)
        if not folder.is_written(where, exercise):
            print(so_far + come_next(exercise, path, text))
            return UNFINISHED
        sys.stdout.flush()
        if "breakpoint(" not in text:  # whoever looks into it takes their time
            faulthandler.dump_traceback_later(seconds, exit=True, file=trace)
        try:
            finding = examine(exercise, text, str(path))
        finally:
            faulthandler.cancel_dump_traceback_later()
        if finding:
            print(report(exercise, finding, path, text))
            print(f"\n{so_far}{exercise.name} (make hint helps)")
            return WRONG
    folder.remember(where, at=None)
    all_right = f"{len(course)} of {len(course)}: all are right. `make train` trains the demo with them."
    print(f"{alone} is right." if alone else all_right)
    return RIGHT


def main(where, seconds, trace, alone=""):
    """The program."""
    with open(trace, "w", encoding="utf-8") as file:
        return check(Path(where), float(seconds), file, alone)


if __name__ == "__main__":
    run(main, *sys.argv[1:])
