"""The frontier's own arithmetic: nothing crosses the optimum's curve, and a run that is finished is never run again."""

import json
import math
from argparse import Namespace
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.objective import expectation, kl_divergence, optimal_policy
from dpo_min.rl.rlhf import best_of_n

pytest.importorskip("matplotlib")
frontier = pytest.importorskip("experiments.frontier", reason="the experiments are deletable")
from experiments import frontier_curve, frontier_pictures, methods, pages  # noqa: E402

SEEDS = st.integers(0, 10**6)


def draws(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def place(log_policy, log_ref, reward):
    """(KL, E[r]) of one policy, as tensors (1,)."""
    return kl_divergence(log_policy, log_ref).clamp(min=0)[None], expectation(log_policy, reward)[None]


@given(SEEDS, st.integers(2, 9), st.floats(0, 8), st.integers(1, 200))
@example(0, 2, 0.0, 1)
def test_no_policy_crosses_the_optimums_curve(seed, count, width, n):
    """Any policy at all, and best of n. Kills: log Z without its β, a bound that lies below the truth."""
    log_ref, reward = draws(seed, count).log_softmax(-1), draws(seed + 1, count)
    for log_policy in ((log_ref + width * draws(seed + 2, count)).log_softmax(-1), best_of_n(log_ref, reward, n)):
        kl, found = place(log_policy, log_ref, reward)
        assert frontier_curve.optimum_reward(log_ref, reward, kl) - found >= -1e-9


@given(SEEDS, st.integers(2, 9), st.floats(0.05, 20))
def test_the_curve_is_reached_by_the_optimum_so_a_point_above_it_is_seen(seed, count, beta):
    """E_{π_r}[r] lies on it to 1e−7. Kills: a curve that is safe because it is too high."""
    log_ref, reward = draws(seed, count).log_softmax(-1), draws(seed + 1, count)
    kl, best = place(optimal_policy(log_ref, reward, beta), log_ref, reward)
    curve = frontier_curve.optimum_reward(log_ref, reward, kl)
    assert_close(curve, best, rtol=0, atol=1e-7)
    assert curve - (best + 1e-6) < -frontier.TOLERANCE


@pytest.fixture(scope="module")
def exact():
    return methods.exact_language(pairs=600)


SHORT = [
    replace(method, steps=4, batch=64)
    for name, method in {m.name: m for m in methods.EXACT}.items()
    if name != "PPO, true reward"
]


@pytest.mark.parametrize("method", SHORT, ids=lambda method: method.name)
def test_a_run_of_each_kind_is_measured_exactly_and_stays_below_the_curve(exact, method):
    """Kills: a policy measured in float32, costs that are not counted, a reference that is trained too."""
    language, world = exact
    before = [parameter.clone() for parameter in world.reference.parameters()]
    line = methods.run(replace(language, reward_fit={"steps": 2, "batch_size": 32}), method, 0, points=2)
    assert [point["step"] for point in line["path"]] == [0, 2, 4]
    assert line["path"][0]["kl"] == pytest.approx(0, abs=1e-12) and line["path"][-1]["kl"] > 1e-6
    assert min(frontier_curve.gaps(world, line["path"])) >= -frontier.TOLERANCE
    updates = {"ppo": 4 * method.epochs * method.minibatches + 2}.get(method.kind, 4)
    assert line["updates"] == updates
    assert (line["generated"] >= 4 * 64) == (method.kind in ("reinforce", "ppo"))
    assert ("distance" in line["path"][0]) == (method.beta is not None)
    assert all(torch.equal(a, b) for a, b in zip(before, world.reference.parameters(), strict=True))
    json.dumps(line)


@settings(max_examples=10)
@given(SEEDS, st.floats(0, 2))
def test_imitation_and_unlikelihood_are_what_the_paper_calls_them(exact, seed, alpha):
    """−log π(y_w), and −log π(y_w) + α log π(y_l). Kills: α on the chosen side, a reference in either."""
    world = exact[1]
    generator = torch.Generator().manual_seed(seed)
    rows = [TokenizedPair([0], *([int(i)] for i in torch.randperm(4, generator=generator)[:2])) for _ in range(3)]
    chosen, rejected = batch_logps(world.reference, pack(rows)).chunk(2)
    sft = methods.Method("", "sft", 0, 1, 3)
    unlikelihood = methods.Method("", "unlikelihood", 0, 1, 3, alpha=alpha)
    assert_close(methods.preference_loss(sft, world.reference, None, rows), -chosen.mean())
    found = methods.preference_loss(unlikelihood, world.reference, None, rows)
    assert_close(found, -chosen.mean() + alpha * rejected.mean())
    dpo = methods.Method("", "sigmoid", 0, 1, 3, beta=0.1)
    assert methods.preference_loss(dpo, world.reference, world.reference, rows).item() == pytest.approx(math.log(2))


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(-3, 3)), min_size=1, max_size=6), st.floats(0, 1))
@example([(0.5, 1.0), (0.5, 2.0)], 0.5)
def test_reward_at_equal_kl_lies_on_the_line_between_two_measurements(steps, share):
    """Kills: the nearest point instead of the line, a run that never got there counted as if it had."""
    path, kl = [{"kl": 0.0, "reward": 0.0}], 0.0
    for by, reward in steps:
        kl += by
        path.append({"kl": kl, "reward": reward})
    before, after = path[-2:]
    wanted = before["kl"] + (0.01 + 0.99 * share) * (after["kl"] - before["kl"])
    expected = before["reward"] + (wanted - before["kl"]) / (after["kl"] - before["kl"]) * (
        after["reward"] - before["reward"]
    )
    assert frontier_curve.reward_at(path, wanted) == pytest.approx(expected, abs=1e-9)
    assert frontier_curve.reward_at(path, kl + 0.01) is None


