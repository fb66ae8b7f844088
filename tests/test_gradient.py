"""gradient.py: the closed form equals autograd at the log-probabilities, at the logits and at every parameter."""

import copy
from math import inf, log, nan

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dpo_min.gradient import dpo_gradient, gradient_weight
from dpo_min.logprob import sequence_logprobs
from dpo_min.losses import LOSSES
from dpo_min.objective import implicit_reward
from dpo_min.preference import bradley_terry, margin

logps = st.floats(-1e4, 0)
betas = st.floats(-3, 3).map(lambda exponent: 10.0**exponent)
completions = st.lists(st.integers(0, 4), min_size=1, max_size=5)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def dpo_loss(h, beta):
    return LOSSES["sigmoid"].value(h, beta)


# The weight and the slope


def test_weight_and_gradient_worked_by_hand():
    """h = log 3, β = 2: σ(−2 log 3) = 1/(1 + 9). Kills: β dropped, squared or on the wrong side of σ."""
    h = tensor(log(3))
    assert_close(gradient_weight(h, 2.0), tensor(0.1), rtol=1e-15, atol=0)
    d_chosen, d_rejected = dpo_gradient(h, 2.0)
    assert_close(d_chosen, tensor(-0.2), rtol=1e-15, atol=0)
    assert_close(d_rejected, tensor(0.2), rtol=1e-15, atol=0)


@given(logps, logps, logps, logps, betas)
def test_the_weight_is_how_wrong_the_implicit_reward_is(w, lose, ref_w, ref_l, beta):
    """σ(−βh) = 1 − P(y_w ≻ y_l) under the implicit reward. Kills: the weight of a pair that is already right."""
    policy, ref = tensor(w, lose), tensor(ref_w, ref_l)
    r_w, r_l = implicit_reward(policy, ref, beta)
    h = margin(policy[:1], policy[1:], ref[:1], ref[1:])
    wrong = 1 - bradley_terry(r_w, r_l)
    assert_close(gradient_weight(h, beta)[0], wrong, rtol=0, atol=1e-15 * (1 + beta * 4e4))


@given(st.lists(st.floats(-2e4, 2e4), min_size=1, max_size=5), betas)
@example([0.0, 1e4, -1e4], 1.0)
def test_the_two_halves_are_opposite_and_the_slope_of_the_loss_table(h, beta):
    """ℓ′(h) is written twice, here and in LOSSES, and is one number. Kills: either alone being changed."""
    h = tensor(*h)
    d_chosen, d_rejected = dpo_gradient(h, beta)
    assert torch.equal(d_chosen, -d_rejected)
    assert_close(d_chosen, LOSSES["sigmoid"].slope(h, beta), rtol=1e-12, atol=0)
    assert ((-beta <= d_chosen) & (d_chosen <= 0)).all()


@given(betas)
def test_the_slope_at_step_zero_is_minus_half_beta_though_the_loss_is_log_two(beta):
    """Kills: "the loss is log 2, so there is no gradient"."""
    h = margin(*[tensor(-3.0, -5.0)] * 4)
    assert dpo_loss(h, beta).tolist() == [log(2)] * 2
    assert dpo_gradient(h, beta)[0].tolist() == [-beta / 2] * 2


@pytest.mark.parametrize("beta", [0.0, -0.1, inf, -inf, nan])
@pytest.mark.parametrize("function", [gradient_weight, dpo_gradient])
def test_beta_that_is_not_positive_and_finite_is_refused(function, beta):
    with pytest.raises(ValueError, match=f"^beta must be a positive number, got {beta}$"):
        function(torch.zeros(1), beta)


# The chain rule, one step further each time


