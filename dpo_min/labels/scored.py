"""Labels without a person: what may be a scorer, what it is asked of each prompt's answers, and what it says.

    module:function      (prompt, answer) → a number, higher for a better answer
    module:function      (prompt, first, second) → from 0 to 1, how surely the first is better; ½ is a tie
    a model directory    with --reference: the implicit reward of each answer

A prompt that is a dialogue reaches a function as text, in the form of HH.
"""

import importlib
import inspect
from functools import partial
from pathlib import Path

from dpo_min.data.forms import read_prompt
from dpo_min.data.templates import PLAIN
from dpo_min.judge.scorers import load_scorer, score, worth
from dpo_min.labels.choices import all_pairs, pair_of
from dpo_min.labels.verdicts import PositionBias, Verdict, from_scores, verdicts
from dpo_min.system.progress import Progress


class Scorer:
    """Whoever labels without a person; `bias` is None for one that sees a single answer at a time."""

    def __init__(self, name, reference=None):
        """Load what --scorer and --reference name.

        Raises:
            ValueError: it is none of what may be a scorer.
        """
        self.name, self.bias = name, None
        if Path(name).is_dir():
            if not reference:
                raise ValueError(f"--scorer {name}: a model is measured against another: add --reference DIR")
            implicit = importlib.import_module("dpo_min.labels.implicit")  # which loads PyTorch
            self.ask = implicit.ImplicitReward(Path(name), reference).scores
            return
        if reference:
            raise ValueError("--reference has no effect unless --scorer is a model directory; leave it out")
        place, colon, _ = name.rpartition(":")
        if not colon or Path(place).is_file():
            raise ValueError(f"--scorer {name}: expected module:function, or a model directory")
        self.function = load_scorer(name)
        if sees_both(self.function):
            self.bias = PositionBias()
        self.ask = self.scores

    def scores(self, prompt, answers):
        """The scores of K answers by a function that sees one of them at a time."""
        asked = as_text(prompt)
        return [score(self.name, self.function, asked, answer) for answer in answers]

    def shown(self, prompt, answers):
        """What `verdicts` reads of K answers, (K, K)."""
        if not self.bias:
            return from_scores(self.ask(prompt, answers))
        ask, places = partial(score, self.name, self.function, as_text(prompt), check=share), range(len(answers))
        shown = [[0.5 if i == j else ask(answers[i], answers[j]) for j in places] for i in places]
        self.bias.see(shown)
        return shown

    def label(self, candidates, which):
        """The `Verdict`s on the answers of `Candidates`, by their places; `which` as in `verdicts`.

        Answers that say nothing, and those that say what an earlier one says, are not compared.
        """
        places = [i for i, y in enumerate(candidates.answers) if y and y not in candidates.answers[:i]]
        if len(places) < 2:
            return []
        found = verdicts(self.shown(candidates.prompt, [candidates.answers[i] for i in places]), which)
        return [Verdict(places[i], places[j], tie) for i, j, tie in found]


def label_all(candidates, scorer, which, choices):
    """Label all `Candidates` that `choices` lacks; returns how many labels came, and how many of them are ties.

    With "best-worst" a prompt gets one label, and a prompt that has one is skipped. With "all" every pair gets one,
    and only the pairs that have one are skipped.
    """
    labels = ties = 0
    with Progress("labels", total=len(candidates), unit="prompts") as progress:
        for done, line in enumerate(candidates, 1):
            known = [f"{key}:0" in choices.state for key in all_pairs([line])]
            for i, j, tie in () if all(known) or (any(known) and which != "all") else scorer.label(line, which):
                pair = pair_of(line.prompt, line.answers[i], line.answers[j])
                if f"{pair.key}:0" not in choices.state:
                    left, right = pair.sides(False)
                    choice = "=" if tie else "A" if left == line.answers[i] else "B"
                    choices.set(f"{pair.key}:0", choice, pair.prompt, left, right)
                    labels, ties = labels + 1, ties + tie
            progress.at(done)
    return labels, ties


def sees_both(function):
    """Whether a function takes two answers beside the prompt; one that takes one or two is asked about one.

    Raises:
        ValueError: it takes neither.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some functions in C nothing is known
        return False
    for both in (False, True):
        try:
            signature.bind(*"xyy" if both else "xy")
            return both
        except TypeError:
            pass
    raise ValueError("--scorer: the function takes neither (prompt, answer) nor (prompt, first, second)")


def share(value):
    """A number from 0 to 1; ValueError for any other."""
    if not 0 <= (value := worth(value)) <= 1:
        raise ValueError(f"how surely the first is better must be from 0 to 1, not {value}")
    return value


def as_text(prompt):
    """A prompt, a text or the messages of a dialogue, as text."""
    return PLAIN.shown(read_prompt(prompt))
