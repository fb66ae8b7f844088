"""Labels without a person: functions of one answer and of two, and models by the reward that they imply."""

import json
import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.data.rows import load_preferences
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.judge.scoring import log_ratios
from dpo_min.labels.__main__ import main
from dpo_min.labels.candidates import Candidates
from dpo_min.labels.choices import Choices, all_pairs
from dpo_min.labels.desk import Desk
from dpo_min.labels.scored import Scorer
from dpo_min.labels.verdicts import COMPARISONS
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.run.session import save_model_directory

HERE = __name__


def length(prompt, answer):
    """A scorer of one answer."""
    return len(answer)


def longer(prompt, first, second):
    """A scorer of two, which adds a quarter to the first whatever it is."""
    return min(1.0, max(0.0, 0.5 + (len(first) - len(second)) / 40 + 0.25))


def noisy(prompt, answer, draw=None):
    """A scorer that may be given more, which nobody gives it."""
    return (draw or random.Random(prompt + answer)).random()


def broken(prompt, answer):
    return {"": float("nan"), "a": True, "b": "2.5", "c": None}[answer[:1]]


def beyond(prompt, first, second):
    return 1.5


def alone(answer):
    return 1.0


@settings(max_examples=50)
@given(st.lists(st.text(max_size=3), min_size=1, max_size=5), st.sampled_from(COMPARISONS))
@example(["", ""], "all")
@example(["", "a"], "best-worst")
@example(["a", "a", "ab", "c"], "all")
def test_only_answers_that_differ_and_say_something_are_compared(answers, which):
    """Kills: a pair of equal texts, which training refuses; places among those compared for places among all."""
    found = Scorer(f"{HERE}:length").label(Candidates("x", answers), which)
    said = set(answers) - {""}
    assert len(found) == (len(said) * (len(said) - 1) // 2 if which == "all" else len(said) > 1)
    for i, j, tie in found:
        assert len(answers[i]) == len(answers[j]) if tie else len(answers[i]) > len(answers[j])
        assert answers[i] != answers[j] and answers[i] and answers[j]


@pytest.mark.parametrize("which", COMPARISONS)
def test_a_scorer_of_two_is_asked_in_both_orders_and_its_bias_is_counted(which):
    """Kills: one order alone, the bias of some pairs only, a scorer of two that is taken for one of one."""
    scorer = Scorer(f"{HERE}:longer")
    assert scorer.label(Candidates("x", ["aaaa", "bb"]), which) == [(0, 1, False)]  # 0.8 and 0.7: the first, twice
    assert (scorer.bias.pairs, scorer.bias.same, scorer.bias.first) == (1, 0, 1)
    found = scorer.label(Candidates("x", ["c" * 20, "d" * 40, "e" * 40]), which)
    assert found == ([(1, 0, False), (2, 0, False), (1, 2, True)] if which == "all" else [(1, 0, False)])
    assert (scorer.bias.pairs, scorer.bias.same, scorer.bias.first) == (4, 2, 2)
    assert Scorer(f"{HERE}:noisy").bias is None


def test_what_is_no_scorer_is_named():
    for name, reference, reason in (
        (f"{HERE}:alone", None, "neither"),
        (f"{HERE}:nobody", None, "nobody"),
        ("nowhere:f", None, "nowhere"),
        ("length", None, "module:function, or a model directory"),
        (f"{HERE}:length", "runs", "--reference has no effect"),
        (".", None, "add --reference"),
    ):
        with pytest.raises(ValueError, match=r"--scorer|--reference") as error:
            Scorer(name, reference)
        assert reason in str(error.value) and "\n" not in str(error.value)
    for name, answers in (("broken", "ab"), ("broken", "cb"), ("beyond", "ab")):
        with pytest.raises(ValueError, match=f"--scorer {HERE}:{name}: on"):
            Scorer(f"{HERE}:{name}").label(Candidates("x", [*answers]), "all")


def test_a_dialogue_reaches_a_function_as_text():
    asked = []
    scorer = Scorer(f"{HERE}:length")
    scorer.function = lambda prompt, answer: asked.append(prompt) or 0
    scorer.label(Candidates([{"role": "user", "content": "Hi"}], ["a", "b"]), "all")
    assert {*asked} == {"\n\nHuman: Hi\n\nAssistant:"}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Two small models of bytes with 40 positions, far from each other."""
    found, tokenizer = [], load_tokenizer("bytes")
    for seed in (0, 1):
        model = GPT(GPTConfig(tokenizer.vocab_size, 40, 1, 2, 16), torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5)
        found.append(tmp_path_factory.mktemp("models") / str(seed))
        found[-1].mkdir()
        save_model_directory(model, tokenizer, found[-1])
    return found


def test_a_model_scores_by_its_implicit_reward(directories):
    """Kills: the models swapped, no end-of-text, β or the prompt left out."""
    scorer, answers = Scorer(str(directories[0]), directories[1]), ["yes", "no, never", "perhaps"]
    models = scorer.ask.__self__.models
    end = load_tokenizer("bytes").end_of_text
    ids = [[*answer.encode(), end] for answer in answers]
    expected = 0.1 * log_ratios(*models, [[*b"q: "]] * 3, ids)
    assert scorer.ask("q: ", answers) == pytest.approx(expected.tolist(), rel=1e-5)
    best, worst = int(expected.argmax()), int(expected.argmin())
    assert scorer.label(Candidates("q: ", answers), "best-worst") == [(best, worst, False)]
    assert scorer.bias is None
    cut = scorer.ask("q: ", ["a" * 100])  # to what 40 positions hold, without the end
    assert cut == pytest.approx((0.1 * log_ratios(*models, [[*b"q: "]], [[*b"a" * 37]])).tolist(), rel=1e-5)
    with pytest.raises(ValueError, match="leaves no room"):
        scorer.ask("q" * 40, ["a"])
    as_messages = scorer.ask([{"role": "user", "content": "q"}], ["yes"])  # a dialogue is written as it is trained on
    assert as_messages == scorer.ask("\n\nHuman: q\n\nAssistant:", [" yes"])
    with torch.no_grad():
        next(models[0].parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="a score is nan"):  # and not a tie
        scorer.ask("q: ", answers)


LINES = [Candidates(f"q{i}", ["a" * (i % 3), "bb", "c" * i, "d" * (5 - i)]) for i in range(6)]


def write(path, lines):
    path.write_text("".join(json.dumps(line.as_row()) + "\n" for line in lines), encoding="utf-8")
    return path


class Tired(Exception):
    """A scorer has had enough."""


def patient(prompt, answer):
    """`length`, of which somebody may want only so many."""
    patient.left -= 1
    if patient.left < 0:
        raise Tired("no more")
    return len(answer)


@pytest.mark.parametrize("which", COMPARISONS)
def test_a_scorer_that_stops_loses_nothing_and_goes_on_where_it_was(which, tmp_path, capsys):
    """Kills: labels that come at the end, labels that come twice, a pair that is asked about again."""
    file, whole, parts = write(tmp_path / "c.jsonl", LINES), tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    command = [str(file), "--scorer", f"{HERE}:patient", "--compare", which, "--out"]
    patient.left = 10**6
    assert main([*command, str(whole)]) == 0
    asked, rows = 10**6 - patient.left, [json.loads(line) for line in whole.read_text().splitlines()]
    for count in (0, 7, 3, 11):
        patient.left = count
        with pytest.raises(SystemExit):
            main([*command, str(parts)])
        assert "Tired: no more" in capsys.readouterr().err
        assert whole.read_bytes().startswith(parts.read_bytes())
    patient.left = asked
    assert main([*command, str(parts)]) == 0 and parts.read_bytes() == whole.read_bytes()
    patient.left = 0
    assert main([*command, str(parts)]) == 0 and parts.read_bytes() == whole.read_bytes()
    pairs = [line.pairs() for line in LINES]
    assert len(rows) == sum(map(len, pairs)) if which == "all" else len(rows) == sum(map(bool, pairs))
    for row in rows:
        longer, shorter = len(row["chosen"]), len(row["rejected"])
        assert longer == shorter if row.get("tie") else longer > shorter
    assert any(row.get("tie") for row in rows) == (which == "all")


def test_what_a_person_chose_stays_and_has_the_same_form(tmp_path):
    """Kills: a scorer that overrules a person, rows of another form, a tie that training takes for a choice."""
    file, out = write(tmp_path / "c.jsonl", LINES), tmp_path / "prefs.jsonl"
    choices, desk_pairs = Choices(out), all_pairs(LINES)
    desk = Desk(desk_pairs, choices, 0)
    for choice in ("B", "="):
        told = desk.next("window")["pair"]
        desk.choose("window", told["showing"], choice, None)
    choices.close()
    before = out.read_bytes()
    patient.left = 10**6
    assert main([str(file), "--out", str(out), "--scorer", f"{HERE}:patient", "--compare", "all"]) == 0
    assert out.read_bytes().startswith(before)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len(desk_pairs) and {tuple(row) for row in rows[:2]} == {tuple(row) for row in rows[2:]}
    preferences, _ = load_preferences([str(out)])
    assert [p.tie for p in preferences] == [row.get("tie", False) for row in rows]


def test_there_is_nothing_to_report_on_a_file_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(write(tmp_path / "c.jsonl", LINES)), "--out", str(tmp_path / "o.jsonl"), "--report"])
    assert stopped.value.code == 2 and "no such file" in capsys.readouterr().err


def test_a_flag_without_effect_is_refused(tmp_path, capsys):
    file = write(tmp_path / "c.jsonl", LINES)
    for flags in (["--compare", "all"], ["--reference", "x"], ["--scorer", "a:b", "--port", "1"],
                  ["--report", "--scorer", "a:b"]):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main([str(file), "--out", str(tmp_path / "o.jsonl"), *flags])
        assert stopped.value.code == 2 and "has no effect" in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()
