"""Labels in rounds beside all at once: as many labels each way, from policies that come one after another."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sample
import train
from dpo_min.labels import __main__ as labels
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.run.job import prepare as prepare_training
from dpo_min.run.sample_flags import prepare as prepare_sampling
from dpo_min.run.session import save_model_directory

pytest.importorskip("matplotlib")
rounds = pytest.importorskip("experiments.rounds", reason="the experiments are deletable")
from experiments import lessons_page, rounds_page  # noqa: E402
from experiments.demo import judge, make_tokenizer, prompts, reward  # noqa: E402

SETTINGS = rounds.Settings("first", "print", 3, 5, 0.5, "", "experiments.demo:judge", "experiments.demo:score", 1)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_each_way_spends_the_same_labels_and_follows_its_own_policies(number):
    """Kills: `once` with fewer labels, a round from another way's policy, a fixed reference that follows."""
    steps = {name: rest for name, *rest in rounds.plan(number)}
    for way in rounds_page.LINES:
        first, *names = rounds_page.path_of(way, number)
        spent = [place for name in names for place in steps[name][2]]
        assert len(spent) == len(set(spent)) == number
        assert [steps[name][0] for name in names] == [first, *names[:-1]]
        assert [steps[name][1] for name in names] == (
            [first, *names[:-1]] if way == "following" else [first] * len(names)
        )
    assert {*steps} == {name for way in rounds_page.LINES for name in rounds_page.path_of(way, number)} - {"start"}


