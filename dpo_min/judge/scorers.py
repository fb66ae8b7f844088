"""What says how good an answer is: a function of the user's, or a column of a file."""

import importlib
import json
import math
from collections import defaultdict
from pathlib import Path

from dpo_min.data.lines import read_rows
from dpo_min.system.text import cause


def load_scorer(name):
    """The function (prompt, answer) → number called module:function, or the wins in a column of a file: 0, ½ and 1.

    The file has rows as `sample.py --reference --jsonl` writes them, with one column more. Two answers to one prompt
    and of one number, the model's and the reference's, are compared.
    """
    place, _, what = name.rpartition(":")
    if not Path(place).is_file():
        try:
            scorer = getattr(importlib.import_module(place), what)
        except (Exception, SystemExit) as error:  # whatever the module raises when it is run
            raise ValueError(f"--scorer {name}: {cause(error)}") from error
        if not callable(scorer):
            raise ValueError(f"--scorer {name}: {what} is not a function")
        return scorer
    scores = {"model": defaultdict(list), "reference": defaultdict(list)}
    for number, line, _ in read_rows(place):
        try:
            row = json.loads(line)
            scores[row["model"]][row["prompt"], row.get("sample", 0)].append(worth(row[what]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"--scorer {place}:{number}: {cause(error)}") from error
    ours, theirs = scores.values()
    if not ours or {key: len(s) for key, s in ours.items()} != {key: len(s) for key, s in theirs.items()}:
        raise ValueError(f"--scorer {place}: the answers of model and reference do not go together")
    return [((a > b) + (a >= b)) / 2 for key in ours for a, b in zip(ours[key], theirs[key], strict=True)]


def worth(score):
    """A score as a finite number."""
    try:
        score = score if isinstance(score, bool) else float(score)
    except OverflowError:
        score = math.inf
    if isinstance(score, bool) or not math.isfinite(score):
        raise ValueError(f"a score is {score}, not a finite number")
    return score


def score(name, scorer, *texts, check=worth):
    """What the scorer called `name` says of a prompt and an answer, or two; ValueError where that is no score."""
    try:
        return check(scorer(*texts))
    except (Exception, SystemExit) as error:  # whatever a function that is not ours may raise
        raise ValueError(f"--scorer {name}: on {texts[1][:60]!r}: {cause(error)}") from error
