"""The exercises stay in step with the files that they are cut from, and each known mistake is told by its own law."""

import ast
import re

import pytest

import dpo_min
from dpo_min.learn import cut
from dpo_min.learn.course import PACKAGE, ROOT, anchor, exercises, hollow
from dpo_min.learn.judge import examine
from dpo_min.learn.trial import LAWS

COURSE = {exercise.name: exercise for exercise in exercises()}
MISTAKES = [(exercise.name, mistake) for exercise in exercises() for mistake in exercise.mistakes]


def test_the_exercises_stand_in_the_reading_order():
    files = list(dict.fromkeys(exercise.file for exercise in COURSE.values()))
    order = [f"{name}.py" for name in dpo_min.READING_ORDER] + [f"{wing}/" for wing in dpo_min.WINGS]
    places = [next(i for i, name in enumerate(order) if file.startswith(name)) for file in files]
    assert places == sorted(places) and len(COURSE) == len(exercises()) == 25
    assert set(LAWS) == set(COURSE)


@pytest.mark.parametrize("file", {exercise.file: None for exercise in COURSE.values()})
def test_a_file_that_is_cut_and_filled_again_is_the_file(file):
    """Kills: a body cut one line too far, bytes counted for characters, a decorator or a check that is lost."""
    source, text = (PACKAGE / file).read_text(encoding="utf-8"), hollow(file)
    mine = [exercise for exercise in COURSE.values() if exercise.file == file]
    for exercise in mine:
        assert not cut.is_written(text, exercise.name)
        assert cut.signature(text, exercise.name) == cut.signature(source, exercise.name)
        _, equation = cut.equation(text, exercise.name)
        assert len(equation) > 10 and equation.endswith(cut.equation(source, exercise.name)[1])
    for exercise in mine:
        text = cut.fill(text, exercise.name, cut.bodies(source, exercise.name))
        assert cut.is_written(text, exercise.name)
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(source))
    assert re.sub(r"\n +# ℓ\(h\) = .* e = ε", "", text) == source


def test_what_checks_the_arguments_stays_and_nothing_else():
    text = hollow("preference.py")
    assert "must share one shape (B,)" in text and "return a - b" not in text and "sigmoid(" not in text


@pytest.mark.parametrize("name", COURSE)
def test_the_projects_own_body_is_right(name):
    exercise = COURSE[name]
    assert examine(exercise, exercise.source, exercise.file) is None


@pytest.mark.parametrize(("name", "mistake"), MISTAKES, ids=[f"{name}: {m.put}" for name, m in MISTAKES])
def test_a_known_mistake_is_found_by_its_law_and_told_by_its_name(name, mistake):
    """Kills: a law that a mistake slips through; two mistakes that are taken for each other."""
    exercise = COURSE[name]
    text = cut.change(exercise.source, name, mistake.has, mistake.put)
    found = examine(exercise, text, exercise.file)
    assert found and (found.law, found.why) == (mistake.law, mistake.says), found
    assert found.given and (found.law == "error" or (found.got and found.says))


