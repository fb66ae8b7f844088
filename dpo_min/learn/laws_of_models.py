"""What holds of log π(y|x), of an adapter that is merged, of the mask of a shared prompt and of the nucleus."""

from itertools import product
from types import SimpleNamespace

import torch
from torch import tensor

from dpo_min.data.batch import pack
from dpo_min.learn.laws_of_policies import numbers
from dpo_min.learn.shown import shown
from dpo_min.learn.trial import UNREACHED, equal, holds, law, slope

LOGITS = numbers(0.5, 0.2, 0.3).log().repeat(1, 4, 1)  # (1, 4, 3): of three tokens, the same at every position


def scored(first, length):
    """A mask (1, length) that is True from `first` on."""
    return (torch.arange(length) >= first)[None]


@law("sequence_logprobs")
def a_token_is_predicted_by_the_position_before_it(yours):
    """The logits at position 0 predict the token at position 1: they give it 0.2, and its log π is log 0.2."""
    logits = numbers([0.5, 0.2, 0.3], [0.1, 0.1, 0.8]).log()[None]
    yield equal(yours(logits, tensor([[0, 1]]), scored(1, 2)), numbers(0.2).log())


@law("sequence_logprobs")
def only_scored_tokens_count(yours):
    """Only tokens whose place in the mask is True count; here first the last two, then the one before the last."""
    yield equal(yours(LOGITS, tensor([[0, 0, 1, 2]]), scored(2, 4)), numbers(0.06).log())
    yield equal(yours(LOGITS, tensor([[0, 0, 1, 2]]), tensor([[False, False, True, False]])), numbers(0.2).log())


@law("sequence_logprobs")
def each_row_has_its_own_mask(yours):
    """Of the first row the last two tokens are scored, of the second the last three: one number for each row."""
    tokens, mask = tensor([[0, 0, 1, 2]] * 2), torch.cat([scored(2, 4), scored(1, 4)])
    yield equal(yours(LOGITS.expand(2, -1, -1), tokens, mask), numbers(0.06, 0.03).log())


@law("sequence_logprobs")
def logits_are_not_yet_log_probabilities(yours):
    """Adding one number to all logits of a position changes no probability: here the answer is log(0.2 · 0.3)."""
    yield equal(yours(LOGITS[:, :3] + 4, tensor([[0, 1, 2]]), scored(1, 3)), numbers(0.06).log())


@law("sequence_logprobs")
def the_probabilities_of_all_completions_sum_to_one(yours):
    """Every completion of two tokens after a prompt of one: e^(log π) of all of them sums to 1."""
    for logits in (LOGITS[0, :3], numbers([0.5, 0.5], [0.9, 0.1], [0.2, 0.8]).log()):
        V = logits.shape[-1]
        rows = tensor([(0, *rest) for rest in product(range(V), repeat=2)])
        total = yours(logits.expand(len(rows), -1, -1), rows, scored(1, 3).expand(len(rows), -1)).exp().sum()
        given = f"all {V**2} completions of two out of {V} tokens"
        yield holds((total - 1).abs() < 1e-9, f"a sum of {total:.4g}", "a sum of 1", given)


@law("sequence_logprobs")
def what_is_not_scored_has_no_influence(yours):
    """Where the mask is False nothing counts, not even a logit of −∞; 0 times it would be NaN."""
    logits = LOGITS.clone()
    logits[0, 2] = numbers(0.0, -torch.inf, -torch.inf)  # predicts the last token, which is padding
    yield equal(yours(logits, tensor([[0, 1, 2, 1]]), tensor([[False, True, True, False]])), numbers(0.06).log())


@law("sequence_logprobs")
def half_precision_is_summed_in_float32(yours):
    """Logits in bfloat16 are added up in float32: near −300 a bfloat16 step is 2 nats."""
    logits, tokens = tensor([[[0.0, 1.0]]]).repeat(1, 201, 1).bfloat16(), torch.zeros(1, 201, dtype=torch.long)
    want = 200 * tensor([0.0, 1.0]).log_softmax(-1)[:1]
    yield equal(yours(logits, tokens, scored(1, 201)), want, "200 scored tokens, each the first of logits [0, 1]")


@law("sequence_logprobs")
def the_mean_is_per_scored_token(yours):
    """reduce="mean" divides the sum of each row by the number of its scored tokens."""
    yield equal(yours(LOGITS, tensor([[0, 0, 1, 2]]), scored(2, 4), "mean"), numbers(0.06).log() / 2)
    tokens, mask = tensor([[0, 0, 1, 2]] * 2), torch.cat([scored(2, 4), scored(3, 4)])
    want = numbers(0.06, 0.3).log() / numbers(2.0, 1.0)
    yield equal(yours(LOGITS.expand(2, -1, -1), tokens, mask, "mean"), want)


@law("sequence_logprobs")
def a_gradient_reaches_the_logits(yours):
    """What is returned depends on the logits in a way that PyTorch can follow."""
    found = slope(lambda logits: yours(logits, tensor([[0, 1, 2, 0]]), scored(1, 4)), LOGITS)
    yield holds(found is not None, "no gradient", UNREACHED)