@given(st.lists(st.tuples(logps, logps, logps, logps), min_size=1, max_size=4), betas)
def test_the_closed_form_is_autograd_at_the_two_log_probabilities(rows, beta):
    """∂L/∂log π(y_w) = −β σ(−βh) = −∂L/∂log π(y_l). Kills: a sign, chosen and rejected swapped, β dropped."""
    w, lose, ref_w, ref_l = (tensor(*column) for column in zip(*rows, strict=True))
    h = margin(w.requires_grad_(), lose.requires_grad_(), ref_w, ref_l)
    autograd = torch.autograd.grad(dpo_loss(h, beta).sum(), (w, lose))
    for closed, derivative in zip(dpo_gradient(h.detach(), beta), autograd, strict=True):
        assert_close(closed, derivative, rtol=1e-12, atol=1e-300)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=6), st.data(), betas)
def test_at_the_logits_of_one_choice_only_the_two_answers_are_pushed(z, data, beta):
    """Each side gives e_y − softmax, the softmax cancels, ℓ′(h)·(e_w − e_l) is left. Kills: the gradient's sign."""
    w, lose = (data.draw(st.integers(0, len(z) - 1)) for _ in "wl")
    ref_w, ref_l = tensor(data.draw(st.floats(-20, 0))), tensor(data.draw(st.floats(-20, 0)))
    z = tensor(*z).requires_grad_()
    log_policy = z.log_softmax(-1)
    h = margin(log_policy[w][None], log_policy[lose][None], ref_w, ref_l)
    (autograd,) = torch.autograd.grad(dpo_loss(h, beta).sum(), z)
    d_chosen, d_rejected = dpo_gradient(h.detach(), beta)
    e = torch.eye(len(z), dtype=torch.float64)
    softmax = z.detach().softmax(-1)
    assert_close(autograd, d_chosen * (e[w] - softmax) + d_rejected * (e[lose] - softmax), rtol=0, atol=1e-12 * beta)
    assert_close(autograd, d_chosen * (e[w] - e[lose]), rtol=0, atol=1e-12 * beta)


def as_row(prompt, completion):
    """Tokens (1, T) and loss_mask (1, T) of one prompt with one completion."""
    tokens = torch.tensor([[*prompt, *completion]])
    return tokens, torch.arange(tokens.shape[1])[None] >= len(prompt)


def sequence_logp(model, prompt, completion):
    """log π(y|x), (1,), along the project's own path."""
    tokens, loss_mask = as_row(prompt, completion)
    return sequence_logprobs(model.logits(model(tokens)), tokens, loss_mask)


@settings(max_examples=50)
@given(st.integers(0, 2**32), completions, completions, betas)
def test_at_every_logit_of_a_sequence_the_push_is_one_hot_less_softmax(seed, chosen, rejected, beta):
    """ℓ′(h)·(e_y − softmax) where a token is scored, 0 elsewhere. Kills: a shifted label, a prompt that is scored."""
    generator = torch.Generator().manual_seed(seed)
    rows = [as_row([1, 2], y) for y in (chosen, rejected)]
    logits = [torch.randn(*tokens.shape, 5, generator=generator, dtype=torch.float64) for tokens, _ in rows]
    logits = [z.requires_grad_() for z in logits]
    w, lose = (sequence_logprobs(z, *row) for z, row in zip(logits, rows, strict=True))
    h = margin(w, lose, tensor(-1.0), tensor(-2.0))
    autograd = torch.autograd.grad(dpo_loss(h, beta).sum(), logits)
    for d, z, (tokens, _), derivative in zip(dpo_gradient(h.detach(), beta), logits, rows, autograd, strict=True):
        expected = torch.zeros_like(z)
        for t in range(2, tokens.shape[1]):  # two prompt tokens; the logits at t − 1 predict the token at t
            expected[0, t - 1] = d * (torch.eye(5)[tokens[0, t]] - z[0, t - 1].detach().softmax(-1))
        assert_close(derivative, expected, rtol=0, atol=1e-12 * beta)


@pytest.fixture(scope="module")
def policy(tiny_gpt):
    """A trainable copy of the reference that has already moved, so that h ≠ 0."""
    model = copy.deepcopy(tiny_gpt).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def gradient_of(scalar, model):
    """∇_θ scalar: a backward pass of its own, one tensor per parameter."""
    model.zero_grad()
    scalar.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@settings(max_examples=12)
