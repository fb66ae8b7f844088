"""The environment of a launcher, whole, in part, empty and left over: it works, or one line says what to do."""

import pytest

from dpo_min.system import launcher, program

WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    """A function that sets a launcher's variables to just these."""

    def put(**values):
        for name in (*WHOLE, "TORCHELASTIC_ERROR_FILE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    put()
    return put


@pytest.mark.parametrize("left", [
    {}, {"WORLD_SIZE": ""}, {"RANK": "1"}, {"WORLD_SIZE": "", "RANK": "3"}, {"WORLD_SIZE": "1", "RANK": "1"},
    {"LOCAL_RANK": ""}, {"RANK": "x", "MASTER_ADDR": "nowhere"}, WHOLE | {"WORLD_SIZE": "1"},
])  # fmt: skip
def test_what_is_left_of_a_launcher_is_one_process_that_speaks(environment, left):
    """Kills: int("") in a traceback; RANK alone, which silences the only process there is."""
    environment(**left)
    assert (launcher.processes(), launcher.rank()) == (1, 0)


def test_all_that_a_launcher_says_is_believed(environment):
    environment(**WHOLE)
    assert (launcher.processes(), launcher.rank()) == (2, 1)


@pytest.mark.parametrize("change", [
    {"WORLD_SIZE": "x"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "-1"}, {"WORLD_SIZE": "1.5"}, {"WORLD_SIZE": "9" * 5000},
    {"RANK": ""}, {"RANK": "2"}, {"RANK": "-1"}, {"LOCAL_RANK": ""}, {"MASTER_ADDR": ""}, {"MASTER_PORT": "here"},
])  # fmt: skip
def test_a_part_of_it_is_a_mistake_that_names_the_variable(environment, change):
    """Kills: KeyError: 'LOCAL_RANK'; a wait of half an hour for processes that nobody started."""
    environment(**WHOLE | change)
    with pytest.raises(ValueError, match=next(iter(change))) as error:
        launcher.processes()
    assert "unset" in str(error.value) and len(str(error.value)) < 900
    assert launcher.rank() == 0  # whoever cannot count speaks


def said(capsys, message):
    """What `stop` says."""
    with pytest.raises(SystemExit):
        program.stop(message)
    return capsys.readouterr().err


def test_of_the_processes_that_end_with_an_error_the_first_alone_speaks(environment, tmp_path, capsys):
    """Kills: one message a process; silence of the only process, of the next program, or where the folder is gone."""
    mark = {"TORCHELASTIC_ERROR_FILE": tmp_path / "0" / "error.json"}
    environment(**WHOLE, **mark)
    assert said(capsys, "cause").endswith("error: cause\n")
    environment(**WHOLE | {"RANK": "0"}, **mark)
    assert said(capsys, "consequence") == ""
    environment(**WHOLE, **mark)
    assert said(capsys, "of another program").endswith("error: of another program\n")
    for inherited in (
        mark,
        {"TORCHELASTIC_ERROR_FILE": "/nonexistent/a/b/error.json"},
        {"TORCHELASTIC_ERROR_FILE": "x"},
    ):
        environment(**inherited)
        assert [said(capsys, "alone") for _ in range(2)] == 2 * [said(capsys, "alone")] != ["", ""]
        environment(**WHOLE, **inherited)
        assert said(capsys, "first")
