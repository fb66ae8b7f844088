"""Who is shown which pair: one at a time to each window, none to two, some a second time."""

import time
from typing import NamedTuple

from dpo_min.labels.agreement import count_choices, report
from dpo_min.labels.choices import CHOICES

LEASE = 120  # seconds without a word after which a window's pair may go to another
PAUSE = 60  # seconds; a longer gap between two choices is a break, not work
RECENT = 50  # choices that the pace is taken from


class Refused(Exception):
    """What a window asked for cannot be done; the message says why."""


class Hold(NamedTuple):
    """A window's pair, and until when it is the window's."""

    showing: str
    until: float


class Desk:
    """The pairs, the choices, and the windows. A window is any text that it calls itself by."""

    def __init__(self, pairs, choices, repeat, clock=time.monotonic):
        """Key → `Pair`, `Choices`, and after how many pairs one is shown again (0: none is)."""
        self.pairs, self.choices, self.repeat, self.clock = pairs, choices, repeat, clock
        self.twice = {key for i, key in enumerate(pairs, 1) if repeat and i % repeat == 0}  # to be shown again
        self.holds, self.by, self.times = {}, {}, []  # window → Hold, showing → window, when choices came

    def next(self, window):
        """The pair that a window has, or else the next one that is free; with the figures for its head."""
        held = self.holds.get(window)
        showing = held.showing if held and held.showing not in self.choices.state else self.free(window)
        return self.shown(window, showing)

    def free(self, window):
        """The next showing that is neither decided nor another window's, or None."""
        state, taken = self.choices.state, self.taken(window)
        judged = [s[:-2] for s, event in state.items() if s.endswith(":0") and event["choice"] != "S"]
        again = [f"{key}:1" for key in judged if key in self.twice and not (f"{key}:1" in state or f"{key}:1" in taken)]
        if again and len(judged) - judged.index(again[0][:-2]) > self.repeat:  # so many others came between
            return again[0]
        fresh = (f"{key}:0" for key in self.pairs)
        return next((s for s in fresh if s not in state and s not in taken), again[0] if again else None)

    def taken(self, window):
        """The showings that other windows hold now."""
        now = self.clock()
        self.holds = {w: hold for w, hold in self.holds.items() if hold.until > now or w == window}
        return {hold.showing for w, hold in self.holds.items() if w != window}

    def shown(self, window, showing):
        """What a window is told of a showing that it gets; None: nothing is left, or nothing that is free."""
        if not showing:
            self.holds.pop(window, None)
            waiting = bool(self.taken(window))
            return {"pair": None, "waiting": waiting, "figures": self.figures()}
        self.holds[window] = Hold(showing, self.clock() + LEASE)
        return {"pair": self.told(showing), "figures": self.figures()}

    def told(self, showing):
        """The texts of a showing, and what was chosen before."""
        event = self.choices.state.get(showing)
        if event:
            prompt, left, right = event["prompt"], event["left"], event["right"]
        else:
            pair = self.pairs[showing[:-2]]
            prompt, (left, right) = pair.prompt, pair.sides(showing.endswith(":1"))
        choice = event["choice"] if event else None
        return {"showing": showing, "prompt": prompt, "left": left, "right": right, "choice": choice}

    def choose(self, window, showing, choice, before):
        """Take a choice, and give the next pair; `before` is the choice that the window showed, None of a fresh one.

        Raises:
            Refused: somebody else has chosen, or is choosing; or there is no such showing.
        """
        if choice not in CHOICES:
            raise Refused(f"a choice is one of {' '.join(CHOICES)}")
        known, event = showing[:-2] in self.pairs and showing[-2:] in (":0", ":1"), self.choices.state.get(showing)
        if not known and not event:
            raise Refused("there is no such pair")
        now = event["choice"] if event else None
        if now != before and self.by.get(showing) != window:  # else its own choice, of which it was not told
            raise Refused("this pair was decided elsewhere meanwhile; here is the next one")
        if not event and showing in self.taken(window):
            raise Refused("this pair is open in another window; here is the next one")
        told, self.by[showing] = self.told(showing), window  # it is taken, even if only one of the files can be written
        if now != choice:
            self.choices.set(showing, choice, told["prompt"], told["left"], told["right"])
            self.times = [*self.times[-RECENT:], self.clock()]
        else:
            self.choices.catch_up()
        return self.next(window)

    def undo(self, window):
        """Take back the window's last choice, or else the last one whose window is closed; show its pair again.

        Raises:
            Refused: there is none.
        """
        self.taken(window)
        others = self.holds.keys() - {window}
        mine = [s for s in reversed(self.choices.state) if self.by.get(s) not in others and s[:-2] in self.pairs]
        showing = min(mine, key=lambda s: self.by.get(s) != window, default=None)  # of the latest, its own first
        if showing is None:
            raise Refused("there is nothing to undo")
        self.choices.set(showing, None)
        self.by.pop(showing, None)
        return self.shown(window, showing)

    def look(self, window, place):
        """The choice at a place, 0 being the first, to be looked at and changed; Refused where there is none."""
        decided = [*self.choices.state]
        if not 0 <= place < len(decided):
            raise Refused("there is no choice beyond this one")
        return {"pair": self.told(decided[place]) | {"place": place}, "figures": self.figures()}

    def stay(self, window):
        """The window is still there: its pair stays its own."""
        if window in self.holds:
            self.holds[window] = self.holds[window]._replace(until=self.clock() + LEASE)
        return {}

    def leave(self, window):
        """The window is gone: its pair is free."""
        self.holds.pop(window, None)
        return {}

    def figures(self):
        """How far it is, and how fast it goes."""
        state = self.choices.state
        done = sum(f"{key}:0" in state for key in self.pairs)
        left = len(self.pairs) - done
        left += sum(state.get(f"{k}:0", {}).get("choice") != "S" and f"{k}:1" not in state for k in self.twice)
        gaps = [min(b - a, PAUSE) for a, b in zip(self.times, self.times[1:], strict=False)]
        pace = 60 * len(gaps) / sum(gaps) if sum(gaps) else None
        minutes = left / pace if pace else None
        head = {"done": done, "total": len(self.pairs), "per_minute": pace, "minutes_left": minutes}
        return head | {"decided": len(state), "report": report(count_choices(state))}
