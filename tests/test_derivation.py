"""docs/derivation.md: every link leads to the line it names, every number is what the functions say."""

import re
from pathlib import Path

import pytest
import torch

from dpo_min.exact import count_completions
from dpo_min.losses import LOSSES
from dpo_min.objective import expectation, implicit_reward, kl_divergence, log_partition, objective, optimal_policy
from dpo_min.preference import bradley_terry

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "derivation.md").read_text(encoding="utf-8")
links = pytest.importorskip("experiments.links", reason="the tool that renews the links is deletable")


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_every_link_to_code_leads_to_the_line_that_defines_its_name():
    """`make links` renews the numbers after a change."""
    found = re.findall(r"\[`([^`]+)`\]\(([^)#]+)#L(\d+)\)", PAGE)
    assert len(found) > 50
    for name, path, number in found:
        line = (DOCS / path).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        assert name.split(".")[-1] in line, f"{path}:{number} is {line!r}, not {name}"
    assert links.renew(PAGE, DOCS) == PAGE


@pytest.mark.parametrize("page", ["derivation.md", "proof.md"])
def test_every_link_leads_to_a_file_and_every_line_number_is_one_that_is_checked(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall("^#+(.*)", text, re.M)
    }
    assert {target[1:] for target in targets if target.startswith("#")} <= headings
    targets = [target for target in targets if not target.startswith("#")]
    assert targets
    for target in targets:
        assert (DOCS / target.split("#")[0]).is_file(), target
    assert len(links.LINK.findall(text)) == sum("#" in target for target in targets)


def test_a_link_to_nothing_or_to_two_things_is_refused(tmp_path):
    """Kills: a link checker that finds whatever it is asked for."""
    (tmp_path / "code.py").write_text(
        'def once():\n    pass\n\nT = {\n    "row": 1,\n}\n\ndef twice(): ...\ndef twice(): ...\n'
    )
    assert (
        links.renew('[`once`](code.py#L9) [`"row"`](code.py#L1)', tmp_path)
        == '[`once`](code.py#L1) [`"row"`](code.py#L5)'
    )
    for name, found in (("nowhere", 0), ("twice", 2), ("onc", 0)):
        with pytest.raises(ValueError, match=rf"code\.py: {name} is defined on {found} lines, expected 1"):
            links.renew(f"[`{name}`](code.py#L1)", tmp_path)


def test_every_equation_has_a_number_in_order():
    numbers = [int(n) for n in re.findall(r"^    \((\d+)\)  ", PAGE, re.MULTILINE)]
    assert numbers == list(range(1, 15))


def test_the_numbers_worked_by_hand_are_what_the_functions_say():
    weights = tensor(7, 2, 1)
    assert torch.equal(weights / weights.sum(), tensor(0.7, 0.2, 0.1))
    assert_says("Weights 7, 2, 1 sum to 10. Divided by it they are the probabilities 0.7, 0.2, 0.1.")

    log_ref, reward = tensor(0.8, 0.1, 0.1).log(), tensor(0, 1, 0)  # "cats", "the reward function", anything else
    assert_says('"cats" with\nprobability 0.8, "the reward function" with 0.1, and anything else with 0.1')
    for beta in (4, 1, 0.25):
        policy = optimal_policy(log_ref, reward, beta)
        z, kl, mean = (
            log_partition(log_ref, reward, beta).exp(),
            kl_divergence(policy, log_ref),
            expectation(policy, reward),
        )
        cells = [f"{value.item():.3f}" for value in (z, *policy.exp(), kl, mean)]
        assert_says(f"| {beta:g} | " + " | ".join(cells) + " |")
        torch.testing.assert_close(objective(policy, log_ref, reward, beta), beta * z.log(), rtol=1e-12, atol=0)
    assert_says(f"At β = 0.25 it is worth {kl.item():.3f} nats of drift.")

    r_cats, r_reward, _ = implicit_reward(policy, log_ref, 0.25).tolist()
    assert r_reward - r_cats == pytest.approx(1, abs=1e-12)
    p_cats, p_reward, _ = policy.exp().tolist()
    difference = f"0.25 · [log({p_reward:.3f}/0.1) − log({p_cats:.3f}/0.8)] = {r_reward - r_cats:.2f} = r_w − r_l"
    assert_says(f"{difference}, and Z = {z.item():.3f} was not needed")
    assert_says(f"σ(1) = {bradley_terry(tensor(1), tensor(0)).item():.3f}")

    assert_says(
        f"For T = 1 there are {count_completions(50257, 1):,} terms, for T = 2 they are {count_completions(50257, 2):,}"
    )
    assert_says(f"for T = 20 a number of {len(str(count_completions(50257, 20)))} digits")
    assert_says(f"For five tokens and T = 4 there are\n{count_completions(5, 4)}")

    loss = LOSSES["sigmoid"].value(tensor(0), 0.1).item()
    assert_says(f"L = log 2 = {loss:.3f}")


def assert_says(text):
    """The page contains it, wherever its lines break."""
    assert " ".join(text.split()) in " ".join(PAGE.split()), text
