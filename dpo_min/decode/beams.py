"""The likeliest completions, found by extending the best hypotheses of each prompt again and again."""

import math

import torch

from dpo_min.decode.generation import Completion, decode_step, prefill
from dpo_min.decode.sampling import Sampling, forbid, largest, log_probs


@torch.no_grad()
def beam_search(
    model,
    prompts,
    end_of_text,
    max_new_tokens,
    num_beams,
    length_penalty=0.0,
    min_new_tokens=0,
    stop=None,
    vocab_size=None,
):
    """The `num_beams` best hypotheses of each prompt that were found, best first; fewer where there are not so many.

    Hypotheses are ranked by log π(y|x) / |y|^length_penalty: 0 ranks by probability, 1 ranks by the mean of the tokens,
    and any penalty above 0 favours longer hypotheses. A hypothesis that is done stays among them as it is. So one beam
    is greedy decoding. With as many beams as there are completions none is ever dropped, and the first is the exact
    argmax.

    Args: as generation.py says; `min_new_tokens`, `stop` and `vocab_size` as in `Sampling`.
    """
    Sampling(min_new_tokens=min_new_tokens, vocab_size=vocab_size).check_limit(max_new_tokens)
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, got {num_beams}")
    prompts = [list(prompt) or [end_of_text] for prompt in prompts]
    beams = [[(Completion(), row)] for row in range(len(prompts))]  # with its row of the batch; None if it is done
    if prompts and max_new_tokens:
        logits, positions, cache = prefill(model, prompts, max_new_tokens)
    limits = [min(max_new_tokens, model.config.block_size - len(prompt)) for prompt in prompts]
    for step in range(max(limits, default=0)):
        choices = likeliest(logits, num_beams, end_of_text if step < min_new_tokens else None, vocab_size)
        for i, beam in enumerate(beams):
            found = [longer for one in beam for longer in extensions(*one, choices, end_of_text, stop)]
            found.sort(key=lambda one: one[0].logp / len(one[0].ids) ** length_penalty, reverse=True)
            beams[i] = [(h, None if h.ended or step + 1 >= limits[i] else row) for h, row in found[:num_beams]]
        going = [(h.ids[-1], row) for beam in beams for h, row in beam if row is not None]
        if not going:
            break
        tokens, rows = torch.tensor(going, device=logits.device).unbind(1)
        places = iter(range(len(going)))
        beams = [[(h, row if row is None else next(places)) for h, row in beam] for beam in beams]
        cache.select(rows)
        positions = positions[rows]
        logits = decode_step(model, tokens, positions + step, cache)
    return [[hypothesis for hypothesis, _ in beam] for beam in beams]


def likeliest(logits, count, forbidden, vocab_size):
    """The likeliest tokens of each row: ids, scores (−∞ where there are not so many) and log π, lists (B, count)."""
    known = logits[:, :vocab_size]
    known = known if forbidden is None else forbid(known, forbidden)
    k = min(count, known.shape[-1])
    best = known.masked_fill(~largest(known, known.topk(k).values[:, -1:], k), -math.inf).topk(k)
    return [x.tolist() for x in (best.indices, best.values, log_probs(logits).gather(-1, best.indices))]


def extensions(hypothesis, row, choices, end_of_text, stop):
    """A hypothesis with each of its row's choices added, with the row; itself if it is done."""
    if row is None:
        return [(hypothesis, None)]
    found = []
    for token, score, logp in sorted(zip(*(x[row] for x in choices), strict=True)):
        if score > -math.inf:
            longer = Completion([*hypothesis.ids], [*hypothesis.logps], [*hypothesis.sampling_logps])
            longer.append(token, logp, 0.0, end_of_text, stop)
            found.append((longer, row))
    return found
