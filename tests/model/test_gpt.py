"""GPT-2 against itself written out, and its configuration."""

import math
from functools import partial

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.model.gpt import GPT, GPTConfig

assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-12)


def random_gpt(seed, **sizes):
    """A float64 GPT all of whose parameters are drawn from N(0, ½)."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(GPTConfig(**sizes), generator).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.5, generator=generator)
    return model


# ---- the network, written out ----


def plain_attention(weights, name, n_head, x):
    """Every query, every head: the softmax of its scaled products with the keys up to it, by its definition."""
    (T, C), y = x.shape, torch.zeros_like(x)
    q, k, v = (x @ weights[f"{name}.c_attn.weight"].T + weights[f"{name}.c_attn.bias"]).chunk(3, dim=-1)
    for columns in torch.arange(C).chunk(n_head):
        for t in range(T):
            scores = (k[: t + 1, columns] @ q[t, columns] / math.sqrt(C // n_head)).exp()
            y[t, columns] = scores @ v[: t + 1, columns] / scores.sum()
    return y @ weights[f"{name}.c_proj.weight"].T + weights[f"{name}.c_proj.bias"]


def plain_gpt(weights, config, row):
    """The logits (T, V) of one row of ids, from GPT-2's formulas."""

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + config.norm_epsilon).sqrt()
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def gelu(x):
        if config.gelu == "none":
            return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = torch.stack([weights["wte.weight"][token] + weights["wpe.weight"][t] for t, token in enumerate(row)])
    for i in range(config.n_layer):
        x = x + plain_attention(weights, f"h.{i}.attn", config.n_head, norm(f"h.{i}.ln_1", x))
        x = x + linear(f"h.{i}.mlp.c_proj", gelu(linear(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x))))
    return norm("ln_f", x) @ weights["wte.weight" if config.tied else "lm_head.weight"].T


@given(st.integers(0, 99), st.integers(1, 3), st.integers(1, 4), st.integers(1, 8))
def test_attention_is_the_softmax_loop(seed, n_head, head_size, T):
    """Kills: the scale 1/√C instead of 1/√hs; heads interleaved; keys and values exchanged."""
    model = random_gpt(seed, vocab_size=2, block_size=8, n_layer=1, n_head=n_head, n_embd=n_head * head_size)
    x = torch.randn(2, T, n_head * head_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = [plain_attention(model.state_dict(), "h.0.attn", n_head, row) for row in x]
    assert_same(model.h[0].attn(x), torch.stack(expected))


forms = st.fixed_dictionaries(
    {},
    optional={
        "n_inner": st.integers(1, 9),
        "gelu": st.just("none"),
        "norm_epsilon": st.sampled_from([1e-6, 0.1]),
        "tied": st.just(False),
    },
)


@given(
    st.integers(0, 99),
    st.integers(1, 2),
    st.integers(1, 3),
    st.lists(st.integers(0, 6), min_size=1, max_size=8),
    forms,
)
@example(0, 1, 1, [0, 1, 2], {})
def test_gpt_is_the_formula(seed, n_layer, n_head, row, form):
    """Kills: another ε in LayerNorm; the other GELU; LayerNorm after the sublayer; the other head; the width 4 C."""
    model = random_gpt(seed, vocab_size=7, block_size=8, n_layer=n_layer, n_head=n_head, n_embd=6, **form)
    logits = model.logits(model(torch.tensor([row])))[0]
    torch.testing.assert_close(logits, plain_gpt(model.state_dict(), model.config, row), rtol=1e-10, atol=1e-10)


# ---- initial weights ----


def test_initial_weights_come_from_the_generator_alone():
    """Kills: a parameter drawn from the global source."""
    sizes = GPTConfig(vocab_size=7, block_size=4, n_layer=2, n_head=2, n_embd=8)
    first, again, other = (GPT(sizes, torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2))
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name])
        assert torch.equal(parameter, other[name]) == (parameter.dim() == 1)


@pytest.mark.parametrize("n_layer", [1, 8])
def test_initial_weights_are_gpt2s(n_layer):
    """Kills: residual projections as large as the others; a bias that is not zero."""
    model = GPT(GPTConfig(64, 64, n_layer, 4, 64), torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.06)  # 4 standard errors of 4,096 draws
        else:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight")))


@pytest.mark.parametrize("name", ["vocab_size", "block_size", "n_layer", "n_head", "n_embd"])
@pytest.mark.parametrize("size", [0, -1, 12.0, "12", None, True])
def test_a_size_that_is_no_positive_integer_is_refused(name, size):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
        GPTConfig(**{name: size})


@given(st.integers(1, 50), st.integers(1, 50))
def test_heads_must_divide_the_width(n_head, n_embd):
    """Kills: n_head % n_embd."""
    if n_embd % n_head == 0:
        assert GPTConfig(n_head=n_head, n_embd=n_embd).n_embd == n_embd
    else:
        with pytest.raises(ValueError, match=f"multiple of n_head \\({n_head}\\)"):
            GPTConfig(n_head=n_head, n_embd=n_embd)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_inner", 0), ("n_inner", "8"), ("gelu", "new"), ("norm_epsilon", 0), ("norm_epsilon", math.nan), ("tied", 1)],
)
def test_a_field_that_means_nothing_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        GPTConfig(**{field: value})
