"""The pictures of docs/derivation.md: drawn from nothing, legible, and what they claim read back out of them."""

import functools
import math
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch

pytest.importorskip("matplotlib")
figures = pytest.importorskip("experiments.figures", reason="the pictures' tool is deletable")

from dpo_min.exact import count_completions  # noqa: E402
from dpo_min.gradient import dpo_gradient  # noqa: E402
from dpo_min.margin_losses import MARGIN_LOSSES as LOSSES  # noqa: E402

NAMES = pytest.mark.parametrize("name", figures.FIGURES)
close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


@functools.cache
def written():
    """Every Figure that main draws, and every file that it writes, by name. Any warning is an error here."""
    kept = {}

    def keeping(name, draw):
        return lambda: kept.setdefault(name, draw())

    table = {name: keeping(name, draw) for name, draw in figures.FIGURES.items()}
    with tempfile.TemporaryDirectory() as out:
        with mock.patch.dict(figures.FIGURES, table), mock.patch.object(sys, "argv", ["figures", "--out", out]):
            figures.main()
        return kept, {path.name: path.read_bytes() for path in Path(out).iterdir()}


def drawn(name):
    return written()[0][name]


def panel(picture, name):
    return next(axis for axis in drawn(picture).axes if axis.get_label() == name)


def data(line):
    """The points of a line, two float64 vectors."""
    return [torch.tensor(values, dtype=torch.float64) for values in line.get_data()]


def curve(axis, label):
    return data(next(line for line in axis.lines if line.get_label().startswith(label)))


def dots(axis):
    """The single points of a panel, as (x, y)."""
    return [tuple(point.item() for point in data(line)) for line in axis.lines if len(line.get_xdata()) == 1]


