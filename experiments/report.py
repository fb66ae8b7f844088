"""What the demo's model learnt, against the reward that is known: a table with examples in Markdown, and a picture.

    python -m experiments.report runs/demo

Both models answer prompts about films that no preference named. The table goes to report.md in the run's directory, and
the picture to report.png.
"""

import argparse
import json
from itertools import cycle, islice
from pathlib import Path

import torch

from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.judge.scoring import draw_answers, log_ratios
from dpo_min.judge.statistics import mean_interval, wilson_interval
from dpo_min.metrics import wins
from dpo_min.model.weights import load_model
from dpo_min.system.picture import pyplot, save
from experiments.demo import prompts, review, reward

plt = pyplot()

REVIEWS = 496  # four of each film that no pair names
EXAMPLES = 3


def answer(model, tokenizer, questions, seed):
    """One completion to each prompt, as ids, at temperature 1: draws from the model itself."""
    ids = [tokenizer.encode(question) for question in questions]
    asked = ids, tokenizer.end_of_text, model.config.block_size, seed
    return draw_answers(model, *asked, micro_batch_size=len(ids), vocab_size=tokenizer.vocab_size)


def ask_both(policy, reference, tokenizer, reviews=REVIEWS, seed=1):
    """Sample each model `reviews` times on held-out prompts: texts, true rewards, and the policy's log-ratios."""
    questions = list(islice(cycle(prompts(held_out=True)), reviews))
    models = {"reference": reference, "policy": policy}
    ids = {name: answer(model, tokenizer, questions, seed) for name, model in models.items()}
    texts = {name: [tokenizer.decode(completion) for completion in ids[name]] for name in ids}
    rewards = {name: torch.tensor([reward(text) for text in texts[name]]) for name in ids}
    ratios = log_ratios(policy, reference, [tokenizer.encode(question) for question in questions], ids["policy"])
    return questions, texts, rewards, ratios


def describe(questions, texts, rewards, ratios):
    """The table, as Markdown."""
    n = len(questions)
    won = wins(rewards["policy"], rewards["reference"]).sum().item()
    low, high = wilson_interval(won, n)
    kl = mean_interval(ratios)
    rows = [
        ("true reward, reference", "{:.2f} [{:.2f}, {:.2f}]".format(*mean_interval(rewards["reference"]))),
        ("true reward, policy", "{:.2f} [{:.2f}, {:.2f}]".format(*mean_interval(rewards["policy"]))),
        ("win rate of the policy, ties one half", f"{won / n:.3f} [{low:.3f}, {high:.3f}]"),
        ("KL(policy‖reference), nats a review", "{:.2f} [{:.2f}, {:.2f}]".format(*kl)),
    ]
    lines = [f"| {n} reviews of films never seen in training | mean [95 % interval] |", "|---|---|"]
    lines += [f"| {name} | {figure} |" for name, figure in rows]
    for i in range(EXAMPLES):
        lines += ["", f"**{questions[i]}**", ""]
        for name, when in (("reference", "before"), ("policy", "after")):
            lines.append(f"- {when} (true reward {rewards[name][i]:+.2f}): {texts[name][i].strip()}")
    return "\n".join(lines) + "\n"


def judge_reviews(policy, reference, tokenizer, beta):
    """(true rewards, implicit rewards) of reviews by the grammar, which neither model wrote, (n,) each."""
    generator = torch.Generator().manual_seed(0)
    questions = prompts(held_out=True) * 2
    reviews = [review(generator) for _ in questions]
    completions = [[*tokenizer.encode(text), tokenizer.end_of_text] for text in reviews]
    ids = [tokenizer.encode(question) for question in questions]
    implicit = beta * log_ratios(policy, reference, ids, completions)
    return torch.tensor([reward(text) for text in reviews]), implicit


def draw_report(sampled, true, implicit, path):
    """Left: the true reward of both models' answers. Right: implicit against true rewards (n,) of other reviews.

    Args: sampled, "reference" and "policy" → the true rewards of their answers.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    edges = torch.linspace(-4, 4, 33).tolist()
    filled, hatched = {"color": "0.75", "edgecolor": "0.4"}, {"color": "none", "edgecolor": "black", "hatch": "///"}
    for name, label, style in (("reference", "before", filled), ("policy", "after DPO", hatched)):
        mean = sampled[name].mean().item()
        left.hist(sampled[name].tolist(), edges, label=f"{label}: mean {mean:+.2f}".replace("-", "−"), **style)
        left.axvline(mean, color="0.4" if name == "reference" else "black", linestyle="--", linewidth=1.4)
    left.set(xlabel="true reward of a sampled review", ylabel="reviews", xlim=(-4, 4))
    left.set_title("dashed lines: the two means", fontsize=9)
    left.legend(fontsize=8, loc="upper left")
    correlation = torch.corrcoef(torch.stack([true, implicit]))[0, 1]
    right.scatter(true, implicit, s=10, color="black", alpha=0.5)
    constant = (implicit - true).mean().item()
    ends = torch.tensor([true.min(), true.max()])
    right.plot(ends, ends + constant, color="tab:blue", linestyle="--", label="slope 1, what the optimum would have")
    right.set(xlabel="true reward r(x, y)", ylabel="implicit reward β log(π/π_ref)")
    right.set_title(f"{len(true)} reviews that neither model wrote: correlation {correlation:.2f}", fontsize=9)
    right.text(
        0.98,
        0.03,
        "the implicit reward lacks β log Z(x),\nan unknown constant of the prompt",
        transform=right.transAxes,
        ha="right",
        fontsize=8,
    )
    right.legend(fontsize=8, loc="upper left")
    save(figure, path)


def main():
    """Print and write the report of a run."""
    parser = argparse.ArgumentParser(description="Compare a demo run's model with its reference.", allow_abbrev=False)
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--reviews", type=int, default=REVIEWS, help=f"samples of each model (default: {REVIEWS})")
    options = parser.parse_args()
    directory = options.run
    policy, reference = (load_model(directory / name).requires_grad_(False) for name in ("model", "reference"))
    tokenizer = load_tokenizer(directory / "model")
    beta = json.loads((directory / "config.json").read_text(encoding="utf-8"))["beta"]
    measured = ask_both(policy, reference, tokenizer, options.reviews)
    table = describe(*measured)
    (directory / "report.md").write_text(table, encoding="utf-8")
    draw_report(measured[2], *judge_reviews(policy, reference, tokenizer, beta), directory / "report.png")
    print(table)


if __name__ == "__main__":
    main()
