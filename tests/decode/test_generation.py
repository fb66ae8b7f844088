"""Sampling: the distribution without randomness first, then the draws, each against a plain model without a cache."""

import copy
import math
from collections import Counter
from functools import partial
from itertools import product
from random import Random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.decode.beams import beam_search
from dpo_min.decode.generation import decode_step, generate, prefill, stream
from dpo_min.decode.packed_weights import PackedLinear, decoding_weights, packable
from dpo_min.decode.sampling import next_token_probs
from dpo_min.decode.stop_strings import StopStrings
from dpo_min.exact import enumerate_completions, exact_log_policy
from dpo_min.model.llama import Llama, LlamaConfig

END, BLOCK_SIZE = 4, 12  # of tiny_gpt
texts = partial(st.lists, st.integers(0, END))
batches = st.lists(texts(max_size=BLOCK_SIZE - 1), min_size=1, max_size=4)


def ids_of(*arguments, **sampling):
    """The ids of each completion that `generate` draws."""
    return [completion.ids for completion in generate(*arguments, **sampling)]


# ---- the draws ----


def plain_logits(model, tokens):
    """The logits (1, V) of the token after `tokens`, by a full forward; empty tokens start from end-of-text."""
    return model.logits(model(torch.tensor([tokens or [END]]))[:, -1])


def plain_probs(model, tokens, forbidden=None, **sampling):
    """The distribution of the token after `tokens`."""
    seen = torch.zeros(1, 5, dtype=torch.bool)
    seen[0, tokens or [END]] = True
    return next_token_probs(plain_logits(model, tokens), seen=seen, forbidden=forbidden, **sampling)[0]


def plain_greedy(model, prompt, max_new_tokens):
    """The most likely token, again and again, each from a full forward over all that came before."""
    text, completion = prompt or [END], []
    while len(completion) < max_new_tokens and len(text + completion) < BLOCK_SIZE and completion[-1:] != [END]:
        completion.append(plain_probs(model, text + completion).argmax().item())
    return completion


@given(batches, st.integers(0, 14))
@example([[], [0], [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]], 14)
@example([[0, 3, 2, 4], [0] * 11], 1)
def test_greedy_decoding_is_the_argmax_of_full_forwards_for_every_prompt_of_the_batch(tiny_model, prompts, length):
    """Kills: a cache whose slots are off by one; the logits of a shorter prompt taken from its padding."""
    ours = ids_of(tiny_model, prompts, END, length, temperature=0)
    assert ours == [plain_greedy(tiny_model, prompt, length) for prompt in prompts]


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


SAMPLING = [
    {},
    {"temperature": 0.5, "min_p": 0.1},
    {"temperature": 2.0, "top_k": 3, "repetition_penalty": 1.5},
    {"top_p": 0.8},
]


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


wishes = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.5, 2.0]),
        "top_k": st.integers(1, 5),
        "top_p": st.floats(0.1, 1),
        "min_p": st.floats(0, 1),
        "repetition_penalty": st.sampled_from([0.5, 1.5]),
        "min_new_tokens": st.integers(0, 3),
    },
)


@settings(max_examples=40)
@given(batches, st.integers(3, 14), st.integers(0, 99), wishes)
@example([[], [0] * 11, [3, 2]], 14, 0, {"temperature": 0.0, "repetition_penalty": 1.5, "min_new_tokens": 3})
def test_each_token_carries_its_log_probability_under_the_model_and_under_its_draw(tiny_gpt, prompts, n, seed, wish):
    """Kills: log-probabilities after temperature; those of the step before; padding or another row's tokens penalised;
    the prompt's or the drawn tokens not penalised; end-of-text before the least length.
    """
    drawn = generate(tiny_gpt, prompts, END, n, torch.Generator().manual_seed(seed), **wish)
    least = wish.get("min_new_tokens", 0)
    settings = {name: wish[name] for name in wish if name != "min_new_tokens"}
    for prompt, completion in zip(prompts, drawn, strict=True):
        text = prompt or [END]
        for t, token in enumerate(completion.ids):
            exact = plain_logits(tiny_gpt, text + completion.ids[:t]).log_softmax(-1)[0, token].item()
            assert completion.logps[t] == pytest.approx(exact, abs=1e-10)
            forbidden = END if t < least else None
            probs = plain_probs(tiny_gpt, text + completion.ids[:t], forbidden, **settings)
            assert completion.sampling_logps[t] == pytest.approx(probs[token].log().item(), abs=1e-4)
        assert completion.logp == pytest.approx(sum(completion.logps))
        assert completion.sampling_logp == pytest.approx(sum(completion.sampling_logps))
        assert completion.ended == (completion.ids[-1] == END)


