"""The data check: every finding where it is, none where it is not, and the counts of a search through all pairs."""

import gzip
import json
import math
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo_min.data.messages import BadRow
from dpo_min.data.rows import load_preferences, parse_line
from dpo_min.data.templates import PLAIN, TEMPLATES
from dpo_min.data.tokenizer import Tokenizer, load_tokenizer
from dpo_min.data.tokenizing import encode_pair, tokenize
from dpo_min.judge import lint, lint_between
from dpo_min.judge.lint_findings import check_texts
from dpo_min.judge.lint_lengths import Lengths
from tests.training import write

ROOT = Path(lint.__file__).parents[2]
BYTES = load_tokenizer("bytes")
CLEAN = {
    "prompt": "\n\nHuman: what is the tallest tree?\n\nAssistant:",
    "chosen": " A redwood.",
    "rejected": " No idea.",
}


def check(path, *argv, against=None):
    argv = [str(path), *(["--against", str(against)] if against else []), *map(str, argv)]
    config, _ = lint.parse(lint.LintFlags, argv, "")
    return lint.check_files(config, BYTES)


FAULTS = [
    ("malformed", [1], "expected an object"),
    ("malformed", {"chosen": "a"}, "missing key: rejected"),
    ("empty", CLEAN | {"chosen": ""}, "empty completion: chosen"),
    ("empty", CLEAN | {"rejected": " \n\t"}, "rejected"),
    ("identical", CLEAN | {"rejected": CLEAN["chosen"]}, "chosen equals rejected"),
    ("near-identical", CLEAN | {"rejected": " a  REDWOOD."}, ""),
    ("prompt-repeated", CLEAN | {"chosen": " what is the tallest tree? A redwood."}, "chosen"),
    ("prompt-repeated", {"prompt": "Say something:", "chosen": "Say something: x", "rejected": "y"}, "chosen"),
    ("template", CLEAN | {"rejected": " No.<|im_end|>"}, "'<|im_end|>' in rejected"),
    ("template", CLEAN | {"chosen": " Yes. [/INST]"}, "in chosen"),
    ("template", CLEAN | {"chosen": " Yes.\n\nHuman: and then?"}, "'Human:' in chosen"),
    ("template", CLEAN | {"prompt": "### Instruction:\nname a tree"}, "in prompt"),
    ("odd-characters", CLEAN | {"chosen": " a\x00b"}, "in chosen"),
    ("odd-characters", CLEAN | {"prompt": "a\ufffdb name a tree"}, "\\ufffd in prompt"),
    ("odd-characters", CLEAN | {"rejected": " cafÃ©"}, "in rejected"),
    ("odd-characters", CLEAN | {"rejected": " itâ€™s"}, "in rejected"),
    ("empty-prompt", {"prompt": " ", "chosen": "abc", "rejected": "def"}, ""),
    ("truncated", CLEAN | {"chosen": "x" * 600}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("code", "row", "words"), FAULTS)
def test_a_fault_is_found_where_it_is_and_nothing_else(tmp_path, code, row, words):
    """Kills: each of the patterns; a finding under another code; line numbers from zero."""
    report = check(write(tmp_path / "a.jsonl", [CLEAN, row]))
    assert dict(report.counts) == {code: 1}
    assert report.places[code][0].startswith(f"{tmp_path / 'a.jsonl'}:2") and words in report.places[code][0]
    assert (report.errors > 0) == lint.FINDINGS[code][0]
    assert report.rows == 2 and report.usable == (1 if code in ("malformed", "identical") or not row["chosen"] else 2)


@pytest.mark.parametrize(
    "text", [" Ünïcödé, 日本語, 👩\u200d👧 and “quotes” — naïve.", " a < b && c > d | [x]\n\n- Q\n\tA", " €100 Â"]
)
def test_plain_text_of_any_language_is_clean(tmp_path, text):
    """Kills: an emoji's joiner, a currency or a comparison taken for damage."""
    assert not check(write(tmp_path / "a.jsonl", [CLEAN, CLEAN | {"chosen": text}])).counts


ROWS = st.lists(
    st.tuples(*[st.sampled_from("ab")] + [st.sampled_from(["x", "y", "z"])] * 2).map(
        lambda t: {"prompt": t[0], "chosen": t[1], "rejected": t[2]}
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40)
@given(ROWS, ROWS)
@example([{"prompt": "a", "chosen": "x", "rejected": "y"}] * 2, [{"prompt": "a", "chosen": "y", "rejected": "x"}])
def test_what_rows_share_is_what_a_search_through_all_pairs_finds(tmp_path_factory, ours, theirs):
    """Kills: sides compared in order; a duplicate of the other file's row; the first of a group counted too."""
    directory = tmp_path_factory.mktemp("rows")
    report = check(write(directory / "a.jsonl", ours), against=write(directory / "b.jsonl", theirs))

    def usable(rows):
        for row in rows:
            with suppress(BadRow):
                found = parse_line(json.dumps(row).encode())
                yield found.prompt, found.chosen, found.rejected

    ours, theirs = list(usable(ours)), list(usable(theirs))
    unordered = [(p, frozenset((c, r))) for p, c, r in ours]
    pairs = list(combinations(range(len(ours)), 2))
    duplicate = {j for i, j in pairs if ours[i] == ours[j]}
    contradictory = {j for i, j in pairs if unordered[i] == unordered[j] and ours[i] != ours[j]}
    leaked = [row for row in unordered if row in [(p, frozenset((c, r))) for p, c, r in theirs]]
    prompts = [p for p, _, _ in ours if p in [q for q, _, _ in theirs]]
    expected = {"duplicate": duplicate, "contradictory": contradictory, "leaked": leaked, "leaked-prompt": prompts}
    assert {code: report.counts[code] for code in expected} == {code: len(rows) for code, rows in expected.items()}


@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.text("ab ", min_size=0, max_size=9)] * 3), min_size=1, max_size=4), st.integers(2, 12))
def test_truncation_is_counted_as_training_counts_it(tmp_path_factory, texts, length):
    """Kills: limits applied to characters, or without the end-of-text."""
    path = write(
        tmp_path_factory.mktemp("rows") / "a.jsonl",
        [{"prompt": p, "chosen": "c" + c, "rejected": "r" + r} for p, c, r in texts],
    )
    report = check(path, "--max-length", length)
    _, counts = tokenize(load_preferences([path])[0], BYTES, length)
    assert {code: report.counts[code] for code in counts} == counts


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=30))
@example([(7, 7)])
@example([(400, 1)] * 30)
def test_what_length_explains_is_the_least_loss_over_a_grid_of_judges(sizes):
    """Kills: the exponent's sign; a search that stops early; a share above one or below zero."""
    lengths = Lengths()
    for chosen, rejected in sizes:
        lengths.add(prompt=1, chosen=chosen, rejected=rejected)
    share, exponent = lengths.explained()

    def loss(a):
        gaps = [round(math.log(c / r) / lengths.WIDTH) * lengths.WIDTH for c, r in sizes]
        return sum(max(0, -a * d) + math.log1p(math.exp(-abs(a * d))) for d in gaps) / len(gaps)

    assert -1e-12 <= share <= 1 and -50 <= exponent <= 50
    assert share == pytest.approx(1 - loss(exponent) / math.log(2), abs=1e-9)
    assert all(loss(exponent) <= loss(a / 4) + 1e-9 for a in range(-200, 201))


