"""log π(y|x): against a loop over tokens, the whole of probability, and whatever surrounds the completion."""

import copy
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.data import TokenizedPair
from dpo_min.exact import enumerate_completions
from dpo_min.logprob import sequence_logprobs
from dpo_min.packing import batch_logps, pack
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
    batch = pack([TokenizedPair(prompt, y, y) for y in ys], chosen_only=True)
    tokens, loss_mask = batch.tokens[:-1], batch.loss_mask[:-1]  # the last row was there to make room for the padding
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
    batch = pack([pair])
    width = max(len(pair.chosen_ids), len(pair.rejected_ids)) + len(pair.prompt_ids)
    pad = torch.tensor(padding, dtype=torch.long).expand(2, -1)[:, : model.config.block_size - width]
    for tokens in (batch.tokens, torch.cat([batch.tokens, pad], -1)):
        loss_mask = torch.zeros_like(tokens, dtype=torch.bool)
        loss_mask[:, :width] = batch.loss_mask
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


@given(st.lists(pairs, min_size=1, max_size=3), st.sampled_from(["sum", "mean"]))
def test_a_rows_log_probability_does_not_depend_on_the_batch(tiny_gpt, batch, reduce):
    """Kills: rejected rows before chosen rows; a row scored to the end of the longest."""
    alone = [batch_logps(tiny_gpt, pack([pair]), reduce) for pair in batch]  # each (2,): chosen, rejected
    assert_same(batch_logps(tiny_gpt, pack(batch), reduce), torch.stack(alone).T.reshape(-1))
    assert_same(
        batch_logps(tiny_gpt, pack(batch, chosen_only=True), reduce), torch.stack([chosen for chosen, _ in alone])
    )


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
    model, batch = copy.deepcopy(tiny_gpt).float(), pack([TokenizedPair([0, 1], [2, 3, 1, 0, 2, END], [3, END])])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.logits(model(batch.tokens))
        logps = batch_logps(model, batch)
    assert (logits.dtype, logps.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(logps.double(), naive(logits, batch.tokens, batch.loss_mask), rtol=0, atol=1e-4)


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
