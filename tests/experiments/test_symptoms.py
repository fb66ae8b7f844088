"""docs/symptoms.md: its runs are runs of train.py, its curves those of their metrics, its page holds what it made."""

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import train
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.run.job import prepare
from dpo_min.run.session import save_model_directory
from dpo_min.run.train_flags import read_flags
from tests.training import write

symptoms = pytest.importorskip("experiments.symptoms", reason="the experiments are deletable")
demo = pytest.importorskip("experiments.demo", reason="the demo is deletable")
PAGE = (symptoms.ROOT / "docs" / "symptoms.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", symptoms.SYMPTOMS)
def test_the_flags_of_every_run_are_accepted_and_stand_on_the_page_beside_its_picture(tmp_path, name):
    """Kills: a run that train.py would refuse, a page that was not renewed after a run had changed."""
    (section,) = re.findall(rf"(?s)<!-- {name} -->\n(.*?)<!-- end -->", PAGE)
    assert f"(figures/symptom-{name}.png)" in section
    for label, own in symptoms.SYMPTOMS[name].runs.items():
        flags, _ = read_flags(symptoms.command_of({**symptoms.COMMON, **own}, tmp_path, "run")[1:])
        assert flags.data == [str(tmp_path / own.get("--data", "prefs.jsonl"))]
        assert f"| {label} | {symptoms.shown(own)} |" in section


def test_no_run_stands_in_for_another():
    """Kills: two symptoms with the same cause under two names."""
    runs = [tuple(own.items()) for symptom in symptoms.SYMPTOMS.values() for own in symptom.runs.values()]
    twice = {own for own in runs if runs.count(own) > 1}
    assert twice == {(("--learning-rate", 1e-8),)}  # nothing changes, and the loss stands still


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
@example(0)
def test_a_review_of_the_grammar_has_whole_sentences_alone(seed):
    """Kills: a pattern that is not the grammar's; one that takes any row of its words."""
    text = demo.review(torch.Generator().manual_seed(seed))
    assert symptoms.share_of_sentences(text) == 1
    words = text.replace(".", "").split()
    assert symptoms.share_of_sentences(" ".join(words[::-1])) == 0


def test_the_share_of_sentences_by_hand():
    text = "the plot was truly dull. my aunt loved the cast. the plot plot was dull."
    assert symptoms.share_of_sentences(text) == pytest.approx(2 / 3)
    assert symptoms.share_of_sentences(" . ") == symptoms.share_of_sentences("") == 0


@given(st.integers(0, 100), st.booleans())
def test_a_judge_labels_the_pair_by_what_he_pays_for(seed, better):
    """Kills: the sides swapped, or swapped back; a judge who is not asked."""
    generator = torch.Generator().manual_seed(seed)
    pair = {"prompt": "p", "chosen": "a b", "rejected": "a"}
    found = symptoms.label(pair, lambda text: 1000.0 * (len(text) if better else -len(text)), generator)
    assert found == (pair if better else pair | {"chosen": "a", "rejected": "a b"})
    assert symptoms.pay_for_words("dull plot") == demo.reward("dull plot") + 2 * symptoms.A_WORD


def test_the_curves_are_those_of_the_lines(tmp_path, monkeypatch):
    """Kills: train lines in a panel of held-out ones, a run without its name."""
    lines = [{"split": split, "step": step, "loss": 0.1 * step, "kl": step} for split in ("train", "eval")
             for step in (0, 5)]  # fmt: skip
    drawn = []
    monkeypatch.setattr(symptoms, "save", lambda figure, path, dpi: drawn.append(figure))
    panels = ("eval", "loss", "held-out loss"), ("train", "none", "what no line has")
    symptoms.draw({"one": lines, "two": [line | {"loss": 1.0} for line in lines]}, panels, False, tmp_path / "x.png")
    (figure,) = drawn
    left, right = figure.axes
    assert [line.get_label() for line in left.lines] == ["one", "two", "log 2"]
    assert left.lines[0].get_xdata().tolist() == [0, 5] and left.lines[0].get_ydata().tolist() == [0, 0.5]
    assert not right.lines and left.get_ylabel() == "held-out loss"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two", "log 2"]


def test_a_run_goes_on_where_it_stopped_and_its_answers_are_judged(tmp_path, monkeypatch):
    """By train.py itself, in this process to save its start. Kills: a run that began anew at each stage."""
    tokenizer = load_tokenizer("bytes")
    place = tmp_path / "base" / "model"
    place.mkdir(parents=True)
    save_model_directory(GPT(GPTConfig(tokenizer.vocab_size, 96, 1, 2, 8)), tokenizer, place)
    pairs = [{"prompt": "p", "chosen": "a" * (1 + i % 3), "rejected": "b"} for i in range(8)]
    for name in ("longer", "longer-held-out"):
        write(tmp_path / f"{name}.jsonl", pairs)
    started = []

    def run(command, **_):
        started.append(command[2:])
        return SimpleNamespace(returncode=train.train(prepare(command[2:])))

    monkeypatch.setattr(symptoms.subprocess, "run", run)
    monkeypatch.setattr(symptoms, "STAGES", (1, 2))
    monkeypatch.setattr(symptoms, "ANSWERS", 2)
    lab = symptoms.Lab(tmp_path)
    name, lines, judged = lab.run(symptoms.LONGER)
    assert lab.run(symptoms.LONGER)[0] == name == "run-0" and len(started) == 2  # not made twice
    assert ["--resume" in command for command in started] == [False, True]
    lengths = [(line["step"], line["length"]) for line in lines if "length" in line]
    assert [step for step, _ in lengths] == [0, 1, 2] and lengths[-1][1] == judged["tokens"]
    held_out = [line for line in lines if line["split"] == "eval" and "loss" in line]
    assert held_out[0]["step"] == 0 and held_out[-1]["step"] == 2
    assert held_out[-1]["h"] == held_out[-1]["rewards/margins"] / symptoms.COMMON["--beta"]
    row = symptoms.row_of("label", symptoms.LONGER, lines, judged)
    assert len(row) == len(symptoms.HEADS) and row[2] == 2 and row[3] == f"{held_out[-1]['loss']:.2f}"
    assert lab.judge(tmp_path / "nothing") is None
    assert symptoms.row_of("label", {}, lines, None)[-3:] == ["–"] * 3
