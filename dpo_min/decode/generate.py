"""From prompts to completions: the prompts once, then a token a step, with a cache so that each costs one position.

    prefill → logits of the first token → draw → decode_step → logits of the next → …

`generate` draws, `beam_search` looks for the most likely, `stream` shows what `generate` does step by step; packed.py
makes a model's weights ready for it. A completion ends at end-of-text, at a stop string, at its length limit, or where
the model's positions do: the window never slides.
"""

import math
from dataclasses import dataclass, field

import torch

from dpo_min.decode.sampling import Sampling, draw, forbid, largest, next_token_probs, row_uniforms
from dpo_min.model.attention import KVCache


@dataclass
class Completion:
    """What was drawn for one prompt. Log-probabilities are in nats, one for each id, and summed over all ids.

    They are those of the model as it computed the draw: exact in its dtype, so in bfloat16 good to some 1e-2.
    """

    ids: list[int] = field(default_factory=list)  # the end-of-text that closes it included
    logps: list[float] = field(default_factory=list)  # under the model, before temperature and all else
    sampling_logps: list[float] = field(default_factory=list)  # under the distribution that the id was drawn from
    ended: bool = False  # by end-of-text or a stop string; False where a limit cut it off

    def append(self, token, logp, sampling_logp, end_of_text, stop=None):
        """One more id, and whether it is the last."""
        self.ids.append(token)
        self.logps.append(logp)
        self.sampling_logps.append(sampling_logp)
        self.ended = token == end_of_text or bool(stop and stop(self.ids))

    @property
    def logp(self):
        """Log π(y|x) of the completion under the model itself."""
        return math.fsum(self.logps)

    @property
    def sampling_logp(self):
        """Its log-probability under what it was drawn from: 0 where there was no choice."""
        return math.fsum(self.sampling_logps)


@torch.no_grad()
def prefill(model, prompts, max_new_tokens):
    """Run a batch of prompts, of any lengths, and remember them.

    Args:
        prompts: lists of token ids, none of them empty.
        max_new_tokens: how many tokens the cache is to have room for, or block_size where that is less.

    Returns: logits (B, V) of the tokens that come next, their positions (B,), and the `KVCache`.

    Raises:
        ValueError: a prompt does not leave room for one token.
        FloatingPointError: the model's weights are not finite.
    """
    device, block_size = model.head_weight.device, model.config.block_size
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    if longest >= block_size:
        raise ValueError(f"a prompt of {longest} tokens leaves no room in the model's {block_size} positions")
    rows = [prompt + [0] * (longest - len(prompt)) for prompt in prompts]  # what pads is hidden until overwritten
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else model.head_weight.dtype
    if device.type == "cpu":
        dtype = torch.promote_types(dtype, torch.float32)  # a CPU attends to half-precision keys several times slower
    length = min(longest + max_new_tokens, block_size)
    cache = KVCache(model.config, len(prompts), length, device, dtype)
    if device.type == "cpu":
        cache.slots = longest  # grows with each step; elsewhere all shapes stay as they are
    lengths = lengths.to(device)
    hidden = model(torch.tensor(rows, device=device), torch.arange(longest, device=device), cache=cache)  # (B, T, C)
    last = hidden[cache.rows[:, 0], lengths - 1]  # (B, C)
    if not torch.isfinite(last).all():
        raise FloatingPointError("the model's hidden states are not finite: its weights are damaged")
    return model.logits(last), lengths, cache


@torch.no_grad()
def decode_step(model, tokens, positions, cache):
    """Logits (B, V) of the tokens that follow `tokens` (B,), which stand at `positions` (B,) and join the cache.

    A row that has ended may be given anything. Except on a CPU, where attention looks at no more slots than are
    filled, every step has the same shapes and no step waits for a value, as CUDA graphs require
    (`torch.compile(decode_step, mode="reduce-overhead")`).
    """
    size = cache.keys.shape[3]
    cache.slots = min(cache.slots + 1, size)
    return model.logits(model(tokens[:, None], positions.clamp(max=size - 1)[:, None], cache=cache)[:, 0])


