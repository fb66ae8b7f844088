"""The distribution of the next token, and a draw from it: pure functions of the logits.

Each setting is one function. `next_token_probs` applies those that are asked for, in the field's order:

    repetition penalty → forbidden token → temperature → top-k → top-p → min-p → softmax

Logits are (B, V) in float32; a token that is ruled out has −∞.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

FIRST = 1024  # this many of the likeliest tokens nearly always reach top_p; sorting all takes seven times as long


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn; the defaults draw from the model itself. Raises ValueError naming a bad value."""

    temperature: float = 1.0  # the functions of the same names below say what these mean
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0  # end-of-text is ruled out before this many tokens
    length_range: tuple[int, int] | None = None  # each completion's own limit is drawn uniformly from LO..HI
    stop: Callable[[list[int]], bool] | None = None  # ends a completion whose ids it is True for, as `StopStrings` is
    vocab_size: int | None = None  # the tokenizer's: an embedding may have rows beyond it, which are no tokens

    def __post_init__(self):
        low, high = self.length_range or (1, 1)
        for accepted, name, words in (
            (0 <= self.temperature < math.inf, "temperature", "a number from 0 up"),
            (self.top_k is None or self.top_k >= 1, "top_k", "a whole number from 1 up"),
            (0 < self.top_p <= 1, "top_p", "a number above 0 and up to 1"),
            (0 <= self.min_p <= 1, "min_p", "a number from 0 to 1"),
            (0 < self.repetition_penalty < math.inf, "repetition_penalty", "a number above 0"),
            (self.min_new_tokens >= 0, "min_new_tokens", "a whole number from 0 up"),
            (1 <= low <= high, "length_range", "LO and HI with 1 <= LO <= HI"),
            (self.vocab_size is None or self.vocab_size >= 1, "vocab_size", "a whole number from 1 up"),
        ):
            if not accepted:
                raise ValueError(f"{name} must be {words}, got {getattr(self, name)!r}")

    def check_limit(self, max_new_tokens):
        """Raise ValueError where the lengths asked for do not fit below `max_new_tokens`, or into each other."""
        low, high = self.length_range or (max_new_tokens, max_new_tokens)
        if high > max_new_tokens:
            raise ValueError(f"length_range {self.length_range} exceeds max_new_tokens, which is {max_new_tokens}")
        if self.min_new_tokens > low:
            raise ValueError(f"min_new_tokens ({self.min_new_tokens}) exceeds the least length limit, which is {low}")

    def limits(self, uniforms, max_new_tokens):
        """The most tokens of each completion, by a number (B,) in [0, 1) for each."""
        low, high = self.length_range or (max_new_tokens, max_new_tokens)
        return (low + (uniforms * (high - low + 1)).long()).tolist()

    @property
    def processors(self):
        """The arguments of `next_token_probs` that are set here."""
        return {name: getattr(self, name) for name in "temperature top_k top_p min_p repetition_penalty".split()}


def next_token_probs(
    logits, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seen=None, forbidden=None
):
    """The distribution that the next token is drawn from.

    Args:
        logits: (B, V).
        temperature, top_k, top_p, min_p, repetition_penalty: see the functions below; the defaults change nothing.
        seen: (B, V) boolean, the tokens of each row so far; for the repetition penalty.
        forbidden: the id of a token that must not come.

    Returns: (B, V) float32, rows sum to 1.
    """
    logits = logits.float()
    if repetition_penalty != 1:
        logits = penalize_repetition(logits, seen, repetition_penalty)
    if forbidden is not None:
        logits = forbid(logits, forbidden)
    if temperature != 1:
        logits = divide_by_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p < 1:
        logits = keep_top_p(logits, top_p)
    if min_p > 0:
        logits = keep_min_p(logits, min_p)
    return logits.softmax(dim=-1)


def penalize_repetition(logits, seen, penalty):
    """CTRL's: a token already seen has its logit divided by `penalty` if positive, and multiplied if negative.

    Keskar et al., arXiv:1909.05858, section 4.1, in the form the field gave it, since dividing a negative logit would
    favour the token. seen: (B, V) boolean.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def forbid(logits, token):
    """Rule out one token, unless it is the only one there is."""
    logits = logits.clone()
    logits[:, token] = -math.inf if logits.shape[-1] > 1 else 0.0
    return logits


def divide_by_temperature(logits, temperature):
    """Below 1 sharper, above 1 flatter; 0 is the limit: only the most likely token, of equals the lowest id."""
    logits = logits - logits.amax(dim=-1, keepdim=True)  # 0 stays 0 under any temperature
    if temperature == 0:
        return logits.masked_fill(~largest(logits, 0, 1), -math.inf)
    return logits / max(temperature, 1e-30)


def keep_top_k(logits, k):
    """Keep exactly the k most likely tokens, ties to the lower id (all, where there are no more than k)."""
    if k >= logits.shape[-1]:
        return logits
    probs = logits.softmax(dim=-1)
    return logits.masked_fill(~largest(probs, probs.topk(k).values[:, -1:], k), -math.inf)


def keep_top_p(logits, p):
    """Keep the smallest set of most likely tokens whose probabilities reach p, ties to the lower id.

    Nucleus sampling, Holtzman et al., arXiv:1904.09751, Eq. 2 and 3.
    """
    probs = logits.softmax(dim=-1)
    for width in (min(FIRST, logits.shape[-1]), logits.shape[-1]):
        ordered = probs.topk(width).values  # (B, width), largest first
        total = ordered.cumsum(dim=-1, dtype=torch.float64)
        if (total[:, -1] >= p).all():
            break
    before = F.pad(total, (1, -1))  # the probability of all more likely tokens
    count = (before < p).sum(dim=-1, keepdim=True)  # at least 1, since nothing comes before the first
    return logits.masked_fill(~largest(probs, ordered.gather(-1, count - 1), count), -math.inf)


def keep_min_p(logits, p):
    """Keep the tokens at least p times as likely as the most likely one (Nguyen et al., arXiv:2407.01082)."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -math.inf)


def largest(x, least, count):
    """Where the `count` largest of each row are, the last of which is `least`, ties to the lower id: (B, V) boolean."""
    above, tied = x > least, x == least
    return above | (tied & (tied.cumsum(dim=-1, dtype=torch.int32) <= count - above.sum(dim=-1, keepdim=True)))


def log_probs(logits):
    """Log π of every next token, (B, V), in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def draw_tokens(probs, uniforms):
    """Token ids (B,) from distributions (B, V) and numbers (B,) in [0, 1): the inverse of the cumulative distribution.

    A token of probability 0 is never drawn.
    """
    total = probs.cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(total, (uniforms * total[:, -1])[:, None], right=True)[:, 0]


def row_uniforms(prompts, count, generator=None):
    """Each row's own random numbers, (B, count) float64 in [0, 1).

    They are the bits of SHAKE-128 (FIPS 202) over one number from `generator`, the prompt's ids, and the number of
    equal prompts before it. So a row's numbers do not depend on the other prompts or on their order. Equal prompts get
    different numbers, and the first n numbers are the same for any count.
    """
    device = "cpu" if generator is None else generator.device
    base = torch.randint(2**63 - 1, (), generator=generator, device=device).item()
    copies, rows = Counter(), []
    for prompt in prompts:
        ids = tuple(map(int, prompt))
        key = repr((base, copies[ids], ids)).encode()
        copies[ids] += 1
        bits = torch.frombuffer(bytearray(hashlib.shake_128(key).digest(8 * count)), dtype=torch.int64)
        rows.append((bits & (2**53 - 1)).double() / 2**53)
    return torch.stack(rows)
