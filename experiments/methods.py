"""The methods of frontier.py, each as one run: a copy of the reference is trained, and measured every few steps.

There are two languages. In one of them all answers can be listed, so reward and KL are exact. The other is the demo's
reviews, where both are means over sampled answers. A run is given a `Language` and does not see which one it is.
"""

import copy
import time
from dataclasses import asdict, dataclass

import torch

from dpo_min.data.batch import batch_logps, batches, pack
from dpo_min.data.rows import load_preferences
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair, tokenize
from dpo_min.decode.generation import generate
from dpo_min.exact import exact_log_policy
from dpo_min.judge.scoring import log_ratios
from dpo_min.judge.statistics import Z_95, mean_interval
from dpo_min.losses import LOSSES
from dpo_min.model.gpt import GPT
from dpo_min.model.weights import load_model
from dpo_min.objective import expectation, kl_divergence, optimal_policy
from dpo_min.preference import margin
from dpo_min.rl.ppo import ppo_step
from dpo_min.rl.rlhf import ScalarGPT, fit_reward, reinforce_step, reward_accuracy, roll_out, update
from dpo_min.run.optimizer import schedule
from experiments import demo, theorem

WARMUP = 10  # optimiser steps, of every method; then the learning rate falls as a cosine


@dataclass(frozen=True)
class Method:
    """One row of the comparison: the method, with every setting that the methods do not share."""

    name: str
    kind: str  # a loss of LOSSES, sft, unlikelihood, reinforce, ppo
    learning_rate: float
    steps: int  # of the optimiser; for ppo, of rollouts
    batch: int  # pairs, or answers, to a step
    beta: float | None = None
    alpha: float | None = None  # of unlikelihood
    reward_rate: float | None = None  # learning rate of a reward model, fitted to DPO's pairs; None: the true reward
    epochs: int = 1  # of ppo over its rollouts
    minibatches: int = 1

    @property
    def label(self):
        """The name with the setting that tells rows of one name apart."""
        setting = {"β": self.beta, "α": self.alpha}
        return self.name + "".join(f", {key} = {value:g}" for key, value in setting.items() if value is not None)

    @property
    def preferences(self):
        """Whether it sees the labelled pairs."""
        return self.reward_rate is not None or self.kind not in ("reinforce", "ppo")


@dataclass(frozen=True)
class Language:
    """A reference, a true reward that judges (prompts, completions), pairs by seed, and how a policy is measured."""

    reference: GPT
    prompts: list
    end_of_text: int
    max_new_tokens: int
    reward: callable
    pairs: callable  # seed → (preferences to learn from, held-out ones)
    measure: callable  # (policy, β or None) → name → number
    samples: int  # answers to one prompt in a batch of rollouts
    reward_fit: dict  # steps and batch size of the reward model


def exact_language(pairs=25_600):
    """85 answers of up to three tokens, with preferences drawn from the reference: (`Language`, its `World`)."""
    world = theorem.make_world(vocab_size=5, max_new_tokens=3)
    worth = dict(zip(map(tuple, world.completions), world.reward.tolist(), strict=True))
    weights = theorem.all_preferences(world).flatten()

    def reward(prompts, completions):
        return torch.tensor([worth[tuple(completion)] for completion in completions], dtype=torch.float64)

    def drawn_pairs(seed):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(weights, pairs + 2000, replacement=True, generator=generator).tolist()
        Y = len(world.completions)
        rows = [TokenizedPair(theorem.PROMPT, *(list(world.completions[k]) for k in divmod(i, Y))) for i in drawn]
        return rows[:pairs], rows[pairs:]

    @torch.no_grad()
    def measure(policy, beta):
        log_policy = exact_log_policy(policy, theorem.PROMPT, 4, 3)
        point = {
            "kl": kl_divergence(log_policy, world.log_ref).item(),
            "reward": expectation(log_policy, world.reward).item(),
        }
        if beta is not None:
            optimum = optimal_policy(world.log_ref, world.reward, beta)
            point["distance"] = kl_divergence(log_policy, optimum).item()
        return point

    fit = {"steps": 400, "batch_size": 64}
    return Language(world.reference, [theorem.PROMPT], 4, 3, reward, drawn_pairs, measure, 64, fit), world


