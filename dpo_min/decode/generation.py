"""From prompts to completions. A cache keeps what was seen, so that each new token costs one position.

    prefill → logits of the first token → draw_next → decode_step → logits of the next → and so on

`generate` draws, and `stream` shows what it does step by step; packed_weights.py makes a model's weights ready.
A completion ends at end-of-text, at a stop string, at its length limit, or with the model's last position: the window
never slides. `generate`, `stream` and `beam_search` take:

    prompts         lists of token ids, of any lengths; an empty one starts from end-of-text
    end_of_text     the id that ends a completion
    max_new_tokens  the most tokens of each completion
    generator       the source of the draws; one number is taken from it
    sampling        fields of `Sampling`

They raise ValueError where a prompt leaves no room for one token or what is asked for is impossible, and
FloatingPointError where the model's weights are not finite.
"""

import math
from dataclasses import dataclass, field
from functools import partial

import torch

from dpo_min.decode.sampling import Sampling, draw_tokens, log_probs, next_token_probs, row_uniforms
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
    """Run a batch of prompts, lists of token ids, none empty, and remember them, with room for `max_new_tokens` more.

    Returns: logits (B, V) of the tokens that come next, their positions (B,), and the `KVCache`.
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
    cache = KVCache(model.config, len(prompts), min(longest + max_new_tokens, block_size), device, dtype)
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
    filled, every step has the same shapes and no step waits for a value, as `Recorded` requires.
    """
    size = cache.keys.shape[3]
    cache.slots = min(cache.slots + 1, size)
    return model.logits(model(tokens[:, None], positions.clamp(max=size - 1)[:, None], cache=cache)[:, 0])


class Recorded:
    """`decode_step` of one model and cache on CUDA: the first call records its kernels, and the others replay them.

    A step is several hundred small kernels, and to launch each by itself takes several times longer than they run.
    """

    def __init__(self, model, cache):
        self.step, self.graph = partial(decode_step, model, cache=cache), None

    def __call__(self, tokens, positions):
        """As `decode_step`; the logits are overwritten by the next call."""
        if self.graph is None:
            self.inputs, self.graph = (tokens.clone(), positions.clone()), torch.cuda.CUDAGraph()
            logits = self.step(*self.inputs)  # loads every kernel, which cannot be done while they are recorded
            with torch.cuda.graph(self.graph):
                self.logits = self.step(*self.inputs)
            return logits
        for kept, new in zip(self.inputs, (tokens, positions), strict=True):
            kept.copy_(new)
        self.graph.replay()
        return self.logits


@torch.no_grad()
def stream(model, prompts, end_of_text, max_new_tokens, generator=None, **sampling):
    """Draw completions of a batch of prompts, one token of each at a time.

    A prompt's completion depends on the generator's state and on the prompt, not on the other prompts nor on their
    order, up to the rounding of the model; of equal prompts the first gets the first completion and so on.

    Yields: after every step the `Completion` of each prompt, the same objects, as far as they have come.
    """
    sampling = Sampling(**sampling)
    sampling.check_limit(max_new_tokens)
    prompts, completions = [list(prompt) or [end_of_text] for prompt in prompts], [Completion() for _ in prompts]
    if not prompts or not max_new_tokens:
        return
    uniforms = row_uniforms(prompts, 1 + min(max_new_tokens, model.config.block_size), generator)  # (B, 1 + steps)
    rooms = [model.config.block_size - len(prompt) for prompt in prompts]
    limits = [*map(min, sampling.limits(uniforms[:, 0], max_new_tokens), rooms)]
    logits, positions, cache = prefill(model, prompts, max(limits))
    home = "cpu" if logits.device.type == "mps" else logits.device  # MPS has no float64, which draws are made with
    uniforms, seen = uniforms.to(home), torch.zeros(logits.shape, dtype=torch.bool, device=home)
    for row, prompt in zip(seen, prompts, strict=True):
        row[prompt] = True
    next_logits = partial(decode_step, model, cache=cache)
    if logits.is_cuda and not torch.is_autocast_enabled("cuda"):  # casts of weights are kept outside of a recording
        next_logits = Recorded(model, cache)
    live = set(range(len(prompts)))
    for step in range(max(limits)):
        forbidden = end_of_text if step < sampling.min_new_tokens else None
        tokens, drawn = draw_next(logits.to(home), seen, uniforms[:, 1 + step], sampling, forbidden)
        for i in live:
            completions[i].append(*drawn[i], end_of_text, sampling.stop)
        yield completions
        live = {i for i in live if not completions[i].ended and step + 1 < limits[i]}
        if not live:
            return
        logits = next_logits(tokens.to(positions.device), positions + step)


def draw_next(logits, seen, uniforms, sampling, forbidden):
    """A token for each row of logits (B, V): ids (B,), and as a list (id, log π, log-probability of the draw) of each.

    It joins `seen` (B, V). Tokens from `sampling.vocab_size` on are not drawn; π is the model's, over all of them.
    """
    V = sampling.vocab_size
    probs = next_token_probs(logits[:, :V], seen=seen[:, :V], forbidden=forbidden, **sampling.processors)
    tokens, rows = draw_tokens(probs, uniforms), torch.arange(len(logits), device=logits.device)
    seen[rows, tokens] = True
    logps = log_probs(logits)[rows, tokens]
    drawn = torch.stack([tokens.double(), logps, probs[rows, tokens].log()], dim=1).tolist()  # one wait for the device
    return tokens, [(int(token), logp, sampling_logp) for token, logp, sampling_logp in drawn]


def generate(model, prompts, end_of_text, max_new_tokens, generator=None, **sampling):
    """What `stream` draws, as one `Completion` for each prompt."""
    steps = list(stream(model, prompts, end_of_text, max_new_tokens, generator, **sampling))
    return steps[-1] if steps else [Completion() for _ in prompts]
