"""exact.py: every completion of a tiny vocabulary, and a real GPT's probability of each."""

import copy
import functools
from itertools import product
from math import log

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dpo_min.exact import count_completions, entropy, enumerate_completions, exact_log_policy, rectangle
from dpo_min.objective import kl_divergence, log_partition, objective, optimal_policy

EOT = 4  # of tiny_gpt, whose vocabulary is 0..4
prompts = st.lists(st.integers(0, 4), min_size=1, max_size=6)
ids = st.integers(0, 4)


@pytest.fixture(scope="module")
def other_gpt(tiny_gpt):
    """A trainable policy beside the reference."""
    model = copy.deepcopy(tiny_gpt).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


# Counting and listing


def test_the_number_of_terms_of_z_worked_by_hand():
    """5 tokens, length 4: 1 + 4 + 16 + 64 that ended, 256 that did not. Kills: V^T, which forgets that y may end."""
    assert count_completions(5, 4) == 341
    assert count_completions(50257, 1) == 50257
    assert count_completions(50257, 2) == 50257 + 50256**2
    assert count_completions(2, 10) == 11
    assert count_completions(1, 3) == 1


@given(st.integers(3, 100_000), st.integers(1, 60))
def test_the_number_of_terms_is_the_geometric_series(V, T):
    assert count_completions(V, T) == ((V - 1) ** (T + 1) - 1) // (V - 2)


@pytest.mark.parametrize(("V", "T"), [(0, 1), (1, 0), (-1, 2), (2, -1)])
def test_counting_refuses_an_empty_vocabulary_or_length(V, T):
    with pytest.raises(ValueError, match=rf"^vocab_size \({V}\) and max_new_tokens \({T}\) must be at least 1$"):
        count_completions(V, T)


@given(st.integers(1, 4), st.integers(1, 5), st.data())
@example(1, 1, None)
def test_the_list_holds_every_completion_once_and_nothing_else(V, T, data):
    """Kills: a length left out, an early end counted twice, tokens after end-of-text."""
    end_of_text = data.draw(st.integers(0, V - 1)) if data else 0
    listed = enumerate_completions(V, end_of_text, T)
    assert len(listed) == len(set(listed)) == count_completions(V, T)
    cut = set()
    for sequence in product(range(V), repeat=T):  # every string of T tokens, cut after its first end-of-text
        end = sequence.index(end_of_text) + 1 if end_of_text in sequence else T
        cut.add(sequence[:end])
    assert set(listed) == cut


def test_the_order_of_the_list():
    """Ended ones first, shortest first; then those that were cut."""
    expected = [(1,), (0, 1), (2, 1), (0, 0), (0, 2), (2, 0), (2, 2)]
    assert enumerate_completions(3, 1, 2) == expected


@pytest.mark.parametrize("end_of_text", [-1, 5])
def test_an_end_of_text_outside_the_vocabulary_is_refused(end_of_text):
    with pytest.raises(ValueError, match=f"^end_of_text must be one of the 5 token ids, got {end_of_text}"):
        enumerate_completions(5, end_of_text, 2)


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_of_zero_is_refused(length):
    with pytest.raises(ValueError, match=f"^max_new_tokens must be at least 1, got {length}"):
        enumerate_completions(5, 4, length)


def test_the_rectangle_scores_the_completion_alone():
    """Kills: the prompt scored, padding scored, end-of-text unscored, a mask off by one."""
    tokens, loss_mask = rectangle([3, 2], [(4,), (0, 1, 4), (0, 0, 0)])
    assert tokens[:, :3].tolist() == [[3, 2, 4], [3, 2, 0], [3, 2, 0]]
    assert tokens[1:, 3:].tolist() == [[1, 4], [0, 0]]
    assert loss_mask.int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert loss_mask.dtype == torch.bool


@pytest.mark.parametrize("prompt", [[], ()])
def test_an_empty_prompt_is_refused(tiny_gpt, prompt):
    """Nothing would predict the first token."""
    with pytest.raises(ValueError, match=r"^the prompt must have at least one token, got none$"):
        exact_log_policy(tiny_gpt, prompt, EOT, 2)


# The probabilities


@settings(max_examples=30)
@given(prompts, st.integers(1, 4), ids)
@example([0], 4, EOT)
@example([4, 4], 1, 0)
def test_the_probabilities_of_all_completions_sum_to_one(tiny_gpt, prompt, length, end_of_text):
    """Kills: a shifted mask, end-of-text unscored, the prompt counted, padding counted, a mean for the sum."""
    log_policy = exact_log_policy(tiny_gpt, prompt, end_of_text, length)
    assert log_policy.shape == (count_completions(5, length),)
    assert log_policy.exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@settings(max_examples=10)
@given(prompts, st.integers(1, 3), ids)
def test_each_probability_is_the_product_over_tokens_one_forward_at_a_time(tiny_gpt, prompt, length, end_of_text):
    """Kills: rows in another order than the list, padding or batching that changes a row."""

    @functools.cache
    def next_token(seen):
        return tiny_gpt.logits(tiny_gpt(torch.tensor([[*prompt, *seen]])))[0, -1].log_softmax(-1).tolist()

    listed = enumerate_completions(5, end_of_text, length)
    naive = [sum(next_token(y[:t])[token] for t, token in enumerate(y)) for y in listed]
    expected = torch.tensor(naive, dtype=torch.float64)
    assert_close(exact_log_policy(tiny_gpt, prompt, end_of_text, length), expected, rtol=0, atol=1e-11)