def review_language(run, data):
    """The demo's reviews: its reference, its preferences, and the reward that a formula gives to the words."""
    reference = load_model(run / "reference").requires_grad_(False)
    tokenizer = load_tokenizer(run / "reference")
    preferences, _ = load_preferences([data])
    rows, _ = tokenize(preferences, tokenizer, 96)
    held_out = [tokenizer.encode(prompt) for prompt in demo.prompts(held_out=True)]

    def reward(prompts, completions):
        return torch.tensor([demo.reward(tokenizer.decode(completion)) for completion in completions])

    def drawn_pairs(seed):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = [rows[i] for i in order]
        return shuffled[500:], shuffled[:500]

    def measure(policy, beta):
        generator = torch.Generator().manual_seed(1)
        asked = held_out, tokenizer.end_of_text, policy.config.block_size, generator
        ids = [c.ids for c in generate(policy, *asked, vocab_size=tokenizer.vocab_size)]
        point = {}
        for name, values in (("kl", log_ratios(policy, reference, held_out, ids)), ("reward", reward(held_out, ids))):
            point[name], low, high = mean_interval(values)
            point[name + "_error"] = (high - low) / 2 / Z_95
        return point | {"length": sum(map(len, ids)) / len(ids)}

    asked = [tokenizer.encode(prompt) for prompt in demo.prompts(held_out=False)]
    fit = {"steps": 100, "batch_size": 32}
    longest = reference.config.block_size
    return Language(reference, asked, tokenizer.end_of_text, longest, reward, drawn_pairs, measure, 4, fit)


def preference_loss(method, policy, reference, pairs):
    """The loss of one step on pairs, a scalar: a loss of the margin, imitation, or unlikelihood."""
    batch = pack(pairs, chosen_only=method.kind == "sft")
    logps = batch_logps(policy, batch)  # (2B,), or (B,)
    if method.kind == "sft":
        return -logps.mean()
    chosen, rejected = logps.chunk(2)
    if method.kind == "unlikelihood":
        return (method.alpha * rejected - chosen).mean()
    with torch.no_grad():
        reference_logps = batch_logps(reference, batch).chunk(2)
    return LOSSES[method.kind].value(margin(chosen, rejected, *reference_logps), method.beta).mean()


def train(language, method, seed, costs):
    """Train a copy of the reference; yields it after every step, and adds up the costs in `costs`."""
    policy = copy.deepcopy(language.reference).requires_grad_(True)
    pairs, held_out = language.pairs(seed) if method.preferences else (None, None)
    if method.kind in ("reinforce", "ppo"):
        yield from climb(language, method, policy, pairs, held_out, seed, costs)
        return
    optimizer = torch.optim.AdamW(policy.parameters(), lr=method.learning_rate, weight_decay=0)
    for step, chunk in zip(range(1, method.steps + 1), batches(pairs, method.batch, seed), strict=False):
        set_rate([optimizer], method, step)
        update(optimizer, preference_loss(method, policy, language.reference, chunk))
        costs["updates"] += 1
        yield policy


def climb(language, method, policy, pairs, held_out, seed, costs):
    """The reinforcement learners: rollouts, judged by the true reward or by a model of it, then REINFORCE or PPO."""
    reward = language.reward
    if method.reward_rate:
        model = ScalarGPT(copy.deepcopy(language.reference).requires_grad_(True))
        fit_reward(model, pairs, learning_rate=method.reward_rate, seed=seed, **language.reward_fit)
        costs["updates"] += language.reward_fit["steps"]
        costs["reward_accuracy"] = reward_accuracy(model, held_out)

        def reward(prompts, completions):
            rows = [TokenizedPair(x, y, y) for x, y in zip(prompts, completions, strict=True)]
            return model.rewards(pack(rows, chosen_only=True))

    generator, learners = torch.Generator().manual_seed(seed), [policy]
    if method.kind == "ppo":  # and its value network
        learners.append(ScalarGPT(copy.deepcopy(language.reference).requires_grad_(True)))
    optimizers = [torch.optim.AdamW(m.parameters(), lr=method.learning_rate, weight_decay=0) for m in learners]
    for step in range(1, method.steps + 1):
        set_rate(optimizers, method, step)
        count = method.batch // language.samples
        chosen = torch.randint(len(language.prompts), (count,), generator=generator).tolist()
        asked = [language.prompts[i] for i in chosen for _ in range(language.samples)]
        limits = language.end_of_text, language.max_new_tokens
        rollouts = roll_out(policy, language.reference, reward, asked, *limits, generator)
        if method.kind == "ppo":
            ppo_step(*learners, optimizers, rollouts, generator, method.beta, method.epochs, method.minibatches)
        else:
            reinforce_step(policy, optimizers[0], rollouts, language.samples, method.beta)
        costs["updates"] += method.epochs * method.minibatches
        costs["generated"] += int(rollouts.batch.lengths.sum())
        yield policy


