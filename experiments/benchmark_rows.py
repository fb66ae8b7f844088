"""What one row of the benchmark measures, in a process of its own: training with some of the levers, or decoding."""

import copy
import json
import math
import resource
import statistics
import sys
import time

import torch

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.rows import load_preferences
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair, tokenize
from dpo_min.decode.generation import generate
from dpo_min.decode.packed_weights import PackedLinear, decoding_weights
from dpo_min.exact import rectangle
from dpo_min.logprob import sequence_logprobs, token_logprobs
from dpo_min.losses import LOSSES
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.preference import margin
from dpo_min.system import devices

BETA, LEARNING_RATE = 0.1, 1e-6
PROMPT_TOKENS, NEW_TOKENS, TOP_K, DECODING_RUNS, BATCHES = 64, 64, 50, 5, (1, 8)
# name: what is added to the row above it
LEVERS = {
    "textbook": "two padded forwards for each model, all logits kept, reference live",
    "fused log-probs": "only scored positions meet the vocabulary, a slice at a time",
    "one row per pair": "the prompt is computed once",
    "reference once": "its log-probabilities before training, without gradients, then the model is freed",
    "fused AdamW": "one kernel for all of the optimiser's arithmetic",
    "heap kept": "glibc keeps freed blocks instead of returning them to the system",
    "compiled": "torch.compile of the model, the compilation itself not counted",
}
DECODERS = {
    "cast": "float32 weights, cast for every token",
    "held": "weights held in the dtype",
    "packed": "and packed, as in sample.py",
}


def synthetic_pairs(count, vocab_size, seed=0):
    """Random tokens; lengths log-normal like those of real dialogues: prompts about 110 tokens, answers about 45."""
    generator = torch.Generator().manual_seed(seed)

    def ids(median, spread, limit):
        length = int(median * math.exp(spread * torch.randn((), generator=generator).item()))
        return torch.randint(vocab_size, (min(max(length, 1), limit),), generator=generator).tolist()

    return [TokenizedPair(ids(80, 0.8, 350), ids(30, 0.9, 160), ids(30, 0.9, 160)) for _ in range(count)]


def read_pairs(options, vocab_size):
    """The pairs that are trained on."""
    if not options.data:
        return synthetic_pairs(options.pairs, vocab_size)
    rows, _ = load_preferences([options.data])
    return tokenize(rows[: options.pairs], load_tokenizer(options.tokenizer), 512)[0]


def padded_logps(model, pairs, side, fused):
    """Log π of one side of each pair, (B,), in rows of their own: the textbook's way, or with the fused gatherer."""
    rows = [rectangle(pair.prompt_ids, [getattr(pair, side)]) for pair in pairs]
    width = max(tokens.shape[1] for tokens, _ in rows)
    pad = torch.nn.functional.pad
    tokens, mask = (torch.cat([pad(row[k], (0, width - row[k].shape[1])) for row in rows]) for k in (0, 1))
    tokens, mask = tokens.to(model.head_weight.device), mask.to(model.head_weight.device)
    hidden = model(tokens)  # (B, T, C)
    if not fused:
        return sequence_logprobs(model.logits(hidden), tokens, mask)
    logps = token_logprobs(hidden[:, :-1][mask[:, 1:]], model.head_weight, tokens[:, 1:][mask[:, 1:]])
    return torch.segment_reduce(logps, "sum", lengths=mask.sum(dim=-1))


