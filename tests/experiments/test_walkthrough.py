"""docs/walkthrough.ipynb is what its source gives when it is run here, and opens in any viewer."""

import base64
import json
import re
from pathlib import Path

import pytest

from experiments import walkthrough

PATH = Path(__file__).resolve().parents[2] / "docs" / "walkthrough.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


@pytest.fixture(scope="module")
def made():
    """The notebook, run again."""
    return walkthrough.notebook(walkthrough.SOURCE.read_text(encoding="utf-8"))


def printed(cell):
    """What a cell printed, as its text without numbers and the numbers."""
    text = "".join(line for output in cell["outputs"] for line in output.get("text", []))
    return NUMBER.sub("#", text), [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def test_the_cells_give_what_stands_below_them(made):
    """Kills: a source that changed after `make walkthrough`, a function that was renamed or computes something else.

    What a trained model says differs from processor to processor; there the last numbers have to tell the same story.
    """
    assert len(made["cells"]) == len(NOTEBOOK["cells"]) > 25
    for new, old in zip(made["cells"], NOTEBOOK["cells"], strict=True):
        assert new["source"] == old["source"]
        if new["cell_type"] == "markdown":
            continue
        assert [output["output_type"] for output in new["outputs"]] == [o["output_type"] for o in old["outputs"]]
        if "sampled" not in new["metadata"].get("tags", []):
            (words, numbers), (old_words, old_numbers) = printed(new), printed(old)
            assert words == old_words
            assert numbers == pytest.approx(old_numbers, rel=0.02, abs=0.011)


@pytest.mark.parametrize("which", ["made", "committed"])
def test_the_small_model_learns_the_reward_that_it_never_saw(made, which):
    """Kills: a loop that ascends, a reference that is trained too."""
    cells = (made if which == "made" else NOTEBOOK)["cells"]
    texts = [printed(cell) for cell in cells if "sampled" in cell["metadata"].get("tags", [])]
    imitation, losses, answers, correlation = texts
    assert 15 < imitation[1][-1] < 40
    assert losses[1][0] == pytest.approx(0.693, abs=1e-3) and losses[1][1] < 0.66
    before, after = answers[1][-2:]
    assert after > before + 0.5
    assert correlation[1][-1] > 0.6


def test_the_file_is_small_and_in_the_format_of_notebooks():
    """The fields that nbformat 4.5 asks for, so that any viewer opens it, with every picture in it."""
    assert PATH.stat().st_size < 600_000
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    pictures = 0
    for cell in NOTEBOOK["cells"]:
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell.keys() == {"cell_type", "id", "metadata", "source"} | code
        for output in cell.get("outputs", []):
            for picture in [output["data"]["image/png"]] if "data" in output else []:
                assert base64.b64decode(picture).startswith(b"\x89PNG")
                pictures += 1
    assert pictures >= 10


def test_its_links_lead_to_files():
    for link in re.findall(r"\]\(([^)#]+)", walkthrough.SOURCE.read_text(encoding="utf-8")):
        assert PATH.parent.joinpath(link).exists(), link


def test_it_begins_with_the_six_lines_of_the_first_page():
    readme = PATH.parents[1].joinpath("README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code, result = code.rsplit("  # ", 1)
    (cell,) = (cell for cell in NOTEBOOK["cells"] if "".join(cell["source"]) == code)
    assert cell["outputs"][0]["text"] == [result]


def test_a_mistake_in_the_source_is_not_hidden():
    """Kills: an executor that writes an error into the notebook and goes on."""
    with pytest.raises(NameError):
        walkthrough.notebook("text\n\n```python\nmissing\n```\n")
    two = walkthrough.notebook("```python\nx = 1\n```\n\nthen\n\n```python sampled\nprint(x)\n```\n")["cells"]
    assert [cell["cell_type"] for cell in two] == ["code", "markdown", "code"]
    assert two[2]["outputs"] == [{"output_type": "stream", "name": "stdout", "text": ["1\n"]}]
