"""Flags from a dataclass: what is parsed, what is refused, and in which words."""

import math
from dataclasses import MISSING, dataclass
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.system import flags, kinds, program
from dpo_min.system.flags import flag


@dataclass
class Config:
    """One flag of each kind."""

    data: list[str] = flag(MISSING, "what to read")
    more_data: list[str] = flag([], "what else to read")
    beta: float = flag(0.1, "100% of the strength", kinds.POSITIVE)
    max_steps: int | None = flag(None, "when to stop", kinds.COUNT)
    seed: int = flag(0, "what to draw", kinds.SEED)
    reduce: str = flag("sum", "how to add", ["sum", "mean"])
    init: Path | None = flag(None, "where to start")
    prompt: str | None = flag(None, "what to say")
    compile: bool = flag(False, "whether to wait")


def parse(*argv):
    return flags.parse(Config, ["--data", "a.jsonl", *argv], "A description.")


def test_without_a_flag_each_field_has_its_default_and_only_the_given_are_given():
    assert parse() == (Config(["a.jsonl"], [], 0.1, None, 0, "sum", None, None, False), {"data"})


def test_each_kind_of_flag_becomes_its_type():
    line = "--more-data b c --beta 2 --max-steps 7 --seed 3 --reduce mean --init gpt2 --prompt 5 --compile"
    config, given_fields = parse(*line.split())
    assert config == Config(["a.jsonl"], ["b", "c"], 2.0, 7, 3, "mean", Path("gpt2"), "5", True)
    assert isinstance(config.beta, float)
    assert given_fields == {*vars(config)}


def test_a_flag_given_with_its_default_value_counts_as_given():
    assert parse("--beta", "0.1")[1] == {"data", "beta"}


def test_configs_do_not_share_their_lists():
    parse()[0].more_data.append("b")
    assert parse()[0].more_data == []


@given(st.floats(1e-6, 1e9), st.integers(1, 10**9), st.integers(0, 2**63 - 1))
def test_every_accepted_number_is_read_exactly(beta, steps, seed):
    """Kills: numbers rounded on the way, or whole numbers read as floats."""
    config, _ = parse("--beta", repr(beta), "--max-steps", str(steps), "--seed", str(seed))
    assert (config.beta, config.max_steps, config.seed) == (beta, steps, seed)


@given(st.text().filter(lambda text: text != "--"))  # which argparse itself drops before Python 3.13
@example("--beta")
@example("a=b c")
@example("")
def test_any_text_can_be_given_after_an_equals_sign(text):
    """Kills: text that is stripped, or that is taken for a flag because it starts with a dash."""
    assert parse(f"--prompt={text}")[0].prompt == text


@pytest.mark.parametrize(("accepts", "kind", "good", "bad"), [
    (kinds.COUNT, int, ["1", str(10**9)], [str(10**9 + 1), "0", "-1", "1.0", "1e3", "", "x", "9" * 5000]),
    (kinds.LENGTH, int, ["2"], ["1", "2.5"]),
    (kinds.NATURAL, int, ["0"], ["-1"]),
    (kinds.SEED, int, ["0", str(2**63 - 1)], ["-1", str(2**63)]),
    (kinds.ABOVE_ZERO, float, ["1e-300", "1e300"], ["0", "-0.0", "-1", "inf", "nan", "1e999", "x", ""]),
    (kinds.POSITIVE, float, ["1e-6", "1e9"], ["9e-7", "1.1e9", "1e-308", "1e308", "0", "-1", "inf", "nan"]),
    (kinds.NOT_NEGATIVE, float, ["0", "1e9"], ["-1e-9", "1e300", "inf", "nan"]),
    (kinds.DECAY, float, ["0", "10"], ["-1e-9", "10.1", "1e308", "nan"]),
    (kinds.RATE, float, ["10", "1e-9"], ["0", "10.1", "1e-308", "nan"]),
    (kinds.SIZE, int, ["1", "100000"], ["0", "100001"]),
    (kinds.FRACTION, float, ["0", "0.999"], ["1", "-0.1", "nan"]),
    (kinds.PROBABILITY, float, ["1", "1e-9"], ["0", "1.001", "nan"]),
    (kinds.NOISE_RATE, float, ["0.499", "1e-6"], ["0", "0.5", "nan"]),
])  # fmt: skip
def test_a_number_is_accepted_up_to_its_bounds_and_refused_beyond_with_flag_and_bounds(accepts, kind, good, bad):
    @dataclass
    class One:
        top_p: kind = flag(None, "about", accepts)

    for text in good:
        assert flags.parse(One, [f"--top-p={text}"], "")[0].top_p == kind(text)
    for text in bad:
        with pytest.raises(ValueError, match="--top-p") as error:
            flags.parse(One, [f"--top-p={text}"], "")
        assert f"expected {accepts.words}, got {text!r}" in str(error.value)


