r"""How much noise labels have: whether the same person chooses the same again, and whether the side decides.

If each of two labels of one pair is wrong with probability ε, by chance, then they agree with probability

    a = (1 − ε)² + ε²,   so   ε = (1 − √(2a − 1)) / 2   where a ≥ ½

This ε is the one of cdpo and robust. A mistake that is made both times is not seen by it.
"""

import math
from collections import Counter

from dpo_min.judge.intervals import wilson_interval

WIDE = 0.2  # an interval of ε that decides nothing
SWAPPED = {"A": "B", "B": "A", "=": "="}


def noise_rate(agreement):
    """ε of a rate of agreement; ½, which is no knowledge at all, where it is no better than chance."""
    return (1 - math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def count_choices(state):
    """Counts of what `choices.settle` made: pairs by choice, showings by side, pairs judged twice, and how they agree.

    "A", "B", "=", "S": pairs, by their first showing; "left", "right": showings; "twice", "same": pairs judged twice,
    and to the same end; "twice decided", "same decided": those of them without a tie.
    """
    counts = Counter()
    for showing, event in state.items():
        choice, again = event["choice"], state.get(f"{showing[:-1]}1")
        counts["left"] += choice == "A"
        counts["right"] += choice == "B"
        if not showing.endswith(":0"):
            continue
        counts[choice] += 1
        if again and "S" not in (choice, again["choice"]):
            decided, same = "=" not in (choice, again["choice"]), SWAPPED[again["choice"]] == choice
            counts.update({"twice": 1, "same": same, "twice decided": decided, "same decided": decided and same})
    return counts


def rate(successes, n):
    """A rate with its interval, as text."""
    low, high = wilson_interval(successes, n)
    return f"{successes} of {n}: {successes / n:.3f} [{low:.3f}, {high:.3f}]"


def report(counts):
    """What the counts say, in sentences, with 95 % intervals."""
    labelled = counts["A"] + counts["B"] + counts["="]
    lines = [f"{labelled} pairs are labelled, {counts['=']} of them ties; {counts['S']} were skipped."]
    if sides := counts["left"] + counts["right"]:
        low, high = wilson_interval(counts["left"], sides)
        biased = "" if low <= 0.5 <= high else " The side decides, and it should not."
        lines.append(f"The left side was taken in {rate(counts['left'], sides)}.{biased}")
    if not counts["twice"]:
        return [*lines, "No pair was judged twice yet, so nothing is known of the noise."]
    lines.append(f"Pairs judged twice, sides swapped, came out the same in {rate(counts['same'], counts['twice'])}.")
    return [*lines, advice(counts["same decided"], counts["twice decided"])]


def advice(same, n):
    """One sentence with the number to train with: `same` of `n` decided pairs came out the same."""
    if not n:
        return "Of pairs judged twice, none was decided both times, so nothing is known of ε."
    epsilon, (high, low) = noise_rate(same / n), map(noise_rate, wilson_interval(same, n))
    few = " These are few: label on, and the interval will be narrower." if high - low > WIDE else ""
    words = f"ε = {epsilon:.3f} [{low:.3f}, {high:.3f}] (pairs decided twice: {n})"
    if epsilon == 0:
        return f"The noise of these labels is {words}: use --loss-type sigmoid, which allows for none.{few}"
    if epsilon > 0.499:
        return f"The noise of these labels is {words}: they agree no better than chance, and no loss mends that.{few}"
    return (
        f"The noise of these labels is {words}: train with --loss-type cdpo or robust, "
        f"and --label-smoothing {max(0.001, round(epsilon, 3)):g}.{few}"
    )