def test_an_interval_is_students_and_one_run_has_none():
    """3, 5, 10: mean 6, deviation √13, and 4.303 √(13/3). Kills: the normal's 1.96, n for n − 1."""
    assert pages.with_interval([3.0, 5.0, 10.0], 2) == f"6.00 ± {4.303 * math.sqrt(13 / 3):.2f}"
    assert pages.with_interval([1.25]) == "1.250"


def tiny_part(monkeypatch, tmp_path):
    """Two methods of three steps on the exact language, in place of all, and the options to run them."""
    table = [replace(methods.EXACT[0], steps=3, batch=8), replace(methods.EXACT[-1], steps=3, batch=8)]
    monkeypatch.setitem(frontier.TABLES, "exact", table)
    return Namespace(runs=tmp_path, seeds=1, workers=1, part="exact", demo=None, data=None)


def test_finished_runs_are_kept_through_a_crash_and_not_made_again(monkeypatch, tmp_path, capsys):
    """Kills: a torn last line that swallows the next, a run made twice, results of other settings taken for these."""
    options, path = tiny_part(monkeypatch, tmp_path), tmp_path / "exact.jsonl"
    first = frontier.run_part("exact", options)
    assert [line["method"] for line in first] == [asdict(method) for method in frontier.TABLES["exact"]]
    whole = path.read_text(encoding="utf-8")
    kept, torn = whole.splitlines()
    path.write_text(kept + "\n" + torn[: len(torn) // 2], encoding="utf-8")
    assert len(frontier.read_results(path)) == 1
    capsys.readouterr()
    again = frontier.run_part("exact", options)
    assert capsys.readouterr().out.startswith("exact 1/1 ")
    assert [line["path"] for line in again] == [line["path"] for line in first]  # the same draws, the same numbers
    frontier.run_part("exact", options)
    assert capsys.readouterr().out == ""
    frontier.TABLES["exact"][0] = replace(frontier.TABLES["exact"][0], beta=2.0)
    options.part = "pages"
    assert len(frontier.run_part("exact", options)) == 1


def test_a_point_above_the_curve_ends_the_command_with_an_error(monkeypatch, tmp_path, exact, capsys):
    """Kills: an assertion that cannot fail."""
    method = replace(methods.EXACT[0], steps=1, batch=8)
    line = methods.run(exact[0], method, 0, points=1)
    options = Namespace(out=tmp_path)
    assert frontier.write(options, {"exact": [line], "reviews": []}) == 0
    line["path"][-1]["reward"] = 3.0
    assert frontier.write(options, {"exact": [line], "reviews": []}) == 1
    assert "above the optimum" in capsys.readouterr().err
    assert (tmp_path / "figures" / "frontier.png").exists() and (tmp_path / "figures" / "frontier-bandit.png").exists()


# The picture.


def ends(*places):
    """Groups of two runs each, as the picture takes them, whose ends lie about the given (KL, E[r])."""
    found = {}
    for i, (kl, reward) in enumerate(places):
        name = [*frontier_pictures.STYLES][i % 7]
        start = {"kl": 0.0, "reward": 0.0}
        runs = [{"path": [start, {"kl": kl * share, "reward": reward + share}]} for share in (0.99, 1.01)]
        found[methods.Method(name, "sigmoid", 1e-3, 1, 1, beta=0.1 * (i + 1))] = runs
    return found


@settings(max_examples=5)
@given(st.lists(st.tuples(st.floats(0.01, 11), st.floats(-1, 3)), min_size=1, max_size=9))
@example([(0.02, 0.1)] * 3 + [(0.03, 0.1)] * 3)
@example([(200.0, 1.0), (1.0, 1.0)])
def test_every_method_stands_in_the_picture_with_its_setting_and_no_setting_covers_another(places):
    """Kills: an end that is left out, an interval of half the width, a label on a label, an end lost at the edge."""
    groups, drawn = ends(*places), []
    optima = [{"kl": kl, "reward": kl**0.5} for kl in (0.0, 1.0, 4.0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier_pictures, "save", lambda figure, path: drawn.append(figure))
        frontier_pictures.draw_frontier([("a language", optima, optima, groups)], None)
    (axis,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    inside = [m for m, runs in groups.items() if runs[0]["path"][-1]["kl"] <= frontier_pictures.WIDEST]
    assert len(axis.containers) == len(inside)
    for m, bars in zip(inside, axis.containers, strict=True):
        kl, reward = ([run["path"][-1][key] for run in groups[m]] for key in ("kl", "reward"))
        assert [bars.lines[0].get_xdata()[0], bars.lines[0].get_ydata()[0]] == pytest.approx(
            [sum(kl) / 2, sum(reward) / 2]
        )
        ((x, low), (_, high)) = bars.lines[2][1].get_segments()[0]
        assert high - low == pytest.approx(2 * pages.half_width(reward)) and x == pytest.approx(sum(kl) / 2)
    notes = {text.get_text(): text for text in axis.texts}
    boxes = [notes[m.label.split(", ")[-1]].get_window_extent() for m in inside if m.label.split(", ")[-1] in notes]
    assert len(boxes) >= min(len(inside), 3)
    assert not any(
        box.shrunk(0.9, 0.8).overlaps(other.shrunk(0.9, 0.8)) for i, box in enumerate(boxes) for other in boxes[:i]
    )
    for m in groups.keys() - set(inside):
        assert any(m.label in text for text in notes)
    frontier_pictures.plt.close(drawn[0])
