"""docs/losses.md says what the tables of losses say, and its picture shows their values and slopes."""

import re

import pytest
import torch
from torch.testing import assert_close

from dpo_min.losses import LOSSES
from dpo_min.margin_losses import MARGIN_LOSSES, Loss
from dpo_min.ratio_losses import RATIO_LOSSES, RatioLoss
from dpo_min.run.loss_flags import OTHERS, PARAMETERS, loss_weights

losses_page = pytest.importorskip("experiments.losses_page", reason="the experiments are deletable")
pages = pytest.importorskip("experiments.pages", reason="the experiments are deletable")
PAGE = (losses_page.DOCS / "losses.md").read_text(encoding="utf-8")


def rows(text):
    """First cell without its link → the other cells."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {re.sub(r"[\[`\"].*?(\w[\w-]*)[`\"].*", r"\1", first): rest for first, *rest in cells}


def test_the_tables_are_what_the_program_writes():
    """`make figures` renews them. Kills: a page that was not renewed after a row had changed."""
    for name, text in (("choosing", losses_page.choosing()), ("running", losses_page.running())):
        assert pages.between(name, text) in PAGE, name


def test_every_row_stands_in_both_tables_with_its_own_words():
    choosing, running = rows(losses_page.choosing()), rows(losses_page.running())
    assert [*choosing] == [*running] == [*LOSSES]
    for name, row in LOSSES.items():
        assert choosing[name][0] == row.about and running[name][0] == row.source
        assert running[name][1] == ("yes" if row.reference else "none")
        given = re.findall(r"`--loss-(\w+)` ([\d.]+)", running[name][3])
        assert {key: float(value) for key, value in given} == {
            key: losses[name] for key, losses in PARAMETERS.items() if name in losses
        }


def test_where_a_loss_ends_is_what_proof_md_says():
    """Kills: the table of flipped labels in the place of the true ones."""
    ends = losses_page.endings()
    assert [*ends] == [*LOSSES]
    assert ends["sigmoid"] == "**π_r**" and ends["dpop"] == "π_ref" and ends["robust"].startswith("nowhere")
    assert ends["odpo"] == "the optimum of 2r" and ends["apo_down"].startswith("a boundary")


def test_the_arrows_and_the_first_push_by_hand():
    """Kills: a slope with its sign turned, the two sides swapped."""
    found = rows(losses_page.choosing())
    assert found["sigmoid"][1:4] == ["↑", "↓", "50 %"]
    assert found["ipo"][1:4] == ["↑↓", "↑↓", "50 %"]  # beyond its target it pulls back
    assert found["nca"][1:3] == ["↑↓", "↓"]
    assert found["apo_down"][1:4] == ["↑↓", "↓", "0 %"]
    assert found["discopop"][3] == "−50 %"  # the wrong way
    assert found["slic"][1:4] == ["↑", "↓", "67 %"]  # (1 + α) : 1 at α = 1
    assert found["cpo"][3] == f"{(0.05 + 1) / (0.05 + 1 + 0.05):.0%}".replace("%", " %")  # β/2 + α : β/2
    assert found["rpo"][3] == f"{(0.05 + 1 / 20) / (0.05 + 1 / 20 + 0.05):.0%}".replace("%", " %")
    assert losses_page.arrow(torch.zeros(3)) == "–"


@pytest.fixture(scope="module")
def figure():
    return losses_page.draw()


def test_each_panel_shows_its_loss_and_arrows_along_its_descent(figure):
    """Kills: a and b swapped on the axes, arrows uphill, a panel of another loss."""
    panels = {axis.get_title(): axis for axis in figure.axes}
    assert [*panels] == [*LOSSES]
    for name, axis in panels.items():
        ((arrows,), (bands,)) = (
            [child for child in axis.get_children() if type(child).__name__ == kind]
            for kind in ("Quiver", "QuadContourSet")
        )
        a, b = (torch.tensor(side, dtype=torch.float64).flatten() for side in (arrows.X, arrows.Y))
        value, by_a, by_b = losses_page.value_and_slopes(name, a, b, 1.0)
        u, v = (torch.tensor(part, dtype=torch.float64).flatten() for part in (arrows.U, arrows.V))
        scale = torch.hypot(u, v) / torch.hypot(by_a, by_b).clamp(min=1e-300)
        assert_close(torch.stack([u, v]), -scale * torch.stack([by_a, by_b]), rtol=1e-6, atol=1e-9)
        assert torch.hypot(u, v).max() == pytest.approx(1.0)
        assert bands.levels[0] <= value.min() and value.max() <= bands.levels[-1]
        assert axis.get_xlabel() == ("a" if LOSSES[name].reference else "log π(y_w)")
        if LOSSES[name].reference:
            assert a.unique().tolist() == pytest.approx(b.unique().tolist()) and a.min() < 0 < a.max()


def test_a_new_row_of_either_table_is_on_the_page_and_in_the_picture_by_itself(monkeypatch):
    """Kills: a list of the losses, or their number, beside the tables."""
    new = {
        "mine": Loss(lambda h, beta, _: (beta * h - 1) ** 2, lambda h, beta, _: 2 * beta * (beta * h - 1), "me", "try"),
        "ours": RatioLoss(lambda a, b, beta, pull=2.0: b - pull * a, lambda a, b, beta, pull=2.0: (
            torch.full_like(a, -pull), torch.ones_like(b)), "us", "try, too"),
    }  # fmt: skip
    monkeypatch.setattr(losses_page, "LOSSES", LOSSES | new)
    monkeypatch.setattr(losses_page, "find", lambda name, path: 1)
    monkeypatch.setattr(losses_page, "PARAMETERS", PARAMETERS | {"pull": {"ours": 2.0}})
    choosing, running = rows(losses_page.choosing()), rows(losses_page.running())
    assert [*choosing][-2:] == [*running][-2:] == ["mine", "ours"]
    assert choosing["mine"][:3] == ["try", "↑↓", "↑↓"] and choosing["ours"][1:4] == ["↑", "↓", "67 %"]
    assert "make proof" in choosing["mine"][4] and running["ours"][3] == "`--loss-pull` 2"
    monkeypatch.setattr(losses_page, "LOSSES", {"sigmoid": LOSSES["sigmoid"], "ours": new["ours"]})
    assert [axis.get_title() for axis in losses_page.draw().axes] == ["sigmoid", "ours"]


def test_the_losses_of_the_table_of_troubles_exist():
    """Kills: a name that the command refuses."""
    section = PAGE[PAGE.index("## Which loss for") : PAGE.index("## What each one does")]
    named = [re.findall(r"`([^`]+)`", line.split("|")[2]) for line in section.splitlines() if line.startswith("| ")]
    found = {name for cells in named for name in cells if not name.startswith("--")}
    assert all(name in OTHERS or loss_weights(name) for name in found)
    assert {*MARGIN_LOSSES, *RATIO_LOSSES, *OTHERS} <= found


def test_a_page_without_the_mark_of_a_part_is_refused(tmp_path):
    """Kills: a part that is written nowhere."""
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- one -->\nold \\1\n<!-- end -->\nafter <!-- end -->\n", encoding="utf-8")
    pages.renew(path, {"one": r"new \1"})
    assert path.read_text() == "before\n<!-- one -->\nnew \\1\n<!-- end -->\nafter <!-- end -->\n"
    with pytest.raises(ValueError, match=r"page\.md: the mark <!-- two --> stands 0 times"):
        pages.renew(path, {"two": ""})
