"""What mask, positions and cache promise of both models: the same numbers in another layout."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.model.attention import KVCache

assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-12)
ids = st.integers(0, 4)  # of tiny_model
texts = partial(st.lists, ids)


def grids(max_rows=3, max_width=12):
    """Tokens (B, T) of tiny_model."""
    shapes = st.tuples(st.integers(1, max_rows), st.integers(1, max_width))
    return shapes.flatmap(lambda s: st.lists(texts(min_size=s[1], max_size=s[1]), min_size=s[0], max_size=s[0])).map(
        torch.tensor
    )


# ---- what a hidden state depends on ----


@given(texts(max_size=6), ids, ids, texts(max_size=5), texts(max_size=5))
@example([], 0, 1, [], [2])
def test_no_hidden_state_depends_on_a_later_token(tiny_model, before, token, other, after, instead):
    """Kills: attention that sees one token ahead, or a network whose states do not see their own token."""
    ours = tiny_model(torch.tensor([[*before, token, *after]]))[0]
    theirs = tiny_model(torch.tensor([[*before, other, *instead]]))[0]
    t = len(before)
    assert_same(ours[:t], theirs[:t])
    assert torch.allclose(ours[t], theirs[t], rtol=0, atol=1e-12) == (token == other)


@given(grids())
def test_a_row_does_not_depend_on_the_other_rows(tiny_model, tokens):
    """Kills: anything normalised or attended to across the batch."""
    alone = [tiny_model(row[None])[0] for row in tokens]
    assert_same(tiny_model(tokens), torch.stack(alone))


@given(grids())
def test_positions_count_from_zero_by_default(tiny_model, tokens):
    """Kills: positions that start at one; positions of shape (B, T) read as of shape (T,)."""
    B, T = tokens.shape
    default = tiny_model(tokens)
    assert torch.equal(default, tiny_model(tokens, torch.arange(T)))
    assert_same(default, tiny_model(tokens, torch.arange(T).expand(B, T)))


def test_positions_matter(tiny_model):
    """Kills: positions that are not passed to the blocks."""
    tokens = torch.tensor([[0, 1, 2, 3]])
    assert not torch.allclose(tiny_model(tokens), tiny_model(tokens, torch.tensor([0, 3, 6, 9])))


@given(grids())
def test_training_mode_changes_nothing(tiny_model, tokens):
    """Kills: dropout."""
    training = copy.deepcopy(tiny_model).train()
    assert torch.equal(training(tokens), tiny_model.eval()(tokens))


# ---- masks ----


@given(grids())
def test_a_mask_that_hides_nothing_is_the_causal_mask(tiny_model, tokens):
    """Kills: causality lost where a mask is given."""
    B, T = tokens.shape
    full = torch.ones(B, T, T, dtype=torch.bool)
    assert_same(tiny_model(tokens, mask=full), tiny_model(tokens))
    assert_same(tiny_model(tokens, mask=full[0]), tiny_model(tokens))


@given(grids(max_width=6), st.integers(0, 99))
def test_the_mask_is_each_rows_own_and_on_top_of_causality(tiny_model, tokens, seed):
    """Kills: `mask | causal`; the first row's mask used for all; a mask transposed."""
    B, T = tokens.shape
    mask = torch.rand(B, T, T, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask |= torch.eye(T, dtype=torch.bool)
    hidden = tiny_model(tokens, mask=mask)
    assert torch.equal(hidden, tiny_model(tokens, mask=mask.tril()))
    assert_same(hidden, torch.stack([tiny_model(row[None], mask=m)[0] for row, m in zip(tokens, mask, strict=True)]))


@given(texts(min_size=2, max_size=8), st.data())
def test_a_hidden_token_has_no_influence(tiny_model, row, data):
    """Kills: a mask that is checked and then not used."""
    hidden = data.draw(st.integers(0, len(row) - 1))
    mask = torch.ones(len(row), len(row), dtype=torch.bool)
    mask[:, hidden] = False
    mask[hidden, hidden] = True
    others = [t for t in range(len(row)) if t != hidden]
    changed = [*row]
    changed[hidden] = (row[hidden] + 1) % 5
    before, after = (tiny_model(torch.tensor([x]), mask=mask)[0, others] for x in (row, changed))
    assert_same(before, after)


@given(texts(max_size=4), texts(min_size=1, max_size=4), texts(min_size=1, max_size=4))
@example([], [0], [0, 1])
@example([0], [1], [1])
def test_one_row_with_a_shared_prompt_is_two_rows(tiny_model, prompt, chosen, rejected):
    """Kills: rejected tokens that see the chosen ones, or whose positions go on where the chosen ones ended."""
    P, C, R = map(len, (prompt, chosen, rejected))
    positions = torch.tensor([*range(P + C), *range(P, P + R)])
    mask = torch.ones(P + C + R, P + C + R, dtype=torch.bool)
    mask[P + C :, P : P + C] = False
    packed = tiny_model(torch.tensor([prompt + chosen + rejected]), positions, mask)[0]
    rows = [prompt + side + [0] * (max(C, R) - len(side)) for side in (chosen, rejected)]
    padded = tiny_model(torch.tensor(rows))
    assert_same(packed[: P + C], padded[0, : P + C])
    assert_same(torch.cat([packed[:P], packed[P + C :]]), padded[1, : P + R])


@given(st.lists(texts(min_size=1, max_size=12), min_size=1, max_size=3), ids)
def test_left_padding_changes_no_real_token(tiny_model, rows, pad):
    """Kills: padding that is attended to, or that shifts the learned positions."""
    T = max(map(len, rows))
    tokens = torch.tensor([[pad] * (T - len(row)) + row for row in rows])
    pads = torch.tensor([[T - len(row)] for row in rows])  # (B, 1)
    columns = torch.arange(T)
    mask = (columns >= pads)[:, None] | torch.eye(T, dtype=torch.bool)
    hidden = tiny_model(tokens, (columns - pads).clamp(min=0), mask)
    for row, padded in zip(rows, hidden, strict=True):
        assert_same(padded[T - len(row) :], tiny_model(torch.tensor([row]))[0])


# ---- the cache ----


@given(
    st.lists(st.tuples(texts(min_size=1, max_size=6), texts(min_size=6, max_size=6)), min_size=1, max_size=3),
    st.sampled_from([1, 2, 3, 6]),
    ids,
)
@example([([0], [1, 2, 3, 0, 1, 2]), ([3, 2, 1, 0, 4, 4], [4, 3, 2, 1, 0, 0])], 1, 4)
def test_decoding_with_a_cache_is_the_full_forward(tiny_model, rows, chunk, pad):
    """Kills: keys stored in the slots of a padded row's columns; a mask that shows stale padding; a layer's
    keys stored with another's.
    """
    prompts, new = [prompt for prompt, _ in rows], torch.tensor([continuation for _, continuation in rows])
    longest = max(map(len, prompts))
    lengths = torch.tensor([[len(prompt)] for prompt in prompts])  # (B, 1)
    cache = KVCache(tiny_model.config, len(rows), longest + 6, dtype=torch.float64)
    prefill = tiny_model(torch.tensor([p + [pad] * (longest - len(p)) for p in prompts]), cache=cache)
    decoded = [
        tiny_model(new[:, i : i + chunk], lengths + torch.arange(i, i + chunk), cache=cache) for i in range(0, 6, chunk)
    ]
    decoded = torch.cat(decoded, dim=1)  # (B, 6, C)
    for i, (prompt, continuation) in enumerate(rows):
        full = tiny_model(torch.tensor([prompt + continuation]))[0]
        assert_same(prefill[i, : len(prompt)], full[: len(prompt)])
        assert_same(decoded[i], full[len(prompt) :])


@given(
    st.lists(texts(min_size=4, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    ids,
)
def test_selected_rows_go_on_from_what_their_parents_saw(tiny_model, rows, parents, token):
    """Kills: keys selected and values not; rows written to where their parents were; slots not in use looked at."""
    parents = [parent % len(rows) for parent in parents]
    cache = KVCache(tiny_model.config, len(rows), 9, dtype=torch.float64)
    tiny_model(torch.tensor(rows), cache=cache)
    cache.keys[:, :, :, 4:], cache.values[:, :, :, 4:] = torch.nan, torch.nan
    cache.select(torch.tensor(parents))
    cache.slots = 5
    ours = tiny_model(torch.full((len(parents), 1), token), torch.full((len(parents), 1), 4), cache=cache)
    theirs = tiny_model(torch.tensor([[*rows[parent], token] for parent in parents]))
    assert_same(ours[:, 0], theirs[:, 4])


# ---- errors ----


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1), ()])
def test_tokens_of_another_shape_are_refused(tiny_model, shape):
    with pytest.raises(ValueError, match="tokens must be"):
        tiny_model(torch.zeros(shape, dtype=torch.long))


