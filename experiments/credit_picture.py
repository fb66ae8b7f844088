"""Where the demo's reward went: docs/credit.png, from a run and pairs that it never saw.

    python -m experiments.credit_picture runs/demo --data fresh.jsonl --out docs/credit.png

Above, the first pair of the data token by token. Below, the mean reward of a token over the first thousand pairs, by
what it says: the rule that made the preferences counts words of praise and of complaint, and nobody told the model.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dpo_min.data.rows import load_preferences, tokenize
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.judge.credit import spans, token_rewards
from dpo_min.judge.display import level
from dpo_min.judge.statistics import mean
from dpo_min.judge.trained_with import run_settings
from dpo_min.model.weights import load_model
from experiments.demo import COMPLAINT, COMPLAINT_VERBS, PRAISE, PRAISE_VERBS

LESS, MORE = (213 / 255, 94 / 255, 0), (0, 114 / 255, 178 / 255)  # orange and blue, as in display.py
COLUMNS, SIZE = 100, 9  # characters a line, and points
PAIRS = 1000
KINDS = {
    "praise": lambda word: word in PRAISE or word in PRAISE_VERBS,
    "complaint": lambda word: word in COMPLAINT or word in COMPLAINT_VERBS,
    "end of text": lambda word: not word,
    "every other": lambda word: True,
}


def judged(run, path):
    """The prompts of the first pairs, and the `Span`s of their chosen and of their rejected sides."""
    policy, reference = (load_model(run / name).requires_grad_(False) for name in ("model", "reference"))
    tokenizer, settings = load_tokenizer(run / "model"), run_settings(run / "model")
    preferences = load_preferences([path])[0][:PAIRS]
    pairs, _, _ = tokenize(preferences, tokenizer, policy.config.block_size)
    prompts, found = [pair.prompt_ids for pair in pairs], []
    for sides in ([pair.chosen_ids for pair in pairs], [pair.rejected_ids for pair in pairs]):
        rewards = token_rewards(policy, reference, prompts, sides, settings["beta"], settings["reduce"])
        found.append([spans(tokenizer, ids, r.tolist()) for ids, r in zip(sides, rewards, strict=True)])
    return [preference.prompt for preference in preferences], *found


def by_kind(answers):
    """The rewards of the tokens of each kind: name → (n,)."""
    rewards = {kind: [] for kind in KINDS}
    for span in (span for answer in answers for span in answer):
        word = span.text.strip().lower()
        rewards[next(kind for kind, is_one in KINDS.items() if is_one(word))].append(span.reward)
    return {kind: torch.tensor(values, dtype=torch.float64) for kind, values in rewards.items()}


def write(axis, heading, answer, line, scale):
    """Write a heading and an answer into the axis, in units of characters and lines; returns the next free line."""
    axis.text(0, line + 0.5, heading, fontsize=SIZE, va="center", weight="bold")
    line, column = line + 1, 0
    for span in answer:
        text = span.text or " <end>"
        if column + len(text) > COLUMNS:
            line, column, text = line + 1.7, 0, text.lstrip()
        share = span.reward / scale
        blank = len(text) - len(text.lstrip())
        box = (column + blank, line), len(text) - blank, 1
        axis.add_patch(Rectangle(*box, color=MORE if share > 0 else LESS, alpha=0.7 * abs(share), linewidth=0))
        axis.text(column, line + 0.5, text, fontsize=SIZE, va="center", family="monospace")
        if level(span.reward, scale):
            middle = column + blank + (len(text) - blank) / 2
            number = f"{span.reward:+.2f}".replace("-", "−")
            axis.text(middle, line + 1.3, number, fontsize=6.5, ha="center", va="center")
            if share < 0:
                axis.plot([column + blank, column + len(text)], [line + 1] * 2, color="black", linewidth=0.9)
        column += len(text)
    return line + 2.4


def draw(prompt, chosen, rejected, kinds, path):
    """The picture: one pair above, the mean reward by kind below."""
    width = COLUMNS * 0.602 * SIZE / 72  # inches; a monospaced character is 0.602 of its size wide
    figure = Figure(figsize=(width + 0.4, 4.6), dpi=130)
    axis = figure.add_axes([0.2 / (width + 0.4), 0.42, width / (width + 0.4), 0.56])
    scale, line = max(abs(span.reward) for span in chosen + rejected), 0.0
    axis.text(0, line + 0.5, prompt, fontsize=SIZE, va="center", family="monospace")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        total = f"{sum(span.reward for span in answer):+.2f}".replace("-", "−")
        line = write(axis, f"{name}: implicit reward {total}", answer, line + 1.4 if name == "chosen" else line, scale)
    axis.set(xlim=(0, COLUMNS), ylim=(line, 0))
    axis.axis("off")
    bars = figure.add_axes([0.2, 0.12, 0.75, 0.24])
    for place, values in enumerate(kinds.values()):
        f = mean(values)
        bars.barh(place, f.value, color=MORE if f.value > 0 else LESS, alpha=0.7, hatch="" if f.value > 0 else "///")
        bars.plot([f.low, f.high], [place, place], color="black", linewidth=2)
        text = f"{f.value:+.3f} ± {f.high - f.value:.3f}, n = {f.n}".replace("-", "−")
        bars.text(f.high + 0.02 if f.value > 0 else 0.02, place, text, va="center", fontsize=8)
    bars.axvline(0, color="black", linewidth=0.8)
    bars.set_yticks(range(len(kinds)), [*kinds], fontsize=SIZE)
    bars.invert_yaxis()
    low, high = bars.get_xlim()
    bars.set_xlim(low, high + 0.3 * (high - low))  # room for the numbers
    bars.set_xlabel(f"mean reward of a token, β (log π − log π_ref), over {PAIRS} unseen pairs", fontsize=8)
    bars.tick_params(axis="x", labelsize=8)
    bars.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path)


def main():
    """Draw the picture of a run."""
    parser = argparse.ArgumentParser(description="Where the demo's reward went.", allow_abbrev=False)
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--data", required=True, help="preferences that the run never saw")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write, .png")
    options = parser.parse_args()
    prompts, chosen, rejected = judged(options.run, options.data)
    draw(prompts[0], chosen[0], rejected[0], by_kind(chosen + rejected), options.out)


if __name__ == "__main__":
    main()
