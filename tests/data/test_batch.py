"""One row per pair against two padded rows, and the order of the pairs: the same numbers with less padding."""

import copy
from functools import partial
from itertools import chain, combinations, islice, pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.data.batch import SHARE, WINDOW, ahead, batch_logps, batches, pack
from dpo_min.data.rows import load_preferences
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair, tokenize
from dpo_min.exact import rectangle
from dpo_min.logprob import sequence_logprobs

END = 4  # end-of-text of tiny_gpt, whose block_size is 12
ids = st.integers(0, END)
texts = partial(st.lists, ids, min_size=1)
pairs = st.builds(TokenizedPair, texts(max_size=6), texts(max_size=6), texts(max_size=6))
reductions = st.sampled_from(["sum", "mean"])
assert_same = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)

LONGEST = TokenizedPair([0, 1, 2, 3], [4, 0, 1, 2, 3, 4, 0, 1], [3, 2, 1, 0, 4, 3, 2, 4])  # 20 tokens, each side 12


def sides(pair, chosen_only=False):
    return [pair.chosen_ids] if chosen_only else [pair.chosen_ids, pair.rejected_ids]


# ---- the layout ----


def test_the_row_of_the_docstring():
    """Kills: positions that go on after the chosen answer; a first rejected token predicted by the last chosen one."""
    words = "what is your name ? Ann ⏹ Do I know you".split()
    read = lambda text: [words.index(word) for word in text.split()]  # noqa: E731
    pair = TokenizedPair(read("what is your name ?"), read("Ann ⏹"), read("Do I know you ? ⏹"))
    batch = pack([pair])
    assert batch.tokens.tolist() == [read("what is your name ? Ann ⏹ Do I know you ? ⏹")]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9, 10]]
    assert [words[i] for i in batch.targets.tolist()] == "Ann ⏹ Do I know you ? ⏹".split()
    assert [words[batch.tokens[0, i]] for i in batch.predictors] == "? Ann ? Do I know you ?".split()
    assert batch.predictors.tolist() == [4, 5, 4, 7, 8, 9, 10, 11]
    assert batch.lengths.tolist() == [2, 6]
    seen = ["".join(".x"[seen] for seen in row) for row in batch.mask[0].tril().tolist()]
    assert seen == [
        "x............",  # what
        "xx...........",  # is
        "xxx..........",  # your
        "xxxx.........",  # name
        "xxxxx........",  # ?
        "xxxxxx.......",  # Ann
        "xxxxxxx......",  # ⏹
        "xxxxx..x.....",  # Do
        "xxxxx..xx....",  # I
        "xxxxx..xxx...",  # know
        "xxxxx..xxxx..",  # you
        "xxxxx..xxxxx.",  # ?
        "xxxxx..xxxxxx",  # ⏹
    ]


@given(st.lists(pairs, min_size=1, max_size=5), st.booleans())
@example([TokenizedPair([0], [0, END], [END]), TokenizedPair([END, 0], [0], [1, 0, 0])], False)
def test_a_batch_scores_every_completion_token_and_nothing_else(pairs, chosen_only):
    """Kills: places found by ids != pad or ids != end-of-text; answers in the order chosen, rejected, chosen …"""
    batch = pack(pairs, chosen_only)
    rows = [[pair.prompt_ids, *sides(pair, chosen_only)] for pair in pairs]
    width = max(sum(map(len, row)) for row in rows)
    assert batch.tokens.shape == batch.positions.shape == (len(pairs), width)
    completions = [ids for side in zip(*(row[1:] for row in rows), strict=True) for ids in side]
    assert batch.lengths.tolist() == list(map(len, completions))
    assert batch.targets.tolist() == [*chain(*completions)]
    for row, tokens in zip(rows, batch.tokens.tolist(), strict=True):
        flat = [*chain(*row)]
        assert tokens[: len(flat)] == flat
    cursor = iter(batch.predictors.tolist())
    for side in range(1, len(rows[0])):
        for i, (prompt, *answers) in enumerate(rows):
            before = len(prompt) + sum(map(len, answers[: side - 1]))
            within = range(before, before + len(answers[side - 1]) - 1)
            expected = [i * width + place for place in (len(prompt) - 1, *within)]
            assert [next(cursor) for _ in expected] == expected
    assert next(cursor, None) is None


