"""The distribution of the next token, each processor against its definition, and the draw from it."""

import math
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dpo_min.decode import sampling
from dpo_min.decode.sampling import Sampling, draw_tokens, forbid, next_token_probs, penalize_repetition, row_uniforms


def rows(elements):
    """Logits (B, V) in float32."""
    shapes = st.tuples(st.integers(1, 3), st.integers(1, 8))
    return shapes.flatmap(
        lambda s: st.lists(st.lists(elements, min_size=s[1], max_size=s[1]), min_size=s[0], max_size=s[0])
    ).map(torch.tensor)


any_logits = rows(st.floats(-1e4, 1e4, width=32))
tied_logits = rows(st.integers(-12, 12).map(lambda n: n / 4))  # many ties, and no probability that underflows
temperatures = st.floats(0, 100) | st.sampled_from([0.0, 5e-324, 1e-40, 1e-30, 1.0])
shares = st.floats(0, 1, exclude_min=True)


def order(row):
    """Ids from the most to the least likely, ties by id."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


@given(any_logits, temperatures, st.none() | st.integers(1, 10), shares)
@example(torch.tensor([[1e4, -1e4]]), 1e-40, None, 1.0)
@example(torch.tensor([[0.0, 0.0]]), 1e-46, 1, 1e-9)
def test_next_token_probs_are_a_distribution_in_the_order_of_the_logits(logits, temperature, top_k, top_p):
    """Kills: truncation without renormalising; an infinite logit where the temperature is small."""
    probs = next_token_probs(logits, temperature, top_k, top_p)
    assert probs.dtype == torch.float32
    assert (probs >= 0).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(logits)), rtol=0, atol=1e-6)
    whole = next_token_probs(logits, temperature)
    for row, p, q in zip(logits.tolist(), whole.tolist(), probs.tolist(), strict=True):
        assert all(p[b] <= p[a] * (1 + 1e-6) for a, b in pairwise(order(row)))
        kept = [q[i] for i in order(p)]
        assert kept == sorted(q, reverse=True)
        assert kept[0] > 0


@given(any_logits, st.floats(0.5, 10))
@example(torch.tensor([[0.0, math.log(2), math.log(5)]]), 1.0)
def test_temperature_divides_the_logits(logits, temperature):
    """Kills: probabilities, or logits, multiplied by the temperature."""
    expected = (logits.double() / temperature).softmax(-1).float()
    torch.testing.assert_close(next_token_probs(logits, temperature), expected, rtol=1e-3, atol=1e-6)


@given(tied_logits | any_logits, st.none() | st.integers(1, 10), shares)
@example(torch.tensor([[1.0, 2.0, 2.0]]), None, 1.0)
def test_temperature_zero_is_the_first_most_likely_token(logits, top_k, top_p):
    """Kills: a tie shared out, or given to the last."""
    expected = torch.zeros_like(logits)
    for i, row in enumerate(logits.tolist()):
        expected[i, order(row)[0]] = 1
    assert torch.equal(next_token_probs(logits, 0, top_k, top_p), expected)


@given(tied_logits, st.integers(1, 10))
@example(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), 2)
@example(torch.tensor([[0.0, 1.0, 1.0, 2.0]]), 2)
def test_top_k_keeps_exactly_k_tokens_ties_to_the_lower_id(logits, k):
    """Kills: `probs >= kth largest`, which keeps every tie; an unstable sort."""
    whole, kept = next_token_probs(logits), next_token_probs(logits, top_k=k)
    for p, q in zip(whole.tolist(), kept.tolist(), strict=True):
        best = order(p)[:k]
        assert {i for i, x in enumerate(q) if x > 0} == set(best)
        total = math.fsum(p[i] for i in best)
        assert q == pytest.approx([x / total if i in best else 0 for i, x in enumerate(p)], rel=1e-5)


@given(tied_logits, shares)
@example(torch.zeros(1, 4), 0.5)
@example(torch.zeros(1, 4), 0.51)
@example(torch.tensor([[0.0, 3.0]]), 1e-9)
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, share):
    """Kills: a set that stops before it reaches p, or that takes one token more; an empty set."""
    whole, kept = next_token_probs(logits), next_token_probs(logits, top_p=share)
    for p, q in zip(whole.tolist(), kept.tolist(), strict=True):
        size = sum(x > 0 for x in q)
        best = order(p)[:size]
        assert {i for i, x in enumerate(q) if x > 0} == set(best)
        total = math.fsum(p[i] for i in best)
        assert total > share - 1e-6
        assert size == 1 or total - p[best[-1]] < share + 1e-6
        assert q == pytest.approx([x / total if i in best else 0 for i, x in enumerate(p)], rel=1e-5)


@pytest.mark.parametrize(("share", "size"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4), (1.0, 4)])
def test_top_p_of_four_equal_tokens(share, size):
    """Kills: `>` where `>=` is meant; a quarter is exact in binary."""
    expected = [[1 / size] * size + [0] * (4 - size)]
    torch.testing.assert_close(next_token_probs(torch.zeros(1, 4), top_p=share), torch.tensor(expected))


def test_top_p_counts_the_probabilities_that_top_k_left():
    """Kills: the nucleus measured before top-k has renormalised: 0.4 < 0.5 ≤ 4/7."""
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    assert torch.equal(next_token_probs(logits, top_k=2, top_p=0.5), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


@given(tied_logits, st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), temperatures)
def test_next_token_probs_leave_the_logits_as_they_are(logits, dtype, temperature):
    """Kills: `logits /= temperature`; `logits[...] = -inf`."""
    logits = logits.to(dtype)
    before = logits.clone()
    next_token_probs(logits, temperature, top_k=1, top_p=0.5)
    assert torch.equal(logits, before)


# ---- all of it, written out ----


def plain(logits, temperature, top_k, top_p, min_p, penalty, seen, forbidden):
    """One row's distribution, in float64, from the definitions: lists, sorted and summed."""
    logits = [x if i not in seen else x / penalty if x > 0 else x * penalty for i, x in enumerate(logits)]
    weights = [0 if i == forbidden else math.exp(x / temperature) for i, x in enumerate(logits)]
    best = [i for i in order(weights) if weights[i] > 0][:top_k]
    total, reached, nucleus = sum(weights[i] for i in best), 0.0, []
    for i in best:
        assume(abs(reached - top_p) > 1e-5)  # where rounding decides
        if reached < top_p:
            nucleus.append(i)
        reached += weights[i] / total
    ratios = {i: weights[i] / weights[nucleus[0]] for i in nucleus}
    assume(all(abs(ratio - min_p) > 1e-5 or min_p == 1 for ratio in ratios.values()))
    kept = [i for i in nucleus if ratios[i] >= min_p * (1 - 1e-9)]
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


