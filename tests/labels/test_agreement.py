"""The noise of labels: what agreement says of ε, and which ε is advised."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.judge.intervals import wilson_interval
from dpo_min.labels.agreement import count_choices, noise_rate, report


@given(st.floats(0, 0.5))
@example(0.0)
@example(0.5)
def test_the_noise_rate_undoes_the_agreement_of_two_noisy_labels(epsilon):
    """Kills: ε read off as the rate of disagreement, which counts both of the two labels' mistakes."""
    agreement = (1 - epsilon) ** 2 + epsilon**2
    assert noise_rate(agreement) == pytest.approx(epsilon, abs=1e-7)


def state(*choices):
    """What `settle` makes of pairs with one choice, "A", or two, "AB"."""
    return {f"{i}:{k}": {"choice": c} for i, both in enumerate(choices) for k, c in enumerate(both)}


def test_what_is_counted_by_a_worked_example():
    """The same verdict is A then B, since the sides are swapped. Kills: A then A taken for agreement."""
    counts = count_choices(state("AB", "AB", "BA", "AA", "==", "=A", "A", "S", "AS"))
    assert (counts["A"], counts["B"], counts["="], counts["S"]) == (5, 1, 2, 1)
    assert (counts["twice"], counts["same"]) == (6, 4)
    assert (counts["twice decided"], counts["same decided"]) == (4, 3)
    assert (counts["left"], counts["right"]) == (8, 3)


def test_the_report_has_intervals_and_one_number_to_train_with():
    lines = report(count_choices(state(*["AB"] * 41, *["AA"] * 9, *["B"] * 10)))
    low, high = wilson_interval(41, 50)
    assert f"41 of 50: 0.820 [{low:.3f}, {high:.3f}]" in lines[2]
    (number,) = re.findall(r"--label-smoothing (\S+)\.$", lines[3])  # fifty pairs are not few
    assert float(number) == pytest.approx(noise_rate(0.82), abs=1e-3)
    assert f"[{noise_rate(high):.3f}, {noise_rate(low):.3f}]" in lines[3]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ([], "nothing is known of the noise"),
        (["A", "B"], "nothing is known of the noise"),
        (["=="], "nothing is known of ε"),
        (["AB"] * 20, "use --loss-type sigmoid"),
        (["AB"] * 3, "These are few"),
        (["AA"] * 20, "no better than chance"),
        (["AA"] * 20, "The side decides"),
    ],
)
def test_no_number_is_advised_where_there_is_none(choices, words):
    found = " ".join(report(count_choices(state(*choices))))
    assert words in found and "--label-smoothing" not in found