@given(st.lists(pairs, min_size=1, max_size=4))
def test_an_answer_sees_the_prompt_and_itself_at_the_positions_of_a_row_of_its_own(pairs):
    """Kills: a mask of one row used for all; a prompt that sees an answer; a token that does not see itself."""
    batch = pack(pairs)
    assert batch.mask.dtype == torch.bool
    assert pack(pairs, chosen_only=True).mask is None
    for pair, positions, mask in zip(pairs, batch.positions, batch.mask, strict=True):
        prompt, chosen, rejected = map(len, (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
        rows = [range(prompt), range(prompt, prompt + chosen), range(prompt + chosen, pair.num_tokens)]
        assert positions[: pair.num_tokens].tolist() == [*range(prompt + chosen), *range(prompt, prompt + rejected)]
        causal = mask.tril()
        for part in rows:
            for place in part:
                seen = {*range(prompt), *part} & {*range(place + 1)}
                assert set(causal[place].nonzero().flatten().tolist()) == seen
        assert causal.any(dim=-1).all()  # a padding that sees nothing would be NaN


def test_a_batch_goes_to_a_device_whole():
    """Kills: a field left behind; the missing mask of SFT taken for a tensor."""
    for batch in (pack([LONGEST]), pack([LONGEST], chosen_only=True)):
        moved = vars(batch.to("meta"))
        assert moved.keys() == vars(batch).keys()
        for name, tensor in vars(batch).items():
            wanted = "cpu" if name == "lengths" else "meta"  # lengths cut on the CPU
            assert (moved[name] is None) if tensor is None else (moved[name].device.type == wanted)
            assert tensor is None or moved[name].shape == tensor.shape


@settings(max_examples=30)
@given(st.lists(pairs, min_size=1, max_size=4))
@example([LONGEST, TokenizedPair([0], [END], [1, END])])
def test_rows_without_their_padding_have_the_numbers_and_gradients_of_rows_with_it(tiny_model, pairs):
    """What a CPU computes against what a GPU does. Kills: texts that see each other, places that count the padding."""
    batch, model = pack(pairs), copy.deepcopy(tiny_model).requires_grad_()
    *inputs, places = batch.unpadded()
    assert inputs[0].shape == (1, sum(pair.num_tokens for pair in pairs))
    ways = []
    with_padding = batch.tokens, batch.positions, batch.mask, batch.predictors
    for *way, predictors in ((*inputs, places), with_padding):
        states = model(*way).flatten(0, 1)[predictors]  # (S, C)
        logps = model.logits(states).log_softmax(-1).gather(1, batch.targets[:, None])
        ways.append((logps, *torch.autograd.grad(logps.sum(), [*model.parameters()])))
    for flat, padded in zip(*ways, strict=True):
        assert_same(flat, padded)


def test_compiled_code_has_the_rows_with_their_padding(tiny_model):
    """Every number of texts, and every length of one, would be compiled anew."""
    model, seen = copy.deepcopy(tiny_model), []
    model.register_forward_pre_hook(lambda model, inputs: seen.append(inputs[0].shape))
    batch = pack([LONGEST, TokenizedPair([0], [END], [1, END])])
    for model.compiled in (False, True):
        batch_logps(model, batch)
    assert seen == [(1, 24), (2, 20)]


# ---- the same log-probabilities as padded rows ----


def defined_logps(model, pairs, reduce="sum", chosen_only=False):
    """`sequence_logprobs` over rows of one completion each: of all chosen ones, then of all rejected ones."""
    results = [[], []]
    for pair in pairs:
        tokens, loss_mask = rectangle(pair.prompt_ids, sides(pair, chosen_only))
        logps = sequence_logprobs(model.logits(model(tokens)), tokens, loss_mask, reduce)
        for side, logp in zip(results, logps, strict=False):
            side.append(logp)
    return torch.stack(results[0] + results[1])


@settings(max_examples=60)
@given(st.lists(pairs, min_size=1, max_size=3), reductions, st.booleans(), st.integers(0, 99))
@example([LONGEST], "sum", False, 0)
@example([LONGEST, TokenizedPair([END], [END], [END])], "mean", False, 0)
@example([LONGEST], "sum", True, 0)
def test_a_packed_batch_has_the_log_probabilities_and_gradients_of_padded_rows(tiny_model, pairs, reduce, alone, seed):
    """Kills: an answer that sees the other; shifted positions; a gradient of the prompt taken from one answer only."""
    model = copy.deepcopy(tiny_model).requires_grad_()
    parameters = list(model.parameters())
    ours, theirs = batch_logps(model, pack(pairs, alone), reduce), defined_logps(model, pairs, reduce, alone)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(len(ours), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gradients = [torch.autograd.grad(logps, parameters, upstream) for logps in (ours, theirs)]
    for packed, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-10, atol=1e-10)


def test_a_row_may_be_longer_than_block_size_where_each_side_fits(tiny_gpt):
    """Kills: positions counted along the row, which a model of 12 positions does not have."""
    assert LONGEST.num_tokens == 20 > tiny_gpt.config.block_size == 12
    assert_same(batch_logps(tiny_gpt, pack([LONGEST])), defined_logps(tiny_gpt, [LONGEST]))
    longer = TokenizedPair(LONGEST.prompt_ids, LONGEST.chosen_ids, [*LONGEST.rejected_ids, 0])
    with pytest.raises(IndexError):
        batch_logps(tiny_gpt, pack([longer]))


# ---- what a log-probability does not depend on ----


@given(pairs, pairs, reductions)
def test_neither_answer_depends_on_the_ids_of_the_other(tiny_gpt, pair, other, reduce):
    """Kills: attention across the two answers, which scores the rejected one as if the chosen one had been said."""
    before = batch_logps(tiny_gpt, pack([pair]), reduce)
    for side, ids in ((0, other.rejected_ids), (1, other.chosen_ids)):
        whole = [pair.chosen_ids, pair.rejected_ids]
        length = len(whole[1 - side])
        same_length, any_length = (ids * length)[:length], ids
        whole[1 - side] = same_length
        assert torch.equal(
            batch_logps(tiny_gpt, pack([TokenizedPair(pair.prompt_ids, *whole)]), reduce)[side], before[side]
        )
        whole[1 - side] = any_length
        assert_same(batch_logps(tiny_gpt, pack([TokenizedPair(pair.prompt_ids, *whole)]), reduce)[side], before[side])


@given(st.lists(pairs, min_size=1, max_size=4), reductions)
def test_a_rows_log_probability_does_not_depend_on_the_batch(tiny_gpt, batch, reduce):
    """Kills: rejected answers before chosen ones; a mask or a length taken from another row."""
    alone = [batch_logps(tiny_gpt, pack([pair]), reduce) for pair in batch]  # each (2,): chosen, rejected
    assert_same(batch_logps(tiny_gpt, pack(batch), reduce), torch.stack(alone).T.reshape(-1))
    chosen = torch.stack([chosen for chosen, _ in alone])
    assert_same(batch_logps(tiny_gpt, pack(batch, chosen_only=True), reduce), chosen)


@given(st.lists(pairs, min_size=2, max_size=4), ids, reductions)
def test_the_ids_of_the_padding_do_not_matter(tiny_gpt, pairs, pad, reduce):
    """Kills: padding that real tokens attend to, or that is scored because its id is a real one."""
    for chosen_only in (False, True):
        batch = pack(pairs, chosen_only)
        before = batch_logps(tiny_gpt, batch, reduce)
        for row, pair in zip(batch.tokens, pairs, strict=True):
            row[len(pair.prompt_ids) + sum(map(len, sides(pair, chosen_only))) :] = pad
        assert torch.equal(batch_logps(tiny_gpt, batch, reduce), before)


@given(pairs)
def test_swapping_the_answers_swaps_their_log_probabilities(tiny_gpt, pair):
    """Kills: a first or a second answer that is treated in its own way."""
    swapped = TokenizedPair(pair.prompt_ids, pair.rejected_ids, pair.chosen_ids)
    assert_same(batch_logps(tiny_gpt, pack([swapped])), batch_logps(tiny_gpt, pack([pair])).flip(0))


# ---- the order of the pairs ----


def numbered(count, lengths=3):
    """Pairs of so many lengths, told apart by their source."""
    return [TokenizedPair([0] * (1 + i % lengths), [1], [2], str(i)) for i in range(count)]


@given(st.integers(1, 30), st.integers(1, 35), st.integers(0, 2**63 - 1))
@example(4, 4, 0)
@example(5, 4, 0)
@example(2 * WINDOW + 1, 1, 0)
@example(4 * WINDOW - 1, 2, 0)
def test_each_epoch_takes_each_pair_once_and_ends_with_what_is_left(count, batch_size, seed):
    """Kills: leftovers carried into the next epoch, a last batch dropped or filled up, draws with replacement."""
    pairs, steps = numbered(count), -(-count // batch_size)
    chunks = list(islice(batches(pairs, batch_size, seed), 2 * steps))
    for epoch in (chunks[:steps], chunks[steps:]):
        assert sorted(int(pair.source) for chunk in epoch for pair in chunk) == list(range(count))
        assert [len(chunk) for chunk in epoch[:-1]] == [batch_size] * (steps - 1)
        assert len(epoch[-1]) == count - batch_size * (steps - 1)
    for chunk in chunks:  # so that micro-batches hold little padding
        assert sorted(pair.num_tokens for pair in chunk) == [pair.num_tokens for pair in chunk]


@given(st.integers(1, 20), st.integers(1, 8), st.integers(0, 2**63 - 1), st.integers(0, 30))
def test_a_resumed_run_sees_the_same_batches(count, batch_size, seed, done):
    """Kills: an order drawn from the global generator, which a resumed run finds in another state."""
    pairs = numbered(count)
    whole = list(islice(batches(pairs, batch_size, seed), 40))
    torch.rand(1)
    assert list(islice(batches(pairs, batch_size, seed), done, 40)) == whole[done:]


@pytest.mark.parametrize("lengths", [1, 20])
def test_epochs_and_seeds_differ_in_order(lengths):
    """Kills: a generator made anew in each epoch, a seed that is ignored, and pairs in the order of the file."""
    pairs = numbered(20, lengths)
    epochs = [batches(pairs, 1, seed) for seed in (0, 0, 1)]
    first, again, other = ([pair for (pair,) in islice(epoch, 20)] for epoch in epochs)
    second = [pair for (pair,) in islice(epochs[0], 20)]
    assert first == again
    assert all(a != b for a, b in combinations((first, second, other, pairs), 2))


def test_the_pairs_of_a_step_are_of_like_length_and_its_mates_are_drawn_anew():
    """Kills: a window of one step, which saves no padding; one of all steps, in which the same pairs always meet."""
    count = SHARE * WINDOW
    pairs = numbered(count, lengths=count)  # all lengths different
    steps = batches(pairs, 4, seed=0)
    epochs = [[{int(pair.source) for pair in chunk} for chunk in islice(steps, count // 4)] for _ in range(2)]
    spread = [max(step) - min(step) for step in epochs[0]]
    assert sum(spread) / len(spread) < 40  # 24 is three steps through 128 of 1,024 lengths; random steps have 614
    assert sum(step in epochs[1] for step in epochs[0]) <= 1


def test_little_data_is_not_sorted_beyond_its_steps():
    """An eighth of 160 pairs is less than a step. Kills: the same pairs together in every epoch."""
    pairs = numbered(160, lengths=160)
    steps = batches(pairs, 32, seed=0)
    spreads = [max(ids) - min(ids) for ids in ([int(pair.source) for pair in step] for step in islice(steps, 5))]
    assert min(spreads) > 120


def test_short_and_long_steps_come_in_random_order():
    """Kills: a curriculum from short to long, within a window or over the epoch; windows taken one after the other."""
    count = SHARE * WINDOW
    pairs = numbered(count, lengths=count)
    places = []
    for seed in range(60):
        epoch = [int(pair.source) for (pair,) in islice(batches(pairs, 1, seed), count)]
        places.append(epoch.index(0))  # of the shortest pair, first of its window
        rises = sum(a < b for a, b in pairwise(epoch))
        assert 0.4 < rises / len(epoch) < 0.6
    assert sum(place < count / 2 for place in places) in range(15, 46)  # 30 ± 4 standard deviations
    assert len(set(places)) > 40


@pytest.fixture(scope="module")
def hh_pairs(shared_data):
    preferences, _ = load_preferences([shared_data / "hh-harmless-test.jsonl.gz"])
    return tokenize(preferences, load_tokenizer(shared_data / "gpt2-bpe"), max_length=512)[0]


@pytest.mark.parametrize(("batch_size", "micro_batch_size"), [(8, 8), (32, 4)])
def test_less_than_a_tenth_of_the_micro_batches_of_real_pairs_is_padding(hh_pairs, batch_size, micro_batch_size):
    """Kills: pairs sorted inside their step alone, and a row as wide as prompt, prompt, chosen and rejected."""
    steps = list(islice(batches(hh_pairs, batch_size, seed=0), -(-len(hh_pairs) // batch_size)))
    micros = [step[i : i + micro_batch_size] for step in steps for i in range(0, len(step), micro_batch_size)]
    places = sum(len(micro) * max(pair.num_tokens for pair in micro) for micro in micros)
    assert pack(micros[0]).tokens.numel() == len(micros[0]) * max(pair.num_tokens for pair in micros[0])
    assert sum(pair.num_tokens for pair in hh_pairs) > 0.9 * places


@pytest.mark.parametrize("chosen_only", [False, True])
def test_an_empty_prompt_is_refused(chosen_only):
    """Kills: an answer's first token predicted by the last place of the row before."""
    with pytest.raises(ValueError, match="the prompt must have at least one token, got none"):
        pack([TokenizedPair([1], [2], [3]), TokenizedPair([], [2], [3])], chosen_only)


# ---- one step ahead ----


@given(st.lists(st.integers()), st.integers(0, 9))
@example([], 0)
@example([1], 1)
def test_what_is_made_ahead_is_what_is_made_in_turn_and_no_more_than_one_ahead(items, taken):
    """Kills: a last item that is never given out, two exchanged, an endless list read to its end."""
    made = []
    stream = ahead(lambda item: made.append(item) or (item, item), iter(items))
    assert list(islice(stream, taken)) == [(item, item) for item in items[:taken]]
    stream.close()
    assert made == items[: min(taken + 1, len(items)) if taken else 0]


def test_trouble_in_what_is_made_ahead_comes_out_in_its_turn():
    """Kills: an error that stays in the thread."""
    stream = ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(stream) == 1
    with pytest.raises(ZeroDivisionError):
        next(stream)
