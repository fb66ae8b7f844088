"""Who wins among K answers, and what the place of an answer has to do with it."""

from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.labels.verdicts import COMPARISONS, PositionBias, Verdict, from_scores, verdicts

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SHARES = st.floats(0, 1)


def shares(K):
    return st.lists(st.lists(SHARES, min_size=K, max_size=K), min_size=K, max_size=K)


@given(st.lists(NUMBERS, max_size=6))
@example([1e308, -1e308, 1e308])
@example([0.1 + 0.2, 0.3, 0.3])
def test_of_scores_the_higher_wins_and_the_best_is_set_against_the_worst(scores):
    """Kills: sides swapped, a tie that is a win, the best against the second best."""
    found = verdicts(from_scores(scores), "all")
    assert [{i, j} for i, j, _ in found] == [{i, j} for i in range(len(scores)) for j in range(i + 1, len(scores))]
    for i, j, tie in found:
        assert scores[i] == scores[j] if tie else scores[i] > scores[j]
    ends = verdicts(from_scores(scores), "best-worst")
    assert len(ends) == (len(scores) > 1)
    for i, j, tie in ends:
        assert i != j and scores[i] == max(scores) and scores[j] == min(scores) and tie == (scores[i] == scores[j])


@given(st.integers(2, 5).flatmap(shares), st.sampled_from(COMPARISONS))
def test_what_a_place_is_worth_decides_nothing(shown, which):
    """Adding a number to every verdict, for the first place or against it, keeps who wins; exact in eighths.

    Kills: one order alone, two orders that are added up instead of compared.
    """
    exact = [[round(8 * p) / 8 for p in row] for row in shown]
    for bias in (-0.5, 0.25, 2.0):
        assert verdicts([[p + bias for p in row] for row in exact], which) == verdicts(exact, which)


@given(st.integers(2, 5).flatmap(shares))
def test_a_scorer_and_its_opposite_disagree_on_every_pair(shown):
    opposite = [[1 - round(8 * p) / 8 for p in row] for row in shown]
    exact = [[round(8 * p) / 8 for p in row] for row in shown]
    for ours, theirs in zip(verdicts(exact, "all"), verdicts(opposite, "all"), strict=True):
        assert ours.tie == theirs.tie and (ours.tie or (ours.better, ours.worse) == (theirs.worse, theirs.better))


def test_verdicts_of_three_answers_worked_by_hand():
    """0 beats 1 in both orders; 2 beats 0 only where it is shown first and by less than 0 does; 1 and 2 are a tie."""
    shown = [[0.5, 1.0, 0.75], [0.0, 0.5, 0.5], [0.5, 0.5, 0.5]]
    assert verdicts(shown, "all") == [Verdict(0, 1, False), Verdict(0, 2, False), Verdict(1, 2, True)]
    assert verdicts(shown, "best-worst") == [Verdict(0, 1, False)]  # ahead by 1.25, −1 and −0.25
    assert verdicts([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], "best-worst")[0].tie  # each beats the next
    assert verdicts([], "all") == verdicts([[0.5]], "all") == verdicts([[0.5]], "best-worst") == []


def test_position_bias_worked_by_hand():
    """Kills: pairs that agree counted for a place, a tie counted as a win, questions counted as trials."""
    bias = PositionBias()
    bias.see([[0.5, 0.9], [0.1, 0.5]])  # answer 0 in both orders
    bias.see([[0.5, 0.5], [0.5, 0.5]])  # a tie in both
    assert str(bias) == "Both orders agreed in 2 of 2: 1.000 [0.342, 1.000]. So the position decided nothing."
    bias.see([[0.5, 0.9], [0.6, 0.5]])  # the first, in both orders
    bias.see([[0.5, 0.5], [0.7, 0.5]])  # a tie, then the first
    bias.see([[0.5, 0.5], [0.2, 0.5]])  # a tie, then the second
    assert (bias.pairs, bias.same, bias.first) == (5, 2, 2)
    assert str(bias) == (
        "Both orders agreed in 2 of 5: 0.400 [0.118, 0.769]. "
        "Of the other pairs the first position won 2 of 3: 0.667 [0.208, 0.939]; 0.5 is no bias."
    )


@given(st.integers(2, 5).flatmap(shares))
@example([[0.0, 1 - 2**-53], [1.0, 0.0]])
def test_an_answer_that_wins_whatever_its_place_is_no_bias_and_one_place_that_wins_is(shown):
    """Kills: a scorer without a bias that seems to have one, and one that looks at the place alone that has none."""
    pairs = range(len(shown))
    fair = [[0.5 + round(p - shown[j][i], 9) / 2 for j, p in enumerate(row)] for i, row in enumerate(shown)]
    bias = PositionBias()
    bias.see(fair)
    assert (bias.same, bias.first) == (bias.pairs, 0) and bias.pairs == len(pairs) * (len(pairs) - 1) // 2
    for favour in (0.0, 1.0):
        blind, bias = [[favour] * len(pairs) for _ in pairs], PositionBias()
        bias.see(blind)
        assert (bias.same, bias.first) == (0, favour * bias.pairs)
        assert all(verdict.tie for verdict in verdicts(blind, "all"))