@settings(max_examples=40)
@given(batches, st.integers(0, 99), wishes, st.randoms())
@example([[0], [], [0], [1, 2, 3], [0]], 0, {}, Random(1))
def test_neither_the_order_nor_the_company_of_prompts_changes_anything(tiny_gpt, prompts, seed, wish, random):
    """Kills: draws by place in the batch; a row that sees another's cache; a limit drawn by place."""
    wish = wish | {"length_range": (3, 9)}

    def texts_of(prompts):
        return ids_of(tiny_gpt, prompts, END, 9, torch.Generator().manual_seed(seed), **wish)

    ours, places = texts_of(prompts), list(range(len(prompts)))
    random.shuffle(places)
    copies = {}
    for i, ids in zip(places, texts_of([prompts[i] for i in places]), strict=True):
        copies.setdefault(tuple(prompts[i] or [END]), []).append(ids)
    assert [copies[tuple(prompt or [END])].pop(0) for prompt in prompts] == ours  # equal prompts keep their order
    assert texts_of(prompts[:1]) == ours[:1]


def test_lengths_are_drawn_uniformly_and_the_least_length_holds(tiny_gpt):
    """Kills: HI or LO never drawn; end-of-text before the least length; a first token that depends on the limit."""
    n, settings = 400, {"length_range": (2, 5), "min_new_tokens": 2}
    drawn = ids_of(tiny_gpt, [[0, 1]] * n, END, 5, torch.Generator().manual_seed(0), **settings)
    assert all(2 <= len(ids) <= 5 and END not in ids[:2] for ids in drawn)
    never_ends = 99  # no id of the model's, so that only limits end a completion
    drawn = ids_of(tiny_gpt, [[0, 1]] * n, never_ends, 5, torch.Generator().manual_seed(0), length_range=(2, 5))
    counts = Counter(map(len, drawn))
    assert set(counts) == {2, 3, 4, 5}
    (token, often), *_ = Counter(ids[0] for ids in drawn).most_common()
    for length, count in counts.items():
        share = sum(ids[0] == token for ids in drawn if len(ids) == length) / count
        assert share == pytest.approx(often / n, abs=0.2)  # four standard errors of a hundred draws
    assert sum((count - n / 4) ** 2 / (n / 4) for count in counts.values()) < 25  # 3 degrees of freedom: once in 60,000


def test_no_prompt_and_no_token_are_no_completion(tiny_gpt):
    """Kills: the greatest length of no prompts."""
    assert generate(tiny_gpt, [], END, 3) == [] == beam_search(tiny_gpt, [], END, 3, 2)
    assert (
        [c.ids for c in generate(tiny_gpt, [[0]], END, 0)]
        == [[]]
        == [h.ids for h in beam_search(tiny_gpt, [[0]], END, 0, 2)[0]]
    )


@given(batches, st.integers(1, 9))
def test_a_temperature_near_zero_is_greedy(tiny_gpt, prompts, n):
    """Kills: a limit that is not the argmax."""
    assert ids_of(tiny_gpt, prompts, END, n, temperature=1e-9) == ids_of(tiny_gpt, prompts, END, n, temperature=0)


# ---- an embedding beyond the vocabulary ----


@settings(max_examples=30)
@given(batches, st.integers(1, 5), st.integers(0, 99), wishes)
def test_a_token_that_the_tokenizer_does_not_have_is_never_drawn(tiny_padded, prompts, n, seed, wish):
    """Its rows may be anything; the log-probabilities stay the model's, over all of them. Kills: a padded row that is
    likely and drawn, is counted by top-k, or holds the temperature's maximum; one left out of the softmax of log π.
    """
    prompts, wish = [[token % 3 for token in prompt] for prompt in prompts], {**wish}
    wish.pop("min_new_tokens", None)
    drawn = generate(tiny_padded, prompts, 2, n, torch.Generator().manual_seed(seed), vocab_size=3, **wish)
    beams = beam_search(tiny_padded, prompts[:1], 2, n, 2, vocab_size=3)
    for prompt, completion in zip(prompts + prompts[:1] * len(beams[0]), drawn + beams[0], strict=True):
        text = prompt or [2]
        assert all(token < 3 for token in completion.ids)
        for t, token in enumerate(completion.ids):
            logits = tiny_padded.logits(tiny_padded(torch.tensor([text + completion.ids[:t]])))[:, -1]
            assert completion.logps[t] == pytest.approx(logits.log_softmax(-1)[0, token].item(), abs=1e-10)
            seen = torch.zeros(1, 3, dtype=torch.bool)
            seen[0, text + completion.ids[:t]] = True
            probs = next_token_probs(logits[:, :3], seen=seen, **wish)
            if completion.sampling_logps[t] or completion not in beams[0]:
                assert completion.sampling_logps[t] == pytest.approx(probs[0, token].log().item(), abs=1e-4)


