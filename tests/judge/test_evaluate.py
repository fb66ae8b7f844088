"""`python -m dpo_min.judge.evaluate`: what it prints is what its functions say, of the rows that the seed decides."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.rows import Preference
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair, tokenize
from dpo_min.judge import evaluate, measure, scorers
from dpo_min.metrics import preference_metrics
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.weights import load_model
from dpo_min.run import session
from dpo_min.system import program
from tests.training import write

BYTES = load_tokenizer("bytes")
ROWS = [{"prompt": f"{i}?", "chosen": "yes " * (1 + i % 3), "rejected": "no" * (1 + i % 4)} for i in range(30)]


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """A run's directory with β = 0.25, a model, its reference, rows, scores of answers, and a judge."""
    directory = tmp_path_factory.mktemp("run")
    for seed, name in enumerate(("model", "reference")):
        sizes = GPTConfig(vocab_size=257, block_size=24, n_layer=1, n_head=2, n_embd=16)
        model = GPT(sizes, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model.wte.weight.mul_(20)
        session.save_model_directory(model, BYTES, directory / name)
    (directory / "config.json").write_text(json.dumps({"data_sha256": "", "beta": 0.25, "max_length": 24}))
    write(directory / "rows.jsonl", ROWS)
    scores = [("model", 0, 3), ("reference", 0, 1), ("model", 1, 2.0), ("reference", 1, 2), ("model", 2, -1)]
    scores += [("reference", 2, 0), ("model", 3, 5), ("reference", 3, 4)]
    lines = [{"model": name, "prompt": "x", "sample": i, "score": score} for name, i, score in scores]
    write(directory / "scores.jsonl", lines)
    (directory / "a_judge.py").write_text(
        "import zlib\n"
        "LIMIT = 3\n"
        "def length(prompt, answer): return len(answer)\n"
        "def shortness(prompt, answer): return -len(answer)\n"
        "def distinct(prompt, answer): return zlib.crc32(answer.encode())\n"
        "def fails(prompt, answer): return {}[prompt]\n"
        "def nothing(prompt, answer): return None\n"
        "def in_two_lines(prompt, answer): raise ValueError('one\\ntwo')\n"
    )
    return directory


def ask(directory, *argv):
    named = ["--model", directory / "model", "--reference", directory / "reference", "--data", directory / "rows.jsonl"]
    return program.guard(evaluate.evaluate, *evaluate.prepare([str(flag) for flag in (*named, *argv)]))


def report(directory, capsys, *argv):
    assert ask(directory, *argv, "--json") == 0
    return json.loads(capsys.readouterr().out)


FEW = "--samples", 6, "--max-new-tokens", 4


def test_the_figures_are_those_of_the_rewards_that_training_logs(a_run, capsys):
    """Kills: another β than the run's, rows counted twice, sides exchanged, an n that is not the rows'."""
    found = report(a_run, capsys, *FEW)
    pairs = tokenize([Preference(**row) for row in ROWS], BYTES, 24)[0]
    models = [load_model(a_run / name).requires_grad_(False) for name in ("model", "reference")]
    logps = [batch_logps(model, pack(pairs)).chunk(2) for model in models]
    metrics = preference_metrics(*logps, 0.25)
    figures = found["figures"]
    assert figures["accuracy"]["value"] == pytest.approx(metrics["rewards/accuracies"].mean().item())
    assert figures["margin"]["value"] == pytest.approx(metrics["rewards/margins"].mean().item(), abs=1e-4)
    for side in ("chosen", "rejected"):
        expected = metrics[f"rewards/{side}"].mean().item() / 0.25
        assert figures[f"log_ratio_{side}"]["value"] == pytest.approx(expected, abs=1e-4)
    gaps = torch.tensor([len(pair.chosen_ids) - len(pair.rejected_ids) for pair in pairs])
    r = torch.corrcoef(torch.stack([metrics["rewards/margins"], gaps]))[0, 1].item()
    assert figures["length_correlation"]["value"] == pytest.approx(r, abs=1e-4)
    for name, figure in figures.items():
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert figure["n"] == (6 if name.startswith("kl") else 30), name
    assert figures["kl_sum_of_tokens"]["standard_error"] > 0
    assert sum(b["n"] for b in found["calibration"]) == found["rows"] == 30
    doubled = report(a_run, capsys, *FEW, "--beta", 0.5)
    assert (found["beta"], doubled["beta"], found["reduce"]) == (0.25, 0.5, "sum")
    assert doubled["figures"]["margin"]["value"] == pytest.approx(2 * figures["margin"]["value"], abs=1e-6)


def test_the_table_holds_every_figure_of_the_json(a_run, capsys):
    """Kills: a figure that only machines see; null printed for what is unknown."""
    found = report(a_run, capsys, *FEW, "--max-pairs", 1)
    assert found["figures"]["margin"]["low"] is None and found["figures"]["length_correlation"]["value"] is None
    found = report(a_run, capsys, *FEW)
    assert ask(a_run, *FEW) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("30 of 30 pairs, β = 0.25; 6 answers of at most 4 tokens\n")
    for name, figure in found["figures"].items():
        values = " *".join(re.escape(text) for text in (f"{figure['value']:.4f}", "[", f"{figure['low']:.4f},"))
        assert re.search(f"{re.escape(evaluate.LABELS[name])} *{values}.*{figure['n']}", shown), name


def test_two_models_that_are_one_are_as_good_as_each_other(a_run, capsys, monkeypatch):
    """Kills: ties that lose; draws for the reference that are the policy's own, of which all would tie."""
    monkeypatch.syspath_prepend(a_run)
    argv = ["--model", a_run / "model", "--reference", a_run / "model", "--data", a_run / "rows.jsonl", "--json"]
    argv += ["--samples", 7, "--max-new-tokens", 4, "--scorer", "a_judge:distinct"]
    assert program.guard(evaluate.evaluate, *evaluate.prepare([str(flag) for flag in argv])) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["accuracy"]["value"] == 0.5 != figures["win_rate"]["value"]
    for name in ("margin", "log_ratio_chosen", "calibration_error", "kl_mean_log_ratio", "kl_sum_of_tokens"):
        assert (figures[name]["value"], figures[name]["low"]) == (0, 0), name


# ---- which rows ----

preferences = st.lists(
    st.builds(Preference, st.text("ab", max_size=9), st.text("cd", min_size=1, max_size=9), st.just("e")), max_size=12
)


@given(preferences, st.integers(0, 5), st.integers(1, 15), st.randoms(use_true_random=False))
def test_the_rows_that_are_taken_depend_on_the_seed_and_not_on_their_order(rows, seed, limit, random):
    """Kills: the first rows of a file taken for a sample of it; more pairs than were asked for, or fewer."""
    if not rows:
        return
    shuffled = random.sample(rows, len(rows))
    first, second = (evaluate.choose(r, BYTES, (24, None), seed, limit, 0) for r in (rows, shuffled))
    key = lambda pair: (pair.prompt_ids, pair.chosen_ids)  # noqa: E731
    assert sorted(map(key, first)) == sorted(map(key, second))
    assert len(first) == min(limit, len(rows))
    assert len(evaluate.choose(rows, BYTES, (24, None), seed, None, 10**6)) == len(rows)


def test_without_a_limit_the_tokens_decide_and_another_seed_takes_other_rows(a_run):
    """Kills: a budget that counts rows; one order for all seeds."""
    rows = [Preference(**row) for row in ROWS]
    counts = [len(evaluate.choose(rows, BYTES, (24, None), 0, None, tokens)) for tokens in (0, 100, 200, 10**6)]
    assert counts[0] == 2 < counts[1] < counts[2] < counts[3] == 30
    taken = {str(evaluate.choose(rows, BYTES, (24, None), seed, 3, 0)) for seed in range(5)}
    assert len(taken) == 5


# ---- the win rate ----


@settings(max_examples=5)
@given(st.integers(0, 3))
def test_what_one_model_wins_the_other_loses(a_run, seed):
    """Kills: a tie counted for both, answers of one model scored for the other."""
    ours, theirs = (load_model(a_run / name).requires_grad_(False) for name in ("model", "reference"))
    drawn = [measure.draw_answers(m, [[65], [66, 67]] * 4, 256, 3, seed) for m in (ours, theirs)]
    texts = [[BYTES.decode(ids) for ids in column] for column in drawn]
    scores = [measure.score_all("length", lambda x, y: len(y), ["A", "BC"] * 4, column) for column in texts]
    forward, backward = (measure.rate(measure.wins(*pair)) for pair in (scores, scores[::-1]))
    assert forward.value == 1 - backward.value and (forward.low, forward.high) == pytest.approx(
        (1 - backward.high, 1 - backward.low)
    )


def test_a_scorer_is_a_function_or_a_column(a_run, capsys, monkeypatch):
    """Kills: the lower score winning; rows of a file compared across their numbers."""
    monkeypatch.syspath_prepend(a_run)
    monkeypatch.chdir(a_run)
    scorers = "a_judge:length", "a_judge:shortness", "scores.jsonl:score"
    few = "--samples", 9, "--max-new-tokens", 8
    *rates, column = (report(a_run, capsys, *few, "--scorer", s)["figures"]["win_rate"] for s in scorers)
    assert rates[0]["value"] == pytest.approx(1 - rates[1]["value"]) and rates[0]["n"] == 9
    assert (column["value"], column["n"]) == (2.5 / 4, 4)  # two wins, one tie, one loss
    pairs = evaluate.choose([Preference(**row) for row in ROWS], BYTES, (24, None), 0, None, 10**6)
    models = [load_model(a_run / name).requires_grad_(False) for name in ("model", "reference")]
    drawn = [measure.draw_answers(m, [p.prompt_ids for p in pairs[:9]], 256, 8, seed) for seed, m in enumerate(models)]
    ours, theirs = ([len(BYTES.decode(ids)) for ids in column] for column in drawn)
    assert rates[0]["value"] == sum((a > b) + (a == b) / 2 for a, b in zip(ours, theirs, strict=True)) / 9 != 0.5


# ---- the page, and mistakes ----


def test_the_page_is_a_picture(a_run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert ask(a_run, *FEW, "--png", tmp_path / "page.png") == 0
    content = (tmp_path / "page.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000


BAD = [
    (["--scorer", "a_judge"], "--scorer a_judge"),
    (["--scorer", "no_such_module:f"], "No module named 'no_such_module'"),
    (["--scorer", "a_judge:missing"], "has no attribute 'missing'"),
    (["--scorer", "a_judge:LIMIT"], "LIMIT is not a function"),
    (["--scorer", "a_judge:fails"], "--scorer a_judge:fails: on "),
    (["--scorer", "a_judge:nothing"], "TypeError"),
    (["--scorer", "a_judge:in_two_lines"], "ValueError: one⏎two"),
    (["--scorer", "scores.jsonl:grade"], "--scorer scores.jsonl:1: KeyError: 'grade'"),
    (["--scorer", "scores.jsonl:model"], "--scorer scores.jsonl:1: ValueError"),
    (["--scorer", "half.jsonl:score"], "the answers of model and reference do not go together"),
    (["--data", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
    (["--png", "no/where.png"], "--png: expected NAME.png, in a directory that exists"),
    (["--beta", "-1"], "--beta: expected a number from 10^-6 to 10^9"),
    (["--max-pairs", "0"], "--max-pairs: expected a whole number from 1"),
    (["--model", "nowhere"], "nowhere"),
    (["--reference", "merged"], "--reference merged: its tokenizer is not that of --model"),
    (["--judge", "x"], "--judge: unknown argument"),
]


@pytest.mark.parametrize(("argv", "named"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(a_run, monkeypatch, capsys, argv, named):
    monkeypatch.syspath_prepend(a_run)
    monkeypatch.chdir(a_run)
    Path("half.jsonl").write_text('{"model": "model", "prompt": "x", "score": 1}\n')
    merged = Path("merged")
    merged.mkdir(exist_ok=True)
    vocabulary = json.loads(Path("model/vocab.json").read_text()) | {"ab": 257}
    (merged / "vocab.json").write_text(json.dumps(vocabulary))
    (merged / "merges.txt").write_text("a b\n")
    with pytest.raises(SystemExit, match="2"):
        ask(a_run, *FEW, *argv)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error, error


def test_a_mistake_is_named_before_pytorch_is_loaded(a_run):
    """Kills: seconds of waiting for --help, or for the name of a flag."""
    code = "import sys, runpy; sys.argv = ['evaluate', '--model', 'x', '--beta', '0']\n"
    code += (
        "try: runpy.run_module('dpo_min.judge.evaluate', run_name='__main__')\nfinally: print('torch' in sys.modules)"
    )
    root = Path(evaluate.__file__).resolve().parents[2]
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, env=os.environ)
    assert (shown.returncode, shown.stdout) == (2, "False\n"), shown.stderr
    assert "--beta: expected" in shown.stderr and shown.stderr.count("\n") == 1


def test_an_empty_prompt_and_one_that_fills_the_positions_are_answered(a_run, tmp_path, capsys):
    """Kills: no room left for the answers that are drawn."""
    rows = [{"prompt": "", "chosen": "a", "rejected": "b"}, {"prompt": "p" * 99, "chosen": "a", "rejected": "b"}]
    argv = ["--samples", 4, "--max-new-tokens", 99]
    named = ["--model", a_run / "model", "--reference", a_run / "reference"]
    named += ["--data", write(tmp_path / "rows.jsonl", rows)]
    assert program.guard(evaluate.evaluate, *evaluate.prepare([str(flag) for flag in (*named, *argv, "--json")])) == 0
    found = json.loads(capsys.readouterr().out)
    figures = found["figures"]
    assert found["max_new_tokens"] == 12  # of 24 positions
    assert figures["accuracy"]["n"] == 2 and figures["kl_sum_of_tokens"]["n"] == 4


def test_an_answer_of_nothing_is_never_scored():
    assert scorers.worth(3) == scorers.worth("3") == 3.0
    for score in (True, float("nan"), float("inf"), 10**400, "good"):
        with pytest.raises(ValueError, match=r"number|float"):
            scorers.worth(score)


def test_pairs_without_room_are_passed_over():
    with pytest.raises(ValueError, match="no row leaves room"):
        evaluate.choose([Preference("p" * 50, "c", "r")], BYTES, (24, 24), 0, None, 10)
    rows = [Preference("p" * 50, "c", "r"), Preference("p", "c", "r")]
    assert evaluate.choose(rows, BYTES, (24, 24), 0, 2, 0) == [TokenizedPair([112], [99, 256], [114, 256])]
