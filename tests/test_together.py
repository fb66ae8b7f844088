"""The closing line of `make test` is the sum of what its processes say."""

from tests.together import added_up


def test_what_each_process_said_last_is_added_up():
    """Kills: a process whose end says more after its closing line; a test that prints one; one that ran nothing."""
    texts = [
        "..\n3 passed, 1 skipped in 1.00s\n",
        "F\n9 passed in 0.10s, says one\n1 failed, 2 passed, 4 skipped in 61.99s (0:01:01)\nException ignored in: x\n",
        "\nno tests ran in 0.01s\n",
        "",
    ]
    assert added_up(texts) == {"passed": 5, "skipped": 5, "failed": 1}
