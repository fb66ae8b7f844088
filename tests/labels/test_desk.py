"""Who is shown what, without a server: what a window may take back, and a choice that the disk did not take at once."""

import pytest

from dpo_min.labels.candidates import Candidates
from dpo_min.labels.choices import Choices, all_pairs, read_events
from dpo_min.labels.desk import Desk, Refused
from tests.labels.serving import rows_of


@pytest.fixture
def desk(tmp_path):
    choices = Choices(tmp_path / "prefs.jsonl")
    yield Desk(all_pairs([Candidates(f"prompt {i}", ["left", "right"]) for i in range(6)]), choices, 0)
    choices.close()


def choose(desk, window, choice):
    """Choose of the pair that a window has; returns its showing."""
    pair = desk.next(window)["pair"]
    desk.choose(window, pair["showing"], choice, pair["choice"])
    return pair["showing"]


def test_a_label_costs_the_same_however_many_there_are(desk):
    """Kills: everything that was chosen so far copied at each choice."""
    state = desk.choices.state
    showings = [choose(desk, "w", choice) for choice in "AB="]
    assert desk.choices.state is state and [*state] == showings
    desk.undo("w")
    assert desk.choices.state is state and [*state] == showings[:2]


def test_a_window_takes_back_its_own_last_choice_before_that_of_a_window_that_is_closed(desk):
    """Kills: one person's undo that takes back what another chose, who has gone meanwhile."""
    ours, theirs = choose(desk, "ours", "A"), choose(desk, "theirs", "B")
    desk.leave("theirs")
    assert desk.undo("ours")["pair"]["showing"] == ours
    assert desk.undo("ours")["pair"]["showing"] == theirs


def test_a_choice_that_the_disk_took_by_half_can_be_made_again_otherwise(desk, monkeypatch):
    """Kills: the first choice kept, after the page has said that it was not saved and the person chose otherwise."""
    pair = desk.next("w")["pair"]

    def full(row):
        raise OSError("no space")

    monkeypatch.setattr(desk.choices.rows, "append", full)
    with pytest.raises(OSError, match="no space"):
        desk.choose("w", pair["showing"], "A", None)
    with pytest.raises(Refused):
        desk.choose("another", pair["showing"], "B", None)
    desk.choose("w", pair["showing"], "B", None)
    assert [row["chosen"] for row in rows_of(desk.choices.out)] == [pair["right"]]


def test_a_line_that_is_none_of_a_journal_is_named(tmp_path):
    """Kills: a traceback of whatever a damaged line leads to."""
    path = tmp_path / "prefs.jsonl.journal"
    for line in ('{"a":' * 10**5, '{"showing": 3, "choice": null, "time": ""}', "{}", "7", '{"choice": "A"}'):
        path.write_text(line + "\n")
        with pytest.raises(ValueError, match=r"journal:1: not a line of a journal"):
            read_events(path)
