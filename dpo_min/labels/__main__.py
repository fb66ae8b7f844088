"""Label candidates in a browser on this machine, or say what the labels are worth.

    python -m dpo_min.labels candidates.jsonl --out prefs.jsonl              prints the address of the page
    python -m dpo_min.labels candidates.jsonl --out prefs.jsonl --report     how much noise the labels have

Two answers stand side by side, in random order, without the names of their models. A takes the left one and B the right
one, = is a tie, S skips, U undoes. Every choice is on the disk before the next pair is shown. Ctrl-C ends the program,
and the same command goes on.
"""

import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

from dpo_min.labels.agreement import count_choices, report
from dpo_min.labels.candidates import read_candidates
from dpo_min.labels.choices import Choices, all_pairs, journal_of, read_events, settle
from dpo_min.labels.desk import Desk
from dpo_min.labels.server import Server
from dpo_min.system.flags import NATURAL, between, flag, is_text, parse, refuse, sections
from dpo_min.system.program import mistakes, run, stop
from dpo_min.system.signals import interrupt, on_signals


@dataclass
class LabelFlags:
    """Every flag: its default, and when to change it."""

    candidates: list[str] = flag(MISSING, "answers, as sample.py --pairs writes them", values="FILE", positional=True)
    out: Path = flag(MISSING, "the labels, as train.py reads them; a file that is there is gone on with")
    annotator: str | None = flag(None, "write into each row who chose, under this name, and when")
    repeat: int = flag(10, "show every N-th pair a second time, sides swapped, to measure the noise; 0: none", NATURAL)
    port: int = flag(0, "of the page; 0: a free one", between(0, 65535, "a whole number from 0 to 65535"))
    report: bool = flag(False, "say what the labels so far are worth, and end")


GROUPS = sections(LabelFlags, "candidates out", ("labelling", "annotator"), ("output", "report"))
EXAMPLE = "python -m dpo_min.labels candidates.jsonl --out prefs.jsonl"


def main(argv):
    """Serve the page until Ctrl-C, or report; returns the exit code."""
    on_signals(interrupt)
    with mistakes():
        flags, given = parse(LabelFlags, argv, "Choose between answers, in a browser on this machine.", GROUPS, EXAMPLE)
        if flags.report:
            refuse(given, ["annotator", "repeat", "port"], "with --report, which shows no page")
            print("\n".join(report(count_choices(settle(read_events(journal_of(flags.out)))))))
            return 0
        if flags.annotator is not None and not (flags.annotator.strip() and is_text(flags.annotator)):
            raise ValueError(f"--annotator: expected a name, got {flags.annotator!r}")
        pairs = all_pairs([line for path in flags.candidates for line in read_candidates(path)])
        if not pairs:
            raise ValueError(f"{', '.join(flags.candidates)}: no prompt has two answers that differ and say something")
        choices = Choices(flags.out, flags.annotator)
    return serve(Desk(pairs, choices, flags.repeat), flags)


def serve(desk, flags):
    """Serve the page until Ctrl-C."""
    try:
        server = Server(desk, flags.port)
    except OSError as error:
        stop(f"--port {flags.port}: {error.strerror or error}; without --port a free one is taken")
    figures = desk.figures()
    print(f"{flags.out}: {figures['done']} of {figures['total']} pairs are done")
    print(f"open {server.url} in a browser on this machine; Ctrl-C ends", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        with server.lock:  # a choice that is being written is written
            desk.choices.close()
            print("\n" + "\n".join(desk.figures()["report"]))
    return 0


if __name__ == "__main__":
    run(main, sys.argv[1:])
