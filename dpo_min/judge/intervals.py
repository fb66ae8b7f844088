"""The interval of a rate, for programs that do not load PyTorch, too."""

import math

Z_95 = 1.959964  # the standard normal's 97.5 % point


def wilson_interval(successes, n):
    """The 95 % interval of a rate, `successes` of `n` (Wilson, 1927): inside [0, 1], sound near 0 and 1.

    Of no trials nothing is known: (0, 1).
    """
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # exact at the ends, where rounding is not
