"""Llama against itself written out, rotary positions as a law, and its configuration."""

import cmath
import copy
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.model.config import RopeScaling
from dpo_min.model.llama import Llama, LlamaConfig, rotary_frequencies, rotate, stretch

SMALL = {"vocab_size": 7, "block_size": 16, "n_embd": 6, "n_inner": 5, "rope_theta": 50.0}


def random_llama(seed, **sizes):
    """A float64 Llama all of whose parameters are drawn from N(0, ½)."""
    generator = torch.Generator().manual_seed(seed)
    model = Llama(LlamaConfig(**SMALL | sizes), generator).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.5, generator=generator)
    return model


# ---- the network, written out ----


def plain_frequency(config, i):
    """Radians per position of pair i, from the published piecewise definition."""
    f, scaling = config.rope_theta ** (-2 * i / config.head_size), config.rope_scaling
    if scaling is None:
        return f
    wavelength = 2 * math.pi / f
    if wavelength < scaling.original_positions / scaling.high_freq_factor:
        return f
    if wavelength > scaling.original_positions / scaling.low_freq_factor:
        return f / scaling.factor
    smooth = scaling.original_positions / wavelength - scaling.low_freq_factor
    smooth /= scaling.high_freq_factor - scaling.low_freq_factor
    return (1 - smooth) * f / scaling.factor + smooth * f


def plain_rotate(config, x, position):
    """One head (hs,), its pairs as complex numbers that are turned."""
    half, turned = config.head_size // 2, x.clone()
    for i in range(half):
        z = complex(x[i], x[i + half]) * cmath.exp(1j * position * plain_frequency(config, i))
        turned[i], turned[i + half] = z.real, z.imag
    return turned


def plain_norm(config, x, gain):
    """x / √(mean(x²) + ε) · g"""
    return x / (x.square().mean() + config.norm_epsilon).sqrt() * gain


def plain_attention(weights, name, config, x):
    """Every query of every head: the softmax of its products with the keys, of the group's head, up to it."""
    T, hs, y = len(x), config.head_size, torch.zeros(len(x), config.n_head * config.head_size, dtype=x.dtype)

    def head(letter, t, number):
        bias = weights.get(f"{name}.{letter}_proj.bias", 0)
        z = (weights[f"{name}.{letter}_proj.weight"] @ x[t] + bias)[number * hs : (number + 1) * hs]
        if f"{name}.{letter}_norm.weight" in weights:
            z = plain_norm(config, z, weights[f"{name}.{letter}_norm.weight"])
        return z if letter == "v" else plain_rotate(config, z, t)

    for number in range(config.n_head):
        shared = number // (config.n_head // config.n_kv_head)
        for t in range(T):
            q = head("q", t, number)
            scores = torch.stack([(q @ head("k", s, shared) / math.sqrt(hs)).exp() for s in range(t + 1)])
            values = torch.stack([head("v", s, shared) for s in range(t + 1)])
            y[t, number * hs : (number + 1) * hs] = scores @ values / scores.sum()
    return y @ weights[f"{name}.o_proj.weight"].T


def plain_llama(weights, config, row):
    """The logits (T, V) of one row of ids, from the formulas."""

    def norm(name, x):
        return torch.stack([plain_norm(config, state, weights[f"{name}.weight"]) for state in x])

    x = weights["embed_tokens.weight"][row]
    for i in range(config.n_layer):
        x = x + plain_attention(weights, f"layers.{i}.self_attn", config, norm(f"layers.{i}.input_layernorm", x))
        z = norm(f"layers.{i}.post_attention_layernorm", x)
        gate, up = (z @ weights[f"layers.{i}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + (-gate).exp()) * up) @ weights[f"layers.{i}.mlp.down_proj.weight"].T
    return norm("norm", x) @ weights["embed_tokens.weight" if config.tied else "lm_head.weight"].T


shapes = st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (6, 3)])
scalings = st.none() | st.builds(
    RopeScaling, st.floats(1.5, 9), st.floats(0.3, 1), st.floats(1.1, 4), st.integers(2, 40)
)


@settings(max_examples=40)
@given(
    st.integers(0, 99),
    st.integers(1, 2),
    shapes,
    st.sampled_from([2, 4, 6]),
    st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    scalings,
    st.booleans(),
    st.lists(st.integers(0, 6), min_size=1, max_size=6),
)
@example(0, 1, (4, 2), 4, "llama", None, True, [0, 1, 2, 3])
@example(0, 1, (4, 2), 4, "qwen2", RopeScaling(8.0, 1.0, 4.0, 16), False, [0, 1, 2, 3])
@example(0, 1, (2, 1), 6, "qwen3", None, False, [3, 1, 2, 3])
def test_llama_is_the_formula(seed, n_layer, heads, head_size, kind, scaling, tied, row):
    """Kills: neighbouring channels paired; heads shared in turns instead of in groups; a norm without ε, or of the
    whole width; silu on the wrong branch; biases of o; values rotated.
    """
    form = {"head_size": head_size, "model_type": kind, "rope_scaling": scaling, "tied": tied}
    model = random_llama(seed, n_layer=n_layer, n_head=heads[0], n_kv_head=heads[1], **form)
    logits = model.logits(model(torch.tensor([row])))[0]
    torch.testing.assert_close(logits, plain_llama(model.state_dict(), model.config, row), rtol=1e-10, atol=1e-10)


# ---- rotary positions ----


