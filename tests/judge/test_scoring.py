"""Texts under a policy and its reference: every estimate against the exact KL of policies small enough to enumerate."""

import copy
import io
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.decode.generation import generate
from dpo_min.exact import enumerate_completions
from dpo_min.judge.scoring import draw_answers, groups, kl_estimates, log_ratios, pair_logps
from dpo_min.judge.statistics import mean_interval

END = 4  # end-of-text of tiny_gpt


def perturbed(model, seed):
    """Another policy: the same network with noise on every parameter."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def exact_kl(policy, reference, text, length):
    """KL(π‖π_ref) of the next `length` tokens by the chain rule: Σ_v π(v) [log π(v)/π_ref(v) + KL after v]."""
    p, q = (model.logits(model(torch.tensor([text])))[0, -1].log_softmax(-1) for model in (policy, reference))
    after = [0 if v == END or length == 1 else exact_kl(policy, reference, [*text, v], length - 1) for v in range(5)]
    return (p.exp() * (p - q + torch.tensor(after, dtype=p.dtype))).sum().item()


texts = st.lists(st.integers(0, END), min_size=1, max_size=6)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_a_policy_and_itself_have_log_ratios_of_exactly_zero(tiny_gpt, rows):
    """Kills: two code paths for policy and reference."""
    ratios = log_ratios(tiny_gpt, copy.deepcopy(tiny_gpt), *zip(*rows, strict=True))
    assert torch.equal(ratios, torch.zeros(len(rows), dtype=torch.float64))


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=7), st.integers(1, 8))
@example([([0], [1]), ([0, 1], [2, 3, END]), ([END], [END])], 2)
def test_log_ratios_are_each_rows_own_whatever_the_micro_batch(tiny_gpt, rows, size):
    """Kills: the last micro-batch dropped; rows out of order; the two models exchanged."""
    reference = perturbed(tiny_gpt, 0)
    ratios = log_ratios(tiny_gpt, reference, *zip(*rows, strict=True), micro_batch_size=size)
    batches = [pack([TokenizedPair(x, y, y)], chosen_only=True) for x, y in rows]
    expected = [batch_logps(tiny_gpt, batch) - batch_logps(reference, batch) for batch in batches]
    torch.testing.assert_close(ratios, torch.cat(expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize("prompt", [[0], [3, 1, 2], [END]])
@pytest.mark.parametrize("length", [1, 3])
def test_the_average_log_ratio_over_every_completion_is_the_exact_kl(tiny_gpt, prompt, length):
    """Kills: a mean over tokens; an end-of-text that is not scored; KL(π_ref‖π)."""
    reference = perturbed(tiny_gpt, 0)
    ys = [list(y) for y in enumerate_completions(5, END, length)]
    pairs = [TokenizedPair(prompt, y, y) for y in ys]
    probabilities = batch_logps(tiny_gpt, pack(pairs, chosen_only=True)).exp()
    average = (probabilities * log_ratios(tiny_gpt, reference, [prompt] * len(ys), ys)).sum().item()
    kl = exact_kl(tiny_gpt, reference, prompt, length)
    assert kl > 0.01
    assert average == pytest.approx(kl, rel=1e-10)


def test_the_mean_log_ratio_of_drawn_completions_is_near_the_exact_kl(tiny_gpt):
    """Kills: completions drawn from the reference, whose mean is −KL(π_ref‖π). Three half-widths are 5.9 σ."""
    reference, prompts = perturbed(tiny_gpt, 0), [[0, 1]] * 2000
    drawn = [completion.ids for completion in generate(tiny_gpt, prompts, END, 3, torch.Generator().manual_seed(0))]
    mean, low, high = mean_interval(log_ratios(tiny_gpt, reference, prompts, drawn, micro_batch_size=500))
    assert abs(mean - exact_kl(tiny_gpt, reference, [0, 1], 3)) < 3 * (high - low) / 2


def test_log_ratios_build_no_graph(tiny_gpt):
    """Kills: activations kept for a backward that never comes."""
    policy = copy.deepcopy(tiny_gpt).requires_grad_()
    assert not log_ratios(policy, tiny_gpt, [[0]], [[1]]).requires_grad


# ---- the KL of each token's distribution, along a path ----


@pytest.mark.parametrize("prompt", [[0], [3, 1, 2], [END]])
@pytest.mark.parametrize("length", [1, 3])
def test_the_average_path_kl_over_every_completion_is_the_exact_kl_and_it_varies_less(tiny_gpt, prompt, length):
    """Kills: the KL reversed, the last or the first step left out, a mean over steps; a claim of less variance."""
    reference = perturbed(tiny_gpt, 0)
    ys = [list(y) for y in enumerate_completions(5, END, length)]
    p = batch_logps(tiny_gpt, pack([TokenizedPair(prompt, y, y) for y in ys], chosen_only=True)).exp()
    plain, paths = kl_estimates(tiny_gpt, reference, [prompt] * len(ys), ys)
    kl = exact_kl(tiny_gpt, reference, prompt, length)
    assert (p * paths).sum().item() == pytest.approx(kl, rel=1e-10)
    assert (paths >= 0).all()
    variances = [(p * (x - kl) ** 2).sum().item() for x in (paths, plain)]
    assert variances[0] < variances[1]


@settings(max_examples=40)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=7), st.integers(1, 8), st.integers(1, 9))
@example([([0], [1]), ([0, 1], [2, 3, END]), ([END], [END])], 2, 1)
def test_a_path_kl_is_its_rows_own_whatever_the_batches(tiny_gpt, rows, size, positions):
    """Kills: answers returned in the order of their lengths; a chunk of positions that cuts a row."""
    reference = perturbed(tiny_gpt, 0)
    ratios, kls = kl_estimates(tiny_gpt, reference, *zip(*rows, strict=True), micro_batch_size=size, rows=positions)
    torch.testing.assert_close(ratios, log_ratios(tiny_gpt, reference, *zip(*rows, strict=True)), rtol=0, atol=1e-11)
    for kl, (x, y) in zip(kls, rows, strict=True):
        p, q = (m.logits(m(torch.tensor([x + y])))[0, len(x) - 1 : -1].log_softmax(-1) for m in (tiny_gpt, reference))
        assert kl.item() == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-11)


def test_both_estimates_of_drawn_completions_are_near_the_exact_kl(tiny_gpt):
    """Kills: draws that are not the policy's own, at temperature 1. Three half-widths are 5.9 σ."""
    reference, prompts = perturbed(tiny_gpt, 0), [[0, 1]] * 1500
    drawn = draw_answers(tiny_gpt, prompts, END, 3, seed=0, micro_batch_size=500)
    kl = exact_kl(tiny_gpt, reference, [0, 1], 3)
    for values in kl_estimates(tiny_gpt, reference, prompts, drawn):
        mean, low, high = mean_interval(values)
        assert abs(mean - kl) < 3 * (high - low) / 2


