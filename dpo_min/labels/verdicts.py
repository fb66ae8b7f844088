"""Which of a prompt's answers is better, by a scorer: the best against the worst of K, or every two of them.

A scorer that sees two answers at once may favour a place: the first, whatever it says. So every two are shown to it in
both orders. An answer is better if, shown first, it does better than the other answer does shown first: what the place
is worth cancels. The pairs on which the two orders disagree tell whether there was such a bias.
"""

import math
from itertools import combinations
from typing import NamedTuple

from dpo_min.labels.agreement import rate

COMPARISONS = ("best-worst", "all")


class Verdict(NamedTuple):
    """Of two answers, by their places among the K: `better` won against `worse`, or neither did."""

    better: int
    worse: int
    tie: bool


def from_scores(scores):
    """What two answers are worth to a judge of single ones, K finite numbers → (K, K).

    In row i and column j stands 1 if answer i has the higher score, ½ if both have the same, else 0.
    """
    return [[((a > b) + (a >= b)) / 2 for b in scores] for a in scores]


def verdicts(shown, which):
    """The `Verdict`s on K answers.

    Args:
        shown: (K, K) numbers from 0 to 1; in row i and column j: how surely answer i, shown first, is better than
            answer j.
        which: "all" for every two answers, or "best-worst" for the two that win and lose the most against all others.
    """
    K = len(shown)
    lead = [[shown[i][j] - shown[j][i] for j in range(K)] for i in range(K)]  # lead[i][j] = −lead[j][i], exactly
    if which == "all":
        return [verdict(i, j, lead[i][j]) for i, j in combinations(range(K), 2)]
    if K < 2:
        return []
    total = [math.fsum(row) for row in lead]  # the same numbers in another order have the same sum
    best = max(range(K), key=lambda i: total[i])
    worst = min((i for i in range(K) if i != best), key=lambda i: total[i])
    return [verdict(best, worst, total[best] - total[worst])]


def verdict(i, j, lead):
    """The `Verdict` on answers i and j by what i has ahead of j."""
    return Verdict(j, i, False) if lead < 0 else Verdict(i, j, lead == 0)


class PositionBias:
    """Whether a scorer favours a place, by the pairs that it was shown in both orders.

    Where both orders agree, the place decided nothing. Without a bias the others fall to the first place and to the
    second alike (McNemar's test, 1947); `first` counts those that fall to the first.
    """

    def __init__(self):
        self.pairs, self.same, self.first = 0, 0, 0

    def see(self, shown):
        """Count the verdicts on every two answers of `shown`, (K, K) as in `verdicts`."""
        for i, j in combinations(range(len(shown)), 2):
            taken = sum(((p > 0.5) + (p >= 0.5)) / 2 for p in (shown[i][j], shown[j][i]))  # of 2 for the first
            self.pairs += 1
            self.same += taken == 1  # the same answer won, or both were ties
            self.first += taken > 1

    def __str__(self):
        """Two rates with Wilson's interval, in a sentence; of at least one pair."""
        agreed, others = f"Both orders agreed in {rate(self.same, self.pairs)}.", self.pairs - self.same
        if not others:
            return f"{agreed} So the position decided nothing."
        return f"{agreed} Of the other pairs the first position won {rate(self.first, others)}; 0.5 is no bias."
