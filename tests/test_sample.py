"""The prompt: text in, text out, for people and for machines."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sample
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.run.sample_flags import prepare
from dpo_min.run.session import save_model_directory
from dpo_min.system import program


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two model directories over bytes, of different weights."""
    directory = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("model", "reference")):
        generator = torch.Generator().manual_seed(seed)
        model = GPT(GPTConfig(vocab_size=257, block_size=32, n_layer=1, n_head=2, n_embd=16), generator)
        with torch.no_grad():
            model.wte.weight.mul_(20)
        save_model_directory(model, load_tokenizer("bytes"), directory / name)
    return directory


def ask(*argv):
    return program.guard(sample.sample, *prepare([str(a) for a in argv]))


def answers(capsys, *argv):
    assert ask(*argv, "--jsonl") == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_answers_are_text_and_repeat_with_the_seed(models, capsys):
    first, same, other = (
        answers(capsys, "--model", models / "model", "--prompt", "hello", "--seed", seed, "--num-samples", 3)
        for seed in (1, 1, 2)
    )
    assert first == same != other
    assert [line["sample"] for line in first] == [0, 1, 2]
    assert len({line["completion"] for line in first}) > 1
    names = {"prompt", "model", "sample", "completion", "ended", "logp", "sampling_logp"}
    assert all(set(line) == names for line in first)


def test_no_garbage_is_looked_for_while_modules_are_loaded_and_then_it_is_again(models, tmp_path):
    """Kills: a fifth more time before the first answer; a program that keeps its garbage to the end."""
    (tmp_path / "sample.py").write_text(
        "from dpo_min.run.start import JOB\n"
        "import gc\n"
        "from dpo_min.system.program import guard\n"
        "print(gc.isenabled(), guard(lambda *job: gc.isenabled(), *JOB))\n"
    )
    command = [sys.executable, tmp_path / "sample.py", "--model", models / "model", "--prompt", "x"]
    (tmp_path / "dpo_min").symlink_to(Path(sample.__file__).parent / "dpo_min")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "False True\n"


def test_a_prompt_that_comes_twice_has_two_answers_and_the_models_draw_apart(models, tmp_path, capsys):
    """Kills: the seed begun again for every prompt, or the same numbers for both models: neither is independent."""
    (tmp_path / "prompts.txt").write_text("x\nx\n")
    same = ["--model", models / "model", "--reference", models / "model", "--prompts", tmp_path / "prompts.txt"]
    assert len({line["completion"] for line in answers(capsys, *same)}) == 4


def test_both_models_answer_side_by_side(models, capsys):
    lines = answers(capsys, "--model", models / "model", "--reference", models / "reference", "--prompt", "x")
    assert [line["model"] for line in lines] == ["model", "reference"]
    assert lines[0]["completion"] != lines[1]["completion"]
    assert ask("--model", models / "model", "--reference", models / "reference", "--prompt", "x") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("\nx\n[model]") and "\n[reference]" in shown


def test_every_sample_is_shown_beside_its_own_number_and_says_which_the_reward_prefers(models, capsys):
    """Kills: one sample shown for all; the reward of another answer than the one above it."""
    argv = ["--model", models / "model", "--reference", models / "reference", "--prompt", "x", "--num-samples", 2]
    lines = answers(capsys, *argv, "--temperature", 0.5, "--max-new-tokens", 4)
    assert ask(*argv, "--temperature", 0.5, "--max-new-tokens", 4) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"[{line['model']}]") for line in lines[:1]]
    for i in (0, 1):
        ours, theirs = ([line for line in lines if line["model"] == name][i] for name in ("model", "reference"))
        block = f"[model]{ours['completion']}\n[reference]{theirs['completion']}\nimplicit reward (β = 0.1): model "
        places.append(shown.index(block, places[-1]))
        better = "model" if ours["reward"] > theirs["reward"] else "reference"
        assert shown[places[-1] + len(block) :].split("prefers ")[1].startswith(better)


