"""Everything exactly: list each completion of a tiny vocabulary and ask a real GPT for its probability.

A completion is any sequence of at most T tokens that ends at its first end-of-text token, or that has T tokens
and no end-of-text. A model picks one token after another until one of the two happens, so these are all its
possible answers, each once: their probabilities sum to 1. Over so small a set nothing is estimated. The vector
log π(·|x) that `exact_log_policy` returns goes into objective.py as it is, for KL, J, Z and the optimum.
"""

from itertools import product

import torch
from torch.nn.utils.rnn import pad_sequence

from dpo_min.logprob import sequence_logprobs
from dpo_min.objective import expectation


# Σ_{t=0}^{T} (V−1)^t: t < T other tokens and then end-of-text, or T others and none; ((V−1)^{T+1} − 1)/(V−2) if V > 2
def count_completions(vocab_size, max_new_tokens):
    """The number of completions, which is the number of terms of Z; V and T are at least 1."""
    if vocab_size < 1 or max_new_tokens < 1:
        raise ValueError(f"vocab_size ({vocab_size}) and max_new_tokens ({max_new_tokens}) must be at least 1")
    return sum((vocab_size - 1) ** t for t in range(max_new_tokens + 1))


def enumerate_completions(vocab_size, end_of_text, max_new_tokens):
    """Every completion once, as a tuple of token ids; those with end-of-text first, shortest first.

    Raises:
        ValueError: `end_of_text` is not one of the ids 0..V−1, or `max_new_tokens` is less than 1.
    """
    if not 0 <= end_of_text < vocab_size:
        raise ValueError(f"end_of_text must be one of the {vocab_size} token ids, got {end_of_text}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    others = [token for token in range(vocab_size) if token != end_of_text]
    ended = [(*body, end_of_text) for t in range(max_new_tokens) for body in product(others, repeat=t)]
    return ended + list(product(others, repeat=max_new_tokens))


def rectangle(prompt_ids, completions):
    """One row per completion, padded on the right: tokens (Y, T) and loss_mask (Y, T), True on the completion.

    Raises:
        ValueError: the prompt is empty, so that nothing would predict a completion's first token.
    """
    start = len(prompt_ids)
    if start < 1:
        raise ValueError("the prompt must have at least one token, got none")
    tokens = pad_sequence([torch.tensor([*prompt_ids, *completion]) for completion in completions], batch_first=True)
    ends = torch.tensor([start + len(completion) for completion in completions])[:, None]  # (Y, 1)
    positions = torch.arange(tokens.shape[1])  # (T,)
    return tokens, (positions >= start) & (positions < ends)


def exact_log_policy(model, prompt_ids, end_of_text, max_new_tokens, batch_size=1024):
    """Log π(y|x) in nats of every completion y, (Y,), in the order of `enumerate_completions`; has gradients.

    Args:
        model: a `GPT`, whose block_size holds the prompt and max_new_tokens more.
        prompt_ids: the token ids of x, at least one.
        end_of_text: the id that closes a completion.
        max_new_tokens: T; Y = `count_completions(vocab_size, T)`.
        batch_size: rows per forward; it changes the memory needed, not the result.

    Raises:
        ValueError: from `enumerate_completions`, `rectangle` or the model.
    """
    completions = enumerate_completions(model.config.vocab_size, end_of_text, max_new_tokens)
    tokens, loss_mask = (x.to(model.head_weight.device) for x in rectangle(prompt_ids, completions))
    parts = []
    for start in range(0, len(tokens), batch_size):
        rows, mask = (x[start : start + batch_size] for x in (tokens, loss_mask))  # (B, T) each
        parts.append(sequence_logprobs(model.logits(model(rows)), rows, mask))  # (B,)
    return torch.cat(parts)


# H(p) = −Σ_y p(y) log p(y) = E_p[−log p]
def entropy(log_p):
    """How undecided p is: (..., Y) → (...) nats, between 0 and log Y."""
    return expectation(log_p, -log_p)
