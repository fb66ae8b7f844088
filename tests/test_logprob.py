"""log π(y|x): against a loop over tokens, the whole of probability, and whatever surrounds the completion."""

import copy
import inspect
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.exact import enumerate_completions, rectangle
from dpo_min.logprob import sequence_logprobs, slice_width, token_logprobs
from dpo_min.preference import margin

END = 4  # end-of-text of tiny_gpt
ids = st.integers(0, END)


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def texts(min_size=1, max_size=5):
    return st.lists(ids, min_size=min_size, max_size=max_size)


pairs = st.builds(TokenizedPair, texts(), texts(), texts())


def naive(logits, tokens, loss_mask, reduce="sum"):
    """The definition, one token at a time in Python's own floats."""
    results = []
    for row, ids, scored in zip(logits.tolist(), tokens.tolist(), loss_mask.tolist(), strict=True):
        terms = []
        for t in range(1, len(ids)):
            if scored[t]:
                top = max(row[t - 1])
                log_z = top + math.log(math.fsum(math.exp(x - top) for x in row[t - 1]))
                terms.append(row[t - 1][ids[t]] - log_z)
        results.append(math.fsum(terms) / (len(terms) if reduce == "mean" else 1))
    return torch.tensor(results, dtype=torch.float64)


@st.composite
def scored_logits(draw, min_scored=0):
    """(logits, tokens, loss_mask) of any small shape and any scale, in float64."""
    B, T, V = draw(st.tuples(st.integers(0, 3), st.integers(1 + min_scored, 6), st.integers(1, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1.0, 30.0, 1000.0]))
    logits = scale * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    tokens = torch.randint(V, (B, T), generator=generator)
    masks = st.lists(st.booleans(), min_size=T - 1, max_size=T - 1).filter(lambda m: sum(m) >= min_scored)
    mask = [[False, *draw(masks)] for _ in range(B)]
    return logits, tokens, torch.tensor(mask, dtype=torch.bool).reshape(B, T)


# ---- the definition ----


@given(scored_logits())
def test_the_sum_is_the_loop_over_tokens(arguments):
    """Kills: logits at t scoring the token at t; the mask shifted while the targets are not."""
    assert_same(sequence_logprobs(*arguments), naive(*arguments))


@given(scored_logits(min_scored=1))
def test_the_mean_is_the_sum_over_the_number_of_scored_tokens(arguments):
    """Kills: a mean over the whole row, padding included."""
    mean = sequence_logprobs(*arguments, reduce="mean")
    assert_same(mean, naive(*arguments, reduce="mean"))
    assert_same(mean, sequence_logprobs(*arguments) / arguments[2].sum(-1))


@given(scored_logits(min_scored=1), st.sampled_from(["sum", "mean"]))
def test_inputs_stay_as_they_are_and_a_second_call_agrees(arguments, reduce):
    """Kills: `tokens[~mask] = 0` and `per_token[~mask] = 0` in place."""
    before = [x.clone() for x in arguments]
    first = sequence_logprobs(*arguments, reduce)
    assert torch.equal(first, sequence_logprobs(*arguments, reduce))
    assert all(map(torch.equal, arguments, before))


# ---- the whole of probability ----


def total_probability(model, prompt, length, gather):
    """Σ_y exp(gather) over every completion y, each followed by at least one token of padding."""
    ys = [list(y) for y in [*enumerate_completions(5, END, length), [0] * (length + 1)]]
    tokens, loss_mask = (x[:-1] for x in rectangle(prompt, ys))  # the last row was there to make room for the padding
    return gather(model.logits(model(tokens)), tokens, loss_mask).exp().sum().item()


@settings(max_examples=30)
@given(texts(1, 8), st.integers(1, 3))
@example([0, 1], 4)
@example([END], 4)
def test_the_probabilities_of_all_completions_sum_to_one(tiny_gpt, prompt, length):
    """Kills: every gatherer of the next test."""
    assert total_probability(tiny_gpt, prompt, length, sequence_logprobs) == pytest.approx(1, rel=0, abs=1e-10)


def prompt_too(loss_mask):
    """The mask with every position before a scored one, except position 0, which nothing predicts."""
    mask = loss_mask.flip(-1).cumsum(-1).flip(-1) > 0
    mask[:, 0] = False
    return mask