def test_prompts_come_from_a_file_or_standard_input(models, tmp_path, capsys, monkeypatch):
    (tmp_path / "prompts.txt").write_text("one\n\nthree\n", encoding="utf-8")
    from_file = answers(capsys, "--model", models / "model", "--prompts", tmp_path / "prompts.txt")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\r\n\nthree\n")))
    from_stdin = answers(capsys, "--model", models / "model")
    assert from_file == from_stdin
    assert [line["prompt"] for line in from_file] == ["one", "", "three"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_is_one_answer_and_ends_in_time(models, capsys, dtype):
    flags = ["--prompt", "abc", "--temperature", 0, "--max-new-tokens", 5, "--dtype", dtype]
    (line,) = answers(capsys, "--model", models / "model", *flags)
    assert len(line["completion"].encode()) <= 15  # five bytes, each at most one U+FFFD
    assert line == answers(capsys, "--model", models / "model", *flags, "--device", "cpu")[0]


def test_the_answer_streams_to_a_terminal_piece_by_piece(models, monkeypatch, capsys):
    """Kills: an answer held back until it is whole."""
    (line,) = answers(capsys, "--model", models / "model", "--prompt", "hello")
    pieces = []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "write", lambda text: pieces.append(text))
    assert ask("--model", models / "model", "--prompt", "hello") == 0
    monkeypatch.undo()
    assert "".join(pieces).rstrip("\n") == "\nhello\n" + line["completion"].rstrip("\n")
    assert len(pieces) > 10


def test_an_answer_ends_before_a_stop_string_and_streams_without_it(models, monkeypatch, capsys):
    """Kills: a stop string shown, wholly or in part, or looked for in the prompt; an end that is not called one."""
    (whole,) = answers(capsys, "--model", models / "model", "--prompt", "hello")
    text = whole["completion"]
    stop = next(text[i : i + 2] for i in range(3, len(text)) if text[i : i + 2].isascii())
    flags = ["--model", models / "model", "--prompt", "hello", "--stop", "never there", stop]
    (line,) = answers(capsys, *flags)
    assert line["ended"] and line["completion"] == text[: text.index(stop)]
    assert whole["logp"] < line["logp"] < 0 and line["logp"] == pytest.approx(line["sampling_logp"], abs=1e-4)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert ask(*flags) == 0
    assert capsys.readouterr().out == f"\nhello\n{line['completion']}\n"


def test_beams_answer_with_the_likeliest_that_they_found(models, capsys):
    """Kills: beams left out; the last of them answered; more of them that find no more."""
    best = [
        answers(capsys, "--model", models / "model", "--prompt", "ab", "--max-new-tokens", 6, *more)[0]
        for more in (["--temperature", 0], ["--num-beams", 1], ["--num-beams", 8])
    ]
    assert best[0]["completion"] == best[1]["completion"]
    assert best[0]["logp"] == pytest.approx(best[1]["logp"], abs=1e-4)
    assert best[2]["logp"] > best[1]["logp"] + 1e-4
    flags = ["--prompt", "ab", "--num-beams", 8, "--length-penalty", 5, "--max-new-tokens", 6, "--min-new-tokens", 2]
    assert ask("--model", models / "model", *flags) == 0
    assert capsys.readouterr().out.startswith("\nab\n")


def test_each_wish_reaches_the_draw(models, capsys):
    """Kills: a flag that is parsed and then not passed on."""
    flags = ["--model", models / "model", "--prompt", "hello", "--num-samples", 4]
    plain = answers(capsys, *flags)
    for wish in (["--min-p", 0.9], ["--repetition-penalty", 9], ["--length-range", 2, 9], ["--top-p", 0.1]):
        assert [line["completion"] for line in answers(capsys, *flags, *wish)] != [line["completion"] for line in plain]
    assert len(answers(capsys, *flags, "--length-range", 2, 3)[0]["completion"].encode()) <= 9