@pytest.mark.parametrize("name", COURSE)
def test_it_is_explained_where_it_says(name):
    page, _, rest = COURSE[name].explained.partition("#")
    if page.startswith("arXiv:"):
        assert page.removeprefix("arXiv:").split(",")[0] in COURSE[name].source
        return
    text = (ROOT / page).read_text(encoding="utf-8")
    section, _, equation = rest.partition(", equation ")
    assert section in [anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    assert not equation or f"\n    {equation} " in text


def test_the_equations_are_those_of_the_page():
    expected = {
        "kl_divergence": 1,
        "objective": 2,
        "optimal_policy": 5,
        "bradley_terry": 9,
        "margin": 11,
        '"sigmoid"': 12,
    }
    for name, number in expected.items():
        assert COURSE[name].explained.endswith(f"equation ({number})"), COURSE[name].explained
    assert COURSE['"cdpo"'].explained == "docs/derivation.md#other-losses-of-the-margin"
    assert COURSE['"ipo"'].formula == "(h − 1/(2β))²"


@pytest.mark.parametrize("name", COURSE)
def test_there_are_three_hints_and_the_last_is_the_line(name):
    exercise = COURSE[name]
    assert len(exercise.hints) == 2 and 1 <= len(exercise.lines) <= 2
    body = "".join(cut.bodies(exercise.source, name))
    assert all(line in body for line in exercise.lines)


# Bodies that nobody foresaw: each is right in another way, or wrong without being any of the known mistakes.


LOG_2 = "it_is_infinite_where_q_excludes_what_p_does"  # of which a trial is KL([1, 0] ‖ [½, ½])


def written(name, body):
    """What `examine` finds when this is the body."""
    exercise = COURSE[name]
    text = cut.fill(exercise.source, name, body if isinstance(body, list) else [body + "\n"])
    return examine(exercise, text, "theirs.py")


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("expectation", "    return (log_p.exp() * f.where(log_p > -inf, 0)).sum(-1)"),
        ("implicit_reward", "    return (beta * (log_policy - log_ref)).where(log_policy != log_ref, 0)"),
        ("merge", "    return torch.addmm(W, B, A, alpha=scale)"),
        ("optimal_policy", "    z = log_ref + reward / beta\n    return z - z.logsumexp(-1, keepdim=True)"),
        ("bradley_terry", "    return 1 / (1 + (reward_rejected - reward_chosen).exp())"),
        ("wins", "    return (ours - theirs).sign().add(1).div(2)"),
        ('"sigmoid"', ["-logsigmoid(h * beta)", "beta * (sigmoid(beta * h) - 1)"]),
        ("dpo_gradient", "    w = beta / (1 + (beta * h).exp())\n    return -w, w"),
        (
            "Batch.mask",  # causality besides, which the model adds anyway
            "        s = self.segments\n        if s is None:\n            return None\n"
            "        own = (s[:, :, None] == s[:, None]) | (s[:, None] == PROMPT)\n        return own.tril()",
        ),
        (
            "keep_top_p",
            "    probs, ids = logits.softmax(-1).sort(descending=True, stable=True)\n"
            "    keep = probs.cumsum(-1) - probs < p\n"
            "    return logits.masked_fill(~torch.zeros_like(keep).scatter(1, ids, keep), -math.inf)",
        ),
    ],
)
def test_another_right_body_is_right(name, body):
    assert written(name, body) is None


