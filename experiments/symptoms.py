"""Runs that go wrong on purpose, and their curves: the numbers and pictures of docs/symptoms.md.

    python -m experiments.symptoms [--runs runs/symptoms] [--docs docs]

Every run is train.py, started as a program on the demo's preferences, whose reward is known. The curves are those of
its metrics.jsonl; afterwards its model answers prompts, and the answers are judged by the true reward.
"""

import argparse
import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.model.weights import load_model
from dpo_min.preference import bradley_terry
from dpo_min.system.picture import pyplot, save
from experiments import demo
from experiments.pages import renew, table
from experiments.report import answer

plt = pyplot()

ROOT = Path(__file__).resolve().parents[1]
STYLES = (
    {"color": "0.55", "linestyle": "-", "linewidth": 2.2},
    {"color": "black", "linestyle": "-", "linewidth": 1.4},
    {"color": "tab:blue", "linestyle": "--", "linewidth": 1.4},
    {"color": "tab:red", "linestyle": "-.", "linewidth": 1.4},
)
A_WORD = 0.3  # what the judge of longer.jsonl pays for a word
ANSWERS = 64  # drawn from a model to judge it

TINY = {"--max-length": 96, "--micro-batch-size": 32, "--log-every": 5, "--eval-every": 10}
FIRST = {"--data": "reviews.jsonl", "--tokenizer": "tokenizer", "--loss-type": "sft", "--n-layer": 2, "--n-head": 2,
         "--n-embd": 64, "--max-steps": 250, "--learning-rate": 4e-3, "--lr-schedule": "cosine"}  # fmt: skip
COMMON = {"--init": "base/model", "--data": "prefs.jsonl", "--eval-data": "held-out.jsonl", "--beta": 0.4,
          "--learning-rate": 3e-4, "--max-steps": 60, "--max-kl": 30}  # fmt: skip
HASTY = {"--beta": 0.1, "--learning-rate": 1e-3}
LONGER = {"--data": "longer.jsonl", "--eval-data": "longer-held-out.jsonl"}
STAGES = 30, 60  # steps after which the length of answers is measured


def any_of(*lists):
    """A pattern of any word of the lists."""
    return f"(?:{'|'.join(word for words in lists for word in words)})"


ASPECT, JUDGED = any_of(demo.ASPECTS), any_of(demo.PRAISE, demo.COMPLAINT)
SENTENCE = re.compile(
    f"we saw it {any_of(demo.WHEN)} at the {any_of(demo.PLACES)} with my {any_of(demo.RELATIVES)}"
    f"|it follows a {any_of(demo.PEOPLE)} and a {any_of(demo.PEOPLE)} for {any_of(demo.LENGTHS)} minutes"
    f"|(?:{any_of(demo.ASIDES)} )?(?:(?:the {ASPECT} was|i found the {ASPECT}) {any_of(demo.ADVERBS)} {JUDGED}"
    f"|the {ASPECT} felt {JUDGED} and the {ASPECT} too"
    f"|my {any_of(demo.RELATIVES)} {any_of(demo.PRAISE_VERBS, demo.COMPLAINT_VERBS)} the {ASPECT})"
)


def share_of_sentences(text):
    """How many of the sentences of a review are such as the demo's grammar writes."""
    sentences = [sentence.strip() for sentence in text.split(".") if sentence.strip()]
    return statistics.fmean(SENTENCE.fullmatch(sentence) is not None for sentence in sentences) if sentences else 0.0


class Symptom(NamedTuple):
    """Runs by what is wrong with them, each with its flags, and panels: (split, key of a line, label of the axis)."""

    runs: dict
    panels: tuple
    logarithmic: bool = False
    healthy: bool = True  # whether a run that goes well stands beside them


