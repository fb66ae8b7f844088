"""Ask a model: a prompt in, text out.

    python sample.py --model runs/demo/model --prompt "a review of the silver lantern:"
    python sample.py --model runs/demo/model --reference runs/demo/reference --prompts held-out.txt --jsonl
    echo "a review of the silver lantern:" | python sample.py --model runs/demo/model --num-samples 3
    python sample.py --model runs/demo/model --reference runs/demo/reference --credit --pair prefs.jsonl:1

With --reference both models answer, and the implicit reward says whose answer is better; with --credit it is shown
token by token. On a terminal a single answer appears token by token. Prompts are lines of a file, or of standard input.
"""

import json
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

from dpo_min.run import sample_flags
from dpo_min.system import flags, program, signals
from dpo_min.system.flags import (
    COUNT,
    EXPONENT,
    FRACTION,
    NATURAL,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SEED,
    SIZE,
    flag,
)


@dataclass
class SampleFlags:
    """Every flag: its default, and when to change it."""

    model: Path = flag(MISSING, "model directory, such as a run's model/")
    reference: Path | None = flag(None, "a second model, whose answers are shown beside the first's")
    prompt: str | None = flag(None, "the text to continue; may be empty")
    prompts: Path | None = flag(None, "a file with one prompt a line; without it and --prompt: standard input")
    num_samples: int = flag(1, "answers to each prompt", COUNT)
    temperature: float = flag(1.0, "below 1 bolder, above 1 more varied, 0 always the likeliest token", NOT_NEGATIVE)
    top_k: int | None = flag(None, "draw among the k likeliest tokens", COUNT)
    top_p: float = flag(1.0, "draw among the likeliest tokens that together reach this probability", PROBABILITY)
    min_p: float = flag(0.0, "draw among the tokens at least this share as likely as the likeliest", FRACTION)
    repetition_penalty: float = flag(1.0, "above 1 tokens that were there before become less likely", POSITIVE)
    num_beams: int | None = flag(None, "draw nothing: search the likeliest answer, keeping so many at a time", SIZE)
    length_penalty: float = flag(0.0, "beams rank by log-probability / length^X; above 0 favours longer", EXPONENT)
    min_new_tokens: int = flag(0, "the shortest answer, unless --stop ends it", NATURAL)
    max_new_tokens: int = flag(200, "the longest answer; all end where the model's positions do", COUNT)
    length_range: list[int] | None = flag(None, "draw each answer's limit uniformly", None, ("LO", "HI"))
    stop: list[str] = flag([], "end an answer before any of these texts", None, "TEXT")
    seed: int = flag(0, "another seed, other answers", SEED)
    device: str = flag("auto", "where to compute", ["auto", "cpu", "cuda", "mps"])
    dtype: str = flag("auto", "auto: bfloat16 on CUDA, float32 elsewhere", ["auto", "float32", "bfloat16", "float16"])
    credit: bool = flag(False, "colour each token by its reward, β (log π − log π_ref)")
    completion: str | None = flag(None, "with --credit and --prompt: the reward of this answer instead of fresh ones")
    pair: str | None = flag(None, "with --credit: the reward of both sides of a preference, FILE:LINE")
    html: Path | None = flag(None, "with --credit: write the same as a page of HTML")
    beta: float | None = flag(None, "of the reward; default: the run's that --model is in, else 0.1", POSITIVE)
    jsonl: bool = flag(False, "one JSON object an answer, for machines")


def prepare(argv):
    """(config, prompts); a mistake ends the program with one line and exit code 2."""
    try:
        config, given = flags.parse(SampleFlags, argv, __doc__.split("\n")[0])
        sample_flags.check_sampling(config, given)
        sample_flags.check_credit(config, given)
        if config.prompt is not None:
            flags.refuse(given, ["prompts"], "with --prompt")
            if not flags.is_text(config.prompt):
                raise ValueError("--prompt: not UTF-8 text")
            return config, [config.prompt]
        return config, sample_flags.read_prompts(config.prompts)
    except ValueError as error:
        program.stop(error)
    except KeyboardInterrupt:
        program.stop("stopped before anything was asked", code=130)