@pytest.mark.parametrize(
    ("name", "body", "law", "words"),
    [
        ("kl_divergence", "    expectation(log_p, log_p - log_q)", "kind", "None: is there a `return`?"),
        ("kl_divergence", "    return log_p.exp() * (log_p - log_q)", "shape", "of shape (2,)"),
        ("kl_divergence", "    return expectation(log_p, log_p - log_q).float()", "dtype", "a float32 tensor"),
        ("kl_divergence", "    return 2 * expectation(log_p, log_p - log_q)", LOG_2, "1.386"),
        (
            "wins",
            "    return (ours >= theirs).float()",
            "dtype",
            "a float32 tensor of shape (1,): .float()",
        ),
        ("log_partition", "    log_ref += reward / beta\n    return log_ref.logsumexp(-1)", "inputs", "afterwards"),
        ("margin", "    return policy_chosen_logps.detach() - 1", "it_is_exactly_zero_at_the_reference", "-2"),
        ("count_completions", "    return vocab_size / 1", "kind", "a float: / gives a float, and // a whole number"),
        ('"sigmoid"', ["(h * beta).tanh()", "h"], "the_loss_starts_at_log_two", "[0]"),
        ('"sigmoid"', ["-log(sigmoid(beta * h))", "h"], "kind", "a float: `math` and `if` give one number"),
        ('"sigmoid"', ["-sigmoid(-beta * h)", "h"], "the_loss_starts_at_log_two", "-0.5"),
        (
            "margin",  # the numbers are right, and so are those of the order that rounds, up to rounding
            "    a, b = log_ratios(policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, "
            "reference_rejected_logps)\n    return a.detach() - b",
            "a_gradient_reaches_the_policy",
            "no gradient",
        ),
        (
            "log_bradley_terry",  # four digits would not tell it from log ½
            "    return F.logsigmoid(reward_chosen - reward_rejected) + 1e-7",
            "it_is_the_logarithm_of_a_probability",
            "-0.6931470806",
        ),
        ("merge", "    return W + scale * (B @ A).T", "error", ""),  # an error too, but not that of A @ B
    ],
)
def test_a_mistake_that_nobody_foresaw_is_found_without_a_guess_at_its_cause(name, body, law, words):
    found = written(name, body)
    assert (found.law, found.why) == (law, "") and words in found.got


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ('"sigmoid"', ["logsigmoid(beta * h)", "beta * sigmoid(-beta * h)"], "The minus sign is missing: a loss"),
        ('"ipo"', ["(h - 1 / 2 * beta) ** 2", "2 * (h - 1 / 2 * beta)"], "1 / 2 * beta is β/2 in Python"),
        (
            "sequence_logprobs",
            "    logps = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)\n"
            "    return (logps * loss_mask[:, 1:]).sum(-1)",
            "0 · (−∞) is NaN, so the mask cannot be multiplied with",
        ),
        (
            "Batch.mask",
            "        return self.segments[:, :, None] == self.segments[:, None]",
            "The answers do not see their prompt",
        ),
        (
            "keep_top_p",
            "    probs, ids = logits.softmax(-1).sort(descending=True, stable=True)\n    drop = probs.cumsum(-1) > p\n"
            "    return logits.masked_fill(torch.zeros_like(drop).scatter(1, ids, drop), -math.inf)",
            "You drop the token with which the sum passes p.",
        ),
    ],
)
def test_of_two_mistakes_at_once_the_one_that_fails_first_is_told(name, body, words):
    """Kills: a sentence that a second mistake, in the other body or under a later law, takes away."""
    assert written(name, body).why.startswith(words)


@pytest.mark.parametrize(
    ("body", "words", "line"),
    [
        ("    return log_p -", "Python cannot read the file: invalid syntax", "    return log_p -"),
        ("    return log_p - log_r", "NameError: name 'log_r' is not defined", "log_r"),
        ("    return log_p[5]", "IndexError: index 5 is out of bounds", "log_p[5]"),
        (
            "    return kl_divergence(log_p, log_q)",
            "RecursionError: maximum recursion depth",
            "kl_divergence(log_p, log_q)",
        ),
        ("    raise SystemExit(3)", "SystemExit: 3", "raise SystemExit"),
        ("    return (log_p - log_q) ^ 2", 'NotImplementedError: "bitwise_xor_cpu" not implemented', "^ 2"),
        (f"    x = log_p\n    {cut.HOLE}", f"the line `{cut.HOLE}` still stands there", cut.HOLE),
    ],
)
def test_an_error_is_one_message_with_its_line(body, words, line):
    found = written("kl_divergence", body)
    assert found.law == "error" and words in found.sentence and "\n" not in found.sentence
    exercise = COURSE["kl_divergence"]
    text = cut.fill(exercise.source, exercise.name, [body + "\n"])
    assert line in text.split("\n")[found.line - 1]


def test_a_function_that_is_renamed_or_takes_something_else_is_missed():
    exercise = COURSE["margin"]
    text = exercise.source.replace("def margin(policy_chosen_logps", "def margin(chosen")
    assert "the arguments stay what they are" in examine(exercise, text, "theirs.py").sentence
    found = examine(exercise, exercise.source.replace("def margin(", "def h("), "theirs.py")
    assert "margin is no longer defined here" in found.sentence
