"""log π(y|x): the sum of the log-probabilities of the completion's tokens, each given all before it."""

import math

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


def token_logprobs(hidden, head, targets, elements=2**24):
    """Log softmax(hidden · headᵀ)[target] of each row, (S,) float32 at least: the fast form, which keeps no logits.

    It holds at most `elements` logits at a time, a slice of the vocabulary for all rows, in value and gradient
    equal to the definition's. Under autocast the products of matrices are in its dtype, the rest in float32.

    Args: hidden (S, C), the states that predict; head (V, C); targets (S,) token ids.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        hidden, head = (x.to(torch.get_autocast_dtype(device)) for x in (hidden, head))
    with torch.autocast(device, enabled=False):
        return TokenLogprobs.apply(hidden, head, targets, slice_width(len(hidden), len(head), elements))


def slice_width(rows, vocab_size, elements):
    """Tokens of a slice, at least one: slices of about equal width, none of more than `elements` logits.

    The width is a multiple of 64 where it can be: products with such rows take a GPU half the time.
    """
    slices = math.ceil(vocab_size * rows / max(1, elements))
    width = vocab_size // max(1, slices)
    return width - width % 64 if width > 64 else max(1, width)


class TokenLogprobs(torch.autograd.Function):
    """z = hidden · headᵀ,  log p = z_target − log Σ_v e^{z_v};  below it  ∂ log p/∂z = one-hot(target) − softmax(z)."""

    @staticmethod
    def forward(ctx, hidden, head, targets, width):
        """Slice by slice, the sum so far and the target's score where the slice has it."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        log_sum = hidden.new_full(targets.shape, -torch.inf, dtype=dtype)  # (S,)
        z_target, here = torch.zeros_like(log_sum), targets  # `here`: counted from the slice's first token
        for part in head.split(width):
            z = (hidden @ part.T).to(dtype)  # (S, width)
            log_sum = torch.logaddexp(log_sum, z.logsumexp(dim=-1))
            place, inside = locate(here, part)
            z_target = torch.where(inside, z.gather(1, place).squeeze(1), z_target)
            here = here - len(part)
        ctx.save_for_backward(hidden, head, targets, log_sum)
        ctx.width = width
        return z_target - log_sum

    @staticmethod
    def backward(ctx, gradient):
        """Gradients of hidden, and of a head that is trained; the softmax is made again, and never stored."""
        hidden, head, here, log_sum = ctx.saved_tensors
        trained = ctx.needs_input_grad[1]
        d_head = torch.empty_like(head) if trained else head  # of a frozen head it is only split, not written
        d_hidden = torch.zeros_like(hidden, dtype=log_sum.dtype)
        for part, d_part in zip(head.split(ctx.width), d_head.split(ctx.width), strict=True):
            z = (hidden @ part.T).to(log_sum.dtype)  # (S, width)
            d_z = z.sub_(log_sum[:, None]).exp_().mul_(-gradient[:, None])  # −gradient · softmax
            place, inside = locate(here, part)
            d_z = d_z.scatter_add_(1, place, torch.where(inside, gradient, 0.0)[:, None]).to(hidden.dtype)
            d_hidden += d_z @ part
            if trained:
                torch.mm(d_z.T, hidden, out=d_part)
            here = here - len(part)
        return d_hidden.to(hidden.dtype), d_head if trained else None, None, None


def locate(targets, part):
    """The column of each target in a slice, (S, 1), and whether it lies there at all, (S,)."""
    return targets.clamp(0, len(part) - 1)[:, None], (targets >= 0) & (targets < len(part))