def test_without_a_vocabulary_the_padded_rows_are_drawn(tiny_padded):
    """The test above would notice."""
    assert any(max(ids) >= 3 for ids in ids_of(tiny_padded, [[0]] * 9, 2, 3, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="vocab_size must be a whole number from 1 up, got 0"):
        generate(tiny_padded, [[0]], 2, 3, vocab_size=0)


@pytest.fixture(scope="module")
def tiny_padded(tiny_gpt):
    """tiny_gpt as the model of a tokenizer of three tokens: ids 3 and 4 are padding, and the likeliest of all."""
    model = copy.deepcopy(tiny_gpt)
    model.wte.weight[3:] *= 3
    return model


# ---- stop strings ----

SPELLING = [b"a", b"ab", b"ba", b"", b""]  # of each id: strings span tokens, and end inside them


def decode_bytes(ids):
    return b"".join(SPELLING[i] for i in ids)


stop_strings = st.lists(st.sampled_from(["b", "aa", "aab", "bb", "abab", "baa"]), max_size=2)


@given(texts(max_size=8), stop_strings)
@example([0, 2, 0], ["aba"])
@example([0, 0, 1], ["aab"])
@example([1, 0, 0], ["aa", "bb"])
@example([1, 1], ["b", "abab"])
def test_a_text_ends_before_its_first_stop_string_and_its_pieces_are_the_text(ids, strings):
    """Kills: a stop string looked for inside one token only; a piece shown twice, or that belongs to one."""
    stop = StopStrings(strings, decode_bytes)
    completion = ids[: next((t for t in range(1, len(ids)) if stop(ids[:t])), len(ids))]
    for some in (ids, completion):
        whole = decode_bytes(some).decode()
        starts = [i for i in range(len(whole)) if any(whole.startswith(string, i) for string in strings)]
        expected = whole[: min(starts, default=len(whole))]
        assert stop.text(some) == expected
        assert stop(some) == bool(starts)
    piece, shown = stop.pieces(), ""
    for t in range(len(completion)):
        shown += piece(completion[: t + 1])
        assert expected.startswith(shown)
    assert shown + piece(completion, final=True) == expected


def test_a_piece_holds_back_half_a_character():
    """Kills: U+FFFD for a character that another token completes; a last half that is never shown."""
    stop = StopStrings(["é!"], lambda ids: bytes(ids))
    piece, data = stop.pieces(), list("né?é".encode())
    assert [piece(data[:n]) for n in range(1, 5)] == ["n", "", "", "é?"]
    assert piece(data[:5], final=True) == "\ufffd"
    with pytest.raises(ValueError, match="empty string"):
        StopStrings([""], decode_bytes)


@given(batches, stop_strings, st.integers(0, 99))
def test_a_completion_ends_with_the_token_that_completes_a_stop_string(tiny_gpt, prompts, strings, seed):
    """Kills: a stop string found in the prompt; a stop that ends every row; draws that a stop changes."""
    stop = StopStrings(strings, decode_bytes)
    stopped, whole = (
        generate(tiny_gpt, prompts, END, 9, torch.Generator().manual_seed(seed), stop=wish) for wish in (stop, None)
    )
    for ours, longer in zip(stopped, whole, strict=True):
        ends = (t + 1 for t in range(len(longer.ids)) if stop(longer.ids[: t + 1]))
        assert ours.ids == longer.ids[: next(ends, None)]
        assert ours.ended == (stop(ours.ids) or ours.ids[-1] == END)


# ---- beams ----


@given(batches, st.integers(1, 12), st.sampled_from([-1.0, 0.0, 1.0]), st.integers(0, 1))
@example([[0] * 11, []], 12, 1.0, 0)
def test_one_beam_is_greedy(tiny_gpt, prompts, n, length_penalty, least):
    """Kills: a beam that goes on after its best token was end-of-text; a row of the cache that is another prompt's."""
    greedy = generate(tiny_gpt, prompts, END, n, temperature=0, min_new_tokens=least)
    beams = beam_search(tiny_gpt, prompts, END, n, 1, length_penalty, least)
    for ours, (theirs,) in zip(greedy, beams, strict=True):
        assert (ours.ids, ours.ended) == (theirs.ids, theirs.ended)
        assert ours.logps == pytest.approx(theirs.logps, abs=1e-10)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5, 3.0])
