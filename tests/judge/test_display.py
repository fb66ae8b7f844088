"""What people see: nothing that a model wrote can act on a terminal or a page, and nothing of it is lost."""

import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.judge.credit import Answer, Span
from dpo_min.judge.display import cells, level, listed, page, show_beside, terminal, verdict, wrap
from dpo_min.system.text import visible

ACTING = st.sampled_from("\x1b\r\b\x9b\u202e\0<>&\"'é👩")
WILD = st.text(alphabet=st.characters(exclude_categories=["Cs"]) | ACTING, max_size=30)


def even(text, reward, name="chosen"):
    """An answer whose every character has the same reward."""
    return Answer(name, [0], 0, [Span(c, [0], reward) for c in text])


answers = st.builds(even, WILD, st.integers(-300, 300).map(lambda x: x / 100))


COLOUR = re.compile(r"\x1b\[30;(4;)?48;5;(\d+)m([^\x1b\n]+)\x1b\[0m")


@given(answers, st.floats(0, 4))
def test_a_terminal_gets_no_escape_but_our_colours_and_no_colour_beyond_its_line(answer, scale):
    """Kills: a colour left on, a newline inside one, rewards of the wrong sign underlined."""
    shown = terminal(answer, scale)
    assert "\x1b" not in COLOUR.sub("", shown)
    assert COLOUR.sub(r"\3", shown) == "".join(visible(span.text) for span in answer.spans)
    reward = answer.spans[0].reward if answer.spans else 0.0
    assert all(bool(underline) == (reward < 0) for underline, _, _ in COLOUR.findall(shown))
    assert bool(COLOUR.search(shown)) == bool(answer.spans and level(reward, scale))


def test_colour_grows_with_the_reward_up_to_the_scale():
    """Kills: colours that are not in proportion, or none at the scale itself."""
    assert [level(x, 2.0) for x in (0, 0.1, -0.4, 1, -2, 9)] == [0, 0, 1, 2, 5, 5]
    assert level(0.0, 0.0) == 0


def test_a_pipe_gets_a_line_a_token_with_its_number():
    answer = Answer("chosen", [1, 2, 3], 0, [Span(" a", [1], 0.5), Span("\n\x1b", [2], -1.25), Span("", [3], 0.0)])
    assert listed(answer).split("\n") == ["  +0.5000   a", "  −1.2500  ⏎␛", "  +0.0000  ⏹"]


class Reader(HTMLParser):
    """What a browser would make of a page: the text of the body, the marked spans, and every tag and attribute."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_data(self, data):
        self.text += data


@given(WILD, st.lists(answers, min_size=1, max_size=3))
@example("</title><script>alert(1)</script>", [even(["</span><img src=x onerror=alert(1)>"], 1.0, "<b>")])
@example("x", [even("a", -0.01), even("b", 3.0)])
def test_a_page_shows_the_text_and_nothing_of_it_is_markup(prompt, found):
    """Kills: prompt, name or token not escaped; a resource from elsewhere; a number that nobody can read."""
    reader = Reader()
    reader.feed(page([(prompt, found)], 0.1))
    assert set(reader.tags) <= set("html meta title style h1 h2 h3 p span".split())
    assert not {name for _, name, _ in reader.attributes} & {"src", "href", "onerror", "onload"}
    policy = ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'")
    assert ("meta", "http-equiv", "Content-Security-Policy") in reader.attributes and policy in reader.attributes
    for answer in found:
        assert "".join(visible(span.text) for span in answer.spans) in reader.text.replace("⏹", "")
        assert visible(prompt) in reader.text
    titles = [value for tag, name, value in reader.attributes if (tag, name) == ("span", "title")]
    numbers = [f"{span.reward:+.4f}" for answer in found for span in answer.spans]
    assert titles[len(titles) - len(numbers) :] == numbers
    less = sum(name == "class" and value == "less" for tag, name, value in reader.attributes if tag == "span")
    top = max((abs(s.reward) for a in found for s in a.spans), default=0)
    legend = 2 * (top > 0)
    assert less == legend + sum(s.reward < 0 and level(s.reward, top) > 0 for a in found for s in a.spans)


# ---- side by side ----


@given(WILD, st.integers(2, 20))
@example("one two  three", 4)
@example("中文" * 9, 5)
def test_wrapped_lines_fit_and_hold_the_whole_text(text, width):
    """Kills: wide characters counted as one column, a word lost at a cut, a loop without end."""
    lines = wrap(text, width)
    assert "".join(lines) == visible(text).replace("⏎\n", "")
    assert all(cells(line) <= width for line in lines)


def test_wide_characters_take_two_columns_and_accents_none():
    """Kills: len. A line is cut behind its last blank that fits, or where it is full."""
    assert (cells("ab"), cells("中文"), cells("Ａ"), cells("e\u0301")) == (2, 4, 2, 1)
    assert wrap("one two three", 8) == ["one two ", "three"]
    assert wrap("中文中", 5) == ["中文", "中"]


def test_a_wide_terminal_has_two_columns_and_a_pipe_has_labels(monkeypatch, capsys):
    """Kills: a ragged divider; columns in a pipe, where a program reads."""
    named = {"model": "good " * 20 + "中文", "reference": "bad"}
    show_beside(named)
    assert capsys.readouterr().out == f"[model]{named['model']}\n[reference]bad\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "99")
    show_beside(named)
    assert capsys.readouterr().out.startswith("[model]good")
    monkeypatch.setenv("COLUMNS", "101")
    show_beside(named)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2 and {cells(line.split("│")[0]) for line in lines} == {50}
    assert lines[0].split() == ["[model]", "│", "[reference]"] and lines[1].endswith("│ bad")


@given(st.floats(-50, 50), st.floats(-50, 50))
@example(1.0, 1.0)
def test_the_verdict_names_the_higher_reward_whichever_stands_first(a, b):
    """Kills: the lower one preferred, P of the loser, a tie that someone wins."""
    first, second = (Answer(name, [0], 0, [Span("x", [0], r)]) for name, r in (("ann", a), ("bob", b)))
    for text in (verdict(first, second, 0.1), verdict(second, first, 0.1)):
        if a == b:
            assert text.endswith("neither is preferred")
        else:
            name, chance = re.search(r"prefers (\w+), P = ([\d.]+)$", text).groups()
            assert name == ("ann" if a > b else "bob")
            assert float(chance) == pytest.approx(1 / (1 + math.exp(-abs(a - b))), abs=6e-4)
