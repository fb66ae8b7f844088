"""From a prompt to text: probabilities of the next token, a draw, and a cache so that each token costs one position."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from dpo_min.gpt import KVCache


@dataclass
class Completion:
    """What was drawn for one prompt: token ids, the end-of-text that closes it included."""

    ids: list[int] = field(default_factory=list)


def next_token_probs(logits, temperature=1.0, top_k=None, top_p=1.0):
    """The distribution that the next token is drawn from.

    Args:
        logits: (B, V).
        temperature: logits are divided by it; 0 puts all probability on the most likely token.
        top_k: keep the k most likely tokens, ties to the lower id; None keeps all.
        top_p: keep the smallest set of most likely tokens whose probabilities reach top_p (nucleus
            sampling, Holtzman et al., arXiv:1904.09751); 1 keeps all.

    Returns: (B, V) float32, rows sum to 1.
    """
    logits = logits.float()
    if temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    logits = logits - logits.amax(dim=-1, keepdim=True)  # 0 stays 0 under any temperature
    probs = (logits / max(temperature, 1e-30)).softmax(dim=-1)
    if top_k is None and top_p == 1:
        return probs
    ordered, ids = probs.sort(dim=-1, descending=True, stable=True)  # (B, V), ties in order of id
    if top_k is not None:
        ordered[:, top_k:] = 0
        ordered /= ordered.sum(dim=-1, keepdim=True)
    before = ordered.cumsum(dim=-1) - ordered  # probability of all more likely tokens
    ordered[:, 1:][before[:, 1:] >= top_p] = 0  # the most likely token always stays
    probs = torch.zeros_like(probs).scatter(-1, ids, ordered)
    return probs / probs.sum(dim=-1, keepdim=True)


@torch.no_grad()
def stream(model, prompts, end_of_text, max_new_tokens, generator=None, temperature=1.0, top_k=None, top_p=1.0):
    """Draw completions of a batch of prompts, one token of each at a time.

    Args:
        prompts: lists of token ids, of any lengths; an empty one starts from end-of-text.
        end_of_text: the id that ends a completion.
        max_new_tokens: the most tokens drawn for each prompt; a row also ends where block_size does.
        generator: source of the draws, on the model's device.
        temperature, top_k, top_p: as for `next_token_probs`.

    Yields: for every step a list with each row's new id, or None for a row that has ended. The
        end-of-text that ends a row is yielded too.

    Raises:
        ValueError: a prompt does not leave room for one token.
        FloatingPointError: the model's weights are not finite.
    """
    prompts = [prompt or [end_of_text] for prompt in prompts]
    config, weight = model.config, model.wte.weight
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=weight.device)  # (B,)
    longest = int(lengths.max())
    if longest >= config.block_size:
        raise ValueError(f"a prompt of {longest} tokens leaves no room in the model's {config.block_size} positions")
    rows = [prompt + [end_of_text] * (longest - len(prompt)) for prompt in prompts]  # hidden until overwritten
    tokens = torch.tensor(rows, device=weight.device)  # (B, T)
    dtype = (
        torch.get_autocast_dtype(weight.device.type) if torch.is_autocast_enabled(weight.device.type) else weight.dtype
    )
    length = min(longest + max_new_tokens, config.block_size)
    cache = KVCache(config, len(prompts), length, weight.device, dtype)
    hidden = model(tokens, torch.arange(longest, device=weight.device), cache=cache)  # (B, T, C)
    last = hidden[torch.arange(len(prompts)), lengths - 1]  # (B, C)
    if not torch.isfinite(last).all():
        raise FloatingPointError("the model's hidden states are not finite: its weights are damaged")
    ended = torch.zeros_like(lengths, dtype=torch.bool)
    for step in range(max_new_tokens):
        probs = next_token_probs(model.logits(last), temperature, top_k, top_p)
        token = torch.multinomial(probs, 1, generator=generator)  # (B, 1)
        yield [None if end else i for i, end in zip(token[:, 0].tolist(), ended.tolist(), strict=True)]
        positions = lengths + step  # (B,) where the new token goes
        ended |= (token[:, 0] == end_of_text) | (positions >= config.block_size - 1)
        if ended.all() or step == max_new_tokens - 1:
            return
        positions = positions.clamp(max=length - 1)
        last = model(token, positions[:, None], cache=cache)[:, 0]


def generate(model, prompts, end_of_text, max_new_tokens, generator=None, **sampling):
    """What `stream` draws, as one `Completion` for each prompt."""
    completions = [Completion() for _ in prompts]
    for ids in stream(model, prompts, end_of_text, max_new_tokens, generator, **sampling):
        for completion, i in zip(completions, ids, strict=True):
            if i is not None:
                completion.ids.append(i)
    return completions