MESSAGES = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what is the tallest tree?"}],
    "chosen": [{"role": "assistant", "content": "A redwood."}],
    "rejected": [{"role": "assistant", "content": "No idea."}],
}


def test_each_form_is_counted_and_each_column_that_is_not_read_is_named(tmp_path):
    """Kills: a form left out, a column named once a row, columns of rows that are refused."""
    rows = [
        CLEAN | {"id": 1, "score": 2.0},
        CLEAN | {"id": 2, "chosen": " An oak."},
        MESSAGES,
        CLEAN | {"context": "a b"},
    ]
    report = check(write(tmp_path / "a.jsonl", rows))
    assert report.forms == {"prompt + chosen + rejected (text)": 2, "prompt + chosen + rejected (messages)": 1}
    assert report.unread == {"id": 2, "score": 1}
    assert report.reasons == {"column": 1}
    shown = lint.as_text(report, lint.parse(lint.LintFlags, [str(tmp_path / "a.jsonl")], "")[0])
    assert "2 rows read as prompt + chosen + rejected (text)" in shown and "not read: id, score" in shown
    assert lint.as_json(report)["unread_columns"] == {"id": 2, "score": 1}


@pytest.mark.parametrize(("change", "code"), [
    ({}, None),
    ({"rejected": [{"role": "assistant", "content": "a  REDWOOD."}]}, "near-identical"),
    ({"chosen": [{"role": "assistant", "content": "what is the tallest tree? A redwood."}]}, "prompt-repeated"),
    ({"chosen": [{"role": "assistant", "content": "Yes.<|im_end|>"}]}, "template"),
    ({"chosen": [{"role": "assistant", "content": " "}]}, "empty"),
    ({"prompt": [{"role": "system", "content": "Be brief."}]}, "empty-prompt"),
])  # fmt: skip
def test_messages_are_looked_at_as_texts_are(tmp_path, change, code):
    """Kills: findings in a template's own markers, a system text taken for what was asked."""
    assert dict(check(write(tmp_path / "a.jsonl", [MESSAGES | change])).counts) == ({code: 1} if code else {})


