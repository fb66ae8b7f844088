"""Judged answers as people see them: in a terminal's colours, in a pipe, in two columns, and on a page of HTML.

An answer has a `name`, a `number`, a `reward` and `spans`, each with a `text`, `ids` and a `reward`; credit.py makes
them. Orange and blue are told apart under all common kinds of colour-blindness; without any colour, what lost is
underlined.
"""

import html
import math
import shutil
import sys
import unicodedata
from itertools import zip_longest
from pathlib import Path
from string import Template

from dpo_min.system.streams import control, has_colours
from dpo_min.system.text import visible

CONTROL = "⏹"  # stands for a token without text: end-of-text, or an id beyond the vocabulary
BLUES, ORANGES = (195, 153, 117, 75, 33), (230, 223, 216, 209, 202)  # of a terminal's 256 colours, pale to full
COLUMNS = 100  # a terminal at least this wide shows two answers side by side


def verdict(first, second, beta):
    """Which of two answers the implicit reward prefers, and how surely (Bradley–Terry), as one line."""
    rewards = ", ".join(f"{answer.name} {signed(answer.reward)}" for answer in (first, second))
    text = f"implicit reward (β = {beta:g}): {rewards}; "
    if first.reward == second.reward:
        return text + "neither is preferred"
    better, worse = (first, second) if first.reward > second.reward else (second, first)
    return text + f"prefers {better.name}, P = {1 / (1 + math.exp(worse.reward - better.reward)):.3f}"


def signed(reward):
    """Two digits after the point, and a sign."""
    return f"{reward:+.2f}".replace("-", "−")


def level(reward, scale):
    """How strongly a span is coloured, from 0 to 5: the share of `scale`, the largest reward shown."""
    return round(5 * min(1.0, abs(reward) / scale)) if scale else 0


def scale_of(answers):
    """The largest reward of a span of these answers, in absolute value."""
    return max((abs(span.reward) for answer in answers for span in answer.spans or ()), default=0.0)


def painted(text, reward, scale):
    """A text in its colour of the terminal: blue what π made likelier, orange and underlined what it made less so."""
    depth = level(reward, scale)
    if not depth or not text:
        return text
    style = f"48;5;{BLUES[depth - 1]}" if reward > 0 else f"4;48;5;{ORANGES[depth - 1]}"
    return f"\x1b[30;{style}m{text}\x1b[0m"  # black on the colour


def terminal(answer, scale):
    """The answer with every span in its colour; no colour goes on beyond the end of a line."""
    shown = [(visible(span.text) or CONTROL, span.reward) for span in answer.spans]
    return "".join("\n".join(painted(line, reward, scale) for line in text.split("\n")) for text, reward in shown)


def listed(answer):
    """The answer as one line a span: its reward and its text, for a pipe or a file."""
    lines = [(span.reward, visible(span.text).replace("\n", "") or CONTROL) for span in answer.spans]
    return "\n".join(f"{reward:+9.4f}  {text}".replace("-", "−", reward < 0) for reward, text in lines)


def show(answers, texts, config):
    """Print answers, with --credit each span's reward, and which of two the implicit reward prefers."""
    colours, scale = has_colours(sys.stdout), scale_of(answers)
    for pair in in_pairs(answers):
        if config.credit:
            for answer in pair:
                shown = terminal(answer, scale) if colours else listed(answer)
                control(sys.stdout, f"[{answer.name}] reward {signed(answer.reward)}\n{shown}\n")
        else:
            show_beside({a.name: text for a, text in zip(answers, texts, strict=True) if a.number == pair[0].number})
        if len(pair) == 2 and pair[0].spans is not None:
            print(verdict(*pair, config.beta), flush=True)
    if config.credit and colours and scale:
        less, more = (painted(text, side * scale, scale) for text, side in ((" less likely ", -1), (" more ", 1)))
        control(sys.stdout, f"{less} {more} than under the reference; full colour is {scale:.2f}\n")


def in_pairs(answers):
    """Answers of one number together: the model's and the reference's, or a pair's two sides."""
    numbers = sorted({answer.number for answer in answers})
    return [[answer for answer in answers if answer.number == number] for number in numbers]


# Two answers beside each other


def show_beside(named):
    """Print two texts, name → text, in two columns where the terminal is wide enough, else one below the other."""
    width = shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or width < COLUMNS or len(named) != 2:
        for name, text in named.items():
            print(f"[{name}]{text}")
        return
    half = (width - 3) // 2
    for ours, theirs in zip_longest(*([f"[{name}]", *wrap(text, half)] for name, text in named.items()), fillvalue=""):
        print(f"{ours}{' ' * (half - cells(ours))} │ {theirs}")


def cells(text):
    """How many columns of a terminal the text takes: two for a wide character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrap(text, width):
    """Lines of at most `width` cells, 2 or more, cut behind blanks where there are any; only line ends are lost."""
    lines = []
    for line in visible(text).replace("⏎\n", "\n").split("\n"):
        while cells(line) > width:
            end = next(i for i in range(len(line) + 1) if cells(line[: i + 1]) > width)
            blank = line.rfind(" ", 0, end)
            end = blank + 1 if blank > 0 else end
            lines.append(line[:end])
            line = line[end:]
        lines.append(line)
    return lines


# The page

PAGE = Path(__file__).with_name("credit.html")


def page(groups, beta):
    """One page of HTML with nothing from elsewhere and no script; `groups` are (prompt, answers), one scale for all."""
    scale = scale_of([answer for _, answers in groups for answer in answers])
    sections = []
    for prompt, answers in groups:
        sections.append(f"<h2>{escape(prompt)}</h2>")
        for answer in answers:
            marked = "".join(mark(span.text or CONTROL, span.reward, scale, len(span.ids)) for span in answer.spans)
            sections.append(f"<h3>{escape(answer.name)}: reward {signed(answer.reward)}</h3>")
            sections.append(f"<p class=text>{marked}</p>")
        for pair in in_pairs(answers):
            if len(pair) == 2:
                sections.append(f"<p>{escape(verdict(*pair, beta))}</p>")
    steps = "".join(mark(f" {signed(x * scale)} ", x * scale, scale) for x in (-1, -0.5, 0, 0.5, 1))
    body = "\n".join(sections)
    return Template(PAGE.read_text(encoding="utf-8")).substitute(beta=f"{beta:g}", steps=steps, body=body)


def mark(text, reward, scale, tokens=1):
    """A text as a span of HTML; its number appears where the pointer rests."""
    share = reward / scale if scale else 0.0
    colour = f"rgb({'0 114 178' if share > 0 else '213 94 0'} / {70 * abs(share):.0f}%)"
    less = " class=less" if share < 0 and level(reward, scale) else ""
    count = f", {tokens} tokens" if tokens > 1 else ""
    return f'<span{less} style="background: {colour}" title="{reward:+.4f}{count}">{escape(text)}</span>'


def escape(text):
    """Visible text in which nothing is markup."""
    return html.escape(visible(text))
