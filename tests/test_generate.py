"""Sampling: the distribution without randomness first, then the draws, each against a plain model without a cache."""

import copy
import math
from collections import Counter
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.generate import generate, next_token_probs, stream

END, BLOCK_SIZE = 4, 12  # of tiny_gpt
texts = partial(st.lists, st.integers(0, END))
batches = st.lists(texts(max_size=BLOCK_SIZE - 1), min_size=1, max_size=4)


def ids_of(*arguments, **sampling):
    """The ids of each completion that `generate` draws."""
    return [completion.ids for completion in generate(*arguments, **sampling)]


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


# ---- the distribution ----


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


# ---- the draws ----


def plain_probs(model, tokens, **sampling):
    """The distribution of the token after `tokens`, by a full forward; empty tokens start from end-of-text."""
    return next_token_probs(model.logits(model(torch.tensor([tokens or [END]]))[:, -1]), **sampling)[0]


def plain_greedy(model, prompt, max_new_tokens):
    """The most likely token, again and again, each from a full forward over all that came before."""
    text, completion = prompt or [END], []
    while len(completion) < max_new_tokens and len(text + completion) < BLOCK_SIZE and completion[-1:] != [END]:
        completion.append(plain_probs(model, text + completion).argmax().item())
    return completion


@given(batches, st.integers(0, 14))
@example([[], [0], [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]], 14)
@example([[0] * 6, [0] * 8], 1)
def test_greedy_decoding_is_the_argmax_of_full_forwards_for_every_prompt_of_the_batch(tiny_gpt, prompts, length):
    """Kills: a cache whose slots are off by one; the logits of a shorter prompt taken from its padding."""
    ours = ids_of(tiny_gpt, prompts, END, length, temperature=0)
    assert ours == [plain_greedy(tiny_gpt, prompt, length) for prompt in prompts]


@given(batches, st.integers(0, 14), st.integers(0, 99))
@example([[0] * 11], 14, 0)
def test_a_completion_ends_at_end_of_text_at_the_limit_or_where_the_positions_do(tiny_gpt, prompts, length, seed):
    """Kills: text after end-of-text; a block_size missed by one; prompts changed in place."""
    before = copy.deepcopy(prompts)
    completions = ids_of(tiny_gpt, prompts, END, length, torch.Generator().manual_seed(seed), temperature=2.0)
    assert prompts == before
    assert len(completions) == len(prompts)
    for prompt, completion in zip(prompts, completions, strict=True):
        limit = min(length, BLOCK_SIZE - max(len(prompt), 1))
        assert END not in completion[:-1]
        assert len(completion) == limit or (len(completion) < limit and completion[-1] == END)
        assert all(token in range(5) for token in completion)


@given(batches, st.integers(1, 14), st.integers(0, 99))
def test_the_stream_is_the_completions_step_by_step(tiny_gpt, prompts, length, seed):
    """Kills: a step yielded after the last row has ended; a row that grows after its end."""
    steps = stream(tiny_gpt, prompts, END, length, torch.Generator().manual_seed(seed))
    grown = [[[*completion.ids] for completion in step] for step in steps]
    completions = ids_of(tiny_gpt, prompts, END, length, torch.Generator().manual_seed(seed))
    assert len(grown) == max(map(len, completions))
    for t, step in enumerate(grown):
        assert step == [ids[: t + 1] for ids in completions]


@given(texts(max_size=11), st.integers(0, 2**32 - 1))
def test_the_same_seed_draws_the_same_text(tiny_gpt, prompt, seed):
    """Kills: a draw from the global source."""
    texts = [ids_of(tiny_gpt, [prompt] * 3, END, 9, torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert texts[0] == texts[1]


def test_another_seed_draws_another_text(tiny_gpt):
    """Kills: a generator that is made but not passed on, or rows that share one draw."""
    drawn = [ids_of(tiny_gpt, [[0, 1]] * 8, END, 9, torch.Generator().manual_seed(seed)) for seed in range(2)]
    assert drawn[0] != drawn[1]
    assert len(set(map(tuple, drawn[0]))) > 1


@given(st.integers(0, 99))
def test_an_empty_prompt_starts_from_end_of_text(tiny_gpt, seed):
    """Kills: an empty row given to the model; a start from token 0."""
    empty, explicit = (
        ids_of(tiny_gpt, [[0, 1], prompt], END, 9, torch.Generator().manual_seed(seed)) for prompt in ([], [END])
    )
    assert empty == explicit


@pytest.mark.parametrize("size", [BLOCK_SIZE, BLOCK_SIZE + 1])
def test_a_prompt_that_leaves_no_room_is_refused(tiny_gpt, size):
    assert len(ids_of(tiny_gpt, [[0] * (BLOCK_SIZE - 1)], END, 9)[0]) == 1
    with pytest.raises(ValueError, match=f"a prompt of {size} tokens leaves no room in the model's 12 positions"):
        ids_of(tiny_gpt, [[0], [0] * size], END, 9)


SAMPLING = [{}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 3}, {"top_p": 0.8}]


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
@pytest.mark.parametrize("prompt", [[0, 1], []])
def test_texts_are_drawn_as_often_as_they_are_likely(tiny_gpt, sampling, prompt):
    """Kills: a draw from the logits; the first token's distribution for the second. χ² over all texts of two tokens."""
    n = 5000
    # Prompts of two lengths are drawn together, so that half of the rows have padding to overcome.
    drawn = ids_of(tiny_gpt, [prompt, [3, 2, 1]] * n, END, 2, torch.Generator().manual_seed(0), **sampling)[::2]
    counts = Counter(map(tuple, drawn))
    first = plain_probs(tiny_gpt, prompt, **sampling).tolist()
    exact = {(END,): first[END]}
    for i, j in product(range(END), range(5)):
        exact[i, j] = first[i] * plain_probs(tiny_gpt, [*(prompt or [END]), i], **sampling)[j].item()
    assert math.fsum(exact.values()) == pytest.approx(1, abs=1e-5)
    assert all(exact[text] > 0 for text in counts)
    statistic = sum((counts[text] - n * p) ** 2 / max(n * p, 5) for text, p in exact.items())
    assert statistic < 70  # with 20 degrees of freedom, exceeded once in 5 million


@settings(max_examples=30)
@given(batches, st.integers(1, 9))
def test_under_autocast_greedy_decoding_picks_a_token_that_is_about_the_most_likely(tiny_gpt, prompts, length):
    """Kills: a cache kept in another dtype than the queries."""
    model = copy.deepcopy(tiny_gpt).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        completions = ids_of(model, prompts, END, length, temperature=0)
    for prompt, completion in zip(prompts, completions, strict=True):
        for t, token in enumerate(completion):
            logps = plain_probs(tiny_gpt, (prompt or [END]) + completion[:t]).log()
            assert logps[token] > logps.max() - 0.3
