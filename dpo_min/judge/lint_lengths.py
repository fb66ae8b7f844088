"""What the lengths of the two sides say about the label: how much of the preference length alone explains."""

import math

import numpy as np

from dpo_min.judge.intervals import wilson_interval


class Lengths:
    """The lengths of the two sides in tokens, and what they say about the label; of fixed size."""

    WIDTH, MOST = 0.05, 200  # a bin of log(chosen / rejected), and bins to either side

    def __init__(self):
        self.bins = np.zeros(2 * self.MOST + 1, np.int64)
        self.rows = self.longer = self.equal = 0
        self.tokens = {"prompt": [0, 0], "chosen": [0, 0], "rejected": [0, 0]}  # sum, longest

    def add(self, **sizes):
        """Count one pair: tokens of prompt, chosen and rejected."""
        for side, size in sizes.items():
            total, longest = self.tokens[side]
            self.tokens[side] = [total + size, max(longest, size)]
        chosen, rejected = sizes["chosen"], sizes["rejected"]
        self.rows += 1
        self.longer += chosen > rejected
        self.equal += chosen == rejected
        place = round(math.log(chosen / rejected) / self.WIDTH)
        self.bins[max(-self.MOST, min(self.MOST, place)) + self.MOST] += 1

    def gaps(self):
        """The middle of every bin: log(chosen / rejected)."""
        return (np.arange(len(self.bins)) - self.MOST) * self.WIDTH

    def explained(self):
        """How much of the preference length alone explains: 1 − (loss of the best judge that sees lengths) / log 2.

        The judge is P(A over B) = σ(a log(length of A / length of B)), Bradley–Terry with a reward of a log length;
        `a` is fitted to these very rows. Returns (share from 0 to 1, a); a is cut off at ±50.
        """
        if self.rows == self.equal:
            return 0.0, 0.0
        d, n = self.gaps(), self.bins
        low, high = -50.0, 50.0
        for _ in range(60):  # the slope of the mean log-likelihood falls with a: bisection
            a = (low + high) / 2
            slope = (n * d / (1 + np.exp(np.clip(a * d, -700, 700)))).sum()
            low, high = (a, high) if slope > 0 else (low, a)
        loss = (n * np.logaddexp(0, -a * d)).sum() / max(1, self.rows)
        return max(0.0, 1 - loss / math.log(2)), a

    def summary(self):
        """Name → number, for the report."""
        rows, differ = self.rows, self.rows - self.equal
        share, exponent = self.explained()
        result = {f"mean_tokens_{side}": total / max(1, rows) for side, (total, _) in self.tokens.items()}
        result |= {f"longest_{side}": longest for side, (_, longest) in self.tokens.items()}
        result |= {"longer_is_chosen": self.longer, "lengths_differ": differ, "rows": rows}
        result |= {"longer_is_chosen_interval": [*wilson_interval(self.longer, differ)]}
        return result | {"explained_by_length": share, "length_exponent": exponent}
