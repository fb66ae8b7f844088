"""`sample.py --pairs K`: K answers of each model to every prompt, appended to a file of candidates.

An answer depends on the seed and on its prompt. So a command that was stopped and given again writes the same answers
as one that was not, up to rounding, which differs between batches of different sizes.
"""

from dataclasses import fields

import torch

from dpo_min.decode.generation import generate
from dpo_min.decode.sampling import Sampling
from dpo_min.decode.stop_strings import StopStrings
from dpo_min.labels.candidates import Candidates, read_candidates
from dpo_min.labels.journal import Journal
from dpo_min.model.weights import model_fingerprint
from dpo_min.system.program import mistakes
from dpo_min.system.progress import Progress

MEMORY = 2**28  # numbers that the caches of one batch hold
MOST = 256  # answers drawn at a time; more gain nothing
DRAWING = [field.name for field in fields(Sampling) if field.name not in ("stop", "vocab_size")]  # flags that say how


def draw_candidates(flags, prompts, asked, models, fast, reading):
    """Draw what `flags.out` lacks, append it prompt by prompt, and say what there is; returns the exit code.

    Args:
        prompts: texts, or tuples of messages.
        asked: name of a model → the ids of every prompt.
        models, fast: name → the model, and the same with its weights laid out for decoding.
        reading: name → (tokenizer, template).
    """
    prints = [model_fingerprint(model) for model in models.values()]
    model = prints[0] if len(prints) == 1 else [print_ for print_ in prints for _ in range(flags.pairs)]
    rows = [p if isinstance(p, str) else [message._asdict() for message in p] for p in prompts]
    with mistakes():
        journal = Journal(flags.out)
    with journal, Progress("candidates", total=len(rows), unit="prompts") as progress:
        with mistakes():
            there = known_keys(flags.out, model, flags.pairs * len(models))
        wanted = {Candidates(row, [], [], model).key: i for i, row in reversed([*enumerate(rows)])}  # each prompt once
        todo, before = sorted(i for key, i in wanted.items() if key not in there), len(wanted.keys() & there)
        cut = alike = 0
        for chunk in chunks(todo, flags, asked, models):
            drawn = draw(flags, chunk, asked, fast, reading)  # name → one list of (text, completion) for each prompt
            for place, number in enumerate(chunk):
                answers = [answer for name in drawn for answer in drawn[name][place]]
                texts, completions = zip(*answers, strict=True)
                line = Candidates(rows[number], [*texts], [completion.logp for completion in completions], model)
                journal.append(line.as_row())
                cut += sum(not completion.ended for completion in completions)
                alike += not line.pairs()
            progress.at(before + todo.index(chunk[-1]) + 1)
    print(f"{flags.out}: {len(todo)} prompts answered, {before} had answers of this model before")
    if cut or alike:
        print(
            f"{cut} answers were cut at their limit; {alike} prompts have no two answers that differ and say something"
        )
    return 0


def known_keys(path, model, size):
    """The keys of the lines of a file; ValueError where this model's lines hold another number of answers."""
    lines = read_candidates(path) if path.stat().st_size else []
    for line in lines:
        if {*line.models} == {*([model] if isinstance(model, str) else model)} and len(line.answers) != size:
            raise ValueError(f"--out {path}: its lines have {len(line.answers)} answers of this model, not {size}")
    return {line.key for line in lines}


def chunks(todo, flags, asked, models):
    """Yield the numbers of prompts that are drawn for at a time, as many as memory allows."""
    config = max((model.config for model in models.values()), key=lambda c: c.n_layer * c.n_embd)
    longest = max((len(ids[number]) for ids in asked.values() for number in todo), default=0)
    positions = min(config.block_size, longest + flags.max_new_tokens)
    answers = min(MOST, MEMORY // (2 * positions * config.n_layer * config.n_embd))  # keys and values
    size = max(1, answers // flags.pairs)
    for start in range(0, len(todo), size):
        yield todo[start : start + size]


def draw(flags, chunk, asked, fast, reading):
    """Name of a model → for each prompt of the chunk a list of K (text, `Completion`)."""
    drawn = {}
    for i, (name, model) in enumerate(fast.items()):
        tokenizer, generator = reading[name][0], torch.Generator().manual_seed(flags.seed ^ i)
        stop = StopStrings(flags.stop, tokenizer.decode_bytes)
        sampling = {field: getattr(flags, field) for field in DRAWING}
        prompts = [asked[name][number] for number in chunk for _ in range(flags.pairs)]
        limits = tokenizer.end_of_text, flags.max_new_tokens, generator
        completions = generate(model, prompts, *limits, stop=stop, vocab_size=tokenizer.vocab_size, **sampling)
        answers = [(stop.text(completion.ids), completion) for completion in completions]
        drawn[name] = [answers[k : k + flags.pairs] for k in range(0, len(answers), flags.pairs)]
    return drawn
