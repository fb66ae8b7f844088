"""A real model made better: DPO on a model directory and real preferences; writes docs/real-model.md and its picture.

    python -m experiments.real_model --model DIR --data train.jsonl --eval-data heldout.jsonl [--out docs]

One run of train.py with no flags but the model, the data, --epochs and what --flags adds. Every number comes from
train.py, sample.py and evaluate.py, started as programs. A finished run under --runs is kept, so that the command goes
on where it stopped.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

from dpo_min.data.lines import read_rows
from dpo_min.judge.statistics import wilson_interval
from dpo_min.system.picture import pyplot, save
from experiments.pages import table

plt = pyplot()

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = (  # no row of the data has one of these
    "Rewrite this so that a customer is not offended: 'Your order is late because you typed the wrong address.'",
    "Explain in one sentence why the sky is blue.",
    "My colleague forgot our meeting again. Write her a short message.",
)


def run(command, log, progress=subprocess.STDOUT):
    """Run one of the project's programs; (seconds, peak GiB of the process). What it prints goes to `log`.

    Its progress goes there too, or to the terminal where that is None.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=file, stderr=progress)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {process.returncode}; see {log}")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def train(options):
    """The run under --runs, or the kept one; → its seconds, peak memory and command."""
    out, notes = options.runs / "run", options.runs / "run.json"
    if not notes.exists():
        command = ["train.py", "--data", *options.data, "--eval-data", *options.eval_data, "--init", options.model]
        command += ["--epochs", f"{options.epochs:g}", *shlex.split(options.flags), "--out", str(out)]
        resumed = ["--resume"] if (out / "config.json").exists() else []
        seconds, peak = run([*command, *resumed], options.runs / "run.log")
        notes.write_text(json.dumps({"seconds": seconds, "peak": peak, "command": command}))
    return json.loads(notes.read_text())


def metrics(directory, split):
    """The lines of one split of a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["split"] == split]


def evaluate(options, model, name):
    """The report of evaluate.py on the held-out rows, as a dict."""
    path = options.runs / f"{name}.json"
    if not path.exists():
        command = ["-m", "dpo_min.judge.evaluate", "--model", str(model), "--reference", options.model, "--json"]
        command += ["--max-pairs", str(10**6), "--samples", "64", "--dtype", options.dtype]
        run([*command, "--data", *options.eval_data], path.with_suffix(".part"), progress=None)
        path.with_suffix(".part").rename(path)
    return json.loads(path.read_text(encoding="utf-8"))


def answers(options, model, name):
    """The likeliest answers of a model to PROMPTS."""
    path, asked = options.runs / f"{name}.jsonl", options.runs / "prompts.jsonl"
    asked.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS), encoding="utf-8")
    command = ["sample.py", "--model", str(model), "--prompts", str(asked), "--temperature", "0", "--jsonl"]
    run([*command, "--max-new-tokens", "80", "--dtype", options.dtype], path, progress=None)
    return [json.loads(line)["completion"] for line in path.read_text(encoding="utf-8").splitlines()]


def credit(options, model):
    """(side, its reward, [token, reward] …) of both sides of the first held-out row."""
    path, place = options.runs / "credit.jsonl", f"{options.eval_data[0]}:1"
    command = ["sample.py", "--model", str(model), "--reference", options.model, "--credit", "--pair", place, "--jsonl"]
    run([*command, "--dtype", options.dtype], path, progress=None)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["model"], row["reward"], row["credit"]) for row in rows]


def hardware():
    """The processor, its cores and the versions that the figures are of."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores of {name}"
    return f"{device}, PyTorch {torch.__version__.split('+')[0]}"