def test_block_size_is_the_longest_sequence(tiny_model):
    """Kills: `>=` where `>` is meant."""
    assert tiny_model(torch.zeros(1, 12, dtype=torch.long)).shape == (1, 12, 8)
    with pytest.raises(ValueError, match="13 tokens exceed block_size 12"):
        tiny_model(torch.zeros(1, 13, dtype=torch.long))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (3, 4), (4, 4), (1, 3, 3), (3, 3, 3), (2, 1, 3, 3), (1, 1)])
def test_a_mask_of_another_shape_is_refused(tiny_model, shape):
    with pytest.raises(ValueError, match="mask must be boolean"):
        tiny_model(torch.zeros(2, 3, dtype=torch.long), mask=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_a_mask_that_is_not_boolean_is_refused(tiny_model, dtype):
    with pytest.raises(ValueError, match="mask must be boolean"):
        tiny_model(torch.zeros(2, 3, dtype=torch.long), mask=torch.ones(3, 3, dtype=dtype))


@pytest.mark.parametrize(("rows", "sizes"), [(1, [2]), (1, [2, 2]), (1, []), (2, [3])])
def test_texts_that_are_not_one_row_are_refused(tiny_model, rows, sizes):
    with pytest.raises(ValueError, match="are not a row of"):
        tiny_model(torch.zeros(rows, 3, dtype=torch.long), mask=[torch.ones(n, n, dtype=torch.bool) for n in sizes])


# ---- the same numbers on other ways ----


def gradients(model, loss):
    """The gradient of every parameter, by name."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@settings(max_examples=20)
@given(grids(max_rows=2, max_width=6), st.booleans())
def test_checkpointed_activations_change_no_gradient(tiny_model, tokens, masked):
    """Kills: what a block needs of positions or mask lost in the second forward."""
    plain = copy.deepcopy(tiny_model).requires_grad_()
    again = copy.deepcopy(plain)
    again.checkpoint_activations = True
    T = tokens.shape[1]
    mask = torch.eye(T, dtype=torch.bool) | (torch.arange(T) == 0) if masked else None
    expected, ours = (
        gradients(m, m.logits(m(tokens, mask=mask)).log_softmax(-1).square().sum()) for m in (plain, again)
    )
    for name, gradient in ours.items():
        assert torch.equal(gradient, expected[name]), name


def test_a_compiled_model_is_the_model_at_every_length(tiny_model):
    """Kills: a branch or a shape that depends on a value; a second compilation for a third length."""
    model, graphs = copy.deepcopy(tiny_model).requires_grad_(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model.compile(dynamic=True, backend=backend)
    for T in (5, 7, 9):
        tokens, mask = torch.arange(2 * T).view(2, T) % 5, torch.ones(2, T, T, dtype=torch.bool)
        mask[:, 3:, 1] = False
        assert_same(model(tokens, torch.arange(T).expand(2, T), mask), tiny_model(tokens, mask=mask))
    assert len(graphs) <= 2  # one for the mask's first shape, one for every shape


@pytest.mark.parametrize("masked", [False, True])
def test_under_autocast_states_are_about_the_same(tiny_model, masked):
    """Kills: a mask, or queries and keys, of another dtype than the values; norms in bfloat16."""
    model, tokens = copy.deepcopy(tiny_model).float(), torch.tensor([[0, 1, 2, 3, 4, 0], [4, 3, 2, 1, 0, 1]])
    mask = torch.ones(6, 6, dtype=torch.bool) if masked else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model(tokens, mask=mask)
    assert hidden.dtype == torch.float32
    torch.testing.assert_close(hidden.double(), tiny_model(tokens), rtol=0, atol=0.1)


def test_the_count_of_parameters_is_the_models(tiny_model):
    """Kills: a tied head counted twice, or a bias forgotten; the sizes of test_weights.py add the other forms."""
    assert tiny_model.config.parameters() == sum(p.numel() for p in tiny_model.parameters())


def test_autocast_leaves_float64_as_it_is(tiny_model):
    """Kills: a mask in autocast's dtype beside scores that are not; a GPU's autocast is on by default."""
    tokens, mask = torch.tensor([[0, 1, 2]]), torch.ones(3, 3, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(tiny_model(tokens, mask=mask), tiny_model(tokens), rtol=1e-12, atol=1e-12)
