"""A chat model through every program: trained, evaluated, checked and asked in one template, which it keeps."""

import gzip
import io
import json
import math
import sys

import pytest
import torch

import sample
import train
from dpo_min.data import cache
from dpo_min.data.chat_template import MARK, use_template
from dpo_min.data.templates import PLAIN, TEMPLATES
from dpo_min.data.tokenizer import Tokenizer, load_tokenizer
from dpo_min.judge import evaluate, lint
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.run import job
from dpo_min.run.sample_flags import prepare
from dpo_min.run.session import save_model_directory
from dpo_min.system import program
from tests.training import write

CONTROL = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
SOURCE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HH = "\n\nHuman: hi there\n\nAssistant:"


def message(role, content):
    return {"role": role, "content": content}


def rows(n):
    return [{"prompt": f"q{i}?", "chosen": "good" + "!" * (i % 3), "rejected": "bad"} for i in range(n)]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A model directory with control tokens, and with a chat template that has a default system text."""
    directory = tmp_path_factory.mktemp("chat")
    tokenizer = Tokenizer({bytes([b]): b for b in range(256)}, 256, control=CONTROL, chat_template=SOURCE)
    model = GPT(
        GPTConfig(vocab_size=259, block_size=160, n_layer=1, n_head=2, n_embd=16), torch.Generator().manual_seed(0)
    )
    save_model_directory(model, tokenizer, directory / "model")
    write(directory / "rows.jsonl", rows(16))
    dialogues = [
        {side: [message("user", row["prompt"]), message("assistant", row[side])] for side in ("chosen", "rejected")}
        for row in rows(16)
    ]
    write(directory / "messages.jsonl", dialogues)
    return directory


def run(chat, out, *more, data="rows.jsonl", init=True):
    """A run on the data; its directory."""
    given = ["--init", chat / "model"] if init else ["--n-layer", 1, "--n-head", 2, "--n-embd", 8, "--sft-steps", 1]
    argv = ["--data", chat / data, *given, "--out", out, "--max-steps", 2, "--batch-size", 4, "--max-length", 150]
    assert train.train(job.prepare([str(a) for a in [*argv, "--eval-fraction", 0.4, *more]])) == 0
    return out


def ask(*argv):
    return program.guard(sample.sample, *prepare([str(a) for a in argv]))


def answers(capsys, *argv):
    capsys.readouterr()
    assert ask(*argv, "--jsonl", "--max-new-tokens", 3) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def prepared(chat, *argv):
    """The pairs that a command line trains on, and the tokenizer."""
    found = job.prepare([str(a) for a in ["--out", chat / "never", "--max-length", 150, "--eval-fraction", 0, *argv]])
    return [(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in found.pairs], found.tokenizer


def test_rows_of_text_and_of_messages_train_a_chat_model_on_the_same_ids(chat, capsys):
    """Kills: a prompt that is not a user's turn, an answer closed by the wrong token, a system text left out."""
    texts, tokenizer = prepared(chat, "--data", chat / "rows.jsonl", "--init", chat / "model")
    shown = capsys.readouterr().out
    assert "template: chatml (the model's own); a dialogue without a system text gets 'Be kind.'" in shown
    assert "read as" not in shown
    messages, _ = prepared(chat, "--data", chat / "messages.jsonl", "--init", chat / "model")
    assert texts == messages
    assert "16 rows read as chosen + rejected (whole dialogues)" in capsys.readouterr().out
    prompt, chosen, _ = texts[0]
    assert tokenizer.decode(prompt) == "system\nBe kind.\nuser\nq0?\nassistant\n" and prompt.count(257) == 3
    assert chosen == [*b"good", 258] and tokenizer.end_of_text == 258


