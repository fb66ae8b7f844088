"""What holds of Bradley and Terry's model, of the two log-ratios and of the margin."""

from torch import sigmoid, tensor

from dpo_min.learn.laws_of_policies import logs, numbers
from dpo_min.learn.shown import shown
from dpo_min.learn.trial import UNREACHED, equal, holds, law, slope

REWARDS = [(numbers(w), numbers(r)) for w, r in ((0.0, 0.0), (1.0, 0.0), (-1.0, 2.0), (0.5, 3.0))]  # (r_w, r_l)


@law("bradley_terry")
def equals_win_half_the_time(yours):
    """P = ½ where the two rewards are equal."""
    for r in (1.0, 0.0, -2.0):
        yield equal(yours(numbers(r), numbers(r)), numbers(0.5))


@law("bradley_terry")
def the_better_answer_wins_more_often(yours):
    """P > ½ where the reward of y_w is the higher one."""
    out = yours(numbers(1.0), numbers(0.0))
    yield holds(out > 0.5, out, "more than 0.5")


@law("bradley_terry")
def one_of_the_two_wins(yours):
    """P(y_w ≻ y_l) + P(y_l ≻ y_w) = 1."""
    for w, r in REWARDS:
        first, second = yours(w, r), yours(r, w)
        given = f"rewards {w.item():g} and {r.item():g}, then the other way round"
        got = f"{first.item():.4g} and {second.item():.4g}"
        yield holds((first + second - 1).abs() < 1e-9, got, "a sum of 1", given)


@law("bradley_terry")
def adding_to_both_rewards_changes_nothing(yours):
    """Only the difference counts: f(x) added to both rewards cancels, were it 1000."""
    for shift in (5.0, 1000.0):
        for w, r in REWARDS:
            yield equal(yours(w + shift, r + shift), sigmoid(w - r))


@law("bradley_terry")
def a_large_difference_leaves_no_doubt(yours):
    """At a difference of 1000 it is certain who wins: P is 1, and not ∞/∞."""
    for w, r, want in ((1000.0, 0.0, 1.0), (0.0, 1000.0, 0.0)):
        yield equal(yours(numbers(w), numbers(r)), numbers(want))


@law("log_bradley_terry")
def it_is_the_logarithm_of_a_probability(yours):
    """Log P ≤ 0, and log P = log ½ = −0.693 where the two rewards are equal."""
    yield equal(yours(numbers(1.0), numbers(1.0)), logs(0.5))
    for w, r in REWARDS:
        out = yours(w, r)
        yield holds(out <= 0, out, "at most 0")


@law("log_bradley_terry")
def it_is_finite_where_p_underflows(yours):
    """Log P is finite where P itself is 0 as a float: at a difference of −1000 it is −1000."""
    yield equal(yours(numbers(-1000.0), numbers(0.0)), numbers(-1000.0))


LOGPS = [numbers(*row) for row in ((-1.0, -41.0), (-2.0, -50.0), (-1.5, -43.0), (-1.75, -47.0))]  # of two pairs
AT_REFERENCE = [LOGPS[0], LOGPS[1], LOGPS[0], LOGPS[1]]
WORN = [tensor([-0.3]), tensor([-0.1]), tensor([-0.3]), tensor([-0.1])]  # float32, in which sums round


def first_pair(logps):
    """The first of the pairs alone."""
    return [x[:1] for x in logps]


@law("log_ratios")
def both_ratios_are_zero_at_the_reference(yours):
    """A policy equal to its reference has a = 0 and b = 0."""
    for logps in (first_pair(AT_REFERENCE), AT_REFERENCE):
        yield equal(yours(*logps), (0 * logps[0], 0 * logps[0]))


@law("log_ratios")
def each_ratio_moves_with_its_own_answer(yours):
    """One nat more of log π(y_w) raises a by 1 and leaves b; one more of log π(y_l) raises b by 1 and leaves a."""
    for side, want in ((0, "a by 1, b by 0"), (1, "a by 0, b by 1")):
        moved = first_pair(LOGPS)
        before = yours(*moved)
        moved[side] = moved[side] + 1
        rise = [(y - x).item() for x, y in zip(before, yours(*moved), strict=True)]
        good = all(abs(r - (i == side)) < 1e-9 for i, r in enumerate(rise))
        yield holds(good, f"a rose by {rise[0]:.4g}, b by {rise[1]:.4g}", want)


@law("margin")
def it_is_exactly_zero_at_the_reference(yours):
    """A policy equal to its reference has h = 0, exactly: each policy term loses its own reference first."""
    for logps in (first_pair(AT_REFERENCE), AT_REFERENCE, WORN):
        out = yours(*logps)
        yield holds(out == 0, out, "0, to the bit")


@law("margin")
def swapping_the_answers_turns_its_sign(yours):
    """With y_w and y_l exchanged, h becomes −h."""
    for logps in (first_pair(LOGPS), LOGPS):
        w, r, ref_w, ref_r = logps
        there, back = yours(*logps), yours(r, w, ref_r, ref_w)
        yield equal(back, -there, f"the pair whose h is {shown(there)}, with its answers exchanged")


@law("margin")
def it_rises_with_the_chosen_answer(yours):
    """One nat more of log π(y_w) raises h by 1."""
    before = first_pair(LOGPS)
    rise = (yours(before[0] + 1, *before[1:]) - yours(*before)).item()
    given = "log π(y_w) = -1, then 0; the other three stay"
    yield holds(abs(rise - 1) < 1e-9, f"h rose by {rise:.4g}", "a rise of 1", given)


@law("log_ratios", "margin")
def a_gradient_reaches_the_policy(yours):
    """What is returned depends on the policy's log-probabilities in a way that PyTorch can follow."""
    found = slope(lambda x: yours(x, *LOGPS[1:]), LOGPS[0])
    yield holds(found is not None, "no gradient", UNREACHED)


@law("wins")
def a_win_is_one_and_a_loss_none(yours):
    """1 where ours is higher, 0 where theirs is."""
    yield equal(yours(numbers(2.0), numbers(1.0)), numbers(1.0))
    yield equal(yours(numbers(1.0), numbers(2.0)), numbers(0.0))


@law("wins")
def a_tie_is_half_a_win(yours):
    """A tie counts one half: at step 0 all rewards are 0, and nobody is ahead."""
    yield equal(yours(numbers(1.0), numbers(1.0)), numbers(0.5))
    yield equal(yours(numbers(2.0, 1.0, 0.0), numbers(1.0, 1.0, 0.5)), numbers(1.0, 0.5, 0.0))