def test_as_many_beams_as_completions_rank_them_all(tiny_model, length_penalty):
    """Kills: a hypothesis dropped, counted twice or never ended; a penalty on the wrong side of the division."""
    prompts, T = [[0, 1], [3]], 3
    completions = enumerate_completions(5, END, T)
    beams = beam_search(tiny_model, prompts, END, T, len(completions), length_penalty)
    for prompt, beam in zip(prompts, beams, strict=True):
        exact = dict(zip(completions, exact_log_policy(tiny_model, prompt, END, T).tolist(), strict=True))
        ranked = sorted(completions, key=lambda y: exact[y] / len(y) ** length_penalty, reverse=True)
        assert [tuple(hypothesis.ids) for hypothesis in beam] == ranked
        assert [hypothesis.logp for hypothesis in beam] == pytest.approx([exact[y] for y in ranked], abs=1e-10)


@settings(max_examples=50)
@given(batches, st.integers(1, 9), st.integers(1, 6), st.integers(0, 1), stop_strings)
def test_beams_are_different_completions_in_order_with_their_log_probabilities(
    tiny_gpt, prompts, n, width, least, strings
):
    """Kills: a hypothesis with another's cache or history; beams that survive a stop string; a limit missed by one."""
    stop = StopStrings(strings, decode_bytes)
    for prompt, beam in zip(prompts, beam_search(tiny_gpt, prompts, END, n, width, 0.0, least, stop), strict=True):
        (alone,) = beam_search(tiny_gpt, [prompt], END, n, width, 0.0, least, stop)
        assert [h.ids for h in beam] == [h.ids for h in alone]  # whatever other prompts there are, in whatever order
        assert 1 <= len(beam) <= width
        assert len({tuple(hypothesis.ids) for hypothesis in beam}) == len(beam)
        assert [h.logp for h in beam] == sorted((h.logp for h in beam), reverse=True)
        limit = min(n, BLOCK_SIZE - max(len(prompt), 1))
        for h in beam:
            rows = torch.tensor([(prompt or [END]) + h.ids])
            exact = tiny_gpt.logits(tiny_gpt(rows[:, :-1])).log_softmax(-1).gather(-1, rows[:, 1:, None])[0, :, 0]
            assert h.logps == pytest.approx(exact[-len(h.ids) :].tolist(), abs=1e-10)
            assert END not in h.ids[:-1] + h.ids[:least]
            assert not stop(h.ids[:-1])
            assert h.ended == (h.ids[-1] == END or stop(h.ids))
            assert h.ended or len(h.ids) == limit
            assert len(h.ids) <= limit


def test_equally_likely_hypotheses_come_in_the_order_of_their_ids(tiny_gpt):
    """Kills: ties in whatever order a kernel finds them."""
    model = copy.deepcopy(tiny_gpt)
    model.wte.weight.zero_()
    (beam,) = beam_search(model, [[0]], END, 2, 3, min_new_tokens=2)
    assert [h.ids for h in beam] == [[0, 0], [0, 1], [0, 2]]


def test_no_beam_and_no_room_are_named(tiny_gpt):
    with pytest.raises(ValueError, match="num_beams"):
        beam_search(tiny_gpt, [[0]], END, 3, 0)
    with pytest.raises(ValueError, match="min_new_tokens"):
        beam_search(tiny_gpt, [[0]], END, 3, 1, min_new_tokens=4)
    with pytest.raises(ValueError, match="leaves no room"):
        beam_search(tiny_gpt, [[0] * 12], END, 3, 1)


# ---- fast ----


