"""The one progress display: silent of what is quick, then how far it is and how long it may take."""

import io

import pytest

from dpo_min.system import progress
from dpo_min.system.progress import Line, Progress, left


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set: clock[0] is the time in seconds."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_what_is_quick_says_nothing_and_what_is_not_a_line_now_and_then(clock, capsys):
    """Kills: a line for every call; one only at the end; progress of an empty whole that divides by zero."""
    with Progress("data", 1000, "rows") as shown:
        for second in range(61):
            clock[0] = second
            shown.at(5 * second)
    assert capsys.readouterr().out.splitlines() == [
        f"data {5 * second}/1,000 rows  3:{20 - second:02d} left" for second in (1, 16)
    ] + [f"data {5 * second}/1,000 rows  2:{80 - second:02d} left" for second in (31, 46)]
    with Progress("data") as shown:
        clock[0] += progress.SILENT
        shown.at(0, "7 rows of a\nfile")
    assert capsys.readouterr().out == "data 7 rows of a⏎file\n"


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_has_one_line_that_is_taken_back(clock, monkeypatch, term):
    """Kills: a line left standing before an error; escapes on a terminal that has none; a line that wraps."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    with Progress("a whole of a long name that goes on", 10, stream=stream) as shown:
        for second in (1.0, 1.1, 1.3):
            clock[0] = second
            shown.at(1)
    if term == "dumb":
        assert stream.getvalue() == "a whole of a long name that goes on 1/10  0:09 left\n"
    else:
        assert stream.getvalue() == 2 * "\r\x1b[Ka whole of a long name that g" + "\r\x1b[K"


def test_a_line_that_stays_is_not_taken_back(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    line = Line(stream)
    line.show("one")
    line.show("two", stays=True)
    line.clear()
    assert stream.getvalue() == "\r\x1b[Kone\r\x1b[Ktwo\n"


def test_the_time_left_is_said_where_it_is_known(clock):
    """Kills: the time of what is done in place of what is not; minutes beyond the hour."""
    clock[0] = 60.0
    assert [left(0, *done) for done in ((0, 9), (9, 9), (3, 9), (1, 9), (1, 121))] == [
        "",
        "",
        "  2:00 left",
        "  8:00 left",
        "  2:00:00 left",
    ]
