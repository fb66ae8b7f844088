"""`sample.py --pairs`: the candidates are the model's, and a file that was continued is the file drawn at once."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sample
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.labels.candidates import read_candidates
from dpo_min.logprob import sequence_logprobs
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.weights import load_model, model_fingerprint
from dpo_min.run.sample_flags import prepare
from dpo_min.run.session import save_model_directory
from dpo_min.system import program
from tests.training import write


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two model directories over bytes, of different weights."""
    directory = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("model", "reference")):
        model = GPT(GPTConfig(257, 40, 1, 2, 16), torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model.wte.weight[256] *= 40  # end-of-text is often likely, so that answers end
            model.wte.weight[128:256] = -model.wte.weight[256]  # and then bytes that are no text by themselves are not
        save_model_directory(model, load_tokenizer("bytes"), directory / name)
    return directory


def draw(models, out, prompts, *more):
    flags = ["--prompts", write(out.parent / "prompts.jsonl", prompts), "--out", out, "--max-new-tokens", 12, *more]
    assert program.guard(sample.sample, *prepare(["--model", str(models / "model"), *map(str, flags)])) == 0
    return read_candidates(out)


def test_a_line_holds_k_answers_with_their_log_probabilities_and_the_models_print(models, tmp_path):
    """log π(y|x) is computed again from the text. Kills: end-of-text left out, another model's, a mean."""
    lines = draw(models, tmp_path / "c.jsonl", [*"abcdef"], "--pairs", 6)
    model, tokenizer = load_model(models / "model"), load_tokenizer("bytes")
    assert [line.prompt for line in lines] == [*"abcdef"] and all(len(line.answers) == 6 for line in lines)
    assert {line.model for line in lines} == {model_fingerprint(model)}
    checked = 0
    for line in lines:
        for answer, logp in zip(line.answers, line.logps, strict=True):
            ids = tokenizer.encode(answer)
            if "�" in answer or len(ids) >= 12:  # not the text of its ids, or cut before its end-of-text
                continue
            prompt, ids = tokenizer.encode(line.prompt), [*ids, tokenizer.end_of_text]
            tokens = torch.tensor([prompt + ids])
            mask = torch.arange(tokens.shape[1])[None] >= len(prompt)
            with torch.no_grad():
                expected = sequence_logprobs(model.logits(model(tokens)), tokens, mask)
            assert logp == pytest.approx(expected.item(), abs=1e-4)
            checked += 1
    assert checked >= 5


PROMPTS = st.lists(st.sampled_from(["", "a", "b", "line\nend", "é"]), min_size=1, max_size=6)


@settings(max_examples=8)
@given(PROMPTS, st.data())
@example(["a", "b", "a"], None)
def test_a_file_gone_on_with_is_the_file_drawn_at_once(models, tmp_path_factory, prompts, data):
    """Kills: a prompt answered twice, or after a restart otherwise, or not at all because its line was torn."""
    there = tmp_path_factory.mktemp("draw")
    whole = draw(models, there / "whole.jsonl", prompts, "--pairs", 2)
    content = (there / "whole.jsonl").read_bytes()
    assert [line.prompt for line in whole] == list(dict.fromkeys(prompts))
    (there / "cut.jsonl").write_bytes(content[: data.draw(st.integers(0, len(content))) if data else 20])
    again = draw(models, there / "cut.jsonl", prompts, "--pairs", 2)
    assert [(line.prompt, line.answers) for line in again] == [(line.prompt, line.answers) for line in whole]
    assert draw(models, there / "cut.jsonl", prompts, "--pairs", 2) == again


def test_two_models_answer_in_one_line_each_under_its_own_print(models, tmp_path):
    (line,) = draw(models, tmp_path / "c.jsonl", ["x"], "--pairs", 2, "--reference", models / "reference")
    ours, theirs = (model_fingerprint(load_model(models / name)) for name in ("model", "reference"))
    assert line.model == [ours, ours, theirs, theirs] and ours != theirs
    (alone,) = draw(models, tmp_path / "alone.jsonl", ["x"], "--pairs", 2)
    assert alone.answers == line.answers[:2] and alone.logps == pytest.approx(line.logps[:2], abs=1e-5)


def test_a_later_model_adds_its_lines_to_the_same_file(models, tmp_path):
    """Kills: a second round that finds every prompt answered."""
    draw(models, tmp_path / "c.jsonl", ["x"], "--pairs", 2)
    argv = ["--model", models / "reference", "--prompt", "x", "--pairs", 2, "--out", tmp_path / "c.jsonl"]
    program.guard(sample.sample, *prepare([*map(str, argv)]))
    assert len(read_candidates(tmp_path / "c.jsonl")) == 2


def test_the_messages_of_a_dialogue_stay_messages(models, tmp_path):
    prompt = [{"role": "user", "content": "hi"}]
    (line,) = draw(models, tmp_path / "c.jsonl", [prompt], "--pairs", 2)
    assert line.prompt == prompt


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--pairs", "1"], "--pairs 1: one answer is nothing to choose from"),
        (["--pairs", "2", "--temperature", "0"], "--pairs 2: with --temperature 0"),
        (["--pairs", "2", "--num-samples", "2"], "--num-samples has no effect with --pairs"),
        (["--pairs", "2", "--jsonl"], "--jsonl has no effect with --pairs"),
        (["--out", "x"], "--out has no effect without --pairs"),
        (["--pairs", "0"], "--pairs: expected a whole number"),
        (["--pairs", "3", "--out", "TWO"], "its lines have 2 answers of this model, not 3"),
    ],
)
def test_what_makes_no_candidates_is_refused(models, tmp_path, capsys, more, reason):
    draw(models, tmp_path / "two.jsonl", ["x"], "--pairs", 2)
    argv = [str(tmp_path / "two.jsonl") if word == "TWO" else word for word in more]
    with pytest.raises(SystemExit) as stopped:
        program.guard(sample.sample, *prepare(["--model", str(models / "model"), "--prompt", "y", *argv]))
    assert stopped.value.code == 2 and reason in capsys.readouterr().err