LOSS, CHOSEN = ("eval", "loss", "held-out loss"), ("eval", "logps/chosen", "log π(y_w), held out")
SYMPTOMS = {
    "stuck": Symptom(
        {"labels by a fair coin": {"--data": "coin.jsonl"}, "learning rate too low": {"--learning-rate": 1e-8}},
        (LOSS, ("eval", "rewards/margins", "margin βh, held out")),
    ),
    "nan": Symptom(
        {"learning rate rises to 10": {"--learning-rate": 10, "--warmup-steps": 60, "--log-every": 1}},
        (("train", "loss", "loss"), ("train", "grad_norm", "norm of the gradient")),
        logarithmic=True,
    ),
    "by-heart": Symptom(
        {"100 pairs, 32 times over": {"--data": "few.jsonl", "--max-steps": 100}},
        (("train", "rewards/accuracies", "accuracy, trained pairs"), LOSS),
    ),
    "falling": Symptom(
        {"β and learning rate in haste": HASTY, "with rpo": {**HASTY, "--loss-type": "rpo"}},
        (CHOSEN, ("eval", "logps/rejected", "log π(y_l), held out")),
    ),
    "gibberish": Symptom(
        {"β low, learning rate high": {"--beta": 0.01, "--learning-rate": 1e-2}},
        (LOSS, ("eval", "kl", "KL(π‖π_ref), nats an answer")),
    ),
    "longer": Symptom(
        {
            "a judge who pays for words": LONGER,
            "with r-dpo": {**LONGER, "--loss-type": "r-dpo", "--loss-alpha": 0.2},
            "with ld": {**LONGER, "--loss-type": "ld"},
            "with --reduce mean": {**LONGER, "--reduce": "mean", "--beta": 10},
        },
        (("eval", "length", "tokens of an answer"), ("eval", "rewards/accuracies", "accuracy, that judge's pairs")),
        healthy=False,
    ),
    "step-0": Symptom(
        {"another model for a reference": {"--reference": "early/model"}},
        (("eval", "rewards/chosen", "reward of y_w, held out"), LOSS),
    ),
    "nothing": Symptom(
        {"β too high": {"--beta": 20, "--learning-rate": 3e-5}, "learning rate too low": {"--learning-rate": 1e-8}},
        (LOSS, ("eval", "h", "h in nats, held out")),
    ),
}