def test_the_command_writes_every_picture_from_nothing_and_always_the_same(tmp_path):
    """Kills: a picture left out, random data, a time or a version in the file, a letter that no font has."""
    out, root = tmp_path / "new" / "folder", Path(figures.__file__).parents[1]
    command = [sys.executable, "-W", "error", "-m", "experiments.figures", "--out", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", cwd=root)
    assert done.stdout.splitlines() == [str(out / f"{name}.png") for name in figures.FIGURES]
    assert "does not have a glyph" not in done.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == written()[1]


@NAMES
def test_a_picture_is_as_wide_as_a_page_and_a_small_file(name):
    image = written()[1][f"{name}.png"]
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", image[16:24])
    assert width == 960 and 400 <= height <= 700
    assert 20_000 < len(image) < 150_000


@NAMES
def test_every_axis_is_labelled(name):
    """A label is hidden only where the panel shares its scale with one that shows it."""
    figure = drawn(name)
    assert figure.get_suptitle()
    shown = [axis for axis in figure.axes if axis.axison]
    told = {(axis.get_ylabel(), axis.get_ylim()) for axis in shown if axis.yaxis.label.get_visible()}
    for axis in shown:
        assert axis.get_xlabel() and axis.xaxis.label.get_visible(), axis.get_label()
        assert axis.get_ylabel() and (axis.get_ylabel(), axis.get_ylim()) in told, axis.get_label()


@NAMES
def test_nothing_is_cut_off_and_no_panel_runs_into_another(name):
    figure = drawn(name)
    boxes = [axis.get_tightbbox() for axis in figure.axes if axis.axison]
    boxes += [axis.get_legend().get_window_extent() for axis in figure.axes if axis.get_legend() and not axis.axison]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


@NAMES
def test_lines_differ_by_more_than_their_colour(name):
    for axis in drawn(name).axes:
        lines = [line for line in axis.lines if not line.get_label().startswith("_")]
        styles = {(line.get_linestyle(), line.get_marker(), line.get_linewidth()) for line in lines}
        assert len(styles) == len(lines), axis.get_label()


def test_the_gaussians_and_their_divergences_are_the_closed_forms():
    """Kills: KL the other way round, a density off by the cell's width, a grid that cuts the tails off."""
    normal, kl = torch.distributions.Normal, torch.distributions.kl_divergence
    for name, width in (("equal", 1.0), ("different", 2.0)):
        for shift in (0.0, 1.5, 3.0):
            y, density = curve(panel("gaussians", name), f"q, shift {shift:g}")
            close(density, normal(shift, width).log_prob(y).exp())
    axis, p = panel("gaussians", "kl"), normal(0.0, 1.0)
    shift, equal = curve(axis, "KL(p‖q) = KL(q‖p), equally wide")
    close(equal, kl(p, normal(shift, 1.0)))
    close(equal, kl(normal(shift, 1.0), p))
    for label, one, other in (("KL(p‖q), q twice", p, normal(shift, 2.0)), ("KL(q‖p), q twice", normal(shift, 2.0), p)):
        close(curve(axis, label)[1], kl(one, other))


def test_every_divergence_is_least_at_shift_0_and_is_0_only_where_the_two_coincide():
    for line in panel("gaussians", "kl").lines[:3]:
        shift, kl = data(line)
        assert shift[kl.argmin()] == 0
        equal = "equally wide" in line.get_label()
        assert (kl[shift == 0].item() == 0) is equal
        assert (kl[shift != 0] > 0).all()
        assert f"least {kl.min():.2f}" in line.get_label()


def test_the_same_policy_is_best_before_and_after_every_move():
    """Kills: a move that is not applied, or is to another quantity; a p* or an extreme that is only asserted."""
    curves = {name: data(panel("argmax", name).lines[name == "kl"]) for name in ("J", "negated", "scaled", "kl")}
    p, j = curves["J"]
    weights = 0.4 * math.exp(1 / 0.5), 0.6  # π_ref e^{r/β}
    best, log_z = weights[0] / sum(weights), math.log(sum(weights))
    for name, (same, values) in curves.items():
        close(same, p)
        at = values.argmax() if name == "J" else values.argmin()
        assert abs(p[at] - best) <= 0.001
        ((x, y),) = dots(panel("argmax", name))
        assert x == pytest.approx(best) and y == pytest.approx(values[at].item(), abs=1e-5)
        guide = [line.get_xdata()[0] for line in panel("argmax", name).lines if line.get_linestyle() == ":"]
        assert guide == [pytest.approx(best)]
    assert f"p* = {best:.2f}" in drawn("argmax").get_suptitle()
    close(curves["negated"][1], -j)
    close(curves["scaled"][1], -j / 0.5)
    close(curves["kl"][1], -j / 0.5 + log_z)
    close(curve(panel("argmax", "kl"), "−J(π)/β + log Z")[1], curves["kl"][1])


def bars(name):
    heights = [patch.get_height() for patch in panel("optimal_policy", name).patches]
    return torch.tensor(heights, dtype=torch.float64)


def test_the_bars_go_from_the_best_reward_to_the_reference():
    """Kills: β upside down, a policy that is not normalised, panels in the wrong order."""
    names = [axis.get_label() for axis in drawn("optimal_policy").axes][:6]
    ref, reward = bars(names[5]), bars("reward")
    for name, beta in zip(names[:5], (0.05, 0.3, 1, 3, 30), strict=True):
        assert name.endswith(f"β = {beta:g}")
        weights = ref * (reward / beta).exp()
        close(bars(name), weights / weights.sum())
    best = reward.argmax()
    assert ref.argmax() != best  # else the picture would not tell the two apart
    assert bars(names[0])[best] > 0.99
    assert (bars(names[4]) - ref).abs().max() < 0.01


def test_drift_and_reward_never_rise_with_beta():
    ref, reward = bars("π$_\\mathrm{ref}$"), bars("reward")
    for name, low, high in (
        ("kl", 0, -ref[reward.argmax()].log().item()),
        ("mean", (ref * reward).sum().item(), reward.max().item()),
    ):
        beta, values = data(panel("optimal_policy", name).lines[0])
        assert panel("optimal_policy", name).get_xscale() == "log"
        assert (beta.diff() > 0).all() and (values.diff() <= 1e-12).all()
        assert values[0] == pytest.approx(high, abs=1e-3) and values[-1] == pytest.approx(low, abs=2e-3)
        marked, at = data(panel("optimal_policy", name).lines[1])
        assert marked.tolist() == [0.05, 0.3, 1, 3, 30]
        for x, y in zip(marked, at, strict=True):
            assert values[beta >= x][0] <= y <= values[beta <= x][-1]


def test_the_terms_of_z_are_counted():
    axis = panel("completions", "count")
    first = []
    for vocab_size in (5, 256, 50257):
        lengths, terms = curve(axis, f"V = {vocab_size:,}")
        assert lengths.tolist() == list(range(1, 151))
        close(terms[1], torch.tensor(math.log10(1 + (vocab_size - 1) + (vocab_size - 1) ** 2)).double(), rtol=1e-6)
        for length, term in zip(lengths.int().tolist(), terms.tolist(), strict=True):
            assert term == pytest.approx(math.log10(count_completions(vocab_size, length)), rel=1e-12)
        first.append((terms > 80).nonzero()[0].item() + 1)
    assert [x for x, _ in dots(axis)] == first
    assert all(count_completions(v, t - 1) <= 10**80 for v, t in zip((5, 256, 50257), first, strict=True))
    assert {f"T = {t}" for t in first} < {text.get_text() for text in axis.texts}


@pytest.mark.parametrize("name", LOSSES)
def test_the_plotted_values_and_slopes_are_the_losses(name):
    """Kills: a value and a slope swapped, another β, a slope that is not the plotted value's."""
    axis = panel("losses", name)
    h, value = curve(axis, "value")
    same, slope = curve(axis, "slope")
    close(same, h)
    close(value, LOSSES[name].value(h, 1.0))
    close(slope, LOSSES[name].slope(h, 1.0))
    close(curve(axis, "sigmoid")[1], -torch.nn.functional.logsigmoid(h))
    risen = torch.cumulative_trapezoid(slope, h)  # the area below the slope
    close(value[1:] - value[0], risen, rtol=0, atol=2e-3)


def test_the_dots_are_where_a_loss_is_least():
    least = {name: [x for x, _ in dots(panel("losses", name))] for name in LOSSES}
    aims = {"cdpo": math.log(9), "exo_pair": math.log(9), "ipo": 0.5}  # logit(1 − 0.1) and 1/(2β)
    assert {name for name, found in least.items() if found} == set(aims)
    for name, aim in aims.items():
        assert least[name] == [pytest.approx(aim, abs=6e-4)]
        assert [text.get_text() for text in panel("losses", name).texts] == [f"x = {aim:.2f}"]


def test_the_weight_is_how_wrong_the_pair_is():
    """Kills: the sign of h, β left out, the slope in the place of the weight."""
    axis = panel("weight", "weight")
    for beta in (0.05, 0.1, 0.5):
        h, weight = curve(axis, f"β = {beta:g}")
        close(weight, 1 / (1 + (beta * h).exp()))
        close(-beta * weight, dpo_gradient(h, beta)[0])
        assert (weight[h < 0] > 0.5).all() and (weight[h > 0] < 0.5).all()
    assert dots(axis) == [(0, 0.5)]
    for note, left in (("ranked wrongly: weight above ½", True), ("ranked rightly: weight below ½", False)):
        (text,) = [text for text in axis.texts if text.get_text() == note]
        assert (text.get_position()[0] < 0) is left


def test_an_eighth_loss_has_a_panel_without_anybody_adding_one(monkeypatch):
    """Kills: a list of the losses, or their number, beside the table."""
    monkeypatch.setattr(figures, "MARGIN_LOSSES", figures.MARGIN_LOSSES | {"another": figures.MARGIN_LOSSES["hinge"]})
    labels = [axis.get_label() for axis in figures.draw_losses().axes]
    assert labels == [*figures.MARGIN_LOSSES, "key"] and labels[-2] == "another"