W = numbers([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])  # (D, C), here (3, 2)
A, B = numbers([1.0, -1.0]), numbers([1.0], [0.0], [2.0])  # of rank 1: (1, C) and (D, 1)
A2, B2 = numbers([1.0, -1.0], [0.0, 2.0]), numbers([1.0, 0.0], [0.0, 1.0], [2.0, 3.0])  # of rank 2


@law("merge")
def an_adapter_that_is_zero_changes_nothing(yours):
    """Where B = 0, as at the start, the merged matrix is W."""
    yield equal(yours(W, A, 0 * B, 2.0), W)


@law("merge")
def one_matrix_does_what_layer_and_adapter_do(yours):
    """For every x, (merged) x = W x + (α/r) B (A x)."""
    for (down, up), scale in (((A, B), 1.0), ((A, B), 0.5), ((A2, B2), 0.5)):
        for x in (numbers(1.0, 0.0), numbers(2.0, 3.0)):
            together, apart = yours(W, down, up, scale) @ x, W @ x + scale * (up @ (down @ x))
            given = f"W = {shown(W)}, A = {shown(down)}, B = {shown(up)}, scale = {scale}, x = {shown(x)}"
            yield equal(together, apart, given, f"{shown(apart)} as (merged) x")


ROW = SimpleNamespace(prompt_ids=[1], completions=([2], [3]))
LONGER = SimpleNamespace(prompt_ids=[1, 1], completions=([2, 3], [3, 2]))


def sights(yours):
    """(query's segment, key's, whether it is seen, the input in words) of every place up to the query's own."""
    for rows in ([ROW], [LONGER], [ROW, LONGER]):  # in the last the first row is padded
        batch = pack(rows)
        mask = yours(batch)
        for row, segments in enumerate(batch.segments.tolist()):
            for query, key in product(range(len(segments)), repeat=2):
                if key <= query:
                    given = f"row {row} of segments = {shown(batch.segments)}, query {query}, key {key}"
                    yield segments[query], segments[key], mask[row, query, key].item(), given


@law("Batch.mask")
def no_answer_sees_the_other(yours):
    """A token of one answer does not see a token of the other."""
    yield from (equal(seen, False, given) for at, of, seen, given in sights(yours) if 0 < of < at)


@law("Batch.mask")
def every_answer_sees_its_prompt(yours):
    """A token of either answer sees every token of the prompt."""
    yield from (equal(seen, True, given) for at, of, seen, given in sights(yours) if of == 0 < at)


@law("Batch.mask")
def every_part_sees_itself(yours):
    """A token sees itself, and those of its own part that stand before it; padding too, or softmax would be NaN."""
    yield from (equal(seen, True, given) for at, of, seen, given in sights(yours) if at == of)


@law("Batch.mask")
def one_answer_alone_needs_no_mask(yours):
    """Where every row has one answer, segments is None, and so is the mask."""
    yield equal(yours(pack([ROW], chosen_only=True)), None)


NUCLEI = (
    ((0.5, 0.3, 0.2), 0.6, "0.5 is less than 0.6, 0.5 + 0.3 is not"),
    ((0.5, 0.3, 0.2), 0.4, "the first reaches 0.4 by itself"),
    ((0.2, 0.5, 0.3), 0.6, "the most likely, wherever they stand"),
    ((0.2, 0.5, 0.3), 0.95, "all are needed"),
    ((0.25, 0.25, 0.25, 0.25), 0.5, "of equals the lower ids, and no more than it takes"),
)


@law("keep_top_p")
def what_is_ruled_out_has_minus_infinity(yours):
    """A token that is not kept has the logit −∞; one that is kept has the logit that it had."""
    for probs, p, _ in NUCLEI[:3]:
        logits = numbers(probs).log() + 1
        out = yours(logits, p)
        gone = out == -torch.inf
        yield holds((gone | torch.isclose(out, logits)) & gone.any(), out, f"either −∞ or as in {shown(logits)}")


@law("keep_top_p")
def the_smallest_set_that_reaches_p_is_kept(yours):
    """The most likely tokens are kept, just as many as it takes to reach p."""
    for probs, p, words in NUCLEI:
        order = sorted(range(len(probs)), key=lambda i, probs=probs: (-probs[i], i))
        before = [sum(probs[j] for j in order[: order.index(i)]) for i in range(len(probs))]
        kept, want = yours(numbers(probs).log(), p) > -torch.inf, tensor([[b < p for b in before]])
        given = f"logits = log {shown(numbers(probs))}, p = {p}"
        yield equal(kept, want, given, f"{shown(want)} as what is kept: {words}")


@law("keep_top_p")
def each_row_has_its_own_set(yours):
    """What is kept of one row has nothing to do with the other rows."""
    kept = yours(numbers([0.5, 0.3, 0.2], [0.2, 0.5, 0.3]).log(), 0.6) > -torch.inf
    want = tensor([[True, True, False], [False, True, True]])
    given = "logits = log [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]], p = 0.6"
    yield equal(kept, want, given, f"{shown(want)} as what is kept")