@settings(max_examples=10)
@given(prompts, st.integers(2, 100))
@example([3], 1)
@example([3], 85)
def test_the_batch_size_does_not_change_the_result(tiny_gpt, prompt, batch_size):
    """85 completions. Kills: a last batch dropped, a batch scored twice, a row scored with another row's mask."""
    whole = exact_log_policy(tiny_gpt, prompt, EOT, 3)
    assert_close(exact_log_policy(tiny_gpt, prompt, EOT, 3, batch_size), whole, rtol=0, atol=1e-12)


def test_the_rows_of_one_forward_are_bounded(tiny_gpt):
    """1365 completions of up to 5 tokens: 1024 and the rest. Kills: one forward for all, whatever it needs."""
    seen = []
    hook = tiny_gpt.register_forward_hook(lambda model, inputs, output: seen.append(tuple(inputs[0].shape)))
    exact_log_policy(tiny_gpt, [3], EOT, 5)
    exact_log_policy(tiny_gpt, [3], EOT, 2, batch_size=8)
    hook.remove()
    assert seen == [(1024, 6), (341, 6), (8, 3), (8, 3), (5, 3)]


def test_a_longer_limit_splits_what_had_been_cut_and_leaves_the_rest(tiny_gpt):
    """An ended completion keeps its probability; a cut one's is shared out among its continuations."""
    short, long = (
        dict(zip(enumerate_completions(5, EOT, T), exact_log_policy(tiny_gpt, [3], EOT, T).exp().tolist(), strict=True))
        for T in (2, 3)
    )
    for completion, p in short.items():
        if completion[-1] == EOT:
            assert long[completion] == pytest.approx(p, abs=1e-14)
        else:
            assert sum(long[(*completion, token)] for token in range(5)) == pytest.approx(p, abs=1e-14)


def test_a_prompt_and_length_beyond_the_block_are_refused(tiny_gpt):
    with pytest.raises(ValueError, match=r"^GPT: 13 tokens exceed block_size 12"):
        exact_log_policy(tiny_gpt, [0] * 11, EOT, 2)


# Entropy, and objective.py over a real model


@pytest.mark.parametrize("length", [1, 2, 4])
def test_the_entropy_of_a_uniform_model(tiny_gpt, length):
    """Σ_t log V · P(not ended before t), P = ((V−1)/V)^t. Kills: the sign, cut completions forgotten."""
    uniform = copy.deepcopy(tiny_gpt)
    uniform.wte.weight.zero_()  # the tied head then scores every token alike
    log_policy = exact_log_policy(uniform, [3], EOT, length)
    assert entropy(log_policy).item() == pytest.approx(log(5) * sum(0.8**t for t in range(length)), abs=1e-12)


def test_entropy_worked_by_hand():
    """Kills: log₂, and NaN for 0 · log 0."""
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([log(2), 1.5 * log(2), 0.0], dtype=torch.float64)
    assert_close(entropy(rows.log()), expected, rtol=0, atol=1e-15)


@settings(max_examples=15)
@given(prompts, st.integers(0, 2**32), st.floats(-3, 3).map(lambda exponent: 10.0**exponent))
def test_the_theorem_holds_between_two_real_models(tiny_gpt, other_gpt, prompt, seed, beta):
    """J(π) = β log Z − β KL(π ‖ π_r) and J(π) ≤ β log Z, π and π_ref two GPTs, the reward arbitrary.

    Kills: the two models' completions in different orders, β told backwards.
    """
    log_ref = exact_log_policy(tiny_gpt, prompt, EOT, 3)
    log_policy = exact_log_policy(other_gpt, prompt, EOT, 3).detach()
    reward = torch.randn(log_ref.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    value = objective(log_policy, log_ref, reward, beta)
    best = beta * log_partition(log_ref, reward, beta)
    kl = kl_divergence(log_policy, optimal_policy(log_ref, reward, beta))
    assert kl > 0
    assert_close(value, best - beta * kl, rtol=1e-11, atol=1e-11)
    assert value <= best + 1e-11 * (1 + beta)


def test_gradients_flow_through_the_enumeration_and_one_step_uphill_raises_the_objective(tiny_gpt):
    """Kills: a no_grad or a detach on the way. The gradient of the whole sum of probabilities is zero."""
    model = copy.deepcopy(tiny_gpt).requires_grad_()
    log_ref = exact_log_policy(tiny_gpt, [3], EOT, 2)
    reward = torch.randn(log_ref.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = list(model.parameters())
    total = exact_log_policy(model, [3], EOT, 2).exp().sum()
    assert max(g.abs().max().item() for g in torch.autograd.grad(total, parameters)) < 1e-12
    before = objective(exact_log_policy(model, [3], EOT, 2, batch_size=4), log_ref, reward, 0.1)
    gradient = torch.autograd.grad(before, parameters)
    squared = sum(g.square().sum().item() for g in gradient)
    assert squared > 1e-4
    step = 1e-6 / squared**0.5
    with torch.no_grad():
        for parameter, g in zip(parameters, gradient, strict=True):
            parameter.add_(step * g)
        after = objective(exact_log_policy(model, [3], EOT, 2), log_ref, reward, 0.1)
    assert (after - before).item() == pytest.approx(step * squared, rel=1e-3)