# ---- pairs, draws, groups ----

pairs_ = st.lists(st.builds(TokenizedPair, texts, texts, texts), min_size=1, max_size=7)


@settings(max_examples=40)
@given(pairs_, st.integers(1, 8), st.sampled_from(["sum", "mean"]), st.randoms(use_true_random=False))
def test_the_log_probabilities_of_pairs_do_not_depend_on_their_order_or_the_batches(
    tiny_gpt, pairs, size, reduce, random
):
    """Kills: results left in the order of lengths, models or sides exchanged, the last group dropped."""
    reference = perturbed(tiny_gpt, 0)
    logps = pair_logps(tiny_gpt, reference, pairs, reduce, size)
    alone = [[batch_logps(model, pack([pair]), reduce) for pair in pairs] for model in (tiny_gpt, reference)]
    expected = torch.stack([torch.stack(rows).T for rows in alone])  # (2, 2, N)
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-11)
    order = random.sample(range(len(pairs)), len(pairs))
    shuffled = pair_logps(tiny_gpt, reference, [pairs[i] for i in order], reduce)
    torch.testing.assert_close(shuffled, expected[:, :, order], rtol=0, atol=1e-11)


def test_draws_belong_to_their_prompts_and_repeat_with_the_seed(tiny_gpt):
    """Kills: completions in the order of the groups. A sure model of a prompt's last token says whose they are."""
    model = copy.deepcopy(tiny_gpt)
    prompts = [[i % 4] * (1 + i % 3) for i in range(11)]
    drawn, same, other = (draw_answers(model, prompts, END, 4, seed, micro_batch_size=3) for seed in (0, 0, 1))
    assert drawn == same != other
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.wte.weight.copy_(torch.eye(5, 8, dtype=torch.float64) * 20)
        model.ln_f.weight.fill_(20.0)
    assert draw_answers(model, prompts, END, 1, seed=0, micro_batch_size=3) == [[prompt[-1]] for prompt in prompts]


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 8))
def test_groups_take_every_index_once_with_the_longest_first(lengths, size):
    """Kills: a last group left out; out-of-memory after an hour in place of at once."""
    found = list(groups("rows", lengths, size))
    assert sorted(i for group in found for i in group) == list(range(len(lengths)))
    assert all(1 <= len(group) <= size for group in found)
    assert [lengths[i] for group in found for i in group] == sorted(lengths, reverse=True)


def test_long_work_says_on_standard_error_how_far_it_is(monkeypatch):
    """Kills: progress on standard output, where the table goes, or none on a terminal."""
    clock, terminal = iter(range(100)), io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert len(list(groups("pairs", [1] * 6, 2))) == 3
    assert [line.split("  ")[0] for line in terminal.getvalue().split("\r\x1b[K")] == [
        "",
        *(f"pairs {n}/6" for n in (2, 4, 6)),
        "",
    ]
