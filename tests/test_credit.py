"""Where the reward went: shares that add up, characters that stay whole, and text of a model that can do no harm."""

import copy
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import sample
from dpo_min import run
from dpo_min.credit import (
    Answer,
    Span,
    cells,
    level,
    listed,
    page,
    show_beside,
    spans,
    terminal,
    token_rewards,
    verdict,
    visible,
    wrap,
)
from dpo_min.data import TokenizedPair
from dpo_min.gpt import GPT, GPTConfig
from dpo_min.metrics import preference_metrics
from dpo_min.packing import batch_logps, pack
from dpo_min.tokenizer import Tokenizer, load_tokenizer

END = 4  # end-of-text of tiny_gpt
texts = st.lists(st.integers(0, END), min_size=1, max_size=6)
BYTES = load_tokenizer("bytes")


def perturbed(model):
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


# ---- the rewards of tokens ----


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


# ---- what is shown ----

ACTING = st.sampled_from("\x1b\r\b\x9b\u202e\0<>&\"'é👩")
WILD = st.text(alphabet=st.characters(exclude_categories=["Cs"]) | ACTING, max_size=30)


def even(text, reward, name="chosen"):
    """An answer whose every character has the same reward."""
    return Answer(name, [0], 0, [Span(c, [0], reward) for c in text])


answers = st.builds(even, WILD, st.integers(-300, 300).map(lambda x: x / 100))


@given(WILD)
@example("\x1b]0;title\x07 \x9b31m \r\n \u2066 \u00ad \x7f\ttab")
def test_what_is_visible_holds_no_character_that_acts_and_none_is_lost(text):
    """Kills: an escape sequence or a carriage return of the model reaching the terminal; C1 controls forgotten."""
    shown = visible(text)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert shown.count("\n") == text.count("\n")
    assert shown == "".join(c if c.isprintable() else visible(c) for c in text) and all(visible(c) for c in text)


COLOUR = re.compile(r"\x1b\[30;(4;)?48;5;(\d+)m([^\x1b\n]+)\x1b\[0m")


@given(answers, st.floats(0, 4))
def test_a_terminal_gets_no_escape_but_our_colours_and_no_colour_beyond_its_line(answer, scale):
    """Kills: a colour left on, a newline inside one, rewards of the wrong sign underlined."""
    shown = terminal(answer, scale)
    assert "\x1b" not in COLOUR.sub("", shown)
    assert COLOUR.sub(r"\3", shown) == "".join(visible(span.text) for span in answer.spans)
    reward = answer.spans[0].reward if answer.spans else 0.0
    assert all(bool(underline) == (reward < 0) for underline, _, _ in COLOUR.findall(shown))
    assert bool(COLOUR.search(shown)) == bool(answer.spans and level(reward, scale))


def test_colour_grows_with_the_reward_up_to_the_scale():
    """Kills: colours that are not in proportion, or none at the scale itself."""
    assert [level(x, 2.0) for x in (0, 0.1, -0.4, 1, -2, 9)] == [0, 0, 1, 2, 5, 5]
    assert level(0.0, 0.0) == 0


def test_a_pipe_gets_a_line_a_token_with_its_number():
    answer = Answer("chosen", [1, 2, 3], 0, [Span(" a", [1], 0.5), Span("\n\x1b", [2], -1.25), Span("", [3], 0.0)])
    assert listed(answer).split("\n") == ["  +0.5000   a", "  −1.2500  ⏎␛", "  +0.0000  ⏹"]