@given(
    tied_logits,
    st.sampled_from([0.5, 1.0, 2.0]),
    st.none() | st.integers(1, 9),
    shares,
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.sampled_from([1.0, 2.0, 0.5]),
    st.data(),
)
def test_the_distribution_is_its_definition(logits, temperature, top_k, top_p, min_p, penalty, data):
    """Kills: a processor left out, or in another place: top-p before temperature, top-k before a token is forbidden;
    min-p against another than the likeliest token; a penalty that favours a negative logit.
    """
    B, V = logits.shape
    seen = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=V, max_size=V), min_size=B, max_size=B)))
    forbidden = data.draw(st.none() | st.integers(0, V - 1)) if V > 1 else None
    ours = next_token_probs(logits, temperature, top_k, top_p, min_p, penalty, seen, forbidden)
    for row, mask, probs in zip(logits.tolist(), seen, ours.tolist(), strict=True):
        used = mask.nonzero()[:, 0].tolist()
        expected = plain(row, temperature, top_k, top_p, min_p, penalty, used, forbidden)
        assert probs == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_repetition_penalty_worked_by_hand():
    """Kills: a negative logit divided, which would make the token likelier; a penalty on every token."""
    logits = torch.tensor([[2.0, -2.0, 3.0, -3.0, 0.0]])
    seen = torch.tensor([[True, True, False, False, True]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 3.0, -3.0, 0.0]]


@given(st.integers(1, 4), st.integers(1, 3))
def test_a_forbidden_token_has_no_probability_unless_it_is_the_only_one(V, B):
    """Kills: a distribution that is not a number; logits changed in place."""
    logits = torch.zeros(B, V)
    probs = forbid(logits, V - 1).softmax(-1)
    assert torch.equal(logits, torch.zeros(B, V))
    assert probs[0].tolist() == pytest.approx([1 / (V - 1)] * (V - 1) + [0.0] if V > 1 else [1.0])


