"""docs/explainer.html is what its generator writes; test_explainer_page.py tests in a browser how it behaves."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch

from dpo_min.losses import LOSSES
from experiments import explainer, explainer_numbers, javascript

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "explainer.html").read_text(encoding="utf-8")
NUMBERS = json.loads(re.search(r'<script type="application/json" id="numbers">(.*?)</script>', PAGE)[1])
FEW = [(4, 3), (3, 4), (0, 6)]  # of the 42 pairs that a GPT is shown: the others take as long again, each


def leaves(value, path=""):
    """(path, number or text) of everything in a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        yield path, value
    for key, part in parts or ():
        yield from leaves(part, f"{path}/{key}")


def test_the_page_is_what_the_generator_writes():
    """Kills: a template, a table of losses or a number that changed after `make explainer`.

    Processors differ in the last bits, which 20 steps of a GPT carry on: so 1e-6 there, and 1e-9 elsewhere.
    """
    made = json.loads(json.dumps(explainer_numbers.numbers(gpt_pairs=FEW)))
    written = dict(leaves(NUMBERS))
    found = dict(leaves(explainer.shorten(made)))
    assert found.keys() <= written.keys()
    assert all(path.startswith("/steps/gpt/") for path in written.keys() - found.keys())
    for path, value in found.items():
        near = {"rel": 1e-6 if "/gpt/" in path else 1e-9, "abs": 1e-12}
        assert written[path] == (pytest.approx(value, **near) if isinstance(value, float) else value), path
    assert explainer.page(NUMBERS) == PAGE


def test_the_page_is_one_small_file_of_its_own():
    """Kills: a font, a script or a picture from elsewhere."""
    assert len(PAGE.encode()) <= 400_000
    assert set(re.findall(r'(?:href|src)="(.*?)"', PAGE)) == {"derivation.md", "proof.md", "data.md", "../README.md"}
    assert not re.search(r"url\(http|@import|fetch\(|XMLHttp|https?:", PAGE)
    assert "{{" not in PAGE


def test_every_answer_of_the_page_sums_to_one():
    policies = [point["policy"] for point in NUMBERS["optima"]] + [NUMBERS["language"]["reference"]]
    policies += [end["policy"] for ends in NUMBERS["data"]["ends"].values() for end in ends.values()]
    for kind in ("gpt", "table"):
        for history in NUMBERS["steps"][kind].values():
            policies += torch.tensor(history).exp().tolist()
    sums = torch.tensor(policies, dtype=torch.float64).sum(dim=-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)


# The translation of the tables.


def test_every_loss_is_translated():
    script = javascript.losses()
    assert re.findall(r'^  "([\w-]+)": \{', script, re.MULTILINE) == [*LOSSES]
    assert "value: (h, beta, _) => (-logsigmoid((beta * h)))" in script


@pytest.mark.parametrize(
    "text", ["h.erf()", "softplus(h)", "h @ h", "h if h else 0", "h.clamp(min=0, max=1)", "inf - 'h'"]
)
def test_what_cannot_be_translated_is_refused(text):
    """Kills: a new row whose formula is silently something else in the browser."""
    from dpo_min import margin_losses

    with pytest.raises(ValueError, match="no JavaScript is known for"):
        javascript.Translator(margin_losses).expression(ast.parse(text, mode="eval").body)