@pytest.mark.parametrize(("more", "template"), [
    ([], {"name": "chatml", "system": "Be kind."}),
    (["--system", "Be brief."], {"name": "chatml", "system": "Be brief."}),
    (["--template", "hh"], {"name": "hh"}),
    (["--template", "none"], None),
])  # fmt: skip
def test_a_model_is_asked_in_the_template_that_it_was_trained_in(chat, tmp_path, capsys, more, template):
    """Through train.py, its saved directories, sample.py and the evaluation. Kills: the template of before the run,
    --system forgotten, an answer that goes on beyond its closing token."""
    out = run(chat, tmp_path / "run", *more)
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0 and first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    for name in ("model", "best"):
        again = load_tokenizer(out / name)
        found = use_template(again)
        assert found == (PLAIN if template is None else found.__class__(**vars(TEMPLATES[template["name"]]) | template))
    assert (json.loads((out / "config.json").read_text())["template"]) == (template or {"name": "none"})["name"]
    trained, tokenizer = prepared(chat, "--data", chat / "rows.jsonl", "--init", chat / "model", *more)
    _, prompts, reading = prepare(["--model", str(out / "model"), "--prompt", "q0?"])
    assert sample.encode_prompt(reading["model"][1].ask(prompts[0]), *reading["model"]) == trained[0][0]
    assert json.loads((out / "model" / "config.json").read_text())["eos_token_id"] == tokenizer.end_of_text
    (line,) = answers(capsys, "--model", out / "model", "--prompt", "q0?")
    assert line["prompt"] == "q0?"
    flags, _, theirs, pairs, *_ = evaluate.prepare(
        ["--model", str(out / "model"), "--reference", str(chat / "model"), "--data", str(chat / "rows.jsonl")]
    )
    assert {tuple(pair.prompt_ids) for pair in pairs} <= {tuple(prompt) for prompt, _, _ in trained}
    assert flags and theirs.end_of_text == tokenizer.end_of_text


def test_the_form_of_hh_is_kept_where_rows_have_it_and_not_where_they_are_texts(chat, tmp_path):
    """Kills: a model of plain texts asked in turns; one of dialogues asked without."""
    hh = [
        {"chosen": f"\n\nHuman: q{i}\n\nAssistant: a", "rejected": f"\n\nHuman: q{i}\n\nAssistant: b"} for i in range(9)
    ]
    write(tmp_path / "hh.jsonl", hh)
    write(tmp_path / "mixed.jsonl", hh + rows(9))
    for data, expected in ((tmp_path / "hh.jsonl", TEMPLATES["hh"]), (chat / "messages.jsonl", TEMPLATES["hh"]),
                           (chat / "rows.jsonl", PLAIN), (tmp_path / "mixed.jsonl", PLAIN)):  # fmt: skip
        _, tokenizer = prepared(chat, "--data", data)
        assert use_template(tokenizer) == expected
        again, _ = prepared(chat, "--data", data)
        assert again[0][1][-1] == 256


def test_a_resumed_run_has_the_template_that_it_began_with(chat, tmp_path, capsys):
    """Kills: a template that is no part of what a run is."""
    out = run(chat, tmp_path / "run", "--save-every", 1)
    run(chat, out, "--max-steps", 3, "--resume")
    for more in (["--template", "hh"], ["--system", "Be brief."], ["--prompt-column", "question"]):
        with pytest.raises(SystemExit):
            run(chat, out, "--max-steps", 4, "--resume", *more)
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and more[0] in error


# Prompts