@pytest.mark.parametrize("p", [0.5, 0.99, 1 - 1e-6])
def test_a_nucleus_is_the_same_whether_the_first_tokens_suffice_or_all_are_sorted(p):
    """Kills: a nucleus cut off at the number of tokens that are sorted first; a row that another row's sort decides."""
    V = 3 * sampling.FIRST
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(0)) * torch.tensor([[0.1], [1.0], [9.0]])
    together = next_token_probs(logits, top_p=p)
    for row, ours in zip(logits, together, strict=True):
        probs = row.softmax(-1)
        ordered, ids = probs.sort(descending=True, stable=True)
        count = int((ordered.double().cumsum(0) - ordered < p).sum())
        assert (ours > 0).sum() == pytest.approx(count, abs=1)  # float32 and float64 may part at the last one
        assert set(ours.nonzero()[:, 0].tolist()) <= set(ids[: count + 1].tolist())


# ---- the draw ----


@given(tied_logits, st.floats(0, 1, exclude_max=True), st.integers(1, 8))
@example(torch.zeros(1, 4), 1 - 2**-53, 2)
@example(torch.zeros(1, 4), 0.0, 2)
@example(torch.tensor([[0.0, 9.0]]), 0.0, 1)
def test_the_drawn_token_is_the_one_whose_share_of_the_unit_interval_holds_the_number(logits, u, k):
    """Kills: `>=` for `>`, by which 0 would draw an impossible first token; a number that falls off the end."""
    probs = next_token_probs(logits, top_k=k)
    for p, token in zip(
        probs.tolist(), draw_tokens(probs, torch.full((len(probs),), u, dtype=torch.float64)), strict=True
    ):
        before = math.fsum(p[:token]) / math.fsum(p)
        assert p[token] > 0
        assert before - 1e-9 <= u < before + p[token] / math.fsum(p) + 1e-9


prompts_of_any_kind = st.lists(st.lists(st.integers(0, 2), max_size=3), min_size=1, max_size=6)


@given(prompts_of_any_kind, st.integers(1, 9), st.integers(0, 99), st.randoms())
@example([[0], [0], [1], [0]], 3, 0, Random(0))
def test_a_rows_numbers_are_its_own(prompts, count, seed, random):
    """Kills: numbers by place in the batch; equal prompts with equal numbers; numbers that depend on their count."""

    def numbers(prompts, count=count):
        return row_uniforms(prompts, count, torch.Generator().manual_seed(seed)).tolist()

    ours, places = numbers(prompts), list(range(len(prompts)))
    assert len(set(map(tuple, ours))) == len(prompts)
    assert numbers(prompts, 12) == [[*row, *more[count:]] for row, more in zip(ours, numbers(prompts, 12), strict=True)]
    random.shuffle(places)
    shuffled, copies = numbers([prompts[i] for i in places]), {}
    for i, row in zip(places, shuffled, strict=True):
        copies.setdefault(tuple(prompts[i]), []).append(row)
    assert [copies[tuple(prompt)].pop(0) for prompt in prompts] == ours  # the nth of equal prompts, wherever it is
    assert numbers(prompts[:1]) == ours[:1]


def test_the_numbers_are_uniform_and_new_each_time():
    """Kills: a generator that is not advanced; bits cut off, so that the numbers crowd below ½. χ² over 20 bins."""
    generator = torch.Generator().manual_seed(0)
    first, second = (row_uniforms([[1, 2]] * 500, 20, generator) for _ in range(2))
    assert not (first == second).any()
    for numbers in (first, second, first.T.reshape(500, 20)):
        assert numbers.min() >= 0 and numbers.max() < 1
        counts = numbers.flatten().mul(20).long().bincount(minlength=20).double()
        assert ((counts - 500) ** 2 / 500).sum() < 60  # with 19 degrees of freedom, exceeded once in 250,000


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -1.0}, "temperature must be a number from 0 up, got -1.0"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"length_range": (0, 3)}, "length_range"),
        ({"length_range": (4, 3)}, "length_range"),
    ],
)
def test_settings_out_of_range_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        Sampling(**settings)


def test_lengths_that_do_not_fit_into_each_other_are_named():
    """Kills: `>=` for `>`."""
    Sampling(length_range=(2, 5), min_new_tokens=2).check_limit(5)
    with pytest.raises(ValueError, match="length_range"):
        Sampling(length_range=(2, 6)).check_limit(5)
    with pytest.raises(ValueError, match="min_new_tokens"):
        Sampling(length_range=(2, 5), min_new_tokens=3).check_limit(5)
    with pytest.raises(ValueError, match="min_new_tokens"):
        Sampling(min_new_tokens=6).check_limit(5)
