"""Labels spent round by round on the policy's own answers, or once on the reference's: writes docs/rounds.md.

    python -m experiments.rounds [--init runs/demo/reference] [--runs runs/rounds] [--out docs]

A round draws answers with sample.py, has them labelled by `python -m dpo_min.labels --scorer`, and trains on the labels
with train.py from the policy of the round before. The reference is the first model in every round (`fixed`), or the
policy that the round begins with (`following`). `once` spends as many labels on answers of the first model and trains
on all of them in one run. A round's directory holds its candidates, labels, run and log; what is whole is kept, so that
an interrupted command goes on where it stopped.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import torch

from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.judge.scorers import load_scorer
from dpo_min.judge.scoring import draw_answers, kl_estimates
from dpo_min.judge.statistics import mean_interval
from dpo_min.model.weights import load_model, model_fingerprint
from dpo_min.system.files import read_json, write_text
from dpo_min.system.program import mistakes
from experiments import rounds_page
from experiments.demo import prompts

WAYS = ("fixed", "following")
TRAIN = "--max-length 96 --micro-batch-size 32 --learning-rate 3e-4 --lr-schedule linear --warmup-steps 3"


@dataclass(frozen=True)
class Settings:
    """What decides the numbers; a directory of runs that has others is refused."""

    init: str  # directory of the first model
    model: str  # its fingerprint
    rounds: int
    prompts: int  # of a round; each gets two answers, and one label if they differ and say something
    beta: float
    train: str  # more flags of train.py
    scorer: str  # who labels
    truth: str  # who measures
    samples: int  # answers to each held-out prompt, to measure by


def plan(rounds):
    """The rounds of one seed, in order: [(name, the round that it goes on from, its reference, whose labels it gets)].

    Round 1 is the same whether the reference is fixed or follows. `once` is last: it trains on the labels of round 1,
    and on those of as many answers of the first model as the other rounds have drawn.
    """
    steps = [("round-1", "start", "start", ["round-1"])]
    for way in WAYS:
        names = ["round-1", *(f"{way}-{number}" for number in range(2, rounds + 1))]
        for before, name in pairwise(names):
            steps.append((name, before, "start" if way == "fixed" else before, [name]))
    draws = ["round-1", *(f"draw-{number}" for number in range(2, rounds + 1))]
    return [*steps, ("once", "start", "start", draws)]


def run_seed(settings, directory, seed):
    """Every round of one seed that is not whole yet; returns name → what was measured of its policy, and `labels`."""
    torch.set_num_threads(1)
    names = prompts(held_out=False)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    directory.mkdir(parents=True, exist_ok=True)
    asked = directory / "prompts.txt"
    write_text(asked, "".join(names[i] + "\n" for i in order[: settings.prompts]))
    models = {"start": Path(settings.init)}
    found = {"start": measured(settings, directory / "start", models["start"], seed) | {"labels": 0}}
    for number, (name, before, reference, data) in enumerate(plan(settings.rounds)):
        place, files = directory / name, [directory / drawn / "prefs.jsonl" for drawn in data]
        models[name] = place / "model"
        if not (place / "measured.json").exists():
            for draw, file in enumerate(files):
                draw_and_label(settings, file.parent, models[before], asked, seed * 1000 + 10 * number + draw)
            train(settings, place, models[before], models[reference], files, seed)
        labels = sum(len(file.read_bytes().splitlines()) for file in files)
        found[name] = measured(settings, place, models[name], seed) | {"labels": found[before]["labels"] + labels}
    return found


def draw_and_label(settings, place, policy, asked, seed):
    """Two answers of the policy to each prompt, and the labels of the scorer, by the programs, in one directory."""
    place.mkdir(exist_ok=True)
    candidates = place / "candidates.jsonl"
    if not (place / "labelled").exists():
        drawing = ["--pairs", 2, "--prompts", asked, "--out", candidates, "--seed", seed]
        call(place, "sample.py", "--model", policy, *drawing)
        call(place, "-m", "dpo_min.labels", candidates, "--out", place / "prefs.jsonl", "--scorer", settings.scorer)
        (place / "labelled").touch()


def train(settings, place, policy, reference, data, seed):
    """One pass over the labels, every one of which is trained on; goes on where an earlier command stopped."""
    place.mkdir(exist_ok=True)
    flags = ["--init", policy, "--reference", reference, "--out", place, "--seed", seed, "--beta", settings.beta]
    flags += ["--eval-fraction", 0, *settings.train.split(), *(["--resume"] if (place / ".lock").exists() else [])]
    call(place, "train.py", "--data", *data, *flags)


def call(place, *command):
    """Run one of the programs; its output goes to the log of a round. SystemExit with its end where it fails."""
    start, log = time.perf_counter(), place / "log.txt"
    with open(log, "a", encoding="utf-8") as file:
        words = [sys.executable, *map(str, command)]
        code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
    if code:
        end = log.read_text(encoding="utf-8").splitlines()[-3:]
        sys.exit(f"{' '.join(map(str, command))}\nended with {code}; the end of {log}:\n" + "\n".join(end))
    what = command[1] if command[0] == "-m" else command[0]
    print(f"{place.parent.name} {place.name}: {what}, {time.perf_counter() - start:.0f} s", flush=True)


def measured(settings, place, policy, seed):
    """True reward and KL of a policy, each as mean, low and high, kept in the directory of its round.

    Answers are drawn for prompts that no label named. The KL is that from the first model, in nats an answer.
    """
    place.mkdir(exist_ok=True)
    path = place / "measured.json"
    if not path.exists():
        models = [load_model(directory).eval().requires_grad_(False) for directory in (policy, settings.init)]
        tokenizer, scorer = load_tokenizer(policy), load_scorer(settings.truth)
        questions = prompts(held_out=True) * settings.samples
        ids = [tokenizer.encode(question) for question in questions]
        known, positions = {"vocab_size": tokenizer.vocab_size}, models[0].config.block_size
        answers = draw_answers(models[0], ids, tokenizer.end_of_text, positions, seed, 64, **known)
        rewards = [scorer(x, tokenizer.decode(y)) for x, y in zip(questions, answers, strict=True)]
        kl = kl_estimates(*models, ids, answers, 64, **known)[1]  # the one of less variance
        found = {"reward": mean_interval(torch.tensor(rewards)), "kl": mean_interval(kl)}
        write_text(path, json.dumps(found))
    return read_json(path)


def keep(settings, directory):
    """Write the settings beside the runs; SystemExit where runs of other settings are there."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "settings.json"
    if path.exists() and read_json(path) != asdict(settings):
        sys.exit(f"--runs {directory}: holds runs of other settings, see {path}; name another directory")
    write_text(path, json.dumps(asdict(settings), indent=2))