PROMPTS = {
    "plain.txt": ("one\n\nthree\r\n", ["one", "", "three"]),
    "json.txt": (
        '"a\\nb"\n[{"role": "user", "content": "c"}]\n{"prompt": "d"}\n[1, 2]\n"e',
        ["a\nb", None, "d", "[1, 2]", '"e'],
    ),
    "rows.jsonl": ('{"prompt": "a\\n\\nb", "id": 3}\n"c"\n[{"from": "human", "value": "d"}]\n', ["a\n\nb", "c", None]),
    "array.json": ('[\n {"prompt": "a"},\n "b", {"question": "c"}\n]', ["a", "b", None]),
    "dialogues.jsonl": ('[{"role": "user", "content": "a"}]\n[{"role": "user", "content": "b"}]\n', [None, None]),
    "dialogue.json": ('[\n {"role": "user", "content": "a"}\n]\n', [None]),
    "pairs.jsonl": ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', ["a"]),
    "marked.txt": ("\ufeffone\n", ["one"]),
    "marked.jsonl": ('\ufeff"one"\n', ["one"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_of_several_lines_and_turns_come_from_a_file_or_a_pipe(chat, tmp_path, capsys, monkeypatch, name):
    """Kills: a byte order mark, a carriage return or the quotes of JSON in a prompt; a dialogue asked as its JSON."""
    text, expected = PROMPTS[name]
    (tmp_path / name).write_bytes(text.encode())
    lines = answers(capsys, "--model", chat / "model", "--prompts", tmp_path / name)
    written = [line["prompt"] for line in lines]
    assert len(written) == len(expected)
    for found, wanted in zip(written, expected, strict=True):
        assert found == wanted or (
            wanted is None and found.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
        )
    if name.endswith(".txt"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert answers(capsys, "--model", chat / "model") == lines
    else:
        (tmp_path / "zipped.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        assert answers(capsys, "--model", chat / "model", "--prompts", tmp_path / "zipped.jsonl.gz") == lines


def test_a_whole_file_is_one_prompt_where_that_is_asked_for(chat, tmp_path, capsys, monkeypatch):
    (tmp_path / "p.txt").write_bytes(HH.encode())
    (line,) = answers(
        capsys, "--model", chat / "model", "--template", "none", "--prompts", tmp_path / "p.txt", "--one-prompt"
    )
    assert line["prompt"] == HH
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(HH.encode() + b"\n")))
    (line,) = answers(capsys, "--model", chat / "model", "--one-prompt")
    assert line["prompt"] == HH


def test_the_row_of_a_pair_is_judged_as_it_was_trained_on(chat, tmp_path, capsys):
    """Kills: --pair read without the template, or without the columns that flags name; an answer not closed."""
    out = run(chat, tmp_path / "run")
    write(tmp_path / "odd.jsonl", [{"q": "q0?", "good": "good", "bad": "bad"}])
    names = ["--prompt-column", "q", "--chosen-column", "good", "--rejected-column", "bad"]
    both = ["--model", out / "model", "--reference", chat / "model", "--credit", "--jsonl"]
    found = []
    for more in (["--pair", f"{chat / 'rows.jsonl'}:1"], ["--pair", f"{tmp_path / 'odd.jsonl'}:1", *names]):
        capsys.readouterr()
        assert ask(*both, *more) == 0
        found.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert found[0] == found[1] and [line["model"] for line in found[0]] == ["chosen", "rejected"]
    assert found[0][0]["prompt"].startswith("<|im_start|>system\nBe kind.") and found[0][0]["ended"]
    assert ask(*both, "--prompt", "q0?", "--completion", "good") == 0
    line = json.loads(capsys.readouterr().out)
    assert line["reward"] == pytest.approx(found[0][0]["reward"], abs=1e-6) and line["prompt"] == "q0?"


@pytest.mark.parametrize(("argv", "words"), [
    (["--prompts", "bad.jsonl"], "bad.jsonl:2: expected a text, a list of messages or an object, found int"),
    (["--prompts", "tail.jsonl"], "nothing is asked"),
    (["--prompts", "context.jsonl"], "column 'context' holds text"),
    (["--prompts", "wide.txt"], "UTF-16"),
    (["--prompts", "a.csv"], "a table (CSV)"),
    (["--prompt", "x", "--one-prompt"], "--one-prompt has no effect with --prompt"),
    (["--prompt", "x", "--prompt-column", "q"], "--prompt-column has no effect with --prompt"),
    (["--prompt", "x", "--template", "llama3"], "no control token <|begin_of_text|>"),
    (["--prompt", "x", "--template", "zephyr"], "--template: invalid choice: 'zephyr' (choose from"),
    (["--prompt", "x", "--template", "none", "--system", "S"], "--system has no effect"),
])  # fmt: skip
def test_what_cannot_be_asked_is_one_line(chat, tmp_path, capsys, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.jsonl", ["x", 3])
    write(tmp_path / "tail.jsonl", [[message("user", "x"), message("assistant", "y")]])
    write(tmp_path / "context.jsonl", [{"prompt": "x", "context": "a b"}])
    (tmp_path / "wide.txt").write_bytes("x".encode("utf-16"))
    (tmp_path / "a.csv").write_text("prompt,id\nx,1\n")
    with pytest.raises(SystemExit) as stopped:
        ask("--model", chat / "model", *argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and words.replace(" (choose from", "") in error, error


# What is said of the data


def test_what_was_read_left_out_or_shared_is_said(chat, tmp_path, capsys):
    same = [{"prompt": "x", "chosen": "a" * 200 + "b", "rejected": "a" * 200 + "c"}] * 3
    orca = [{"id": 7, "system": "S", "question": "q", "chosen": row["chosen"], "rejected": "bad"} for row in rows(4)]
    (tmp_path / "array.json").write_text(json.dumps(orca))
    write(tmp_path / "eval.jsonl", [*same, {"prompt": "q1?", "chosen": "a", "rejected": "b"}])
    argv = [
        "--data",
        tmp_path / "array.json",
        "--eval-data",
        chat / "rows.jsonl",
        "--sft-data",
        tmp_path / "eval.jsonl",
    ]
    job.prepare([str(a) for a in [*argv, "--out", tmp_path / "run", "--max-length", 100, "--template", "auto"]])
    shown = capsys.readouterr().out
    for words in (
        "array.json is one JSON array",
        "4 rows read as system + question + chosen + rejected (text)",
        "columns that are not read: id",
        "3 pairs dropped, both sides of which are equal in the first 100 tokens",
        "4 pairs to train on, 16 held out",
    ):
        assert words in shown, shown
    argv = ["--data", chat / "rows.jsonl", "--eval-data", tmp_path / "eval.jsonl", "--out", tmp_path / "run"]
    job.prepare([str(a) for a in argv])
    assert "1 held-out pairs have a prompt that is trained on, too" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "words"), [
    (["--ignore-columns", "nothing"], "--ignore-columns nothing: no row has this column"),
    (["--prompt-column", "chosen"], "the same column twice"),
    (["--prompt-column", "q"], "missing key: q; the columns are prompt, chosen, rejected"),
    (["--loss-type", "odpo"], "--loss-type odpo: no row has a number in the column offset"),
    (["--system", "S"], "--system has no effect"),
    (["--template", "chatml"], "no control token <|im_start|>"),
    (["--max-length", "8", "--skip-bad-rows"], "no row is left to train on"),
])  # fmt: skip
def test_flags_of_rows_that_cannot_be_are_one_line(chat, tmp_path, capsys, more, words):
    data = write(tmp_path / "a.jsonl", [{"prompt": "x", "chosen": "a" * 9 + "b", "rejected": "a" * 9 + "c"}])
    with pytest.raises(SystemExit):
        job.prepare([str(a) for a in ["--data", data, "--out", tmp_path / "run", *more]])
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error


def test_the_only_prompt_is_trained_on_and_not_held_out(tmp_path, monkeypatch, capsys):
    """Kills: a run that ends because all rows have one prompt, and it fell to the held-out side."""
    data = write(tmp_path / "a.jsonl", [{"prompt": "x", "chosen": str(i), "rejected": "y"} for i in range(20)])
    monkeypatch.setattr(cache, "HELD_OUT", 10**9)
    for seed in range(60):
        found = job.prepare(["--data", str(data), "--out", str(tmp_path / "run"), "--seed", str(seed)])
        assert (len(found.pairs), len(found.held_out)) == (20, 0)


def test_the_linter_uses_the_models_template_and_says_so(chat, capsys):
    assert lint.main([str(chat / "rows.jsonl"), "--tokenizer", str(chat / "model")]) == 0
    shown = capsys.readouterr().out
    assert (
        "template: chatml (the model's own)" in shown and "16 rows read as prompt + chosen + rejected (text)" in shown
    )
    for more in (
        ["--template", "hh", "--system", "S"],
        ["--tokenizer", str(chat / "model"), "--system", "A longer text"],
    ):
        assert lint.main([str(chat / "rows.jsonl"), *more]) == 0
        other = capsys.readouterr().out
        assert other.split("lengths in tokens")[1] != shown.split("lengths in tokens")[1] and MARK not in other