WRONG = {
    "mask shifted": lambda logits, tokens, mask: sequence_logprobs(logits, tokens, mask.roll(1, -1)),
    "token mean": lambda logits, tokens, mask: sequence_logprobs(logits, tokens, mask, reduce="mean"),
    "end-of-text unscored": lambda logits, tokens, mask: sequence_logprobs(logits, tokens, mask & (tokens != END)),
    "prompt counted": lambda logits, tokens, mask: sequence_logprobs(logits, tokens, prompt_too(mask)),
    "one pad counted": lambda logits, tokens, mask: sequence_logprobs(logits, tokens, mask | mask.roll(1, -1)),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_probabilities_of_a_wrong_gatherer_do_not_sum_to_one(tiny_gpt, name):
    assert abs(total_probability(tiny_gpt, [0, 1], 4, WRONG[name]) - 1) > 0.01


# ---- what surrounds a completion ----


@given(pairs, texts(0, 3))
@example(TokenizedPair([0], [1, END], [2, END]), [END])
def test_padding_changes_neither_the_log_probability_nor_the_gradient(tiny_gpt, pair, padding):
    """Kills: masks made as `ids != pad`, which lose the real end-of-text or score the padding."""
    model, results = copy.deepcopy(tiny_gpt).requires_grad_(), []
    rows, scored = rectangle(pair.prompt_ids, [pair.chosen_ids, pair.rejected_ids])
    width = rows.shape[1]
    pad = torch.tensor(padding, dtype=torch.long).expand(2, -1)[:, : model.config.block_size - width]
    for tokens in (rows, torch.cat([rows, pad], -1)):
        loss_mask = torch.zeros_like(tokens, dtype=torch.bool)
        loss_mask[:, :width] = scored
        logps = sequence_logprobs(model.logits(model(tokens)), tokens, loss_mask)
        results.append((logps, *torch.autograd.grad(logps.sum(), list(model.parameters()))))
    for bare, padded in zip(*results, strict=True):
        torch.testing.assert_close(bare, padded, rtol=1e-10, atol=1e-10)


@given(scored_logits(), st.integers(1, 3), st.integers(0, 99))
def test_unscored_logits_and_tokens_have_no_influence(arguments, k, seed):
    """Kills: padding multiplied by a mask of zeros, which lets through what is infinite."""
    logits, tokens, loss_mask = arguments
    B, _, V = logits.shape
    pad = torch.randint(V, (B, k), generator=torch.Generator().manual_seed(seed))
    impossible = torch.full((B, k, V), -torch.inf, dtype=torch.float64)
    impossible[..., 0] = 0  # a distribution, but one that gives most tokens log-probability −∞
    unscored = torch.zeros(B, k, dtype=torch.bool)
    logits.requires_grad_()
    bare = sequence_logprobs(logits, tokens, loss_mask)
    padded = sequence_logprobs(
        torch.cat([logits, impossible], 1), torch.cat([tokens, pad], 1), torch.cat([loss_mask, unscored], 1)
    )
    assert_same(bare, padded)
    gradients = [torch.autograd.grad(logps.sum(), logits)[0] for logps in (bare, padded)]
    assert torch.equal(*gradients)


@given(scored_logits())
def test_the_logits_after_the_last_token_have_no_influence(arguments):
    """Kills: a log-softmax over all positions, whose gradient at the last is 0 · NaN where its logits are damaged."""
    logits, tokens, loss_mask = arguments
    damaged = logits.clone()
    damaged[:, -1] = torch.nan
    damaged.requires_grad_()
    logps = sequence_logprobs(damaged, tokens, loss_mask)
    assert torch.equal(logps, sequence_logprobs(logits, tokens, loss_mask))
    (gradient,) = torch.autograd.grad(logps.sum(), damaged)
    assert (gradient[:, -1] == 0).all()


def perturbed(model, seed):
    """Another policy: the same network with noise on every parameter."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def pair_margin(policy, reference, pair, reduce="sum"):
    """h of one pair."""
    logps = [x for model in (policy, reference) for x in batch_logps(model, pack([pair]), reduce).split(1)]
    return margin(*logps)


@given(texts(1, 3), texts(0, 3), texts(), texts(), st.integers(0, 9))
def test_a_beginning_shared_by_both_responses_may_count_as_prompt(tiny_gpt, x, s, u, v, seed):
    """Kills: a mean where Eq. 7 has a sum. h(x; s+u, s+v) = h(x+s; u, v)"""
    reference = perturbed(tiny_gpt, seed)
    as_response = pair_margin(tiny_gpt, reference, TokenizedPair(x, s + u, s + v))
    as_prompt = pair_margin(tiny_gpt, reference, TokenizedPair(x + s, u, v))
    torch.testing.assert_close(as_response, as_prompt, rtol=0, atol=1e-10)


def test_a_shared_beginning_changes_the_margin_of_means(tiny_gpt):
    reference = perturbed(tiny_gpt, 0)
    as_response = pair_margin(tiny_gpt, reference, TokenizedPair([0], [1, 2, 3], [1, 2, 0, 1, END]), "mean")
    as_prompt = pair_margin(tiny_gpt, reference, TokenizedPair([0, 1, 2], [3], [0, 1, END]), "mean")
    assert abs(as_response - as_prompt) > 0.01


# ---- numbers ----


@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.bfloat16, torch.float16]), st.booleans())
def test_half_precision_logits_are_summed_in_float32(seed, dtype, autocast):
    """Kills: log-softmax or sum in bfloat16, where a step near −300 is 2 nats."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(2, 37, 50, generator=generator)).to(dtype)
    tokens = torch.randint(50, (2, 37), generator=generator)
    loss_mask = torch.ones(2, 37, dtype=torch.bool)
    loss_mask[:, 0] = False
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logps = sequence_logprobs(logits, tokens, loss_mask)
    assert logps.dtype == torch.float32
    exact = naive(logits, tokens, loss_mask)
    assert -450 < exact.min() < -150
    torch.testing.assert_close(logps.double(), exact, rtol=0, atol=1e-3)


def test_a_model_under_autocast_is_scored_in_float32(tiny_gpt):
    """Kills: `sequence_logprobs` run in autocast's dtype."""
    model, (tokens, loss_mask) = copy.deepcopy(tiny_gpt).float(), rectangle([0, 1], [[2, 3, 1, 0, 2, END], [3, END]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.logits(model(tokens))
        logps = sequence_logprobs(logits, tokens, loss_mask)
    assert (logits.dtype, logps.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(logps.double(), naive(logits, tokens, loss_mask), rtol=0, atol=1e-4)


# ---- the fast form, without logits ----


@st.composite
def predictions(draw, dtype=torch.float64):
    """(hidden, head, targets) of any small shape, S = 0 included, and any scale; targets repeat as chance has it."""
    S, C, V = draw(st.tuples(st.integers(0, 6), st.integers(1, 4), st.integers(1, 7)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    hidden = draw(st.sampled_from([0.0, 1.0, 30.0])) * torch.randn(S, C, generator=generator, dtype=torch.float64)
    head = torch.randn(V, C, generator=generator, dtype=torch.float64)
    return hidden.to(dtype), head.to(dtype), torch.randint(V, (S,), generator=generator)


def full_logprobs(hidden, head, targets):
    """The definition: all the logits at once."""
    return (hidden @ head.T).log_softmax(dim=-1).gather(-1, targets[:, None]).squeeze(-1)


def value_and_gradients(function, hidden, head, targets, upstream):
    """Log-probabilities and the gradients of hidden and head, of leaves of their own."""
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, head)]
    logps = function(*leaves, targets)
    return logps.detach(), *torch.autograd.grad(logps, leaves, upstream)


UPSTREAM = st.lists(st.sampled_from([0.0, 1.0, -0.5, 3.0]), min_size=6, max_size=6)
EIGHT = torch.arange(8, dtype=torch.float64)


@given(predictions(), UPSTREAM, st.integers(1, 7))
@example((EIGHT[:, None], EIGHT[:7, None] - 3, torch.tensor([0, 6, 6, 2, 2, 2, 3, 4])), [1.0, 0, -2, 3, 4, 5, 6, 7], 3)
@example((torch.zeros(0, 2).double(), torch.ones(3, 2).double(), torch.zeros(0, dtype=torch.long)), [], 2)
@example((EIGHT[None], EIGHT[None], torch.tensor([0])), [1.0], 1)
def test_token_logprobs_have_value_and_gradients_of_the_full_softmax(arguments, upstream, width):
    """Kills: a target looked up in the wrong slice, at its border, or twice; a softmax normalised by its slice."""
    S = len(arguments[0])
    upstream = torch.tensor(upstream, dtype=torch.float64)[:S]
    fast = lambda *x: token_logprobs(*x, elements=width * max(1, S))  # noqa: E731
    ours, theirs = (value_and_gradients(f, *arguments, upstream) for f in (fast, full_logprobs))
    for mine, full in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, full, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("elements", [0, *range(1, 5 * 9 + 2), 2**24])
def test_no_width_of_slices_changes_a_value_or_a_gradient(elements):
    """Kills: a last slice that is shorter and is dropped, or whose gradients are written to another's rows."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (5, 9))
    targets, upstream = torch.tensor([0, 8, 4, 4, 3]), torch.tensor([1.0, 0, -2, 0.5, 3], dtype=torch.float64)
    fast = lambda *x: token_logprobs(*x, elements=elements)  # noqa: E731
    ours, theirs = (value_and_gradients(f, hidden, head, targets, upstream) for f in (fast, full_logprobs))
    for mine, full in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, full, rtol=1e-10, atol=1e-10)


@settings(max_examples=20)
@given(predictions(), st.integers(1, 50))
def test_the_handwritten_gradient_is_the_difference_quotient(arguments, elements):
    """Kills: a backward and a forward that agree with each other's mistakes. (Scores of hundreds have no quotient.)"""
    hidden, head, targets = arguments
    leaves = [(x / max(1, x.abs().max()) if x.numel() else x).requires_grad_() for x in (hidden, head)]
    assert torch.autograd.gradcheck(lambda *x: token_logprobs(*x, targets, elements), leaves)


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_either_gradient_can_be_asked_for_alone(needed):
    """Kills: a backward that counts on both, as where the embedding is frozen."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (5, 9)]
    targets, both = torch.tensor([0, 8, 4, 4, 3]), []
    for function in (token_logprobs, full_logprobs):
        leaves = [x.clone().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        both.append(torch.autograd.grad(function(*leaves, targets).sum(), wanted)[0])
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-10)


class Sizes(TorchDispatchMode):
    """Notes the elements of every tensor that an operation returns."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(getattr(self, "largest", 0), tensor.numel())
                self.operations = [*getattr(self, "operations", []), str(func)]
        return result


def largest_tensor(function, hidden, head, targets):
    """The elements of the largest tensor that is made in forward and backward, and the operations of both."""
    leaves = [x.detach().requires_grad_() for x in (hidden, head)]
    with Sizes() as sizes:
        torch.autograd.grad(function(*leaves, targets).sum(), leaves)
    return sizes.largest, sizes.operations


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 90), st.integers(1, 4000))
@example(40, 3, 90, 400)
@example(1, 1, 90, 1)
def test_no_tensor_is_larger_than_the_slice_or_an_input(S, C, V, elements):
    """Kills: logits, their softmax or a one-hot target kept whole; a graph through the slices, which keeps them all."""
    hidden, head, targets = torch.ones(S, C), torch.ones(V, C), torch.arange(S) % V
    slices = -(-V // slice_width(S, V, elements))
    largest, operations = largest_tensor(lambda *x: token_logprobs(*x, elements), hidden, head, targets)
    assert largest <= max(elements, hidden.numel(), head.numel())
    assert sum("mm" in name for name in operations) == 4 * slices  # the logits, the logits again, two gradients


@given(predictions(), st.integers(1, 50))
def test_a_frozen_head_stays_as_it_is_and_costs_no_gradient(arguments, elements):
    """Kills: the gradient of a head that LoRA leaves alone, computed for nothing, or written into the head itself."""
    hidden, head, targets = arguments
    kept = head.clone()
    hidden.requires_grad_()
    with Sizes() as sizes:
        (found,) = torch.autograd.grad(token_logprobs(hidden, head, targets, elements).sum(), hidden)
    (expected,) = torch.autograd.grad(full_logprobs(hidden, head, targets).sum(), hidden)
    assert_same(found, expected)
    slices = -(-len(head) // slice_width(len(hidden), len(head), elements))
    assert torch.equal(head, kept) and sum("mm" in name for name in sizes.operations) == 3 * slices


@given(st.integers(0, 10**4), st.integers(1, 10**6), st.integers(0, 2**26))
@example(1300, 50257, 2**24)  # GPT-2's vocabulary is odd
@example(10**4, 10**6, 0)
@example(1, 1, 1)
@example(1, 10, 1)
@example(1, 65, 65)
@example(1, 100, 100)
def test_slices_are_wide_and_hold_no_more_logits_than_asked(S, V, elements):
    """Kills: a last slice as wide as the others but not a multiple of 64; slices that are many more than needed."""
    width = slice_width(S, V, elements)
    assert width >= 1 and width * S <= max(elements, S)
    if width > 64:
        assert width % 64 == 0
    needed = max(1, math.ceil(V * S / max(1, elements)))
    assert V / width <= 2 * needed + 1
    assert width <= 64 or V % width < 64 * (needed + 1)  # what is left is small
    if elements >= V * S:  # one slice
        assert width == (V - V % 64 if V > 64 else V)


def test_the_definition_does_make_all_the_logits():
    """The measure of the test above, on what it must find too large."""
    largest, _ = largest_tensor(full_logprobs, torch.ones(40, 3), torch.ones(90, 3), torch.arange(40))
    assert largest == 40 * 90


@given(predictions(), st.integers(1, 50))
def test_the_fast_form_leaves_its_inputs_as_they_are(arguments, elements):
    """Kills: a slice of the head's gradient, or of the logits, written into an input; targets counted down in place."""
    before, upstream = [x.clone() for x in arguments], torch.ones(len(arguments[0]), dtype=torch.float64)
    kept = upstream.clone()
    for x in arguments[:2]:
        x.requires_grad_()
    logps = token_logprobs(*arguments, elements)
    first = torch.autograd.grad(logps, arguments[:2], upstream, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(logps, arguments[:2], upstream)))
    assert all(map(torch.equal, [*arguments, upstream], [*before, kept]))


@given(predictions(torch.float32), UPSTREAM, st.integers(1, 50))
def test_in_float32_the_fast_form_is_the_definition_to_its_rounding(arguments, upstream, elements):
    """Kills: a sum over the vocabulary of exponentials that are not shifted by their largest."""
    hidden, head, targets = arguments
    upstream = torch.tensor(upstream)[: len(hidden)]
    logps, *gradients = value_and_gradients(lambda *x: token_logprobs(*x, elements), *arguments, upstream)
    assert {x.dtype for x in (logps, *gradients)} == {torch.float32}
    exact, *slopes = value_and_gradients(full_logprobs, hidden.double(), head.double(), targets, upstream.double())
    torch.testing.assert_close(logps.double(), exact, rtol=1e-5, atol=1e-4)
    for mine, slope in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(mine.double(), slope, rtol=1e-3, atol=1e-3)


@given(predictions(torch.float32), UPSTREAM, st.integers(1, 50))
def test_under_autocast_the_products_are_bfloat16_and_all_else_float32(arguments, upstream, elements):
    """Kills: log-softmax, sum or result in bfloat16.

    Its products are rounded by 1/256 at most, which moves log p by no more than r + r, r = max |z|/256, a probability
    by the factor e^{2r}, and ∂/∂z, partial sums and sum once more each.
    """
    hidden, head, targets = arguments
    upstream = torch.tensor(upstream)[: len(hidden)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaves = [x.clone().requires_grad_() for x in (hidden, head)]
        logps = token_logprobs(*leaves, targets, elements)
    gradients = torch.autograd.grad(logps, leaves, upstream)
    assert {x.dtype for x in (logps, *gradients)} == {torch.float32}
    inputs = [x.bfloat16() for x in (hidden, head)]
    doubles = [x.double() for x in inputs]
    exact, *slopes = value_and_gradients(full_logprobs, *doubles, targets, upstream.double())
    twice = (doubles[0] @ doubles[1].T).abs().amax(dim=-1) / 128  # (S,) 2r
    assert ((logps - exact).abs() <= twice + 1e-4).all()
    in_float32 = token_logprobs(*(x.float() for x in inputs), targets, elements)
    assert ((logps - in_float32).abs() <= twice + 1e-4).all()
    slack = upstream.abs() * (twice.expm1() + 8 / 256)  # (S,)
    bounds = (slack * doubles[1].abs().max())[:, None], (slack * doubles[0].abs().amax(dim=-1)).sum()
    for gradient, slope, bound in zip(gradients, slopes, bounds, strict=True):
        assert ((gradient - slope).abs() <= bound + 1e-4).all()


def test_even_slices_of_one_token_make_no_tensor_of_all_logits():
    """Kills: what is kept of each slice until the last, where the slices are as many as the vocabulary's tokens."""
    largest, _ = largest_tensor(
        lambda *x: token_logprobs(*x, elements=40), torch.ones(40, 3), torch.ones(90, 3), torch.arange(40)
    )
    assert largest <= 3 * 90


def test_under_autocast_no_token_is_more_than_certain():
    """Kills: log p > 0: the target's score taken in another precision than the same score within log Σ e^z."""
    hidden, head = torch.tensor([[100.0, 0.1875]]), torch.tensor([[1.0, 1.0], [-1.0, 0.0]])  # z = 100.1875 and −100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert token_logprobs(hidden, head, torch.tensor([0])) <= 0


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch.compile itself
def test_the_fast_form_may_be_compiled():
    """Kills: a forward or a backward that a graph traces as something else."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (5, 9))
    targets, upstream = torch.tensor([0, 8, 4, 4, 3]), torch.tensor([1.0, 0, -2, 0.5, 3], dtype=torch.float64)
    compiled = torch.compile(token_logprobs, backend="aot_eager")
    ours = value_and_gradients(lambda *x: compiled(*x, elements=20), hidden, head, targets, upstream)
    theirs = value_and_gradients(full_logprobs, hidden, head, targets, upstream)
    for mine, full in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, full, rtol=1e-10, atol=1e-10)


# ---- errors ----

LOGITS, TOKENS, MASK = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    "arguments",
    [
        (LOGITS[0], TOKENS, MASK),
        (LOGITS[:, 1:], TOKENS, MASK),
        (LOGITS[:1], TOKENS, MASK),
        (LOGITS[..., 0], TOKENS, MASK),
        (LOGITS[..., None], TOKENS, MASK),
        (LOGITS, TOKENS[0], MASK),
        (LOGITS, TOKENS[..., None], MASK),
        (LOGITS, TOKENS[:, 1:], MASK[:, 1:]),
        (LOGITS, TOKENS, MASK[:, 1:]),
        (LOGITS, TOKENS, MASK[0]),
        (LOGITS, TOKENS, MASK[:1]),
    ],
)
def test_shapes_that_disagree_are_refused(arguments):
    with pytest.raises(ValueError, match=r"expected logits \(B,T,V\).*got") as raised:
        sequence_logprobs(*arguments)
    assert str(raised.value).endswith(f"got {[tuple(x.shape) for x in arguments]}")


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_a_mask_that_is_not_boolean_is_refused(dtype):
    with pytest.raises(ValueError, match="must be boolean"):
        sequence_logprobs(LOGITS, TOKENS, MASK.to(dtype))


def test_position_zero_cannot_be_scored():
    mask = MASK.clone()
    mask[1, 0] = True
    with pytest.raises(ValueError, match="position 0"):
        sequence_logprobs(LOGITS, TOKENS, mask)


@pytest.mark.parametrize("reduce", ["average", "", None, "Sum"])
def test_an_unknown_reduction_is_refused(reduce):
    with pytest.raises(ValueError, match="reduce must be"):
        sequence_logprobs(LOGITS, TOKENS, MASK, reduce)


def test_a_row_without_a_scored_token_has_a_sum_but_no_mean():
    mask = MASK.clone()
    mask[0, 2] = True
    torch.testing.assert_close(sequence_logprobs(LOGITS, TOKENS, mask), torch.tensor([-math.log(5), 0.0]))
    with pytest.raises(ValueError, match="needs a scored token in every row"):
        sequence_logprobs(LOGITS, TOKENS, mask, reduce="mean")


def test_by_default_a_slice_is_64_mib_of_float32():
    """Kills: a default that makes the slices, and with them the memory, larger or needlessly many."""
    assert inspect.signature(token_logprobs).parameters["elements"].default * 4 == 64 * 2**20


def test_autocast_is_a_cast_of_both_factors_and_leaves_float64_alone():
    """Kills: a product that ignores autocast, one factor cast alone, float64 cast down."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(size, generator=generator) for size in ((3, 8), (5, 8)))
    targets = torch.tensor([0, 4, 2])
    plain = token_logprobs(hidden, head, targets)
    half = token_logprobs(hidden.bfloat16(), head.bfloat16(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(token_logprobs(hidden, head, targets), half) and not torch.equal(half, plain)
        exact = token_logprobs(hidden.double(), head.double(), targets)
    assert exact.dtype == torch.float64
    assert torch.equal(exact, token_logprobs(hidden.double(), head.double(), targets))


def test_the_gradient_of_hidden_is_added_up_in_float32():
    """511 slices add −1/512 each. Kills: a sum in bfloat16, which stands still at a half."""
    hidden = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    head = torch.ones(512, 1, dtype=torch.bfloat16)
    head[0] = 0
    token_logprobs(hidden, head, torch.tensor([0]), elements=1).sum().backward()
    assert hidden.grad.item() == pytest.approx(-511 / 512, abs=0.005)