# Flags and prompts are checked before PyTorch is imported, which takes seconds: a mistake is named at once.
if __name__ == "__main__":
    PREPARED = prepare(sys.argv[1:])
    signals.on_signals(signals.quit_at_once)  # modules that are being loaded take no exception

import torch

from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.decode.decoding_weights import DecodingGPT
from dpo_min.decode.generate import beam_search, stream
from dpo_min.decode.stop_strings import StopStrings
from dpo_min.judge import credit
from dpo_min.model.weights import load_model
from dpo_min.system import devices

DRAWING = "temperature top_k top_p min_p repetition_penalty min_new_tokens length_range".split()


def answers(config, model, tokenizer, prompt, generator, stop, echo):
    """The `Completion`s of one prompt; `echo` receives each piece of the first one's text as soon as it is certain."""
    asked = [tokenizer.encode(prompt)] * config.num_samples, tokenizer.end_of_text, config.max_new_tokens
    if config.num_beams:
        (beams,) = beam_search(model, *asked, config.num_beams, config.length_penalty, config.min_new_tokens, stop)
        return beams[:1]
    sampling, piece = {name: getattr(config, name) for name in DRAWING}, stop.pieces()
    try:
        for completions in stream(model, *asked, generator, stop=stop, **sampling):
            echo(piece(completions[0].ids))
        echo(piece(completions[0].ids, final=True))
    except KeyboardInterrupt:
        echo("\n")  # what was shown stays, in a line of its own
        raise
    return completions


def sample(config, prompts):
    """Answer every prompt with the model, and with the reference if there is one."""
    try:
        device, dtype = devices.choose_device(config.device, config.dtype)
        named = {"model": config.model} | ({"reference": config.reference} if config.reference else {})
        models = {name: load_model(path).to(device).eval() for name, path in named.items()}
        tokenizers = {name: load_tokenizer(path) for name, path in named.items()}
        for prompt in prompts if not config.pair else ():
            for name, model in models.items():
                size, limit = len(tokenizers[name].encode(prompt)), model.config.block_size
                if size >= limit:
                    raise ValueError(f"--prompt: {size} tokens leave no room in the {limit} positions of {named[name]}")
        judge = credit.Judge(config, models, tokenizers, device, dtype) if config.reference else None
    except ValueError as error:
        program.stop(error)
    fast = {name: DecodingGPT(model, dtype) for name, model in models.items()}
    sources = {name: torch.Generator().manual_seed(config.seed ^ i) for i, name in enumerate(models)}
    live = sys.stdout.isatty() and config.num_samples == 1 and not (config.jsonl or config.num_beams or judge)
    echo = (lambda text: print(text, end="", flush=True)) if live else (lambda text: None)
    for prompt in prompts:
        if config.pair:
            judge.show(prompt)
            continue
        if not config.jsonl and not judge:
            print(f"\n{prompt}")
        drawn = []
        for name, model in fast.items():
            stop = StopStrings(config.stop, tokenizers[name].decode_bytes)
            for i, completion in enumerate(answers(config, model, tokenizers[name], prompt, sources[name], stop, echo)):
                text = stop.text(completion.ids)
                row = {"prompt": prompt, "model": name, "sample": i, "completion": text, "ended": completion.ended}
                row |= {"logp": completion.logp, "sampling_logp": completion.sampling_logp}
                drawn.append((row, completion.ids))
                if not judge:
                    print(json.dumps(row, ensure_ascii=False) if config.jsonl else "" if live else text, flush=True)
        if judge:
            judge.show(prompt, drawn)
    if judge:
        judge.close()
    return 0


if __name__ == "__main__":
    signals.on_signals(signals.interrupt)
    sys.exit(program.guard(sample, *PREPARED))
