"""Where the demo's reward went: docs/credit.png, from a run and pairs that it never saw.

    python -m experiments.credit_picture runs/demo --data fresh.jsonl --out docs/credit.png

Above, token by token, the first pair whose label is right: the true reward prefers the chosen side, and so does the
model. Below, the mean reward of a token over the first thousand pairs, by what the token says. The rule that made the
preferences counts words of praise and of complaint, and nobody told the model so.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dpo_min.data.rows import load_preferences
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import tokenize
from dpo_min.judge.credit import spans
from dpo_min.judge.display import level, signed
from dpo_min.judge.scoring import token_rewards
from dpo_min.judge.statistics import mean
from dpo_min.judge.trained_with import run_settings
from dpo_min.model.weights import load_model
from dpo_min.system.picture import save
from experiments.demo import COMPLAINT, COMPLAINT_VERBS, PRAISE, PRAISE_VERBS, reward

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
    """The preferences of the first rows, and the `Span`s of their chosen and of their rejected sides."""
    policy, reference = (load_model(run / name).requires_grad_(False) for name in ("model", "reference"))
    tokenizer, settings = load_tokenizer(run / "model"), run_settings(run / "model")
    preferences = load_preferences([path])[0][:PAIRS]
    pairs, _ = tokenize(preferences, tokenizer, policy.config.block_size)
    prompts, found = [pair.prompt_ids for pair in pairs], []
    for sides in ([pair.chosen_ids for pair in pairs], [pair.rejected_ids for pair in pairs]):
        rewards = token_rewards(policy, reference, prompts, sides, settings["beta"], settings["reduce"])
        found.append([spans(tokenizer, ids, r.tolist()) for ids, r in zip(sides, rewards, strict=True)])
    return preferences, *found


def total(answer):
    """The implicit reward of a whole answer, the sum over its spans."""
    return sum(span.reward for span in answer)


def first_right(preferences, chosen, rejected):
    """The place of the first row whose label is right by the true reward, and by the implicit one too."""
    rows = enumerate(zip(preferences, chosen, rejected, strict=True))
    return next(i for i, (p, c, r) in rows if reward(p.chosen) > reward(p.rejected) and total(c) > total(r))


def by_kind(answers):
    """The rewards of the tokens of each kind: name → (n,)."""
    rewards = {kind: [] for kind in KINDS}
    for span in (span for answer in answers for span in answer):
        word = span.text.strip().lower()
        rewards[next(kind for kind, is_one in KINDS.items() if is_one(word))].append(span.reward)
    return {kind: torch.tensor(values, dtype=torch.float64) for kind, values in rewards.items()}


def write_answer(axis, heading, answer, line, scale):
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
            axis.text(middle, line + 1.3, signed(span.reward), fontsize=6.5, ha="center", va="center")
            if share < 0:
                axis.plot([column + blank, column + len(text)], [line + 1] * 2, color="black", linewidth=0.9)
        column += len(text)
    return line + 2.4


def draw_pair(axis, preference, chosen, rejected):
    """Both sides of a pair, each token in its colour."""
    scale, line = max(abs(span.reward) for span in chosen + rejected), 0.0
    axis.text(0, line + 0.5, preference.prompt, fontsize=SIZE, va="center", family="monospace")
    line += 1.4
    for name, text, answer in (("chosen", preference.chosen, chosen), ("rejected", preference.rejected, rejected)):
        heading = f"{name}: implicit reward {signed(total(answer))}, true reward {signed(reward(text))}"
        line = write_answer(axis, heading, answer, line, scale)
    axis.set(xlim=(0, COLUMNS), ylim=(line, 0))
    axis.axis("off")


def draw_kinds(axis, kinds):
    """The mean reward of a token by what it says: name → rewards (n,)."""
    for place, values in enumerate(kinds.values()):
        f = mean(values)
        axis.barh(place, f.value, color=MORE if f.value > 0 else LESS, alpha=0.7, hatch="" if f.value > 0 else "///")
        axis.plot([f.low, f.high], [place, place], color="black", linewidth=2)
        text = f"{f.value:+.3f} ± {f.high - f.value:.3f}, n = {f.n:,}".replace("-", "−")
        axis.text(f.high + 0.02 if f.value > 0 else 0.02, place, text, va="center", fontsize=8)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(kinds)), [*kinds], fontsize=SIZE)
    axis.invert_yaxis()
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.3 * (high - low))  # room for the numbers
    axis.set_xlabel(f"mean reward of a token, β (log π − log π_ref), over {PAIRS:,} unseen pairs", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines["left"].set_visible(False)


def draw_credit(preference, chosen, rejected, kinds, path):
    """The picture: one pair above, the mean reward by kind below."""
    width = COLUMNS * 0.602 * SIZE / 72  # inches; a monospaced character is 0.602 of its size wide
    figure = Figure(figsize=(width + 0.4, 4.6), dpi=130)
    draw_pair(figure.add_axes([0.2 / (width + 0.4), 0.42, width / (width + 0.4), 0.56]), preference, chosen, rejected)
    draw_kinds(figure.add_axes([0.2, 0.12, 0.75, 0.24]), kinds)
    save(figure, path, dpi=130)


def main():
    """Draw the picture of a run."""
    parser = argparse.ArgumentParser(description="Where the demo's reward went.", allow_abbrev=False)
    parser.add_argument("run", type=Path, help="the run directory")
    parser.add_argument("--data", required=True, help="preferences that the run never saw")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write, .png")
    options = parser.parse_args()
    preferences, chosen, rejected = judged(options.run, options.data)
    first = first_right(preferences, chosen, rejected)
    kinds = by_kind(chosen + rejected)
    draw_credit(preferences[first], chosen[first], rejected[first], kinds, options.out)
    print(f"{options.out}: the pair of {preferences[first].source}")


if __name__ == "__main__":
    main()