def test_pairs_are_equal_and_long_as_training_has_them_in_its_template(tmp_path):
    """Kills: lengths without the template's tokens; a pair that the limits make equal called truncated."""
    control = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    tokenizer = Tokenizer({bytes([b]): b for b in range(256)}, 256, control=control)
    same = CLEAN | {"prompt": "q", "chosen": "x" * 30 + "y", "rejected": "x" * 30 + "z"}
    path = write(tmp_path / "a.jsonl", [same, MESSAGES])
    flags, _ = lint.parse(lint.LintFlags, [str(path), "--max-length", "45"], "")
    for template in (TEMPLATES["chatml"], PLAIN):
        report = lint.check_files(flags, tokenizer, template)
        _, counts = tokenize(load_preferences([path], template=template)[0], tokenizer, 45, template=template)
        assert {code: report.counts[code] for code in counts} == counts
        whole = [encode_pair(row, tokenizer, template) for row in load_preferences([path], template=template)[0]]
        assert report.lengths.tokens["prompt"] == [sum(len(p) for p, _, _ in whole), max(len(p) for p, _, _ in whole)]
    assert report.counts["equal"] == 0 and lint.check_files(flags, tokenizer, TEMPLATES["chatml"]).counts["equal"] == 1
    assert check(path, "--max-length", 20).counts["equal"] == 1


LONG = [
    "\n",
    " ",
    "\n ",
    "\nHuman",
    "\n\nHuman:",
    "<|",
    "{%",
    "{{",
    "#",
    "a",
    "\u00e2\u20ac",
    "<|a",
    "\t\n",
    "[",
    "Human: ",
]


@pytest.mark.parametrize("part", LONG)
def test_a_row_of_megabytes_is_looked_at_in_one_pass(tmp_path, part):
    """Kills: a pattern that takes the rest of a run from each of its places. A million characters: 10^12 steps, so
    that the only thing to be counted is whether it ends."""
    text = part * (2**20 // len(part))
    report = lint.Report()
    check_texts(report, "here", text[: 2**18], text, {"chosen": text + "x", "rejected": text})
    assert report.counts["prompt-repeated"] <= 1
    rows = [CLEAN | {"chosen": text + "x", "rejected": text + "y"}]
    assert check(write(tmp_path / "a.jsonl", rows), "--max-length", 10**7).usable == 1


def test_many_equal_rows_are_compared_in_as_many_steps(tmp_path, python_steps):
    """Kills: each of n equal rows compared with all those before it. Counted in lines of Python."""
    steps, reports = [], []
    for n in (300, 600):
        path = write(tmp_path / f"{n}.jsonl", [CLEAN] * n)
        flags, _ = lint.parse(lint.LintFlags, [str(path), "--against", str(path)], "")
        steps.append(python_steps(lambda flags=flags: reports.append(lint.check_files(flags, BYTES))))
        assert reports[-1].counts["duplicate"] == n - 1 and reports[-1].counts["leaked"] == n
    assert steps[1] < 2.2 * steps[0]


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    """Kills: keys or rows kept in a set. Few records wait, so that what is kept would show."""
    monkeypatch.setattr(lint_between, "BUFFERED", 8)
    peaks = []
    for n in (500, 2000):
        path = tmp_path / f"{n}.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(CLEAN | {"chosen": f" {i} {'x' * 100}"}) + "\n" for i in range(n))
        tracemalloc.start()
        check(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_the_command_reports_draws_and_ends_with_its_code(tmp_path):
    good = write(tmp_path / "good.jsonl", [CLEAN, CLEAN | {"chosen": " An oak."}])
    bad = tmp_path / "bad.jsonl.gz"
    bad.write_bytes(gzip.compress(json.dumps(CLEAN).encode() + b"\nnot json\n"))
    command = [sys.executable, "-m", "dpo_min.judge.lint"]

    def run(*argv):
        return subprocess.run([*command, *map(str, argv)], cwd=ROOT, capture_output=True, text=True)

    pytest.importorskip("matplotlib")
    shown = run(good, "--png", tmp_path / "report.png")
    assert (shown.returncode, shown.stderr) == (0, "") and "no errors" in shown.stdout
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"
    shown = run(bad, "--json", "--against", good)
    found = json.loads(shown.stdout)
    assert shown.returncode == 1 and found["rows"] == 2 and found["usable"] == 1 and found["errors"] == 2
    assert found["malformed_reasons"] == {"not JSON": 1}
    assert found["findings"]["leaked"]["examples"] == [f"{bad}:1: with {good}:1"]
    shown = run(tmp_path / "none.jsonl")
    assert shown.returncode == 2 and shown.stderr.count("\n") == 1 and "none.jsonl" in shown.stderr


def test_what_is_found_in_real_preferences_is_there(shared_data):
    """The four completions of white space alone, and no pair contradicted, duplicated or malformed."""
    report = check(shared_data / "hh-harmless-test.jsonl.gz")
    assert report.rows == report.usable == 2312
    assert report.counts["empty"] == report.errors == 4
