"""log π(y|x): the sum of the log-probabilities of the completion's tokens, each given all before it."""

import torch


def sequence_logprobs(logits, tokens, loss_mask, reduce="sum"):
    """Σ_t log π(token_t | tokens before t) over the scored tokens of each row (DPO, Eq. 7: log π(y|x)).

    The logits at position t − 1 predict the token at position t, so logits lose their last position
    and tokens and mask lose their first. Log-softmax and sum are float32 at least: near −300 a
    bfloat16 step is 2 nats.

    Args:
        logits: (B, T, V), any floating dtype.
        tokens: (B, T), token ids; where `loss_mask` is False any id in 0..V−1.
        loss_mask: (B, T) boolean, True where the token is scored: the completion, its end-of-text included.
        reduce: "sum" gives log π(y|x) in nats; "mean" divides it by the number of scored tokens.

    Returns: (B,) nats, or nats per token for "mean".

    Raises:
        ValueError: shapes disagree; the mask is not boolean or scores position 0, which nothing
            predicts; "mean" over a row without a scored token; an unknown `reduce`.
    """
    check_scoring(logits, tokens, loss_mask, reduce)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logps = logits[:, :-1].to(dtype).log_softmax(dim=-1)  # (B, T-1, V)
    token_logps = logps.gather(-1, tokens[:, 1:, None]).squeeze(-1)  # (B, T-1)
    scored = loss_mask[:, 1:]  # (B, T-1)
    total = torch.where(scored, token_logps, 0.0).sum(dim=-1)  # (B,)
    return total / scored.sum(dim=-1) if reduce == "mean" else total


def check_scoring(logits, tokens, loss_mask, reduce):
    """Check the arguments of `sequence_logprobs`."""
    if logits.dim() != 3 or tokens.shape != logits.shape[:2] or loss_mask.shape != tokens.shape:
        shapes = [tuple(x.shape) for x in (logits, tokens, loss_mask)]
        raise ValueError(f"sequence_logprobs: expected logits (B,T,V), tokens (B,T), loss_mask (B,T); got {shapes}")
    if loss_mask.dtype != torch.bool:
        raise ValueError(f"sequence_logprobs: loss_mask must be boolean, got {loss_mask.dtype}")
    if loss_mask[:, :1].any():
        raise ValueError("sequence_logprobs: position 0 cannot be scored, no logits predict it")
    if reduce not in ("sum", "mean"):
        raise ValueError(f'sequence_logprobs: reduce must be "sum" or "mean", got {reduce!r}')
    if reduce == "mean" and not loss_mask.any(dim=-1).all():
        raise ValueError('sequence_logprobs: reduce="mean" needs a scored token in every row')