@settings(max_examples=20)
@given(st.lists(texts(min_size=1, max_size=6), min_size=1, max_size=4), st.booleans())
def test_decode_steps_after_a_prefill_are_the_full_forward(tiny_model, prompts, all_slots):
    """Kills: a slot too few or too many in use; positions that do not advance; static shapes that see empty slots."""
    logits, positions, cache = prefill(tiny_model, prompts, 5)
    rows = [[*prompt] for prompt in prompts]
    if all_slots:  # as on a GPU
        cache.slots = cache.keys.shape[3]
    for step in range(5):
        expected = torch.cat([plain_logits(tiny_model, row) for row in rows])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
        tokens = torch.tensor([(7 * step + i) % 5 for i in range(len(rows))])
        logits = decode_step(tiny_model, tokens, positions + step, cache)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.append(token)


def test_with_all_slots_in_use_every_step_is_one_and_the_same_graph(tiny_model):
    """Kills: a shape or a branch that depends on a value, which breaks a CUDA graph or compiles every step again."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    logits, positions, cache = prefill(tiny_model, [[0, 1], [2]], 6)
    cache.slots = cache.keys.shape[3]
    compiled = torch.compile(decode_step, fullgraph=True, backend=backend)
    rows = [[0, 1], [2]]
    for step in range(4):
        tokens = logits.argmax(-1)
        logits = compiled(tiny_model, tokens, positions + step, cache)
        rows = [[*row, token] for row, token in zip(rows, tokens.tolist(), strict=True)]
    assert len(graphs) == 1
    torch.testing.assert_close(logits, torch.cat([plain_logits(tiny_model, row) for row in rows]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_weights_are_the_model(tiny_model, dtype, batch):
    """Kills: a bias left out; a layer packed twice or in another's place; the other head; a part that follows what the
    model learns later; weights drawn from the global source only to be replaced; rotations in bfloat16.
    """
    model, state = copy.deepcopy(tiny_model), torch.get_rng_state()
    fast = decoding_weights(model, dtype)
    assert torch.equal(torch.get_rng_state(), state)
    for parameter in model.parameters():
        parameter.zero_()
    assert fast.head_weight.dtype == dtype and not any(p.requires_grad for p in fast.parameters())
    kinds = {type(part) for part in fast.modules()} & {PackedLinear, torch.nn.Linear}
    packed = packable(model.head_weight.to(dtype))
    assert kinds == {PackedLinear if packed else torch.nn.Linear}
    assert not packed or isinstance(fast.lm_head, PackedLinear)
    assert not packable(tiny_model.head_weight)
    tokens = torch.randint(5, (batch, 7), generator=torch.Generator().manual_seed(0))
    logits = fast.logits(fast(tokens))
    expected = tiny_model.logits(tiny_model(tokens))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype]
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=tolerance)
    drawn = generate(fast, tokens.tolist(), END, 5, torch.Generator().manual_seed(0))
    for row, completion in zip(tokens.tolist(), drawn, strict=True):
        exact = sum(
            plain_logits(tiny_model, row + completion.ids[:t]).log_softmax(-1)[0, token].item()
            for t, token in enumerate(completion.ids)
        )
        assert completion.logp == pytest.approx(exact, abs=5 * tolerance)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_kin_of_llama_decodes(kind, tied):
    """Kills: biases of q, k and v, or norms of q and k, that packing loses; a head that is packed for the embedding."""
    sizes = LlamaConfig(9, 16, 2, 4, 8, 12, 2, model_type=kind, tied=tied)
    model = Llama(sizes, torch.Generator().manual_seed(0)).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tokens = torch.tensor([[0, 5, 8, 2, 7, 7]])
    fast = decoding_weights(model, torch.float32)
    torch.testing.assert_close(fast.logits(fast(tokens)), model.logits(model(tokens)), rtol=0, atol=1e-5)


@settings(max_examples=30)
@given(batches, st.integers(1, 9))
def test_under_autocast_greedy_decoding_picks_a_token_that_is_about_the_most_likely(tiny_model, prompts, length):
    """Kills: a cache kept in another dtype than the queries."""
    model = copy.deepcopy(tiny_model).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        completions = ids_of(model, prompts, END, length, temperature=0)
    for prompt, completion in zip(prompts, completions, strict=True):
        for t, token in enumerate(completion):
            logps = plain_probs(tiny_model, (prompt or [END]) + completion[:t]).log()
            assert logps[token] > logps.max() - 0.3