def interval(figure):
    """A figure with its 95 % interval."""
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def draw_run(directory, path):
    """Loss and accuracy of a run along its steps: of the pairs that it trains on, and of those held out."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axis, key in zip(axes, ("loss", "rewards/accuracies"), strict=True):
        for split, name, mark, color in (("train", "trained on", ".-", "black"), ("eval", "held out", "o", "C0")):
            lines = metrics(directory, split)
            x, y = [line["step"] for line in lines], [line[key] for line in lines]
            axis.plot(x, y, mark, color=color, label=name)
            if (split, key) == ("eval", "rewards/accuracies"):
                ends = [wilson_interval(line[key] * line["pairs"], line["pairs"]) for line in lines]
                axis.vlines(x, *zip(*ends, strict=True), color=color, label="95 %")
        axis.set(xlabel="step", title=key.removeprefix("rewards/"))
        axis.legend(frameon=False, fontsize=8)
    save(figure, path)


def quoted(answer):
    """An answer as part of a quotation of Markdown."""
    return answer.strip().replace("\n", "\n> ")


def page(options, notes, report, texts, tokens):
    """docs/real-model.md."""
    last = metrics(options.runs / "run", "eval")[-1]
    pairs = sum(1 for path in options.data for _ in read_rows(path))
    figures = report["figures"]
    measured = [
        ("prefers the chosen answer by log π(y∣x), before", interval(figures["likelier_reference"])),
        ("prefers the chosen answer by log π(y∣x), after", interval(figures["likelier"])),
        ("accuracy of the implicit reward, after (before training every reward is 0)", interval(figures["accuracy"])),
        ("held-out loss, after (before: log 2 = 0.693)", f"{last['loss']:.3f}"),
        ("KL(π‖π_ref), nats an answer", interval(figures["kl_sum_of_tokens"])),
        ("minutes, the whole command", f"{notes['seconds'] / 60:.1f}"),
        ("peak memory of the process, GiB", f"{notes['peak']:.1f}"),
    ]
    shown = "\n\n".join(
        f"> **{prompt}**\n>\n> before: {quoted(before)}\n>\n> after: {quoted(after)}"
        for prompt, before, after in zip(PROMPTS, *texts, strict=True)
    )
    credited = "\n\n".join(
        f"**{side}**, reward {reward:+.2f}: " + " ".join(f"`{text!r}` {share:+.2f}" for text, share in spans)
        for side, reward, spans in tokens
    )
    return f"""# A real model, made better

`make real MODEL=DIR DATA=… EVAL=…` writes this page. Here the model is {options.about}. It was trained on {pairs} real
preferences, {options.data_about}, and measured on {figures["accuracy"]["n"]} rows whose prompts it never saw.
Hardware: {hardware()}. The whole command:

```sh
python {shlex.join(Path(word).name if "/" in word else word for word in notes["command"])}
```

![Loss and accuracy along the run](figures/real-model.png)

{table(("", "value [95 % interval]"), measured)}

{options.note}

## Answers to prompts that no row has

The likeliest answer of each model, cut after 80 tokens.

{shown}

## Where the reward went

The first held-out row, token by token: β (log π − log π_ref) of each.

{credited}
"""


def main(argv):
    """Train, measure, write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model directory to start from")
    parser.add_argument("--data", nargs="+", required=True, help="preferences to train on")
    parser.add_argument("--eval-data", nargs="+", required=True, help="preferences that only measure")
    parser.add_argument("--about", default="the one in --model", help="what the model is, as the page says it")
    parser.add_argument("--data-about", default="those of --data", help="what the preferences are, as the page says it")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--flags", default="", help="more flags of train.py")
    parser.add_argument("--note", default="", help="a paragraph for the page")
    parser.add_argument("--dtype", default="auto", help="of evaluate.py and sample.py")
    parser.add_argument("--runs", type=Path, default=Path("runs/real-model"))
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args(argv)
    options.runs.mkdir(parents=True, exist_ok=True)
    notes = train(options)
    model = options.runs / "run" / "model"
    report = evaluate(options, model, "evaluation")
    texts = answers(options, options.model, "answers-before"), answers(options, model, "answers-after")
    draw_run(options.runs / "run", options.out / "figures" / "real-model.png")
    text = page(options, notes, report, texts, credit(options, model))
    (options.out / "real-model.md").write_text(text, encoding="utf-8")
    print(f"written: {options.out / 'real-model.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