@given(st.integers(0, 99), st.integers(0, 4000), st.integers(0, 4000), st.integers(-2000, 9000), st.integers(1, 5))
@example(0, 3, 3, 1, 1)
@example(0, 0, 2, -2, 2)
def test_scores_depend_only_on_the_distance_of_positions(seed, m, n, shift, pairs):
    """⟨R(m) q, R(n) k⟩ = ⟨R(m + s) q, R(n + s) k⟩, and R changes no length. Kills: a rotation of one of both; a
    sine of the wrong sign in one half; an angle that is not linear in the position.
    """
    config = LlamaConfig(**SMALL, n_head=1, head_size=2 * pairs)
    q, k = torch.randn(2, 2 * pairs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    f = rotary_frequencies(config, dtype=torch.float64)

    def score(m, n):
        turned = (rotate(x, (position * f).cos(), (position * f).sin()) for x, position in ((q, m), (k, n)))
        return torch.dot(*turned)

    torch.testing.assert_close(score(m, n), score(m + shift, n + shift), rtol=0, atol=1e-9)
    torch.testing.assert_close(score(m, m), q @ k, rtol=0, atol=1e-9)
    turned = rotate(q, (m * f).cos(), (m * f).sin())
    torch.testing.assert_close(turned.norm(), q.norm(), rtol=1e-12, atol=0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(0, 10_000))
def test_a_text_may_begin_at_any_position(tiny_llama, row, start):
    """The law, through the whole network. Kills: a learned or an absolute part of positions."""
    tokens = torch.tensor([row])
    moved = tiny_llama(tokens, start + torch.arange(len(row)))
    torch.testing.assert_close(moved, tiny_llama(tokens), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_positions_are_exact_in_every_dtype(tiny_llama, dtype):
    """In bfloat16 position 4,001 is 4,000. Kills: angles in the dtype of the states."""
    model, tokens = copy.deepcopy(tiny_llama).to(dtype), torch.tensor([[0, 1, 2, 3, 4, 0]])
    far = model(tokens, 4001 + torch.arange(6))
    assert far.dtype == dtype
    atol = {torch.float32: 5e-3, torch.bfloat16: 0.15}[dtype]
    torch.testing.assert_close(far.double(), tiny_llama(tokens), rtol=0, atol=atol)


@given(st.floats(10, 1e6), st.integers(1, 64), scalings.filter(bool))
@example(500_000.0, 32, RopeScaling(8.0, 1.0, 4.0, 8192))  # Llama 3.1's
@example(500_000.0, 32, RopeScaling(32.0, 1.0, 4.0, 8192))  # Llama 3.2's
@example(10_000.0, 4, RopeScaling(8.0, 1.0, 4.0, 32))
def test_scaled_frequencies_are_the_piecewise_definition(theta, pairs, scaling):
    """Kills: the bounds exchanged; a blend of wavelengths instead of frequencies; fast pairs slowed down too."""
    sizes = SMALL | {"n_head": 1, "head_size": 2 * pairs, "rope_theta": theta}
    config = LlamaConfig(**sizes, rope_scaling=scaling)
    expected = torch.tensor([plain_frequency(config, i) for i in range(pairs)], dtype=torch.float64)
    torch.testing.assert_close(rotary_frequencies(config, dtype=torch.float64), expected, rtol=1e-9, atol=0)
    plain = rotary_frequencies(LlamaConfig(**sizes), dtype=torch.float64)
    stretched = stretch(plain, scaling)
    assert ((plain / scaling.factor <= stretched * (1 + 1e-12)) & (stretched <= plain * (1 + 1e-12))).all()
    assert stretched[0] == plain[0] or scaling.original_positions / (2 * math.pi) < scaling.high_freq_factor


# ---- grouped heads ----


@given(st.integers(0, 99), st.sampled_from(["llama", "qwen2", "qwen3"]))
def test_a_group_is_a_head_of_keys_repeated(seed, kind):
    """A model with as many heads of keys, equal in each group, computes the same. Kills: groups that interleave."""
    grouped = random_llama(seed, n_layer=1, n_head=4, n_kv_head=2, head_size=2, model_type=kind)
    full = random_llama(seed, n_layer=1, n_head=4, head_size=2, model_type=kind)
    weights = grouped.state_dict()
    for name, tensor in weights.items():
        if ".k_proj." in name or ".v_proj." in name:
            weights[name] = tensor.unflatten(0, (2, 2)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    tokens = torch.randint(7, (2, 9), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(grouped(tokens), full(tokens), rtol=0, atol=1e-12)


# ---- configuration ----


def test_initial_weights_come_from_the_generator_alone_and_are_gpt2s():
    """Kills: a parameter drawn from the global source; a norm that is not one; residual projections as large."""
    sizes = LlamaConfig(64, 8, 2, 4, 64, 128, model_type="qwen3", tied=False)
    model, again, other = (Llama(sizes, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        assert torch.equal(parameter, other.get_parameter(name)) == (parameter.dim() == 1)
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            expected = 0.01 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_head": 4}, "n_embd .6. must be a multiple of n_head .4."),
        ({"n_head": 3, "n_kv_head": 2}, "n_head .3. must be a multiple of n_kv_head .2."),
        ({"n_head": 2}, "head_size must be even, got 3"),
        ({"n_head": 2, "head_size": 5}, "head_size must be even, got 5"),
        ({"n_head": 2, "head_size": 0}, "head_size must be a positive integer"),
        ({"rope_theta": 0}, "rope_theta must be a number above 0"),
        ({"rope_theta": "10000"}, "rope_theta must be a number above 0"),
        ({"rope_theta": 10**400}, "rope_theta must be a number above 0"),
        ({"model_type": "gemma"}, "unknown model_type 'gemma'"),
        ({"n_inner": None}, "n_inner must be a positive integer"),
    ],
)
def test_sizes_that_make_no_llama_are_refused(fields, message):
    with pytest.raises(ValueError, match=f"LlamaConfig: {message}"):
        LlamaConfig(**SMALL | {"n_head": 3} | fields)