class Lab:
    """The folder of the runs: data, a model to start from, and every run once, by its flags."""

    def __init__(self, place):
        self.place, self.runs = place, {}
        place.mkdir(parents=True, exist_ok=True)

    def make_data(self, pairs=2000, held_out=200):
        """Write the same pairs as three judges label them, and reviews to imitate."""
        shutil.rmtree(self.place / "tokenizer", ignore_errors=True)
        (self.place / "tokenizer").mkdir()
        demo.make_tokenizer().save(self.place / "tokenizer")
        generator = torch.Generator().manual_seed(0)
        rows = [demo.make_pair(generator) for _ in range(2 * pairs + held_out)]
        parts = {"": rows[:pairs], "held-out": rows[pairs : pairs + held_out], "reviews": rows[pairs + held_out :]}
        files = {"prefs": parts[""], "few": parts[""][: pairs // 20], "held-out": parts["held-out"]}
        files |= {"coin": [label(row, lambda text: 0.0, generator) for row in parts[""]]}
        files |= {"reviews": [label(row, lambda text: 0.0, generator) for row in parts["reviews"]]}
        files |= {"longer": [label(row, pay_for_words, generator) for row in parts[""]]}
        files |= {"longer-held-out": [label(row, pay_for_words, generator) for row in parts["held-out"]]}
        for name, rows in files.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (self.place / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def train(self, name, flags, *more):
        """One run of train.py in the folder's NAME; its exit code. What it prints goes to NAME.log."""
        if "--resume" not in more:
            shutil.rmtree(self.place / name, ignore_errors=True)
        with open(self.place / f"{name}.log", "ab" if "--resume" in more else "wb") as log:
            command = [sys.executable, *command_of(flags, self.place, name), *more]
            return subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode

    def run(self, own):
        """The lines of the run with these flags beside the common ones; its model's answers are judged."""
        key = tuple(own.items())
        if key not in self.runs:
            name = f"run-{len(self.runs)}"
            print(f"{name}: {shown(own) or 'healthy'}", flush=True)
            if own.get("--data") == LONGER["--data"]:
                lines = self.run_in_stages(name, own)
            else:
                self.train(name, {**COMMON, **own})
                lines = self.lines(name, own)
            self.runs[key] = name, lines, self.judge(self.place / name / "model")
        return self.runs[key]

    def run_in_stages(self, name, own):
        """A run that is stopped at each of `STAGES` and goes on, to see how long its model's answers are by then."""
        lengths = {0: self.judge(self.place / "base/model")["tokens"]}
        for steps in STAGES:
            self.train(name, {**COMMON, **own, "--max-steps": steps}, *(["--resume"] if len(lengths) > 1 else []))
            lengths[steps] = self.judge(self.place / name / "model")["tokens"]
        found = [{"split": "eval", "step": step, "length": length} for step, length in lengths.items()]
        return self.lines(name, own) + found

    def lines(self, name, own):
        """The lines of a run's metrics.jsonl, with h, the margin in nats."""
        text = (self.place / name / "metrics.jsonl").read_text(encoding="utf-8")
        lines, beta = [json.loads(line) for line in text.splitlines()], {**COMMON, **own}["--beta"]
        return [line | {"h": line["rewards/margins"] / beta} for line in lines]

    def judge(self, directory):
        """What a model's answers to prompts that nobody trained on are like: name → mean; None without a model."""
        if not (directory / "config.json").exists():
            return None
        model, tokenizer = load_model(directory).requires_grad_(False), load_tokenizer(directory)
        questions = demo.prompts(held_out=True)[:ANSWERS]
        ids = answer(model, tokenizer, questions, seed=1)
        texts = [tokenizer.decode(one) for one in ids]
        return {
            "reward": statistics.fmean(map(demo.reward, texts)),
            "sentences": statistics.fmean(map(share_of_sentences, texts)),
            "tokens": statistics.fmean(map(len, ids)),
            "texts": [" ".join(text.split()[:30]) for text in texts[:2]],
        }

    def said(self, name):
        """The last line that a run printed, without its rows."""
        last = (self.place / f"{name}.log").read_text(encoding="utf-8").splitlines()[-1]
        return last.split(" on ")[0]


def command_of(flags, place, out):
    """The command line of a run whose files lie in a folder, a list of texts."""
    flags = {flag: str(value) for flag, value in {**flags, **TINY, **flags, "--out": out}.items()}
    paths = "--init", "--data", "--eval-data", "--reference", "--tokenizer", "--out"
    flags |= {flag: str(place / flags[flag]) for flag in paths if flag in flags}
    return ["train.py", *(word for item in flags.items() for word in item)]


def shown(own):
    """A run's own flags, Markdown."""
    numbers = {flag: f"{value:g}" if isinstance(value, float | int) else value for flag, value in own.items()}
    return " ".join(f"`{flag} {value}`" for flag, value in numbers.items())


def label(pair, judge, generator):
    """The pair as a judge labels it: Bradley–Terry on what the judge gives each answer."""
    sides = pair["chosen"], pair["rejected"]
    if torch.rand((), generator=generator) >= bradley_terry(*torch.tensor([judge(text) for text in sides])):
        sides = sides[::-1]
    return pair | {"chosen": sides[0], "rejected": sides[1]}


def pay_for_words(text):
    """A judge who adds `A_WORD` for each word to the true reward."""
    return demo.reward(text) + A_WORD * len(text.split())


def draw(curves, panels, logarithmic, path):
    """Curves, label → lines of metrics.jsonl, one panel for each of (split, key, label of its axis)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(8.2, 2.9), dpi=100, layout="constrained")
    for axis, (split, key, label) in zip(axes, panels, strict=True):
        for (name, lines), style in zip(curves.items(), STYLES, strict=False):
            points = [(line["step"], line[key]) for line in lines if line["split"] == split and key in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, **style)
        if key == "loss" and not logarithmic:
            axis.axhline(0.693147, color="0.4", linestyle=":", linewidth=1, label="log 2")
        axis.set(xlabel="step", ylabel=label, yscale="log" if logarithmic else "linear")
    found = [handles for axis in axes for handles in zip(*axis.get_legend_handles_labels(), strict=True)]
    named = {name: handle for handle, name in found}  # each once, whichever panel has it
    figure.legend(named.values(), named, loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    save(figure, path, dpi=100)


HEADS = "run", "its flags", "step", "loss", "accuracy", "margin", "log π(y_w)", "log π(y_l)", "KL"
HEADS += "true reward", "sentences", "tokens"


def row_of(label, own, lines, judged):
    """A row of the table of a symptom: the last held-out line, and what the answers are worth."""
    last = next(line for line in reversed(lines) if line["split"] == "eval" and "loss" in line)
    keys = "loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected", "kl"
    answers = ["–"] * 3
    if judged:
        answers = [f"{judged['reward']:+.2f}", f"{judged['sentences']:.0%}", f"{judged['tokens']:.0f}"]
    return [label, shown(own), last["step"], *(f"{last[key]:.2f}" for key in keys), *answers]


def describe(lab, name):
    """Run what belongs to a symptom, draw it, and return what stands on the page, Markdown."""
    symptom = SYMPTOMS[name]
    flags = ({"a healthy run": {}} if symptom.healthy else {}) | symptom.runs
    found = {label: lab.run(own) for label, own in flags.items()}
    path = lab.figures / f"symptom-{name}.png"
    draw({label: lines for label, (_, lines, _) in found.items()}, symptom.panels, symptom.logarithmic, path)
    rows = [row_of(label, flags[label], *found[label][1:]) for label in found]
    alt = " and ".join(label for *_, label in symptom.panels)
    text = f"![By step: {alt}](figures/symptom-{name}.png)\n\n{table(HEADS, rows)}"
    last = found[[*found][-1]]
    if name == "nan":
        text += f"\n\nIt ends with one line, which also names the rows: `{lab.said(last[0])} on …`."
    if name == "by-heart":
        kept = lab.judge(lab.place / last[0] / "best")
        text += (
            f"\n\nIn the answers of the model in `best/`, {kept['sentences']:.0%} of the sentences follow the grammar; "
            f"the answers' true reward is {kept['reward']:+.2f}."
        )
    if name in ("by-heart", "gibberish"):
        for label, (*_, judged) in found.items():
            text += f"\n\n- {label}: " + " / ".join(f"*{text}*" for text in judged["texts"])
    return text


def main():
    """Make the data and every run, and renew docs/symptoms.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=Path("runs/symptoms"), help="default: %(default)s")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where symptoms.md is (default: docs)")
    options = parser.parse_args()
    lab = Lab(options.runs.absolute())
    lab.figures = options.docs / "figures"
    lab.make_data()
    lab.train("base", FIRST)
    lab.train("early", FIRST | {"--max-steps": 80})
    before = lab.judge(lab.place / "base/model")
    command = shlex.join(["python", *command_of(COMMON, Path("runs/symptoms"), "NAME")])
    common = (
        f"Before any of these runs, the model's answers have a true reward of {before['reward']:+.2f} and "
        f"{before['tokens']:.0f} tokens, and {before['sentences']:.0%} of their sentences follow the reviews' grammar."
    )
    parts = {"common": f"```\n{command}\n```\n\n{common}"}
    parts |= {name: describe(lab, name) for name in SYMPTOMS}
    renew(options.docs / "symptoms.md", parts)
    print(f"written: {options.docs / 'symptoms.md'}")


if __name__ == "__main__":
    main()
