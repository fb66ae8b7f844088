"""`--help` of every program: each flag stands in a group, the five to know first come first, one example works."""

import re
import shlex
from dataclasses import fields

import pytest

from dpo_min.judge import evaluate, lint
from dpo_min.labels import __main__ as labels
from dpo_min.learn import __main__ as learn
from dpo_min.run import sample_flags, train_flags
from dpo_min.system.flags import flag, parse, sections, spelling

PROGRAMS = {
    "train.py": (train_flags.TrainFlags, train_flags.GROUPS, train_flags.EXAMPLE),
    "sample.py": (sample_flags.SampleFlags, sample_flags.GROUPS, sample_flags.EXAMPLE),
    "evaluate": (evaluate.EvaluateFlags, evaluate.GROUPS, evaluate.EXAMPLE),
    "lint": (lint.LintFlags, lint.GROUPS, lint.EXAMPLE),
    "learn": (learn.LearnFlags, learn.GROUPS, learn.EXAMPLE),
    "labels": (labels.LabelFlags, labels.GROUPS, labels.EXAMPLE),
}


def shown(program, capsys):
    """{title: the flags below it} of a program's --help, and its last words."""
    flags_class, groups, example = PROGRAMS[program]
    with pytest.raises(SystemExit):
        parse(flags_class, ["--help"], "What it does.", groups, example)
    *parts, end = re.split(r"^(\S.*):\n|^(?=example)", capsys.readouterr().out, flags=re.MULTILINE)
    titles = [part for part in parts[1::2] if part]
    listed = [re.findall(r"^  (--[a-z-]+|[A-Z]+)", text or "", re.MULTILINE) for text in parts[2::2]]
    return dict(zip(titles, listed, strict=False)), " ".join(end.split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_stands_in_one_group_and_the_first_to_know_come_first(program, capsys):
    """Kills: a new flag that no group takes, a group without flags, more to know first than a newcomer reads."""
    found, end = shown(program, capsys)
    names = [re.sub("^--", "", name).replace("-", "_").lower() for flags in found.values() for name in flags]
    flags_class, groups, example = PROGRAMS[program]
    assert sorted(names) == sorted(
        spelling(f).removeprefix("--").replace("-", "_").lower() for f in fields(flags_class)
    )
    assert [*found][1] == "to begin with" and 1 <= len(found["to begin with"]) <= 5
    assert all(found[title] for title, _ in groups)
    assert end == f"example: {example}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_example_is_a_command_line_that_is_accepted(program):
    flags_class, _, example = PROGRAMS[program]
    command = shlex.split(example)
    programs = (".py", "evaluate", "lint", "labels", "learn")
    start = next(i for i, word in enumerate(command) if word.endswith(programs)) + 1
    parse(flags_class, command[start:], "")


def test_a_new_flag_belongs_to_the_section_that_it_is_defined_in():
    """Kills: sections that are lists of names, which a new flag has to be added to."""
    from dataclasses import dataclass

    @dataclass
    class Flags:
        before: int = flag(0, "")
        first: int = flag(0, "")
        a: int = flag(0, "")
        b: int = flag(0, "")
        c: int = flag(0, "")

    assert sections(Flags, "b", ("one", "first"), ("two", "a"), ("one", "c")) == [
        ("to begin with", "b"),
        ("one", "before first c"),
        ("two", "a"),
    ]