def test_the_judge_chooses_between_two_answers_as_bradley_and_terry_say():
    """Kills: noise of another scale, the same noise for both answers, noise that the prompt does not change."""
    good, bad = " the plot was warm.", " the plot was warm. the cast was cold."
    gap, n = reward(good) - reward(bad), 4000
    won = sum(judge(f"film {i}", good) > judge(f"film {i}", bad) for i in range(n)) / n
    expected = 1 / (1 + math.exp(-gap))
    assert abs(won - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    assert judge("x", good) == judge("x", good) != judge("y", good)


def measured(labels, reward, kl):
    return {"labels": labels, "reward": [reward, reward - 0.5, reward + 0.5], "kl": [kl, kl - 0.25, kl + 0.25]}


def found(seeds, gap):
    """Measured numbers in which both ways in rounds end `gap` above `once` in reward, and at the same KL."""
    names = {name for way in rounds_page.LINES for name in rounds_page.path_of(way, 3)}
    runs = []
    for seed in range(seeds):
        run = {name: measured(5, 1 + 0.01 * seed, 2.0) for name in names}
        run |= {f"{way}-3": measured(15, 1 + gap + 0.02 * seed, 2.0) for way in rounds.WAYS}
        runs.append(run | {"once": measured(15, 1.0, 2.0)})
    return runs


@pytest.mark.parametrize(
    ("seeds", "gap", "words"),
    [
        (3, 0.5, "is 0.52 ± 0.05 higher"),
        (3, -0.5, "is 0.48 ± 0.05 lower"),
        (3, -0.01, "differs by +0.01 ± 0.05, which may be chance"),
        (1, 0.5, "differs by +0.50 in this one run"),
    ],
)
def test_the_page_says_what_was_measured(seeds, gap, words, tmp_path):
    """Kills: a difference that noise explains told as one, of one run told as certain, its sign turned."""
    (tmp_path / "figures").mkdir()
    rounds_page.write(SETTINGS, found(seeds, gap), tmp_path)
    text = (tmp_path / "rounds.md").read_text(encoding="utf-8")
    for way in rounds.WAYS:
        (sentence,) = re.findall(f"With the reference {way}, (.*)", text)
        assert f"the true reward {words}" == sentence.split(";")[0]
        assert ("higher" in sentence or "lower" in sentence) == (seeds > 1 and abs(gap) > 0.1)
    assert (tmp_path / "figures" / "rounds.png").read_bytes().startswith(b"\x89PNG")
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 2 + 2 * 2 + 1 and "{" not in text and "nan" not in text
    assert f"| {1 + gap + 0.01 * (seeds - 1):.2f} ± " in text


def test_the_answer_stands_on_the_page_of_data_whichever_page_is_written_first(tmp_path):
    """Kills: an answer of an earlier command that stays, a page of data that is written without it."""
    (tmp_path / "figures").mkdir()
    before, data = lessons_page.on_policy(tmp_path / "rounds.md"), tmp_path / "data.md"
    assert "has not been run" in before
    data.write_text(f"# Data\n\n{before}", encoding="utf-8")
    for gap in (0.5, -0.5):
        rounds_page.write(SETTINGS, found(3, gap), tmp_path)
        assert data.read_text(encoding="utf-8") == f"# Data\n\n{lessons_page.on_policy(tmp_path / 'rounds.md')}"
        assert ("higher J than" if gap > 0 else "lower J than") in data.read_text(encoding="utf-8")


def test_runs_of_other_settings_are_refused(tmp_path):
    rounds.keep(SETTINGS, tmp_path)
    rounds.keep(SETTINGS, tmp_path)
    with pytest.raises(SystemExit, match="other settings"):
        rounds.keep(replace(SETTINGS, beta=0.1), tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["beta"] == SETTINGS.beta


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A model of the demo's words with 24 positions, that nothing was taught."""
    directory, tokenizer = tmp_path_factory.mktemp("first"), make_tokenizer()
    model = GPT(GPTConfig(tokenizer.vocab_size, 24, 1, 2, 16), torch.Generator().manual_seed(0))
    save_model_directory(model, tokenizer, directory / "model")
    return directory / "model"


class Stopped(Exception):
    """Somebody stopped the command."""


@pytest.fixture
def programs(monkeypatch):
    """The calls of a command, run in this process; it stops before the call `stop`, if that is set."""
    calls = SimpleNamespace(made=[], stop=None)

    def call(place, *command):
        if len(calls.made) == calls.stop:
            raise Stopped
        program, *argv = [str(word) for word in command if word != "-m"]
        calls.made.append((program, place.name))
        if program == "train.py":
            code = train.train(prepare_training(argv))
        else:
            code = labels.main(argv) if program == "dpo_min.labels" else sample.sample(*prepare_sampling(argv))
        assert code == 0

    monkeypatch.setattr(rounds, "call", call)
    monkeypatch.setattr(rounds, "prompts", lambda held_out: prompts(held_out)[:8])
    return calls


def test_a_command_that_is_stopped_goes_on_and_ends_where_it_would_have_ended(first, programs, tmp_path):
    """The programs are the real ones. Kills: a round done twice, labels drawn again, seeds that depend on the stop."""
    settings = replace(SETTINGS, init=str(first), rounds=2, prompts=3, train="--max-length 24 --learning-rate 0.01")
    whole = rounds.run_seed(settings, tmp_path / "whole", 0)
    at_once, programs.made = programs.made, []
    for stop in range(0, len(at_once), 3):
        programs.stop = stop
        with pytest.raises(Stopped):
            rounds.run_seed(settings, tmp_path / "parts", 0)
    programs.stop = None
    assert rounds.run_seed(settings, tmp_path / "parts", 0) == whole
    (tmp_path / "parts" / "fixed-2" / "measured.json").unlink()  # as if it had been stopped after the training
    assert rounds.run_seed(settings, tmp_path / "parts", 0) == whole
    assert [*dict.fromkeys(programs.made)] == at_once and len(at_once) == 4 * 2 + 4
    assert [cell["labels"] for cell in whole.values()] == [0, 3, 6, 6, 6]
    for name in ("round-1", "fixed-2", "following-2", "draw-2"):
        rows = (tmp_path / "whole" / name / "prefs.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(rows) == 3
    config = json.loads((tmp_path / "whole" / "once" / "config.json").read_text())
    assert [Path(path).parent.name for path in config["data"]] == ["round-1", "draw-2"]
    assert whole["start"]["kl"][0] == pytest.approx(0, abs=1e-6) and whole["once"]["kl"][0] > 0
