"""Who is shown what, without a server: what a window may take back, and a choice that the disk did not take at once."""

import pytest

from dpo_min.labels.candidates import Candidates
from dpo_min.labels.choices import Choices, all_pairs
from dpo_min.labels.desk import Desk
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
