"""`TokenizedPair`s → `Batch`: a row each, in which the prompt stands once and no answer sees another."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import chain

import torch

from dpo_min.logprob import token_logprobs

PADDING, PROMPT, CHOSEN = -1, 0, 1  # the second answer is CHOSEN + 1, and so on
WINDOW = 128  # pairs that are sorted by length together: on real dialogues padding is then below 10 %
SHARE = 8  # and no more than an eighth of the data, or every epoch would have the same pairs in a step


@dataclass(frozen=True)
class Batch:
    """B pairs as B rows [prompt | chosen | rejected | padding]; for SFT without the rejected part.

        row        what is your name ? | Ann ⏹ | Do I know you ? ⏹
        positions  0    1  2    3    4   5   6   5  6 7    8   9 10

    Positions go on after the prompt for both answers, and `mask` keeps each from seeing the other, so that a row
    holds exactly what two padded rows would. S tokens are scored, those of all chosen completions first; what
    is scored comes from lengths, never from ids, as the padding's id is a real token elsewhere. A pair is the case
    K = 2: rows of K answers, which may differ in K, are laid out alike, all first answers before all second ones.
    """

    tokens: torch.Tensor  # (B, T)
    positions: torch.Tensor  # (B, T)
    segments: torch.Tensor | None  # (B, T) PADDING, PROMPT, or CHOSEN + k; None where every row has one answer
    predictors: torch.Tensor  # (S,) index into the B·T places: the one before each scored token
    targets: torch.Tensor  # (S,) the scored tokens
    lengths: torch.Tensor  # (2B,) how many tokens each answer has: all first answers, then all second ones; on the CPU

    @property
    def mask(self):
        """(B, query, key) boolean, on top of causality: a part sees itself and the prompt. None if `segments` is."""
        if self.segments is None:
            return None
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        return (query == key) | (key == PROMPT)

    def to(self, device):
        """The same batch on another device; to CUDA from pinned memory, so that nobody waits for the copy."""
        *tensors, lengths = (getattr(self, field.name) for field in fields(self))
        if torch.device(device).type == "cuda":
            tensors = [x if x is None else x.pin_memory() for x in tensors]
        return Batch(*(x if x is None else x.to(device, non_blocking=True) for x in tensors), lengths)

    def unpadded(self):
        """(tokens (1, N), positions (1, N), masks, predictors): the rows one after another, without their padding.

        A small batch of real pairs is padding to a third or a half. The masks are those of the rows, for the model.
        """
        real = self.segments != PADDING  # (B, T)
        masks = [mask[:n, :n] for mask, n in zip(self.mask, real.sum(1).tolist(), strict=True)]
        places = real.flatten().cumsum(0) - 1
        return self.tokens[real][None], self.positions[real][None], masks, places[self.predictors]


def pack(rows, chosen_only=False):
    """Lay rows of a prompt and its answers out as a `Batch`; `chosen_only` takes the first alone, as SFT does.

    Raises:
        ValueError: a prompt is empty, so that nothing would predict an answer's first token.
    """
    parts = [(row.prompt_ids, *(row.completions[:1] if chosen_only else row.completions)) for row in rows]
    if not all(prompt for prompt, *_ in parts):
        raise ValueError("the prompt must have at least one token, got none")
    B, T, K = len(parts), max(sum(map(len, part)) for part in parts), max(map(len, parts)) - 1
    tokens, positions = torch.zeros(B, T, dtype=torch.long), torch.zeros(B, T, dtype=torch.long)
    segments = torch.full((B, T), PADDING, dtype=torch.int8)
    predictors, targets, lengths = ([[] for _ in range(K)] for _ in range(3))  # a list for all k-th answers, each
    for i, (prompt, *answers) in enumerate(parts):
        start = first = len(prompt)  # where answers begin: by their positions, and in the row
        tokens[i, :start], positions[i, :start], segments[i, :start] = torch.tensor(prompt), torch.arange(start), PROMPT
        for k, ids in enumerate(answers):
            end = first + len(ids)
            tokens[i, first:end], segments[i, first:end] = torch.tensor(ids, dtype=torch.long), CHOSEN + k
            positions[i, first:end] = torch.arange(start, start + len(ids))
            if ids:  # the prompt's last token predicts the first of every answer
                predictors[k].extend(i * T + place for place in (start - 1, *range(first, end - 1)))
                targets[k].extend(ids)  # the whole answer, its end-of-text too
            lengths[k].append(len(ids))
            first = end
    flat = (torch.tensor([*chain.from_iterable(part)]) for part in (predictors, targets, lengths))
    return Batch(tokens, positions, segments if K > 1 else None, *flat)


# log Σ_v π(v)²
def log_collisions(hidden, head, rows=64):
    """Log-probability that two tokens drawn alike are equal, (S,) for hidden (S, C), some rows of logits at a time."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return torch.cat([(2 * (x @ head.T).to(dtype).log_softmax(-1)).logsumexp(-1) for x in hidden.split(rows)])


