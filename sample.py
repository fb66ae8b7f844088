"""Ask a model: a prompt in, text out.

    python sample.py --model runs/demo/model --prompt "a review of the silver lantern:"
    python sample.py --model runs/demo/model --reference runs/demo/reference --prompts held-out.txt --jsonl
    echo "a review of the silver lantern:" | python sample.py --model runs/demo/model --num-samples 3
    python sample.py --model runs/demo/model --reference runs/demo/reference --credit --pair prefs.jsonl:1
    python sample.py --model runs/demo/model --prompts prefs.jsonl --pairs 2 --out candidates.jsonl

With --reference both models answer, and the implicit reward says whose answer is better; --credit shows this reward for
each token. On a terminal a single answer appears while it is drawn. Prompts are lines of a file or of standard input.
--pairs draws answers to be labelled by python -m dpo_min.labels.
"""

from dpo_min.run.start import JOB  # the first import: flags and prompts are checked there before PyTorch is loaded

# isort: split
import sys

import torch

from dpo_min.data.tokenizing import encode_prompt
from dpo_min.decode.beams import beam_search
from dpo_min.decode.generation import stream
from dpo_min.decode.packed_weights import decoding_weights
from dpo_min.decode.stop_strings import StopStrings
from dpo_min.judge.credit import Judge
from dpo_min.labels.drawing import DRAWING, draw_candidates
from dpo_min.model.weights import load_model
from dpo_min.system import program
from dpo_min.system.devices import choose_device
from dpo_min.system.signals import interrupt, on_signals
from dpo_min.system.streams import as_json


def answers(flags, model, tokenizer, prompt, generator, stop, echo):
    """The `Completion`s of a prompt, as ids; `echo` receives each piece of the first one's text when it is certain."""
    asked = [prompt] * flags.num_samples, tokenizer.end_of_text, flags.max_new_tokens
    if flags.num_beams:
        search = flags.num_beams, flags.length_penalty, flags.min_new_tokens, stop, tokenizer.vocab_size
        (beams,) = beam_search(model, *asked, *search)
        return beams[:1]
    sampling, piece = {name: getattr(flags, name) for name in DRAWING}, stop.pieces()
    try:
        for completions in stream(model, *asked, generator, stop=stop, vocab_size=tokenizer.vocab_size, **sampling):
            echo(piece(completions[0].ids))
        echo(piece(completions[0].ids, final=True))
    except KeyboardInterrupt:
        echo("\n")  # what was shown stays, in a line of its own
        raise
    return completions


def encode_prompts(prompts, tokenizer, template):
    """The ids of each prompt."""
    return [encode_prompt(template.ask(prompt), tokenizer, template) for prompt in prompts]


def load(flags, prompts, reading, device):
    """(name → model, name → the ids of every prompt); ValueError where a prompt does not fit into a model."""
    named = {"model": flags.model} | ({"reference": flags.reference} if flags.reference else {})
    models = {name: load_model(path).to(device).eval() for name, path in named.items()}
    asked = {name: [] if flags.pair else encode_prompts(prompts, *reading[name]) for name in models}
    for name, model in models.items():
        size, limit = max(map(len, asked[name]), default=0), model.config.block_size
        if size >= limit:
            raise ValueError(f"--prompt: {size} tokens leave no room in the {limit} positions of {named[name]}")
    return models, asked


def sample(flags, prompts, reading):
    """Answer every prompt with the model, and with the reference if there is one.

    Args: `reading`, name → (tokenizer, template).
    """
    with program.mistakes():
        device, dtype = choose_device(flags.device, flags.dtype)
        models, asked = load(flags, prompts, reading, device)
        judge = Judge(flags, models, reading, device, dtype) if flags.reference and not flags.pairs else None
    fast = {name: decoding_weights(model, dtype) for name, model in models.items()}
    if flags.pairs:
        return draw_candidates(flags, prompts, asked, models, fast, reading)
    sources = {name: torch.Generator().manual_seed(flags.seed ^ i) for i, name in enumerate(models)}
    live = sys.stdout.isatty() and flags.num_samples == 1 and not (flags.jsonl or flags.num_beams or judge)
    echo = (lambda text: print(text, end="", flush=True)) if live else (lambda text: None)
    for number, prompt in enumerate(map(reading["model"][1].shown, prompts)):
        if flags.pair:
            judge.show(prompt)
            continue
        if not flags.jsonl and not judge:
            print(f"\n{prompt}")
        drawn = []
        for name, model in fast.items():
            tokenizer, ids = reading[name][0], asked[name][number]
            stop = StopStrings(flags.stop, tokenizer.decode_bytes)
            for i, completion in enumerate(answers(flags, model, tokenizer, ids, sources[name], stop, echo)):
                text = stop.text(completion.ids)
                row = {"prompt": prompt, "model": name, "sample": i, "completion": text, "ended": completion.ended}
                row |= {"logp": completion.logp, "sampling_logp": completion.sampling_logp}
                drawn.append((row, completion.ids))
                if not judge:
                    print(as_json(row) if flags.jsonl else "" if live else text, flush=True)
        if judge:
            judge.show(prompt, asked["model"][number], drawn)
    if judge:
        judge.close()
    return 0


if __name__ == "__main__":
    on_signals(interrupt)
    sys.exit(program.guard(sample, *JOB))