class Reader(HTMLParser):
    """What a browser would make of a page: the text of the body, the marked spans, and every tag and attribute."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_data(self, data):
        self.text += data


@given(WILD, st.lists(answers, min_size=1, max_size=3))
@example("</title><script>alert(1)</script>", [even(["</span><img src=x onerror=alert(1)>"], 1.0, "<b>")])
def test_a_page_shows_the_text_and_nothing_of_it_is_markup(prompt, found):
    """Kills: prompt, name or token not escaped; a resource from elsewhere; a number that nobody can read."""
    reader = Reader()
    reader.feed(page("Title " + prompt, [(prompt, found)], 0.1))
    assert set(reader.tags) <= set("html meta title style h1 h2 h3 p span".split())
    assert not {name for _, name, _ in reader.attributes} & {"src", "href", "onerror", "onload"}
    for answer in found:
        assert "".join(visible(span.text) for span in answer.spans) in reader.text.replace("⏹", "")
        assert visible(prompt) in reader.text
    titles = [value for tag, name, value in reader.attributes if (tag, name) == ("span", "title")]
    numbers = [f"{span.reward:+.4f}" for answer in found for span in answer.spans]
    assert titles[len(titles) - len(numbers) :] == numbers
    less = sum(name == "class" and value == "less" for tag, name, value in reader.attributes if tag == "span")
    top = max((abs(s.reward) for a in found for s in a.spans), default=0)
    legend = 2 * (top > 0)
    assert less == legend + sum(s.reward < 0 and level(s.reward, top) > 0 for a in found for s in a.spans)


# ---- side by side ----


@given(WILD, st.integers(2, 20))
@example("one two  three", 4)
@example("中文" * 9, 5)
def test_wrapped_lines_fit_and_hold_the_whole_text(text, width):
    """Kills: wide characters counted as one column, a word lost at a cut, a loop without end."""
    lines = wrap(text, width)
    assert "".join(lines) == visible(text).replace("⏎\n", "")
    assert all(cells(line) <= width for line in lines)


def test_a_wide_terminal_has_two_columns_and_a_pipe_has_labels(monkeypatch, capsys):
    """Kills: a ragged divider; columns in a pipe, where a program reads."""
    named = {"model": "good " * 20 + "中文", "reference": "bad"}
    show_beside(named)
    assert capsys.readouterr().out == f"[model]{named['model']}\n[reference]bad\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "99")
    show_beside(named)
    assert capsys.readouterr().out.startswith("[model]good")
    monkeypatch.setenv("COLUMNS", "101")
    show_beside(named)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2 and {cells(line.split("│")[0]) for line in lines} == {50}
    assert lines[0].split() == ["[model]", "│", "[reference]"] and lines[1].endswith("│ bad")


@given(st.floats(-50, 50), st.floats(-50, 50))
@example(1.0, 1.0)
def test_the_verdict_names_the_higher_reward_whichever_stands_first(a, b):
    """Kills: the lower one preferred, P of the loser, a tie that someone wins."""
    first, second = (Answer(name, [0], 0, [Span("x", [0], r)]) for name, r in (("ann", a), ("bob", b)))
    for text in (verdict(first, second, 0.1), verdict(second, first, 0.1)):
        if a == b:
            assert text.endswith("neither is preferred")
        else:
            name, chance = re.search(r"prefers (\w+), P = ([\d.]+)$", text).groups()
            assert name == ("ann" if a > b else "bob")
            assert float(chance) == pytest.approx(1 / (1 + math.exp(-abs(a - b))), abs=6e-4)


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
        run.save_model_directory(model, FEW if name == "other" else BYTES, directory / name)
    (directory / "config.json").write_text(json.dumps({"data_sha256": "", "beta": 0.25, "max_length": 24}))
    row = json.dumps({"prompt": "é", "chosen": "ja\x1b", "rejected": "nein"})
    (directory / "pairs.jsonl").write_text(f"\n{row}\n{{}}\n")
    return directory


def ask(directory, *argv, reference="reference"):
    flags = ["--model", directory / "model", "--reference", directory / reference, *argv]
    return run.guard(sample.sample, *sample.prepare([str(flag) for flag in flags]))


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
    assert "--credit: the tokenizers of --model and --reference differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--prompt", "x", "--completion", "y"], "--completion has no effect without --credit"),
        (["--prompt", "x", "--html", "page.html"], "--html has no effect without --credit"),
        (["--credit", "--completion", "y"], "--completion needs --prompt"),
        (["--credit", "--prompt", "x", "--completion", ""], "--completion needs --prompt"),
        (["--credit", "--prompt", "x", "--completion", "\udcff"], "--completion: not UTF-8"),
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
        (["--credit", "--prompt", "x", "--html", "no/where.html"], "--html no/where.html"),
        (["--credit", "--prompt", "x", "--beta", "0"], "--beta: expected a number above 0"),
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
            sample.prepare(["--model", str(a_run / "model"), "--prompt", "x", *flags])
        assert f"{named} without --reference" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"data_sha256": "", "beta": "large"}')
    with pytest.raises(SystemExit, match="2"):
        sample.prepare(["--model", str(tmp_path / "model"), "--reference", "x", "--prompt", "x"])
    assert "beta is 'large'" in capsys.readouterr().err
