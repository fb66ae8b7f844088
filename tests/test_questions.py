"""docs/questions.md and docs/symptoms.md: every link holds, and what no other test settles is settled here."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.rows import parse_line
from dpo_min.data.templates import TEMPLATES
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import TokenizedPair, encode_pair
from dpo_min.gradient import dpo_gradient, gradient_weight
from dpo_min.logprob import sequence_logprobs
from dpo_min.losses import LOSSES
from dpo_min.preference import margin

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
links = pytest.importorskip("experiments.links", reason="the tool that renews the links is deletable")
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("questions", "symptoms", "losses")}
SECTIONS = re.findall(r"^## (\d+)\. (.*?)\n\n(.*?)(?=^## |\Z)", PAGES["questions"], re.MULTILINE | re.DOTALL)

# The pages


def anchors(text):
    """What the headings of a page are called in links."""
    return {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall("^#+(.*)", text, re.M)
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_a_heading_or_the_line_that_defines_its_name(page):
    """`make links` renews the line numbers. Kills: a test that was renamed, a page or picture that is not there."""
    text = PAGES[page]
    assert links.renew(text, DOCS) == text, "make links renews the line numbers"
    checked = {f"{path}#L{number}" for path, number in re.findall(r"\[`[^`]+`\]\(([^)#]+\.py)#L(\d+)\)", text)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        path = DOCS / (path or f"{page}.md")
        assert path.is_file(), target
        assert target in checked or not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


def test_a_link_to_a_test_says_which():
    """Kills: a test that is linked under another name than its own."""
    named = re.findall(r"\[`(test_\w+)`\]\((\S+)#L(\d+)\)", PAGES["questions"] + PAGES["symptoms"])
    assert len(named) > 50
    for name, path, number in named:
        line = (DOCS / path).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        assert line.startswith(f"def {name}("), (name, line)


def test_there_are_25_questions_each_with_its_test_and_an_answer_of_three_to_eight_sentences():
    assert [int(number) for number, *_ in SECTIONS] == [*range(1, 26)]
    for number, _, text in SECTIONS:
        assert re.search(r"\[`test_\w+`\]", text), number
        prose = re.sub(r"\[`test_\w+`\]\(\S+\)[^.\n]*", "", text)
        sentences = re.findall(r"[.?!](?=\s|\)\s|$)", re.sub(r"`[^`]*`|\w\.\w", "x", prose))
        assert 3 <= len(sentences) <= 8, (number, len(sentences))


def test_the_flags_files_and_targets_that_the_pages_name_exist():
    text = "".join(PAGES.values())
    known = ""
    for program in ("train.py", "sample.py", "-m dpo_min.judge.evaluate", "-m dpo_min.judge.lint"):
        shown = subprocess.run([sys.executable, *program.split(), "--help"], cwd=ROOT, capture_output=True, text=True)
        known += shown.stdout
    for flag in set(re.findall(r"`[^`]*?(--[a-z][a-z-]+)", text)):
        assert flag in known, flag
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make ([a-z-]+)`", text)):
        assert f"\n{target}: " in targets, target
    for module in set(re.findall(r"python -m ([\w.]+)", text)):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module


# What no other test settles


@pytest.fixture(scope="module")
def policy(tiny_gpt):
    """Another policy than tiny_gpt, the reference."""
    model, generator = copy.deepcopy(tiny_gpt), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model.requires_grad_()


IDS = st.lists(st.integers(0, 4), min_size=1, max_size=4)


@settings(max_examples=8)
@given(st.data(), st.integers(1, 4), st.floats(0.05, 2))
def test_for_answers_of_one_length_the_mean_with_n_beta_is_the_sum_with_beta(tiny_gpt, policy, data, n, beta):
    """Question 4, in value and at every parameter. Kills: "β need not change", a β divided by the length."""
    answer = st.lists(st.integers(0, 4), min_size=n, max_size=n)
    batch = pack([TokenizedPair(*data.draw(st.tuples(IDS, answer, answer)))])

    def loss_and_gradient(reduce, beta):
        sides = [*batch_logps(policy, batch, reduce).split(1), *batch_logps(tiny_gpt, batch, reduce).split(1)]
        loss = LOSSES["sigmoid"].value(margin(*sides), beta).sum()
        return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])

    assert_close(loss_and_gradient("mean", n * beta), loss_and_gradient("sum", beta), rtol=1e-9, atol=1e-12)


def test_for_answers_of_two_lengths_no_beta_makes_the_mean_the_sum(tiny_gpt, policy):
    """Question 4: the two margins of three pairs are not in one proportion."""
    pairs = [TokenizedPair([0], [1, 2, 4], [3, 4]), TokenizedPair([1], [2, 4], [0, 0, 1, 4])]
    pairs.append(TokenizedPair([3], [1, 4], [2, 2, 2, 2, 4]))
    with torch.no_grad():
        by_sum, by_mean = (
            margin(*(side for model in (policy, tiny_gpt) for side in batch_logps(model, pack(pairs), reduce).chunk(2)))
            for reduce in ("sum", "mean")
        )
    proportion = by_sum / by_mean
    assert (proportion - proportion[0]).abs().max() > 0.1


@settings(max_examples=20)
@given(IDS, IDS, IDS)
@example([3, 1], [0, 4], [2, 2, 4])
def test_a_prompt_that_is_scored_cancels_in_sums_and_not_in_means(tiny_gpt, policy, prompt, chosen, rejected):
    """Question 11. Kills: "an unmasked prompt changes DPO", and "it never matters"."""

    def h(scored_from, reduce):
        """The margin where tokens from a position on are scored; the first token has nothing before it."""
        sides = []
        for model in (policy, tiny_gpt):
            for answer in (chosen, rejected):
                tokens = torch.tensor([[*prompt, *answer]])
                mask = torch.arange(tokens.shape[1])[None] >= scored_from
                sides.append(sequence_logprobs(model.logits(model(tokens)), tokens, mask, reduce))
        return margin(*sides).item()

    masked, unmasked = (h(start, "sum") for start in (len(prompt), 1))
    assert unmasked == pytest.approx(masked, abs=1e-9)
    assume(len(prompt) > 1 and len(chosen) != len(rejected) and abs(masked) > 1e-3)
    assert h(1, "mean") != pytest.approx(h(len(prompt), "mean"), abs=1e-9)


def test_of_several_turns_all_after_the_last_shared_one_is_scored_and_nothing_before():
    """Question 10: the last answer where only that differs, else a user's words too. Kills: the first turn alone."""
    dialogue = ["q", "A", "more?", "B"]
    roles = "user", "assistant", "user", "assistant"

    def scored(chosen, rejected):
        row = {side: [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
               for side, texts in (("chosen", chosen), ("rejected", rejected))}  # fmt: skip
        tokenizer = load_tokenizer("bytes")
        pair = parse_line(json.dumps(row).encode(), template=TEMPLATES["hh"])
        prompt, *sides = encode_pair(pair, tokenizer, TEMPLATES["hh"])
        assert all(ids.count(tokenizer.end_of_text) == 1 and ids[-1] == tokenizer.end_of_text for ids in sides)
        return tokenizer.decode(prompt), *(tokenizer.decode(ids) for ids in sides)

    shared = "\n\nHuman: q\n\nAssistant:"
    expected = f"{shared} A\n\nHuman: more?\n\nAssistant:", " B", " C"
    assert scored(dialogue, [*dialogue[:3], "C"]) == expected
    expected = shared, " A\n\nHuman: more?\n\nAssistant: B", " D"
    assert scored(dialogue, ["q", "D"]) == expected


@given(st.floats(0.01, 10))
@example(0.1)
def test_ipo_starts_at_a_quarter_of_one_over_beta_squared_and_aims_at_half_of_one_over_beta(beta):
    """Question 21. Kills: a target of 1/β, a loss of (βh − ½)²."""
    ipo, zero = LOSSES["ipo"], torch.zeros(1, dtype=torch.float64)
    assert ipo.value(zero, beta).item() == pytest.approx(1 / (4 * beta**2))
    assert ipo.value(zero + 1 / (2 * beta), beta).item() == pytest.approx(0, abs=1e-18)
    assert ipo.slope(zero + 1 / (2 * beta), beta).item() == pytest.approx(0, abs=1e-9)
    assert beta != 0.1 or ipo.value(zero, beta).item() == pytest.approx(25)


@given(st.floats(-20, 20), st.floats(0.05, 2))
@example(0.0, 0.1)
@example(1e-10, 1.0)
def test_the_other_order_of_the_rewards_is_not_the_gradient(h, beta):
    """Question 24: with σ(r(y_w) − r(y_l)) in the place of the weight. Kills: the two rewards the wrong way round."""
    a = torch.tensor([h], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(LOSSES["sigmoid"].value(a, beta).sum(), a)
    assert_close(slope, dpo_gradient(a.detach(), beta)[0], rtol=1e-9, atol=1e-15)
    assert slope < 0  # a step down raises log π(y_w)
    other = -beta * gradient_weight(-a.detach(), beta)
    assert_close(other - slope, -beta * torch.tanh(beta * a.detach() / 2), rtol=1e-9, atol=1e-15)  # 0 at h = 0 alone