class Loop:
    """The training loop with the levers up to `options.variant`, and none of those below it."""

    def __init__(self, options):
        level = list(LEVERS).index(options.variant)
        self.has = {name: i <= level for i, name in enumerate(LEVERS)}
        self.device, dtype = devices.choose_device(options.device, options.dtype)
        self.autocast = torch.autocast(self.device, dtype, enabled=dtype != torch.float32)
        if self.has["heap kept"]:
            devices.keep_heap()
        self.policy = GPT(GPTConfig(*options.shape), torch.Generator().manual_seed(0)).to(self.device)
        settings = {"lr": LEARNING_RATE, "weight_decay": 0, "fused": self.has["fused AdamW"] or None}
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), **settings)
        if self.has["compiled"]:
            self.policy.compile(dynamic=True)

    def logps(self, model, chunk):
        """Log π of both sides of each pair, (B,) twice."""
        with self.autocast:
            if self.has["one row per pair"]:
                return batch_logps(model, pack(chunk).to(self.device)).chunk(2)
            sides = ("chosen_ids", "rejected_ids")
            return [padded_logps(model, chunk, side, self.has["fused log-probs"]) for side in sides]

    def warm_up(self, steps):
        """Run every kernel once: kernels are loaded, or compiled, at their first use, which is not what is measured."""
        for chunk in steps[:2]:
            with torch.no_grad():
                self.logps(self.policy, chunk)
            sum(side.sum() for side in self.logps(self.policy, chunk)).backward()

    def reference_logps(self, steps):
        """A function from the number of a step to its log π_ref: scored once for all steps, or by a live model."""
        if self.has["reference once"]:
            with torch.no_grad():
                return [[side.clone() for side in self.logps(self.policy, chunk)] for chunk in steps].__getitem__
        reference = GPT(self.policy.config).to(self.device).requires_grad_(False)
        reference.load_state_dict(self.policy.state_dict())
        return lambda k: self.logps(reference, steps[k])

    def train(self, steps):
        """The loss of each step, on its device."""
        reference_logps, losses = self.reference_logps(steps), []
        for k, chunk in enumerate(steps):
            self.optimizer.zero_grad(set_to_none=True)
            ours = self.logps(self.policy, chunk)
            with torch.no_grad():
                theirs = reference_logps(k)
            loss = LOSSES["sigmoid"].value(margin(*ours, *theirs), BETA).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
            self.optimizer.step()
            losses.append(loss.detach())
        return losses


def wait(device):
    """Wait until a GPU has done what it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure_training(options):
    """Prints a JSON line: seconds, losses, peak memory in bytes."""
    torch.set_num_threads(options.threads)
    loop, size = Loop(options), options.batch_size
    pairs = read_pairs(options, loop.policy.config.vocab_size)
    steps = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    if loop.device == "cuda" or options.compile:
        loop.warm_up(steps)
    wait(loop.device)
    start = time.perf_counter()
    losses = loop.train(steps)
    wait(loop.device)
    seconds = time.perf_counter() - start
    if loop.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform == "linux" else 1)
    print(json.dumps({"seconds": seconds, "losses": [x.item() for x in losses], "peak": peak}))


def bandwidth(device, size=2**28):
    """The most bytes a second that a pass over a large array reads: a sum, or on a CPU a packed matrix times a row."""
    x = torch.ones(size, dtype=torch.bfloat16, device=device)
    passes = [x.view(torch.int32).sum]
    if device == "cpu":
        packed = PackedLinear(x.view(-1, 1024))
        passes.append(lambda row=x[None, :1024]: packed(row)[0, 0])
    best = math.inf
    for _ in range(8):
        for run_once in passes:
            start = time.perf_counter()
            run_once().item()  # waits for a GPU
            best = min(best, time.perf_counter() - start)
    return 2 * size / best


def measure_decoding(options):
    """Prints a JSON line: the bytes of weights, the bytes that can be read a second, and tokens a second."""
    torch.set_num_threads(options.threads)
    device, dtype = devices.choose_device(options.device, options.dtype)
    model = GPT(GPTConfig(*options.shape), torch.Generator().manual_seed(0)).to(device)
    config, rates = model.config, {}
    size = sum(p.numel() for name, p in model.named_parameters() if name != "wpe.weight") * dtype.itemsize
    limits = {"top_k": TOP_K, "min_new_tokens": NEW_TOKENS}
    for batch in BATCHES:
        prompts = torch.randint(config.vocab_size - 1, (batch, PROMPT_TOKENS)).tolist()
        for way in DECODERS:
            decoder = {"cast": lambda: model, "held": lambda: copy.deepcopy(model).to(dtype)}.get(way)
            decoder = decoder() if decoder else decoding_weights(model, dtype)
            seconds = []
            for _ in range(1 + DECODING_RUNS):
                start = time.perf_counter()
                with torch.autocast(device, dtype, enabled=way == "cast" and dtype != torch.float32):
                    generate(decoder, prompts, config.vocab_size - 1, NEW_TOKENS, **limits)
                seconds.append(time.perf_counter() - start)
            rates[f"{way} {batch}"] = batch * NEW_TOKENS / statistics.median(seconds[1:])  # the first warms up
    print(json.dumps({"bytes": size, "bandwidth": bandwidth(device), "rates": rates}))