def test_ctrl_c_keeps_what_was_printed(models, monkeypatch, capsys):
    """Kills: an answer that is lost, a line that is not ended, a traceback, another exit code."""
    (whole,) = answers(capsys, "--model", models / "model", "--prompt", "hello")
    pieces = []

    def write(text):
        pieces.append(text)
        if len(pieces) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "write", write)
    with pytest.raises(SystemExit) as stopped:
        ask("--model", models / "model", "--prompt", "hello")
    monkeypatch.undo()
    assert stopped.value.code == 130
    shown = "".join(pieces)
    assert shown.endswith("\n") and len(shown) > len("\nhello\n\n")
    assert ("\nhello\n" + whole["completion"]).startswith(shown.removesuffix("\n"))
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--prompt", "x" * 32], "--prompt: 32 tokens leave no room in the 32 positions"),
        (["--prompt", "x", "--temperature", "-1"], "--temperature"),
        (["--prompt", "x", "--top-p", "0"], "--top-p: expected a number above 0 and up to 1"),
        (["--prompt", "x", "--top-p", "1.5"], "--top-p"),
        (["--prompt", "x", "--top-k", "0"], "--top-k"),
        (["--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["--prompt", "x", "--temperature", "0", "--top-k", "5"], "--top-k has no effect with --temperature 0"),
        (["--prompt", "x", "--prompts", "y"], "--prompts has no effect with --prompt"),
        (["--prompt", "x", "--min-p", "1"], "--min-p"),
        (["--prompt", "x", "--repetition-penalty", "0"], "--repetition-penalty"),
        (["--prompt", "x", "--num-beams", "0"], "--num-beams"),
        (["--prompt", "x", "--num-beams", "2", "--temperature", "0.5"], "--temperature has no effect with --num-beams"),
        (["--prompt", "x", "--num-beams", "2", "--seed", "1"], "--seed has no effect with --num-beams"),
        (["--prompt", "x", "--length-penalty", "1"], "--length-penalty has no effect without --num-beams"),
        (["--prompt", "x", "--num-beams", "1", "--length-penalty", "1"], "--length-penalty has no effect"),
        (["--prompt", "x", "--min-new-tokens", "9", "--max-new-tokens", "8"], "--min-new-tokens 9 is above --max-new"),
        (["--prompt", "x", "--min-new-tokens", "3", "--length-range", "2", "4"], "--min-new-tokens 3 is above the LO"),
        (["--prompt", "x", "--length-range", "5", "4"], "--length-range: expected LO HI"),
        (["--prompt", "x", "--length-range", "0", "4"], "--length-range: expected LO HI"),
        (["--prompt", "x", "--length-range", "5"], "--length-range: expected 2 arguments"),
        (["--prompt", "x", "--length-range", "2", "5", "--max-new-tokens", "5"], "--max-new-tokens has no effect"),
        (["--prompt", "x", "--length-range", "2", "5", "--temperature", "0"], "--length-range has no effect"),
        (["--prompt", "x", "--stop", ""], "--stop"),
        (["--prompt", "x", "--stop", "\udcff"], "--stop"),
        (["--prompts", "nowhere.txt"], "--prompts nowhere.txt"),
        (["--prompt", "x", "--top", "5"], "--top: unknown argument"),
        (["--prompt", "x", "--reference", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(models, capsys, argv, named):
    with pytest.raises(SystemExit) as stopped:
        ask("--model", models / "model", *argv)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error, error


def test_an_embedding_padded_beyond_the_vocabulary_answers_in_text(models, tmp_path, capsys):
    """Kills: an id that the tokenizer does not know ending in a traceback."""
    model = GPT(GPTConfig(vocab_size=400, block_size=32, n_layer=1, n_head=2, n_embd=16))
    save_model_directory(model, load_tokenizer("bytes"), tmp_path)
    lines = answers(capsys, "--model", tmp_path, "--prompt", "hi", "--num-samples", 4)
    assert len(lines) == 4


def test_damaged_weights_and_bytes_that_are_no_text_are_named(models, tmp_path, capsys, monkeypatch):
    model = GPT(GPTConfig(vocab_size=257, block_size=32, n_layer=1, n_head=2, n_embd=16))
    with torch.no_grad():
        model.ln_f.bias.fill_(torch.nan)
    save_model_directory(model, load_tokenizer("bytes"), tmp_path)
    with pytest.raises(SystemExit, match="1"):
        ask("--model", tmp_path, "--prompt", "hi")
    assert "weights are damaged" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n")))
    for argv in ([], ["--prompt", "\udcff"]):
        with pytest.raises(SystemExit, match="2"):
            ask("--model", models / "model", *argv)
        assert "UTF-8" in capsys.readouterr().err


def test_no_prompt_at_all_says_where_prompts_come_from(models, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(SystemExit, match="2"):
        ask("--model", models / "model")
    assert "standard input" in capsys.readouterr().err