def log_probs(logits):
    """Log π of every next token, (B, V), in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


@torch.no_grad()
def stream(model, prompts, end_of_text, max_new_tokens, generator=None, **sampling):
    """Draw completions of a batch of prompts, one token of each at a time.

    A prompt's completion depends on the generator's state and on the prompt, not on the other prompts nor on their
    order, up to the rounding of the model; of equal prompts the first gets the first completion and so on.

    Args:
        prompts: lists of token ids, of any lengths; an empty one starts from end-of-text.
        end_of_text: the id that ends a completion.
        max_new_tokens: the most tokens drawn for each prompt; a row also ends where block_size does.
        generator: source of the draws; one number is taken from it.
        sampling: fields of `Sampling`.

    Yields: after every step the `Completion` of each prompt, the same objects, as far as they have come.

    Raises:
        ValueError: a prompt does not leave room for one token, or the sampling asked for is impossible.
        FloatingPointError: the model's weights are not finite.
    """
    sampling = Sampling(**sampling)
    sampling.check_limit(max_new_tokens)
    prompts = [list(prompt) or [end_of_text] for prompt in prompts]
    completions = [Completion() for _ in prompts]
    if not prompts or not max_new_tokens:
        return
    uniforms = row_uniforms(prompts, 1 + min(max_new_tokens, model.config.block_size), generator)  # (B, 1 + steps)
    low, high = sampling.length_range or (max_new_tokens, max_new_tokens)
    limits = (low + (uniforms[:, 0] * (high - low + 1)).long()).tolist()
    limits = [min(n, model.config.block_size - len(prompt)) for n, prompt in zip(limits, prompts, strict=True)]
    logits, positions, cache = prefill(model, prompts, max(limits))
    home = "cpu" if logits.device.type == "mps" else logits.device  # MPS has no float64, which draws are made with
    uniforms, rows = uniforms.to(home), torch.arange(len(prompts), device=home)
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=home)
    for row, prompt in zip(seen, prompts, strict=True):
        row[prompt] = True
    live = set(range(len(prompts)))
    for step in range(max(limits)):
        logits = logits.to(home)
        forbidden = end_of_text if step < sampling.min_new_tokens else None
        probs = next_token_probs(logits, seen=seen, forbidden=forbidden, **sampling.processors)
        tokens = draw(probs, uniforms[:, 1 + step])  # (B,)
        seen[rows, tokens] = True
        logps = log_probs(logits)[rows, tokens]
        drawn = torch.stack([tokens.double(), logps, probs[rows, tokens].log()], dim=1)  # one wait for the device
        for i, (token, logp, sampling_logp) in enumerate(drawn.tolist()):
            if i in live:
                completions[i].append(int(token), logp, sampling_logp, end_of_text, sampling.stop)
        yield completions
        live = {i for i in live if not completions[i].ended and step + 1 < limits[i]}
        if not live:
            return
        logits = decode_step(model, tokens.to(logits.device), positions + step, cache)


def generate(model, prompts, end_of_text, max_new_tokens, generator=None, **sampling):
    """What `stream` draws, as one `Completion` for each prompt."""
    steps = list(stream(model, prompts, end_of_text, max_new_tokens, generator, **sampling))
    return steps[-1] if steps else [Completion() for _ in prompts]


@torch.no_grad()
def beam_search(
    model, prompts, end_of_text, max_new_tokens, num_beams, length_penalty=0.0, min_new_tokens=0, stop=None
):
    """The likeliest completions, found by extending the best `num_beams` hypotheses of each prompt again and again.

    Hypotheses are ranked by log π(y|x) / |y|^length_penalty: 0 ranks by probability, 1 by the mean of the tokens,
    and above 0 favours longer ones. One that is done stays among them as it is. So one beam is greedy decoding, and
    with as many beams as there are completions nothing is ever dropped: the first is the exact argmax.

    Args: those of `stream`; `min_new_tokens` and `stop` as in `Sampling`.

    Returns: for each prompt its hypotheses, best first; fewer than `num_beams` where there are not so many.

    Raises:
        ValueError, FloatingPointError: as `stream`; or there is no beam.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, got {num_beams}")
    Sampling(min_new_tokens=min_new_tokens).check_limit(max_new_tokens)
    prompts = [list(prompt) or [end_of_text] for prompt in prompts]
    beams = [[(Completion(), row)] for row in range(len(prompts))]  # with its row of the batch; None if it is done
    if not prompts or not max_new_tokens:
        return [[hypothesis for hypothesis, _ in beam] for beam in beams]
    logits, positions, cache = prefill(model, prompts, max_new_tokens)
    limits = [min(max_new_tokens, model.config.block_size - len(prompt)) for prompt in prompts]
    for step in range(max(limits)):
        logps = log_probs(logits)
        if step < min_new_tokens:
            logits = forbid(logits, end_of_text)
        k = min(num_beams, logits.shape[-1])
        best = logits.masked_fill(~largest(logits, logits.topk(k).values[:, -1:], k), -math.inf).topk(k)
        choices = [x.tolist() for x in (best.indices, best.values, logps.gather(-1, best.indices))]
        rows = []  # of this step that the next one's go on from
        for limit, beam in zip(limits, beams, strict=True):
            found = [extended for pair in beam for extended in extensions(*pair, choices, end_of_text, stop)]
            found.sort(key=lambda pair: pair[0].logp / len(pair[0].ids) ** length_penalty, reverse=True)
            beam[:] = [(hypothesis, None) for hypothesis, _ in found[:num_beams]]
            for i, (hypothesis, row) in enumerate(found[:num_beams]):
                if row is not None and not hypothesis.ended and step + 1 < limit:
                    beam[i] = hypothesis, len(rows)
                    rows.append(row)
        if not rows:
            break
        tokens = [hypothesis.ids[-1] for beam in beams for hypothesis, row in beam if row is not None]
        rows, tokens = (torch.tensor(x, device=logits.device) for x in (rows, tokens))
        cache.select(rows)
        positions = positions[rows]
        logits = decode_step(model, tokens, positions + step, cache)
    return [[hypothesis for hypothesis, _ in beam] for beam in beams]


def extensions(hypothesis, row, choices, end_of_text, stop):
    """A hypothesis with each of its row's choices (ids, scores, logps, each rows × k) added; itself if it is done."""
    if row is None:
        return [(hypothesis, None)]
    found = []
    for token, score, logp in sorted(zip(*(x[row] for x in choices), strict=True)):
        if score > -math.inf:
            longer = Completion([*hypothesis.ids], [*hypothesis.logps], [*hypothesis.sampling_logps])
            longer.append(token, logp, 0.0, end_of_text, stop)
            found.append((longer, row))
    return found
