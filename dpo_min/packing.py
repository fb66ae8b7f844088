"""`TokenizedPair`s → `Batch`: token ids side by side in one rectangle, and which of them are scored."""

from dataclasses import dataclass

import torch

from dpo_min.logprob import sequence_logprobs


@dataclass(frozen=True)
class Batch:
    """B pairs as 2B rows: the B chosen rows first, then the B rejected rows in the same order (for SFT, no rejected).

    Rows are padded on the right, where causal attention keeps the padding out of every real token, so
    neither an attention mask nor positions are needed. Which tokens are scored comes from lengths, never
    from ids: the padding id is a real token elsewhere.
    """

    tokens: torch.Tensor  # (2B, T)
    loss_mask: torch.Tensor  # (2B, T) boolean, True on completion tokens

    def to(self, device):
        """The same batch on another device."""
        return Batch(self.tokens.to(device), self.loss_mask.to(device))


def pack(pairs, chosen_only=False):
    """Lay the pairs out as a `Batch`; `chosen_only` leaves out the rejected rows, as SFT does."""
    rows = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
    if not chosen_only:
        rows += [(pair.prompt_ids, pair.rejected_ids) for pair in pairs]
    T = max(len(prompt) + len(completion) for prompt, completion in rows)
    tokens = torch.zeros(len(rows), T, dtype=torch.long)
    loss_mask = torch.zeros(len(rows), T, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(completion)
        tokens[i, :end] = torch.tensor(prompt + completion)
        loss_mask[i, start:end] = True
    return Batch(tokens, loss_mask)


def batch_logps(model, batch, reduce="sum"):
    """Log π(y|x) of every row, (2B,) or (B,), by the definition in logprob.py: the whole path through the model."""
    logits = model.logits(model(batch.tokens))  # (2B, T, V)
    return sequence_logprobs(logits, batch.tokens, batch.loss_mask, reduce)


def batches(pairs, batch_size, seed):
    """Yield the pairs of each step for ever: every epoch takes each pair once and ends with what is left.

    Within a step they are sorted by length, so that micro-batches hold little padding.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(pairs), generator=generator).tolist()
        for start in range(0, len(order), batch_size):
            yield sorted((pairs[i] for i in order[start : start + batch_size]), key=lambda pair: pair.num_tokens)
