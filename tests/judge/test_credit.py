"""Where the reward went: shares that add up, characters that stay whole, and the answers that are asked for."""

import copy
import json
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sample
from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.tokenizer import Tokenizer, load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.judge.credit import spans
from dpo_min.judge.scoring import token_rewards
from dpo_min.metrics import preference_metrics
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.run import session
from dpo_min.run.sample_flags import prepare
from dpo_min.system import program

END = 4  # end-of-text of tiny_gpt
texts = st.lists(st.integers(0, END), min_size=1, max_size=6)
BYTES = load_tokenizer("bytes")


def perturbed(model):
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


# ---- the rewards of tokens ----


@settings(max_examples=40)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5), st.floats(0.01, 10), st.integers(1, 6))
def test_the_rewards_of_the_tokens_add_up_to_the_implicit_reward(tiny_gpt, rows, beta, size):
    """Kills: β left out or squared, a first or last token without its share, rows out of order, π_ref for π."""
    reference = perturbed(tiny_gpt)
    batch = pack([TokenizedPair(x, y, y) for x, y in rows])
    logps = [batch_logps(model, batch).chunk(2) for model in (tiny_gpt, reference)]
    rewards = token_rewards(tiny_gpt, reference, *zip(*rows, strict=True), beta, micro_batch_size=size)
    assert [len(r) for r in rewards] == [len(y) for _, y in rows]
    totals = torch.stack([r.sum() for r in rewards])
    torch.testing.assert_close(totals, preference_metrics(*logps, beta)["rewards/chosen"], rtol=1e-12, atol=1e-11)
    means = token_rewards(tiny_gpt, reference, *zip(*rows, strict=True), beta, "mean", micro_batch_size=size)
    for whole, part, (_, y) in zip(rewards, means, rows, strict=True):
        torch.testing.assert_close(part * len(y), whole, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(texts, texts)
def test_a_tokens_reward_depends_on_what_stands_before_it_alone(tiny_gpt, prompt, completion):
    """Kills: shares that are shifted by a token: each is the next token's log-ratio given its prefix."""
    reference = perturbed(tiny_gpt)
    (rewards,) = token_rewards(tiny_gpt, reference, [prompt], [completion], 0.5)
    for t, token in enumerate(completion):
        before = torch.tensor([prompt + completion[:t]])
        ours, theirs = (m.logits(m(before))[0, -1].log_softmax(-1)[token] for m in (tiny_gpt, reference))
        assert rewards[t].item() == pytest.approx(0.5 * (ours - theirs).item(), abs=1e-12)


def test_an_answer_longer_than_the_positions_is_refused(tiny_gpt):
    with pytest.raises(ValueError, match="13 tokens, the models 12 positions"):
        token_rewards(tiny_gpt, tiny_gpt, [[0] * 6], [[1] * 7], 0.1)


# ---- spans ----

FEW = Tokenizer({bytes([b]): b for b in range(256)} | {b"\xc3\xa9": 256, "👩".encode()[:2]: 257}, end_of_text=258)
characters = st.text(max_size=12).map(FEW.encode) | st.lists(st.integers(0, 260), max_size=12)


@given(characters, st.data())
@example([*FEW.encode("aé👩‍🚀"), 258], None)
@example([0xF0, 258, 0x9F, 0x91, 0xA9, 0xC3], None)
@example([259, 258, 0xFF], None)
def test_spans_keep_every_id_every_reward_and_the_very_text(ids, data):
    """Kills: U+FFFD for half a character, an unfinished one dropped at the end, a share that goes to nobody."""
    rewards = [float(i) for i in range(len(ids))] if data is None else [data.draw(st.floats(-9, 9)) for _ in ids]
    found = spans(FEW, ids, rewards)
    assert [i for span in found for i in span.ids] == ids
    assert "".join(span.text for span in found) == FEW.decode(ids)
    assert math.fsum(span.reward for span in found) == pytest.approx(sum(rewards), abs=1e-9)


@given(st.text(max_size=10))
def test_a_span_of_whole_characters_has_no_more_tokens_than_it_needs(text):
    """Kills: the whole text as one span. Over bytes, each character is one."""
    assert [span.text for span in spans(BYTES, BYTES.encode(text), [0.0] * len(text.encode()))] == list(text)


# ---- the command ----


@pytest.fixture(scope="module")
def a_run(tmp_path_factory):
    """A run's directory with β = 0.25: a model, its reference, and one that reads otherwise."""
    directory = tmp_path_factory.mktemp("run")
    for seed, name in enumerate(("model", "reference", "other")):
        sizes = GPTConfig(vocab_size=259, block_size=32, n_layer=1, n_head=2, n_embd=16)
        model = GPT(sizes, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            model.wte.weight.mul_(20)
        session.save_model_directory(model, FEW if name == "other" else BYTES, directory / name)
    (directory / "config.json").write_text(json.dumps({"data_sha256": "", "beta": 0.25, "max_length": 24}))
    row = json.dumps({"prompt": "é", "chosen": "ja\x1b", "rejected": "nein"})
    (directory / "pairs.jsonl").write_text(f"\n{row}\n{{}}\n")
    return directory


def ask(directory, *argv, reference="reference"):
    flags = ["--model", directory / "model", "--reference", directory / reference, *argv]
    return program.guard(sample.sample, *prepare([str(flag) for flag in flags]))


def rows(directory, capsys, *argv):
    assert ask(directory, *argv, "--jsonl") == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_both_sides_of_a_row_have_the_rewards_that_the_loss_would_see(a_run, capsys):
    """Kills: an end-of-text that is not scored, another β than the run's, the wrong line of the file."""
    found = rows(a_run, capsys, "--credit", "--pair", a_run / "pairs.jsonl:2")
    assert [(row["model"], row["completion"]) for row in found] == [("chosen", "ja\x1b"), ("rejected", "nein")]
    pair = TokenizedPair(BYTES.encode("é"), [*b"ja\x1b", 256], [*b"nein", 256])
    models = [sample.load_model(a_run / name).requires_grad_(False) for name in ("model", "reference")]
    metrics = preference_metrics(*(batch_logps(model, pack([pair])).chunk(2) for model in models), 0.25)
    for row, side in zip(found, ("chosen", "rejected"), strict=True):
        assert row["reward"] == pytest.approx(metrics[f"rewards/{side}"].item(), abs=1e-4)
        assert row["reward"] == pytest.approx(sum(reward for _, reward in row["credit"]), abs=1e-9)
    twice = rows(a_run, capsys, "--credit", "--pair", a_run / "pairs.jsonl:2", "--beta", 0.5)
    assert twice[0]["reward"] == pytest.approx(2 * found[0]["reward"], rel=1e-5)


def test_an_answer_that_is_given_and_answers_that_are_drawn(a_run, tmp_path, capsys):
    """Kills: fresh samples where one was given; raw control characters; a page that is not written."""
    (row,) = rows(a_run, capsys, "--credit", "--prompt", "é", "--completion", "ja\x1b")
    assert row["model"] == "completion" and row["ended"]
    assert row["reward"] == pytest.approx(
        rows(a_run, capsys, "--credit", "--pair", a_run / "pairs.jsonl:2")[0]["reward"], abs=1e-5
    )
    assert ask(a_run, "--credit", "--prompt", "\x1b[2J", "--num-samples", 2, "--html", tmp_path / "page.html") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and shown.count("implicit reward (β = 0.25)") == 2
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("implicit reward (β = 0.25)") == 2 and "␛[2J" in text


def test_long_rows_are_cut_as_in_training_and_said_to_be(a_run, tmp_path, capsys):
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "p" * 40, "chosen": "c" * 40, "rejected": "r"}))
    found = rows(a_run, capsys, "--credit", "--pair", f"{tmp_path / 'long.jsonl'}:1")
    assert [row["completion"] for row in found] == ["c" * 12, "r"]
    assert ask(a_run, "--credit", "--pair", f"{tmp_path / 'long.jsonl'}:1") == 0
    assert capsys.readouterr().err == "cut to 24 tokens, as in training\n"