def main():
    """Run what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--init", default="runs/demo/reference", help="directory of the first model")
    parser.add_argument("--runs", type=Path, default=Path("runs/rounds"), help="where the rounds are kept")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="directory of rounds.md")
    parser.add_argument("--seeds", type=int, default=4, help="how often everything is repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=600, help="of a round, each of which gets a label; 868 at most")
    parser.add_argument("--samples", type=int, default=4, help="answers to each held-out prompt, to measure by")
    parser.add_argument("--beta", type=float, default=0.4)
    parser.add_argument("--train", default=TRAIN, help="more flags of train.py, in one text")
    parser.add_argument("--scorer", default="experiments.demo:judge", help="who labels")
    parser.add_argument("--truth", default="experiments.demo:score", help="who measures")
    options = vars(parser.parse_args())
    most = len(prompts(held_out=False))
    for name, limit in (("seeds", 10), ("rounds", 9), ("prompts", most), ("samples", 100)):
        if not 1 <= options[name] <= limit:
            parser.error(f"--{name}: expected a whole number from 1 to {limit}, got {options[name]}")
    out, runs, seeds = (options.pop(name) for name in ("out", "runs", "seeds"))
    with mistakes():
        settings = Settings(model=model_fingerprint(load_model(options["init"])), **options)
        load_scorer(settings.truth)
    keep(settings, runs)
    os.environ["OMP_NUM_THREADS"] = "1"  # one seed on each core; models this small gain little from a second
    jobs = [(settings, runs / f"seed-{seed}", seed) for seed in range(seeds)]
    with ProcessPoolExecutor(min(seeds, os.cpu_count()), get_context("spawn")) as pool:
        found = [future.result() for future in [pool.submit(run_seed, *job) for job in jobs]]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    rounds_page.write(settings, found, out)
    print(f"written: {out / 'rounds.md'}")


if __name__ == "__main__":
    sys.exit(main())