@given(
    prompt=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    chosen=completions,
    rejected=completions,
    beta=st.floats(-3, 1).map(lambda exponent: 10.0**exponent),
)
@example(prompt=[3], chosen=[0, 4], rejected=[1, 2, 4], beta=0.1)
def test_at_every_parameter_of_a_gpt_loss_backward_is_the_closed_form(policy, tiny_gpt, prompt, chosen, rejected, beta):
    """∇L = −β σ(−βh) [∇ log π(y_w) − ∇ log π(y_l)], the right side from two separate backward passes.

    Kills: a reference that receives gradients, one side detached, the weight of the other pair.
    """
    reference = [sequence_logp(tiny_gpt, prompt, y) for y in (chosen, rejected)]
    h = margin(*(sequence_logp(policy, prompt, y) for y in (chosen, rejected)), *reference)
    whole = gradient_of(dpo_loss(h, beta).sum(), policy)
    grad_w = gradient_of(sequence_logp(policy, prompt, chosen).sum(), policy)
    grad_l = gradient_of(sequence_logp(policy, prompt, rejected).sum(), policy)
    slope = -beta * gradient_weight(h.detach(), beta)
    assert any(g.abs().max() > 0 for g in grad_w)
    for of_loss, of_w, of_l in zip(whole, grad_w, grad_l, strict=True):
        assert_close(of_loss, slope * (of_w - of_l), rtol=0, atol=1e-10)


def test_at_every_parameter_the_mean_over_a_batch_weighs_each_pair_by_its_own_error(policy, tiny_gpt):
    """Two backward passes for the whole batch: Σ d_chosen·log π(y_w) and Σ d_rejected·log π(y_l), over B.

    Kills: one weight for all pairs, chosen and rejected swapped, a sum for the mean.
    """
    beta, prompt = 0.5, [3, 0]
    pairs = [([0, 4], [1, 1, 4]), ([2, 2, 2, 4], [4]), ([1, 4], [0, 3, 4])]

    def logprobs(model, side):
        return torch.cat([sequence_logp(model, prompt, pair[side]) for pair in pairs])

    h = margin(logprobs(policy, 0), logprobs(policy, 1), logprobs(tiny_gpt, 0), logprobs(tiny_gpt, 1))
    d_chosen, d_rejected = dpo_gradient(h.detach(), beta)
    assert d_chosen.unique().numel() == 3
    whole = gradient_of(dpo_loss(h, beta).mean(), policy)
    from_chosen = gradient_of((d_chosen * logprobs(policy, 0)).sum() / 3, policy)
    from_rejected = gradient_of((d_rejected * logprobs(policy, 1)).sum() / 3, policy)
    for of_loss, a, b in zip(whole, from_chosen, from_rejected, strict=True):
        assert_close(of_loss, a + b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_the_first_step_has_loss_log_two_and_a_gradient_that_raises_the_margin(tiny_gpt, beta):
    """Kills: "no gradient at log 2", and a step that goes uphill."""
    model = copy.deepcopy(tiny_gpt).requires_grad_()
    prompt, chosen, rejected = [3], [0, 4], [1, 4]
    reference = [sequence_logp(tiny_gpt, prompt, y) for y in (chosen, rejected)]

    def loss_and_margin():
        h = margin(*(sequence_logp(model, prompt, y) for y in (chosen, rejected)), *reference)
        return dpo_loss(h, beta).sum(), h.item()

    loss, h = loss_and_margin()
    assert h == 0.0
    assert loss.item() == log(2)
    gradient = gradient_of(loss, model)
    squared = sum(g.square().sum().item() for g in gradient)
    assert squared > 1e-8
    step = 1e-7 / squared**0.5
    with torch.no_grad():
        for parameter, g in zip(model.parameters(), gradient, strict=True):
            parameter.sub_(step * g)
    later, h = loss_and_margin()
    assert h > 0.0
    assert later.item() - log(2) == pytest.approx(-step * squared, rel=1e-3)