@given(st.floats())
@example(-0.0)
@example(math.inf)
@example(math.nan)
def test_a_positive_flag_takes_a_number_or_refuses_it_by_its_bounds_alone(value):
    """Kills: `not v < least`, which lets nan through, and a bound without infinity."""
    if 1e-6 <= value <= 1e9:
        assert parse(f"--beta={value!r}")[0].beta == value
    else:
        with pytest.raises(ValueError, match=r"--beta: expected a number from 10\^-6 to 10\^9"):
            parse(f"--beta={value!r}")


@pytest.mark.parametrize(("argv", "words"), [
    (["--reduce", "median"], ["--reduce", "median", "sum", "mean"]),
    (["--max-steps", "-3"], ["--max-steps", "a whole number from 1 to 10^9"]),
    (["--beta"], ["--beta", "expected one argument"]),
    (["--more-data"], ["--more-data", "expected at least one argument"]),
    (["--compile=yes"], ["--compile", "yes"]),
    (["--bta", "0.2"], ["--bta: unknown argument", "did you mean --beta?"]),
    (["--maxsteps=3"], ["--maxsteps=3: unknown argument", "did you mean --max-steps?"]),
    (["--max_steps", "3"], ["--max_steps: unknown argument", "did you mean --max-steps?"]),
    (["--be", "0.2"], ["--be: unknown argument"]),  # a beginning is not a flag: it would change as flags are added
    (["--xyzzy"], ["--xyzzy: unknown argument", "--help lists all"]),
    (["--beta", "1", "stray"], ["stray: unknown argument"]),
])  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_flag_and_the_way_out(argv, words):
    with pytest.raises(ValueError, match=r"\A.+\Z") as error:
        parse(*argv)
    assert [word for word in words if word not in str(error.value)] == []


def test_nothing_is_suggested_where_nothing_is_near():
    with pytest.raises(ValueError, match="--xyzzy") as error:
        parse("--xyzzy")
    assert "did you mean" not in str(error.value)


def test_a_missing_flag_is_named():
    with pytest.raises(ValueError, match="--data"):
        flags.parse(Config, [], "")


def test_a_misspelt_required_flag_is_named_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match=r"--dta: unknown argument; did you mean --data\?"):
        flags.parse(Config, ["--dta", "a.jsonl"], "")


def test_a_list_flag_given_twice_loses_nothing():
    """Kills: the second --data silently in place of the first."""
    assert parse("--data", "b.jsonl", "c.jsonl")[0].data == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_help_shows_every_flag_what_it_is_for_and_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        flags.parse(Config, ["--help"], "A description.")
    shown = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "A description." in shown
    assert "--more-data PATH [PATH ...]" in shown
    assert "--beta X 100% of the strength (default: 0.1)" in shown
    assert "--reduce {sum,mean} how to add (default: sum)" in shown
    assert "--max-steps N when to stop --seed" in shown
    assert "--compile whether to wait" in shown


def test_help_shows_a_default_of_zero_and_none_where_there_is_none(capsys):
    with pytest.raises(SystemExit):
        flags.parse(Config, ["--help"], "")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--seed N what to draw (default: 0)" in shown
    assert "what else to read --beta" in shown


def test_a_flag_without_effect_is_refused_only_where_it_was_given():
    flags.refuse({"data"}, ["max_steps", "seed"], "with --epochs")
    with pytest.raises(ValueError, match=r"^--max-steps has no effect with --epochs; leave it out$"):
        flags.refuse({"data", "max_steps"}, ["seed", "max_steps"], "with --epochs")


def test_stopping_prints_one_line_and_returns_2(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["some/where/train.py", "--beta", "0"])
    with pytest.raises(SystemExit) as end:
        program.stop("--beta: expected a number above 0, got '0'")
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "train.py: error: --beta: expected a number above 0, got '0'\n")
