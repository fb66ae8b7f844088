"""What a policy and its reference say about many texts: log-probabilities, draws, and the KL between the two.

KL(π‖π_ref) is estimated from answers y that π draws, in two ways that are both right on average. The plain estimate is
the mean of log π(y|x) − log π_ref(y|x). The other adds up KL(π(·|x, y_<t) ‖ π_ref(·|x, y_<t)) along y, each term over
the whole vocabulary. Given a prefix, this term is the average of the plain one (Rao–Blackwell), so its variance is
never higher (Amini et al., arXiv:2504.10637), and it cannot be negative. A third estimate is common, ρ − 1 − log ρ with
ρ = π_ref/π (Schulman, 2020, joschu.net/blog/kl-approx.html). It suits single tokens only: over whole answers ρ is
rarely very large, and this makes the variance as large as one likes.
"""

import sys

import torch

from dpo_min.data.batch import batch_logps, batch_token_logps, pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.decode.generation import generate
from dpo_min.decode.sampling import log_probs
from dpo_min.model.lora import adapters_off
from dpo_min.objective import kl_divergence
from dpo_min.system.progress import Progress


def groups(what, lengths, size):
    """Yield every index once, in groups of at most `size` of like lengths, the longest first.

    Says on standard error how many `what` are done.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    with Progress(what, len(order), stream=sys.stderr) as progress:
        for first in range(0, len(order), size):
            yield order[first : first + size]
            progress.at(min(first + size, len(order)))


@torch.no_grad()
def pair_logps(policy, reference, pairs, reduce="sum", micro_batch_size=16):
    """Log π(y|x) and log π_ref(y|x) of both sides of every pair: (2 models, 2 sides, N) in nats, on the CPU."""
    device = policy.head_weight.device
    logps = torch.empty(2, 2, len(pairs), dtype=torch.float64)
    for group in groups("pairs", [pair.num_tokens for pair in pairs], micro_batch_size):
        batch = pack([pairs[i] for i in group]).to(device)
        for i, model in enumerate((policy, reference)):
            logps[i][:, group] = batch_logps(model, batch, reduce).view(2, -1).cpu().double()
    return logps


@torch.no_grad()
def token_rewards(policy, reference, prompts, completions, beta, reduce="sum", micro_batch_size=64):
    """β (log π − log π_ref) of every token of each completion, n tensors (T,); each sums to the implicit reward.

    The reference may be the policy itself, asked with its adapters off.

    Args: prompts and completions, n lists of token ids each; with reduce "mean" a reward is divided by T.

    Raises:
        ValueError: a prompt is empty, or a prompt with its completion is longer than a model's positions.
    """
    positions = min(model.config.block_size for model in (policy, reference))
    longest = max((len(x) + len(y) for x, y in zip(prompts, completions, strict=True)), default=0)
    if longest > positions:
        raise ValueError(f"prompt and answer have {longest} tokens, the models {positions} positions")
    pairs = [TokenizedPair(x, y, y) for x, y in zip(prompts, completions, strict=True)]
    device, rewards = policy.head_weight.device, []
    for start in range(0, len(pairs), micro_batch_size):
        batch = pack(pairs[start : start + micro_batch_size], chosen_only=True).to(device)
        ours = batch_token_logps(policy, batch)
        with adapters_off(reference):
            theirs = batch_token_logps(reference, batch)
        for p, q in zip(ours, theirs, strict=True):
            rewards.append(beta * (p - q) / (len(p) if reduce == "mean" else 1))  # (T,)
    return rewards


def log_ratios(policy, reference, prompts, completions, micro_batch_size=64):
    """Log π(y|x) − log π_ref(y|x) of each completion, (n,) in nats: its `token_rewards` at β = 1, added up.

    Over completions drawn from the policy its mean estimates KL(π‖π_ref) without bias, and over n draws
    its standard error says how well.
    """
    rewards = token_rewards(policy, reference, prompts, completions, 1.0, micro_batch_size=micro_batch_size)
    return torch.stack([reward.sum() for reward in rewards])


@torch.no_grad()
def kl_estimates(policy, reference, prompts, completions, micro_batch_size=16, rows=256, vocab_size=None):
    """Two terms of each completion whose means over draws from π estimate KL(π‖π_ref): (2, n) nats, on the CPU.

    First `log_ratios`, then Σ_t KL(π(·|x, y_<t) ‖ π_ref(·|x, y_<t)); see the file's docstring. Of the positions, `rows`
    at a time meet the whole vocabulary, or the tokenizer's `vocab_size` first ids, where one model may have more.
    """
    estimates = torch.empty(2, len(prompts), dtype=torch.float64)
    for group in groups("KL of answers", [*map(len, completions)], micro_batch_size):
        pairs = [TokenizedPair(prompts[i], completions[i], completions[i]) for i in group]
        batch = pack(pairs, chosen_only=True).to(policy.head_weight.device)
        states, steps = [hidden(model, batch).split(rows) for model in (policy, reference)], []
        for ours, theirs, targets in zip(*states, batch.targets.split(rows), strict=True):
            logits = policy.logits(ours)[:, :vocab_size], reference.logits(theirs)[:, :vocab_size]
            log_p, log_q = map(log_probs, logits)  # (rows, V)
            ratios = (log_p - log_q).gather(1, targets[:, None]).squeeze(1)
            steps.append(torch.stack([ratios, kl_divergence(log_p, log_q)]))
        parts = torch.cat(steps, dim=1).split(batch.lengths.tolist(), dim=1)
        estimates[:, group] = torch.stack([part.sum(dim=1) for part in parts], dim=1).cpu().double()
    return estimates


def hidden(model, batch):
    """The states that predict the batch's scored tokens, (S, C)."""
    return model(batch.tokens, batch.positions, batch.mask).flatten(0, 1)[batch.predictors]


def draw_answers(model, prompts, end_of_text, max_new_tokens, seed, micro_batch_size=16, vocab_size=None):
    """A completion of each prompt from the model itself, at temperature 1, as ids of at most `max_new_tokens`."""
    generator = torch.Generator(model.head_weight.device).manual_seed(seed)
    completions = [None] * len(prompts)
    for group in groups("answers drawn", [*map(len, prompts)], micro_batch_size):
        asked = [prompts[i] for i in group], end_of_text, max_new_tokens, generator
        drawn = generate(model, *asked, vocab_size=vocab_size)
        for i, completion in zip(group, drawn, strict=True):
            completions[i] = completion.ids
    return completions