def test_models_that_read_differently_answer_but_are_not_compared(a_run, capsys):
    """Kills: rewards of the ids of another vocabulary."""
    assert ask(a_run, "--prompt", "x", reference="other") == 0
    assert "implicit reward" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        ask(a_run, "--prompt", "x", "--credit", reference="other")
    assert "--credit: the tokenizers or the numbers of positions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--prompt", "x", "--completion", "y"], "--completion has no effect without --credit"),
        (["--prompt", "x", "--html", "page.html"], "--html has no effect without --credit"),
        (["--credit", "--completion", "y"], "--completion needs --prompt"),
        (["--credit", "--prompt", "x", "--completion", ""], "--completion needs --prompt"),
        (["--credit", "--prompt", "x", "--completion", "\udcff"], "--completion: expected UTF-8 text"),
        (
            ["--credit", "--prompt", "x", "--completion", "y", "--top-k", "3"],
            "--top-k has no effect where nothing",
        ),
        (["--credit", "--pair", "pairs.jsonl:2", "--seed", "3"], "--seed has no effect where nothing is drawn"),
        (["--credit", "--pair", "pairs.jsonl:2", "--prompt", "x"], "--prompt has no effect with --pair"),
        (["--credit", "--pair", "pairs.jsonl"], "--pair: expected FILE:LINE"),
        (["--credit", "--pair", "pairs.jsonl:1"], "has no row in line 1"),
        (["--credit", "--pair", "pairs.jsonl:3"], "pairs.jsonl:3: missing key: chosen, rejected"),
        (["--credit", "--pair", "nowhere:1"], "nowhere: cannot be read"),
        (
            ["--credit", "--prompt", "x", "--html", "no/where.html"],
            "--html: expected a file in a directory that exists",
        ),
        (["--credit", "--prompt", "x", "--beta", "0"], "--beta: expected a number from 10^-6 to 10^9"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(a_run, monkeypatch, capsys, argv, named):
    monkeypatch.chdir(a_run)
    with pytest.raises(SystemExit, match="2"):
        ask(a_run, *argv)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error, error


def test_a_reward_needs_a_reference_and_a_run_a_beta(a_run, tmp_path, capsys):
    for flags, named in ((["--credit"], "--credit has no effect"), (["--beta", "1"], "--beta has no effect")):
        with pytest.raises(SystemExit, match="2"):
            prepare(["--model", str(a_run / "model"), "--prompt", "x", *flags])
        assert f"{named} without --reference" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"data_sha256": "", "beta": "large"}')
    with pytest.raises(SystemExit, match="2"):
        prepare(["--model", str(tmp_path / "model"), "--reference", "x", "--prompt", "x"])
    assert "beta is 'large'" in capsys.readouterr().err
