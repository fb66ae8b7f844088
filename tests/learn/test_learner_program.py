"""The exercises as a learner meets them: the folder, its Makefile, and the programs, each in a process of its own."""

import os
import re
import subprocess
import sys

import pytest

from dpo_min.learn import __main__ as program
from dpo_min.learn import check, cut, folder
from dpo_min.learn.course import ROOT, exercises

COURSE = {exercise.name: exercise for exercise in exercises()}


@pytest.fixture
def mine(tmp_path):
    """A folder as `make learn` makes it."""
    folder.make(tmp_path / "learning")
    return tmp_path / "learning"


def write(mine, name, *bodies):
    """Write an exercise: these bodies, or the project's."""
    exercise = COURSE[name]
    path = folder.path_of(mine, exercise)
    text = cut.fill(path.read_text(), name, bodies or cut.bodies(exercise.source, name))
    path.write_text(text, encoding="utf-8")


def learn(mine, *words, code=0):
    """What `python -m dpo_min.learn` says, run from within the folder, as its Makefile does."""
    project = mine.parent / "project"  # under a name without a colon, which would be two folders there
    if not project.exists():
        project.symlink_to(ROOT)
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(project), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "dpo_min.learn", *words, "--folder", "."]
    shown = subprocess.run(command, cwd=mine, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert shown.returncode == code, shown.stdout + shown.stderr
    return shown.stdout + shown.stderr


def test_a_loop_without_end_is_stopped_and_named_with_its_line(mine):
    """Kills: a limit that a loop inside C, which no signal interrupts, escapes."""
    write(mine, "expectation", "    from itertools import repeat\n    return max(repeat(1))\n")
    shown = learn(mine, "check", "--seconds", "2", code=1)
    line = (mine / "dpo_min" / "objective.py").read_text(encoding="utf-8").split("\n").index(
        "    return max(repeat(1))"
    ) + 1
    assert shown.startswith(f"dpo_min/objective.py:{line}: expectation has not ended after 2 seconds"), shown
    recipe = subprocess.run(["make", "-n", "check", "SECONDS=6"], cwd=mine, capture_output=True, text=True).stdout
    assert "make check SECONDS=6 waits longer" in shown and "--seconds '6'" in recipe


def test_training_in_the_folder_runs_the_learners_functions(mine):
    """Kills: a folder whose files the training passes by."""
    for name in COURSE:
        write(mine, name)
    path = mine / "dpo_min" / "losses.py"
    path.write_text(path.read_text(encoding="utf-8") + '\n\nprint("losses of", __file__)\n', encoding="utf-8")
    (mine / "prefs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2)
    recipe = subprocess.run(["make", "-n", "train"], cwd=mine, capture_output=True, text=True).stdout
    place = re.search(r'PYTHONSAFEPATH=1 PYTHONPATH="(.*?)"', recipe.partition("--all")[2])[1]
    flags = "--loss-type sft --n-layer 1 --n-head 1 --n-embd 8 --block-size 32 --max-length 32 --max-steps 1"
    train = [sys.executable, "train.py", "--data", mine / "prefs.jsonl", "--out", mine / "run", *flags.split()]
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": place}
    shown = subprocess.run(train, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert f"losses of {path}" in shown.stdout and "done:" in shown.stdout, shown.stderr


# The rest in this process.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def expectation(", "def mean(", "expectation is no longer defined here"),
        ("def expectation(", "def expectation(x, ", "the arguments stay what they are"),
        ("import torch\n", "import torch\nimport torsch\n", "No module named 'torsch'"),
        ("import torch\n", "import torch\nif\n", "Python cannot read the file: invalid syntax"),
        ("import torch\n", "import torch\0\n", "null bytes"),
    ],
)
def test_a_file_that_is_broken_elsewhere_is_one_message(mine, tmp_path, capsys, old, new, message):
    write(mine, "expectation")
    path = mine / "dpo_min" / "objective.py"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with open(tmp_path / "trace", "w", encoding="utf-8") as trace:
        assert check.check(mine, 60, trace) == check.WRONG
    shown = capsys.readouterr().out
    assert message in shown and shown.startswith(f"{folder.near(path)}:"), shown
    assert "0 of 25; next: expectation" in shown


def test_progress_is_counted_up_to_the_first_that_fails_or_is_missing(mine, tmp_path, capsys):
    """Kills: a check that goes on after a failure, or that takes what is missing for right."""
    with open(tmp_path / "trace", "w", encoding="utf-8") as trace:
        assert check.check(mine, 60, trace) == check.UNFINISHED
        assert "0 of 25; next: expectation" in capsys.readouterr().out
        for name in COURSE:
            write(mine, name)
        write(mine, "margin", "    return policy_chosen_logps\n")
        write(mine, "objective", "    return log_policy\n")
        assert check.check(mine, 60, trace) == check.WRONG
        assert "2 of 25; next: objective" in capsys.readouterr().out
        write(mine, "objective")
        assert check.check(mine, 60, trace) == check.WRONG
        assert "9 of 25; next: margin" in capsys.readouterr().out
        write(mine, "margin")
        assert check.check(mine, 60, trace) == check.RIGHT
        assert "25 of 25: all are right" in capsys.readouterr().out
        assert folder.progress(mine)["at"] is None


def test_one_exercise_is_tried_alone(mine, tmp_path, capsys):
    """Kills: a check of one that stops at what is missing before it, or that says that all are right."""
    with open(tmp_path / "trace", "w", encoding="utf-8") as trace:
        assert check.check(mine, 60, trace, "margin") == check.UNFINISHED
        write(mine, "margin", "    return policy_chosen_logps\n")
        assert check.check(mine, 60, trace, "margin") == check.WRONG
        write(mine, "margin", "    return log_ratios(*[policy_chosen_logps] * 4)[0]\n")
        assert check.check(mine, 60, trace, "margin") == check.WRONG
    shown = capsys.readouterr().out
    assert shown.startswith("next: margin\n") and shown.endswith("\nnext: margin (make hint helps)\n")
    assert "of 25" not in shown
    write(mine, "log_ratios")
    write(mine, "margin")
    assert learn(mine, "check", "--exercise", "margin") == "margin is right.\n"


def said(capsys, monkeypatch, mine, *words):
    """What the program prints."""
    monkeypatch.setattr(sys, "argv", ["learn", *words, "--folder", str(mine)])
    assert program.main() == 0
    return capsys.readouterr().out


def test_three_hints_lead_to_the_line_and_reveal_writes_it(mine, capsys, monkeypatch):
    hints = [said(capsys, monkeypatch, mine, "hint") for _ in range(4)]
    assert [re.findall(r"expectation, hint (\d) of 3", hint) for hint in hints] == [["1"], ["2"], ["3"], ["3"]]
    assert COURSE["expectation"].lines[0] in hints[2] and hints[2] == hints[3]
    assert len(set(hints)) == 3
    folder.remember(mine, at="expectation")  # as a check does
    shown = said(capsys, monkeypatch, mine, "reveal")
    assert "p = log_p.exp()" in shown and "written into" in shown
    assert folder.is_written(mine, COURSE["expectation"])
    assert "kl_divergence, hint 1 of 3" in said(capsys, monkeypatch, mine, "hint")
    assert '"sigmoid", hint 1 of 3' in said(capsys, monkeypatch, mine, "hint", "--exercise", "sigmoid")


def test_reveal_and_make_leave_what_the_learner_wrote(mine, capsys, monkeypatch):
    """Kills: work that is overwritten."""
    write(mine, "expectation", "    return log_p * f  # my own\n")
    before = (mine / "dpo_min" / "objective.py").read_text(encoding="utf-8")
    assert "replace it yourself" in said(capsys, monkeypatch, mine, "reveal", "--exercise", "expectation")
    (mine / "dpo_min" / "metrics.py").unlink()
    shown = said(capsys, monkeypatch, mine, "make")
    assert "left as they are: dpo_min/objective.py" in shown and "learning: dpo_min/metrics.py" in shown
    assert (mine / "dpo_min" / "objective.py").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chekc"], "ACTION: expected one of make, check, hint, reveal, got chekc"),
        (["hint", "--exercise", "margn"], "no exercise is called margn; did you mean margin?"),
        (["check", "--exercise", "margn"], "no exercise is called margn; did you mean margin?"),
        (["check", "--seconds", "-1"], "expected a number from 0.1 to 10^6"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(mine, capsys, monkeypatch, words, message):
    monkeypatch.setattr(sys, "argv", ["learn", *words, "--folder", str(mine)])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["learn", "hint", "--folder", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit):
        program.main()
    assert "objective.py: not there; `make learn` in the project makes what is missing" in capsys.readouterr().err


def test_progress_that_is_not_readable_is_forgotten(mine):
    (mine / "progress.json").write_text("{")
    assert folder.progress(mine) == {"at": None, "hints": {}}


def test_the_page_shows_what_a_check_says(mine, capsys, monkeypatch):
    """Kills: a message of docs/learning.md that no program prints."""
    page = (ROOT / "docs" / "learning.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```\n(dpo_min.*?)```", page, re.DOTALL)
    write(mine, "expectation")
    write(mine, "kl_divergence", "    return expectation(log_p, log_q - log_p)\n")
    monkeypatch.chdir(mine)
    with open(mine / "trace", "w", encoding="utf-8") as trace:
        check.check(mine, 60, trace)
    shown = re.sub(r"(?<=; ).*docs/", "../docs/", capsys.readouterr().out)
    assert re.sub(r"py:\d+", "py", shown) == re.sub(r"py:\d+", "py", example)