def set_rate(optimizers, method, step):
    """The learning rate of this step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = method.learning_rate * schedule("cosine", step, method.steps, WARMUP)


def run(language, method, seed, points):
    """One run: settings, costs, and about `points` measurements, the first of them of the reference."""
    costs, every = (
        {"updates": 0, "generated": 0, "seconds": 0.0, "processor_seconds": 0.0},
        max(1, method.steps // points),
    )
    path = [{"step": 0} | language.measure(language.reference, method.beta)]
    wall, processor = time.perf_counter(), time.process_time()
    for step, policy in enumerate(train(language, method, seed, costs), 1):
        if step % every == 0 or step == method.steps:
            costs["seconds"] += time.perf_counter() - wall
            costs["processor_seconds"] += time.process_time() - processor
            path.append({"step": step} | language.measure(policy, method.beta))
            wall, processor = time.perf_counter(), time.process_time()
    return {"method": asdict(method), "seed": seed, "path": path} | costs


def methods(offline, reinforce, ppo, reward_rate, betas):
    """Every method: the settings of each family, and the β of those that have one beside DPO."""
    rows = [Method("DPO", "sigmoid", beta=beta, **offline) for beta in (0.05, 0.1, 1, 5)]
    rows += [Method("IPO", "ipo", beta=beta, **offline) for beta in betas]
    rows += [Method("REINFORCE", "reinforce", beta=beta, **reinforce) for beta in betas]
    rows += [Method("PPO, learned reward", "ppo", beta=beta, reward_rate=reward_rate, **ppo) for beta in betas]
    rows += [Method("PPO, true reward", "ppo", beta=beta, **ppo) for beta in betas]
    rows += [Method("supervised, chosen", "sft", **offline)]
    return rows + [Method("unlikelihood", "unlikelihood", alpha=alpha, **offline) for alpha in (0.05, 0.1, 0.5, 1)]


EXACT = methods(
    {"learning_rate": 3e-3, "steps": 400, "batch": 64},
    {"learning_rate": 3e-3, "steps": 400, "batch": 64},
    {"learning_rate": 3e-3, "steps": 100, "batch": 128, "epochs": 2, "minibatches": 2},
    reward_rate=1e-3,
    betas=(0.1, 1),
)
REVIEWS = methods(
    {"learning_rate": 3e-4, "steps": 100, "batch": 32},
    {"learning_rate": 5e-4, "steps": 50, "batch": 64},
    {"learning_rate": 1e-3, "steps": 25, "batch": 64, "epochs": 2, "minibatches": 2},
    reward_rate=1e-3,
    betas=(0.1,),
)


@torch.no_grad()
def reference_rewards(language, answers=2048, size=128):
    """True rewards of the reference's own answers, a list: best of n and the optimum are estimated from them."""
    generator, rewards = torch.Generator().manual_seed(0), []
    for start in range(0, answers, size):
        asked = [language.prompts[i % len(language.prompts)] for i in range(start, start + size)]
        limits = language.end_of_text, language.max_new_tokens
        ids = [completion.ids for completion in generate(language.reference, asked, *limits, generator)]
        rewards += language.reward(asked, ids).tolist()
    return rewards
