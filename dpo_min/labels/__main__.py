"""Label candidates in a browser on this machine, or by a scorer; or say what the labels are worth.

    python -m dpo_min.labels candidates.jsonl --out prefs.jsonl                   prints the address of the page
    python -m dpo_min.labels candidates.jsonl --out prefs.jsonl --scorer my:judge labels without a person
    python -m dpo_min.labels candidates.jsonl --out prefs.jsonl --report          how much noise the labels have

Two answers stand side by side, in random order, without the names of their models. A takes the left one and B the right
one, = is a tie, S skips, U undoes. Every choice is on the disk before the next pair is shown. Ctrl-C ends the program,
and the same command goes on. `scored.py` says what may be a scorer. Its labels go into the same files, and it passes
over what is labelled there already, by a person or by a scorer.
"""

import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

from dpo_min.labels.agreement import count_choices, report
from dpo_min.labels.candidates import read_candidates
from dpo_min.labels.choices import Choices, all_pairs, journal_of, read_events, settle
from dpo_min.labels.desk import Desk
from dpo_min.labels.scored import Scorer, label_all
from dpo_min.labels.server import Server
from dpo_min.labels.verdicts import COMPARISONS
from dpo_min.system.flags import flag, parse, refuse, sections
from dpo_min.system.kinds import NATURAL, Accepts, between, is_text
from dpo_min.system.program import mistakes, run, stop
from dpo_min.system.signals import interrupt, on_signals

NAME = Accepts(lambda name: name.strip() and is_text(name), "a name")


@dataclass
class LabelFlags:
    """Every flag: its default, and when to change it."""

    candidates: list[str] = flag(MISSING, "answers, as sample.py --pairs writes them", values="FILE", positional=True)
    out: Path = flag(MISSING, "the labels, as train.py reads them; an existing file is continued")
    annotator: str | None = flag(None, "write into each row who chose, under this name, and when", NAME)
    repeat: int = flag(10, "show every N-th pair a second time, sides swapped, to measure the noise; 0: none", NATURAL)
    port: int = flag(0, "of the page; 0: a free one", between(0, 65535, "a whole number from 0 to 65535"))
    scorer: str | None = flag(None, "label without a person: module:function, or a model directory with --reference")
    reference: Path | None = flag(None, "the reference, where --scorer is a model directory")
    compare: str = flag("best-worst", "what --scorer labels: the best and worst answer, or all pairs", [*COMPARISONS])
    report: bool = flag(False, "say what the labels so far are worth, and end")


GROUPS = sections(
    LabelFlags, "candidates out", ("labelling", "annotator"), ("by a scorer", "scorer"), ("output", "report")
)
ABOUT = "Choose between answers, in a browser on this machine or by a scorer."
EXAMPLE = "python -m dpo_min.labels candidates.jsonl --out prefs.jsonl"


def main(argv):
    """Serve the page until Ctrl-C, or report; returns the exit code."""
    on_signals(interrupt)
    with mistakes():
        flags, given = parse(LabelFlags, argv, ABOUT, GROUPS, EXAMPLE)
        if flags.report:
            ours = "annotator repeat port scorer reference compare".split()
            refuse(given, ours, "with --report, which labels nothing")
            if not flags.out.exists():
                raise ValueError(f"--out {flags.out}: no such file, and so no labels to report on")
            print("\n".join(report(count_choices(settle(read_events(journal_of(flags.out)))))))
            return 0
        if flags.scorer is None:
            refuse(given, ["reference", "compare"], "without --scorer")
        else:
            refuse(given, ["repeat", "port"], "with --scorer, which needs no page")
        candidates = [line for path in flags.candidates for line in read_candidates(path)]
        if not any(line.pairs() for line in candidates):
            raise ValueError(f"{', '.join(flags.candidates)}: no prompt has two answers that differ and say something")
        scorer = flags.scorer and Scorer(flags.scorer, flags.reference)
        choices = Choices(flags.out, flags.annotator)
    if scorer:
        return score(candidates, scorer, choices, flags)
    return serve(Desk(all_pairs(candidates), choices, flags.repeat), flags)


def score(candidates, scorer, choices, flags):
    """Label by the scorer what has no label yet."""
    try:
        with mistakes():
            labels, ties = label_all(candidates, scorer, flags.compare, choices)
    finally:
        choices.close()
    print(f"{flags.out}: {labels} labels by {flags.scorer}, {ties} of them ties")
    if scorer.bias and scorer.bias.pairs:
        print(scorer.bias)
    return 0


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
        server.lock.acquire()  # for good: a choice that is being written is written, and none comes after
        desk.choices.close()
        print("\n" + "\n".join(desk.figures()["report"]))
    return 0


if __name__ == "__main__":
    run(main, sys.argv[1:])
