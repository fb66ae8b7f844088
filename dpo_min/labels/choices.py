r"""What was chosen, kept so that no end of the program loses or doubles a choice.

Two files: the journal, `prefs.jsonl.journal`, has a line for every choice, change and undoing, and `prefs.jsonl` is
what follows from it: a row for each pair, in the form that train.py reads. A choice is in both, flushed to the disk,
before anybody hears that it was taken. What a crash left between the two is put right at the next start.

A showing is a pair with its two sides in one order: "KEY:0", or "KEY:1" for the second time, with the sides swapped.
Choices are "A" (left), "B" (right), "=" (tie) and "S" (skip). The last line about a showing counts, so a line that
comes twice changes nothing.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from dpo_min.data.lines import read_rows
from dpo_min.labels.journal import Journal, encode
from dpo_min.system.files import write_atomically

CHOICES = ("A", "B", "=", "S")


class Pair(NamedTuple):
    """Two answers to a prompt. The key stands for all three, whatever the order of the answers."""

    key: str
    prompt: str | list
    answers: tuple[str, str]

    def sides(self, again):
        """(left, right). The key decides who is left, which is as good as chance; `again` it is the other."""
        first, second = sorted(self.answers)
        return (second, first) if int(self.key[-1], 16) % 2 != again else (first, second)


def pair_of(prompt, one, other):
    """The `Pair` of two different answers."""
    digest = hashlib.sha256(json.dumps([prompt, *sorted((one, other))]).encode())
    return Pair(digest.hexdigest()[:16], prompt, (one, other))


def all_pairs(candidates):
    """Key → `Pair` of all answers that can be compared: one of each prompt first, then a second one, and so on."""
    rounds = [[pair_of(line.prompt, line.answers[i], line.answers[j]) for i, j in line.pairs()] for line in candidates]
    longest = max(map(len, rounds), default=0)
    return {pairs[i].key: pairs[i] for i in range(longest) for pairs in rounds if i < len(pairs)}


def row_of(event):
    """The row for training that follows from a choice; None of a skip, of a second showing and of an undoing."""
    if event["choice"] in ("S", None) or not event["showing"].endswith(":0"):
        return None
    sides = event["left"], event["right"]
    chosen, rejected = sides[::-1] if event["choice"] == "B" else sides
    row = {"prompt": event["prompt"], "chosen": chosen, "rejected": rejected}
    row |= {"tie": True} if event["choice"] == "=" else {}
    return row | ({"annotator": event["annotator"], "time": event["time"]} if "annotator" in event else {})


def settle(events, state=None):
    """Showing → the event that counts, in the order in which they came; `state`, what counted before, is changed."""
    state = {} if state is None else state
    for event in events:
        state.pop(event["showing"], None)
        if event["choice"] is not None:
            state[event["showing"]] = event
    return state


def content_of(state):
    """The bytes of prefs.jsonl."""
    return b"".join(encode(row) for row in map(row_of, state.values()) if row)


def journal_of(out):
    """The journal's path beside that of prefs.jsonl."""
    return Path(f"{out}.journal")


def read_events(path):
    """The lines of a journal; a last one without its end is left out, and a file that is not there has none.

    Raises:
        ValueError: a line is none of a journal.
    """
    events = []
    for number, line, _ in read_rows(path) if path.exists() and path.stat().st_size else ():
        try:
            event = json.loads(line)
            wanted = {"showing", "choice", "time"} | ({"prompt", "left", "right"} if event["choice"] else set())
            known = event["choice"] in (*CHOICES, None) and event["showing"][-2:] in (":0", ":1")
            if not known or not wanted <= event.keys():
                raise ValueError("it is something else")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if not line.endswith(b"\n"):
                continue
            raise ValueError(f"{path}:{number}: not a line of a journal of labels: {error}") from error
        events.append(event)
    return events


class Choices:
    """Both files, open for this program alone; `state` is what `settle` makes of the journal."""

    def __init__(self, out, annotator=None):
        """`annotator`: who chooses, where rows are to say who, and when.

        Raises:
            ValueError: another program holds the files, or they are not such files, or do not belong together.
        """
        self.out, self.annotator, path = Path(out), annotator, journal_of(out)
        if self.out.exists() and not path.exists():
            raise ValueError(f"--out {out} is there, and its journal {path} is not: name another file")
        self.journal = Journal(path)
        events = read_events(path)
        self.state, content = settle(events), self.out.read_bytes() if self.out.exists() else b""
        known = content_of(self.state).startswith(content) or content == content_of(settle(events[:-1]))
        if not known:  # neither whole nor what a crash leaves
            raise ValueError(f"--out {out} was changed by something else; move it away, and it is written again")
        self.rows, self.behind = None, True
        self.catch_up()

    def catch_up(self):
        """Write prefs.jsonl anew, whole or not at all, where it lacks what the journal has."""
        if self.behind:
            with write_atomically(self.out) as file:
                file.write(content_of(self.state))
            if self.rows:
                self.rows.close()
            self.rows, self.behind = Journal(self.out), False

    def set(self, showing, choice, prompt=None, left=None, right=None):
        """Take a choice for a showing, or take it back where it is None. It is on the disk when this returns."""
        self.catch_up()
        event = {"showing": showing, "choice": choice, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        if choice is not None:
            event |= {"prompt": prompt, "left": left, "right": right}
            event |= {"annotator": self.annotator} if self.annotator else {}
        self.journal.append(event)
        before, row = self.state.get(showing), row_of(event)
        self.state, self.behind = settle([event], self.state), True  # in place: a label costs the same among many
        if before and row_of(before):
            self.catch_up()
        elif row:
            self.rows.append(row)
        self.behind = False

    def close(self):
        """Let others write."""
        self.journal.close()
        self.rows.close()