def batch_token_logps(model, batch, aligned=False):
    """Log π of each scored token, a tensor for every completion, chosen, then rejected: from ids through the model.

    Only scored positions meet the vocabulary. With `aligned`, log Σ_v π(v)² is subtracted from each, as WPO does. A CPU
    leaves padding out. Compiled code does not, as every shape would be compiled, nor does a GPU: it was not measured.
    """
    *inputs, predictors = batch.tokens, batch.positions, batch.mask, batch.predictors
    if batch.segments is not None and batch.tokens.device.type == "cpu" and not model.compiled:
        *inputs, predictors = batch.unpadded()
    hidden = model(*inputs).flatten(0, 1)[predictors]  # (B, T, C) → (S, C)
    logps = token_logprobs(hidden, model.head_weight, batch.targets)  # (S,)
    if aligned:
        logps = logps - log_collisions(hidden, model.head_weight)
    return logps.split(batch.lengths.tolist())


def batch_logps(model, batch, reduce="sum"):
    """Log π(y|x) of every completion, (2B,): all chosen, then all rejected; where rows have one answer, (B,).

    "sum" and "mean" are `sequence_logprobs`'s on padded rows. "aligned" is the mean of WPO's aligned tokens. A number
    is LD-DPO's α (arXiv:2409.06411): tokens past the length of the pair's shorter completion count that much.
    """
    parts, lengths = batch_token_logps(model, batch, reduce == "aligned"), batch.lengths
    if isinstance(reduce, float):
        shared = torch.minimum(*lengths.chunk(2)).repeat(2).tolist()  # tokens that both answers have
        parts = [torch.cat([part[:n], reduce * part[n:]]) for part, n in zip(parts, shared, strict=True)]
    total = torch.stack([part.sum() for part in parts])  # (2B,)
    return total / lengths.to(total.device) if reduce in ("mean", "aligned") else total


def batches(pairs, batch_size, seed):
    """Yield the pairs of each step for ever: every epoch takes each pair once and ends with what is left.

    The pairs are shuffled; those of some steps at a time are sorted by length and cut into steps, and the steps
    are shuffled again.
    """
    generator = torch.Generator().manual_seed(seed)
    # Pairs in a file know all their lengths without being read.
    lengths = pairs.num_tokens if hasattr(pairs, "num_tokens") else [pair.num_tokens for pair in pairs]
    while True:
        order = torch.randperm(len(pairs), generator=generator).tolist()
        whole = len(order) - len(order) % batch_size
        steps, width = [], batch_size * max(1, min(WINDOW, whole // SHARE) // batch_size)  # of a window, in whole steps
        for start in range(0, whole, width):
            window = sorted(order[start : min(start + width, whole)], key=lengths.__getitem__)
            steps += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        steps = [steps[i] for i in torch.randperm(len(steps), generator=generator)]
        for step in [*steps, sorted(order[whole:], key=lengths.__getitem__)]:
            if step:
                yield [pairs[i] for i in step]


def ahead(function, items):
    """Yield function(item) of each item in turn; while one is in use, a thread makes the next."""
    with ThreadPoolExecutor(1) as thread:
        waiting = None
        for item in items:
            made, waiting = waiting, thread.submit(function, item)
            if made:
                yield made.result()
        if waiting:
            yield waiting.result()
