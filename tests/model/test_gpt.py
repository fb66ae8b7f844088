"""GPT-2 against itself written out, and what mask, positions and cache promise: the same numbers in another layout."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.model.attention import KVCache
from dpo_min.model.gpt import GPT, GPTConfig

assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-12)
ids = st.integers(0, 4)  # of tiny_gpt
texts = partial(st.lists, ids)


def grids(max_rows=3, max_width=12):
    """Tokens (B, T) of tiny_gpt."""
    shapes = st.tuples(st.integers(1, max_rows), st.integers(1, max_width))
    return shapes.flatmap(lambda s: st.lists(texts(min_size=s[1], max_size=s[1]), min_size=s[0], max_size=s[0])).map(
        torch.tensor
    )


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
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = torch.stack([weights["wte.weight"][token] + weights["wpe.weight"][t] for t, token in enumerate(row)])
    for i in range(config.n_layer):
        x = x + plain_attention(weights, f"h.{i}.attn", config.n_head, norm(f"h.{i}.ln_1", x))
        x = x + linear(f"h.{i}.mlp.c_proj", gelu(linear(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x))))
    return norm("ln_f", x) @ weights["wte.weight"].T


@given(st.integers(0, 99), st.integers(1, 3), st.integers(1, 4), st.integers(1, 8))
def test_attention_is_the_softmax_loop(seed, n_head, head_size, T):
    """Kills: the scale 1/√C instead of 1/√hs; heads interleaved; keys and values exchanged."""
    model = random_gpt(seed, vocab_size=2, block_size=8, n_layer=1, n_head=n_head, n_embd=n_head * head_size)
    x = torch.randn(2, T, n_head * head_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = [plain_attention(model.state_dict(), "h.0.attn", n_head, row) for row in x]
    assert_same(model.h[0].attn(x), torch.stack(expected))


@given(st.integers(0, 99), st.integers(1, 2), st.integers(1, 3), st.lists(st.integers(0, 6), min_size=1, max_size=8))
def test_gpt_is_the_formula(seed, n_layer, n_head, row):
    """Kills: another ε in LayerNorm; the erf GELU; LayerNorm after the sublayer; a head of its own."""
    model = random_gpt(seed, vocab_size=7, block_size=8, n_layer=n_layer, n_head=n_head, n_embd=6)
    logits = model.logits(model(torch.tensor([row])))[0]
    torch.testing.assert_close(logits, plain_gpt(model.state_dict(), model.config, row), rtol=1e-10, atol=1e-10)


# ---- what a hidden state depends on ----


@given(texts(max_size=6), ids, ids, texts(max_size=5), texts(max_size=5))
@example([], 0, 1, [], [2])
def test_no_hidden_state_depends_on_a_later_token(tiny_gpt, before, token, other, after, instead):
    """Kills: attention that sees one token ahead, or a network whose states do not see their own token."""
    ours = tiny_gpt(torch.tensor([[*before, token, *after]]))[0]
    theirs = tiny_gpt(torch.tensor([[*before, other, *instead]]))[0]
    t = len(before)
    assert_same(ours[:t], theirs[:t])
    assert torch.allclose(ours[t], theirs[t], rtol=0, atol=1e-12) == (token == other)


@given(grids())
def test_a_row_does_not_depend_on_the_other_rows(tiny_gpt, tokens):
    """Kills: anything normalised or attended to across the batch."""
    alone = [tiny_gpt(row[None])[0] for row in tokens]
    assert_same(tiny_gpt(tokens), torch.stack(alone))


@given(grids())
def test_positions_count_from_zero_by_default(tiny_gpt, tokens):
    """Kills: positions that start at one; positions of shape (B, T) read as of shape (T,)."""
    B, T = tokens.shape
    default = tiny_gpt(tokens)
    assert torch.equal(default, tiny_gpt(tokens, torch.arange(T)))
    assert torch.equal(default, tiny_gpt(tokens, torch.arange(T).expand(B, T)))
    assert not torch.allclose(default, tiny_gpt(tokens, torch.arange(T).roll(1) if T > 1 else torch.ones(1).long()))


@given(grids())
def test_training_mode_changes_nothing(tiny_gpt, tokens):
    """Kills: dropout."""
    training = copy.deepcopy(tiny_gpt).train()
    assert torch.equal(training(tokens), tiny_gpt.eval()(tokens))


# ---- masks ----


@given(grids())
def test_a_mask_that_hides_nothing_is_the_causal_mask(tiny_gpt, tokens):
    """Kills: causality lost where a mask is given."""
    B, T = tokens.shape
    full = torch.ones(B, T, T, dtype=torch.bool)
    assert_same(tiny_gpt(tokens, mask=full), tiny_gpt(tokens))
    assert_same(tiny_gpt(tokens, mask=full[0]), tiny_gpt(tokens))


@given(grids(max_width=6), st.integers(0, 99))
def test_the_mask_is_each_rows_own_and_on_top_of_causality(tiny_gpt, tokens, seed):
    """Kills: `mask | causal`; the first row's mask used for all; a mask transposed."""
    B, T = tokens.shape
    mask = torch.rand(B, T, T, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask |= torch.eye(T, dtype=torch.bool)
    hidden = tiny_gpt(tokens, mask=mask)
    assert torch.equal(hidden, tiny_gpt(tokens, mask=mask.tril()))
    assert_same(hidden, torch.stack([tiny_gpt(row[None], mask=m)[0] for row, m in zip(tokens, mask, strict=True)]))


@given(texts(min_size=2, max_size=8), st.data())
def test_a_hidden_token_has_no_influence(tiny_gpt, row, data):
    """Kills: a mask that is checked and then not used."""
    hidden = data.draw(st.integers(0, len(row) - 1))
    mask = torch.ones(len(row), len(row), dtype=torch.bool)
    mask[:, hidden] = False
    mask[hidden, hidden] = True
    others = [t for t in range(len(row)) if t != hidden]
    changed = [*row]
    changed[hidden] = (row[hidden] + 1) % 5
    before, after = (tiny_gpt(torch.tensor([x]), mask=mask)[0, others] for x in (row, changed))
    assert_same(before, after)


@given(texts(max_size=4), texts(min_size=1, max_size=4), texts(min_size=1, max_size=4))
@example([], [0], [0, 1])
@example([0], [1], [1])
def test_one_row_with_a_shared_prompt_is_two_rows(tiny_gpt, prompt, chosen, rejected):
    """Kills: rejected tokens that see the chosen ones, or whose positions go on where the chosen ones ended."""
    P, C, R = map(len, (prompt, chosen, rejected))
    positions = torch.tensor([*range(P + C), *range(P, P + R)])
    mask = torch.ones(P + C + R, P + C + R, dtype=torch.bool)
    mask[P + C :, P : P + C] = False
    packed = tiny_gpt(torch.tensor([prompt + chosen + rejected]), positions, mask)[0]
    rows = [prompt + side + [0] * (max(C, R) - len(side)) for side in (chosen, rejected)]
    padded = tiny_gpt(torch.tensor(rows))
    assert_same(packed[: P + C], padded[0, : P + C])
    assert_same(torch.cat([packed[:P], packed[P + C :]]), padded[1, : P + R])


@given(st.lists(texts(min_size=1, max_size=12), min_size=1, max_size=3), ids)
def test_left_padding_changes_no_real_token(tiny_gpt, rows, pad):
    """Kills: padding that is attended to, or that shifts the learned positions."""
    T = max(map(len, rows))
    tokens = torch.tensor([[pad] * (T - len(row)) + row for row in rows])
    pads = torch.tensor([[T - len(row)] for row in rows])  # (B, 1)
    columns = torch.arange(T)
    mask = (columns >= pads)[:, None] | torch.eye(T, dtype=torch.bool)
    hidden = tiny_gpt(tokens, (columns - pads).clamp(min=0), mask)
    for row, padded in zip(rows, hidden, strict=True):
        assert_same(padded[T - len(row) :], tiny_gpt(torch.tensor([row]))[0])


# ---- the cache ----


@given(
    st.lists(st.tuples(texts(min_size=1, max_size=6), texts(min_size=6, max_size=6)), min_size=1, max_size=3),
    st.sampled_from([1, 2, 3, 6]),
    ids,
)
@example([([0], [1, 2, 3, 0, 1, 2]), ([3, 2, 1, 0, 4, 4], [4, 3, 2, 1, 0, 0])], 1, 4)
def test_decoding_with_a_cache_is_the_full_forward(tiny_gpt, rows, chunk, pad):
    """Kills: keys stored in the slots of a padded row's columns; a mask that shows stale padding; a layer's
    keys stored with another's.
    """
    prompts, new = [prompt for prompt, _ in rows], torch.tensor([continuation for _, continuation in rows])
    longest = max(map(len, prompts))
    lengths = torch.tensor([[len(prompt)] for prompt in prompts])  # (B, 1)
    cache = KVCache(tiny_gpt.config, len(rows), longest + 6, dtype=torch.float64)
    prefill = tiny_gpt(torch.tensor([p + [pad] * (longest - len(p)) for p in prompts]), cache=cache)
    decoded = [
        tiny_gpt(new[:, i : i + chunk], lengths + torch.arange(i, i + chunk), cache=cache) for i in range(0, 6, chunk)
    ]
    decoded = torch.cat(decoded, dim=1)  # (B, 6, C)
    for i, (prompt, continuation) in enumerate(rows):
        full = tiny_gpt(torch.tensor([prompt + continuation]))[0]
        assert_same(prefill[i, : len(prompt)], full[: len(prompt)])
        assert_same(decoded[i], full[len(prompt) :])


@given(
    st.lists(texts(min_size=4, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    ids,
)
def test_selected_rows_go_on_from_what_their_parents_saw(tiny_gpt, rows, parents, token):
    """Kills: keys selected and values not; rows written to where their parents were; slots not in use looked at."""
    parents = [parent % len(rows) for parent in parents]
    cache = KVCache(tiny_gpt.config, len(rows), 9, dtype=torch.float64)
    tiny_gpt(torch.tensor(rows), cache=cache)
    cache.keys[:, :, :, 4:], cache.values[:, :, :, 4:] = torch.nan, torch.nan
    cache.select(torch.tensor(parents))
    cache.slots = 5
    ours = tiny_gpt(torch.full((len(parents), 1), token), torch.full((len(parents), 1), 4), cache=cache)
    theirs = tiny_gpt(torch.tensor([[*rows[parent], token] for parent in parents]))
    assert_same(ours[:, 0], theirs[:, 4])


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


# ---- errors ----


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1), ()])
def test_tokens_of_another_shape_are_refused(tiny_gpt, shape):
    with pytest.raises(ValueError, match="tokens must be"):
        tiny_gpt(torch.zeros(shape, dtype=torch.long))


def test_block_size_is_the_longest_sequence(tiny_gpt):
    """Kills: `>=` where `>` is meant."""
    assert tiny_gpt(torch.zeros(1, 12, dtype=torch.long)).shape == (1, 12, 8)
    with pytest.raises(ValueError, match="13 tokens exceed block_size 12"):
        tiny_gpt(torch.zeros(1, 13, dtype=torch.long))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 4), (4, 4), (1, 3, 3), (3, 3, 3), (2, 1, 3, 3), (1, 1)])
def test_a_mask_of_another_shape_is_refused(tiny_gpt, shape):
    with pytest.raises(ValueError, match="mask must be boolean"):
        tiny_gpt(torch.zeros(2, 3, dtype=torch.long), mask=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_a_mask_that_is_not_boolean_is_refused(tiny_gpt, dtype):
    with pytest.raises(ValueError, match="mask must be boolean"):
        tiny_gpt(torch.zeros(2, 3, dtype=torch.long), mask=torch.ones(3, 3, dtype=dtype))


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
