"""Ask a model: a prompt in, text out.

    python sample.py --model runs/demo/model --prompt "a review of the silver lantern:"
    python sample.py --model runs/demo/model --reference runs/demo/reference --prompts held-out.txt --jsonl
    echo "a review of the silver lantern:" | python sample.py --model runs/demo/model --num-samples 3
    python sample.py --model runs/demo/model --reference runs/demo/reference --credit --pair prefs.jsonl:1

With --reference both models answer, and the implicit reward says whose answer is better; with --credit it is shown
token by token. On a terminal a single answer appears token by token. Prompts are lines of a file, or of standard input.
"""

import codecs
import json
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

from dpo_min import options
from dpo_min.options import COUNT, NOT_NEGATIVE, POSITIVE, PROBABILITY, SEED, flag


@dataclass
class Config:
    """Every flag: its default, and when to change it."""

    model: Path = flag(MISSING, "model directory, such as a run's model/")
    reference: Path | None = flag(None, "a second model, whose answers are shown beside the first's")
    prompt: str | None = flag(None, "the text to continue; may be empty")
    prompts: Path | None = flag(None, "a file with one prompt a line; without it and --prompt: standard input")
    num_samples: int = flag(1, "answers to each prompt", COUNT)
    temperature: float = flag(1.0, "below 1 bolder, above 1 more varied, 0 always the likeliest token", NOT_NEGATIVE)
    top_k: int | None = flag(None, "draw among the k likeliest tokens", COUNT)
    top_p: float = flag(1.0, "draw among the likeliest tokens that together reach this probability", PROBABILITY)
    max_new_tokens: int = flag(200, "the longest answer", COUNT)
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
        config, given = options.parse(Config, argv, __doc__.split("\n")[0])
        if config.temperature == 0:
            options.refuse(
                given, ["top_k", "top_p", "seed", "num_samples"], "with --temperature 0, which is one answer"
            )
        options.check_credit(config, given)
        if config.prompt is not None:
            options.refuse(given, ["prompts"], "with --prompt")
            if any("\ud800" <= character <= "\udfff" for character in config.prompt):
                raise ValueError("--prompt: not UTF-8 text")
            return config, [config.prompt]
        try:
            text = (config.prompts.read_bytes() if config.prompts else sys.stdin.buffer.read()).decode()
        except (OSError, UnicodeDecodeError) as error:
            where = f"--prompts {config.prompts}" if config.prompts else "standard input"
            raise ValueError(f"{where}: cannot be read as UTF-8 text: {error}") from error
        prompts = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
        if not text:
            raise ValueError("no prompt: use --prompt TEXT, --prompts FILE, or standard input, one prompt a line")
        return config, prompts
    except ValueError as error:
        options.stop(error)
    except KeyboardInterrupt:
        options.stop("stopped before anything was asked", code=130)


# Flags and prompts are checked before PyTorch is imported, which takes seconds: a mistake is named at once.
PREPARED = prepare(sys.argv[1:]) if __name__ == "__main__" else None

import torch

from dpo_min import credit, run
from dpo_min.generate import stream
from dpo_min.tokenizer import load_tokenizer
from dpo_min.weights import load_model


def answers(config, model, tokenizer, prompt, device, dtype, echo):
    """The completions of one prompt as lists of ids; `echo` receives each piece of text as it is drawn."""
    generator = torch.Generator(device).manual_seed(config.seed)
    ids = [tokenizer.encode(prompt)] * config.num_samples
    completions = [[] for _ in ids]
    characters = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end inside a character
    sampling = {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        for drawn in stream(model, ids, tokenizer.end_of_text, config.max_new_tokens, generator, **sampling):
            for completion, token in zip(completions, drawn, strict=True):
                if token is not None:
                    completion.append(token)
                    echo(characters.decode(tokenizer.decode_bytes([token])))
    return completions


def sample(config, prompts):
    """Answer every prompt with the model, and with the reference if there is one."""
    try:
        device, dtype = run.choose_device(config.device, config.dtype)
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
        options.stop(error)
    live = sys.stdout.isatty() and config.num_samples == 1 and not config.jsonl and not judge
    echo = (lambda text: print(text, end="", flush=True)) if live else (lambda text: None)
    for prompt in prompts:
        if config.pair:
            judge.show(prompt)
            continue
        if not config.jsonl and not judge:
            print(f"\n{prompt}")
        drawn = []
        for name, model in models.items():
            tokenizer = tokenizers[name]
            for i, ids in enumerate(answers(config, model, tokenizer, prompt, device, dtype, echo)):
                text, ended = tokenizer.decode(ids), ids[-1] == tokenizer.end_of_text
                row = {"prompt": prompt, "model": name, "sample": i, "completion": text, "ended": ended}
                drawn.append((row, ids))
                if not judge:
                    print(json.dumps(row, ensure_ascii=False) if config.jsonl else "" if live else text, flush=True)
        if judge:
            judge.show(prompt, drawn)
    if judge:
        judge.close()
    return 0


if __name__ == "__main__":
    sys.exit(run.guard(sample, *PREPARED))
