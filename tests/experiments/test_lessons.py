"""The lessons on preference data: the fit is the project's own, and page and pictures say what was measured."""

import math
import re
import statistics

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib")
lessons = pytest.importorskip("experiments.lessons", reason="the experiments are deletable")
from experiments import lessons_page, theorem  # noqa: E402

SMALL = {  # the settings of each lesson, for seconds
    "pairs": {"sizes": [100, 200], "steps": 3},
    "noise": {"rates": [0.0, 0.2]},
    "sources": {"pairs": 10_000, "repeats": 3},
    "epochs": {"pairs": 100, "steps": 30, "beta": 0.05},
    "length": {"prices": [0.0, 1.0]},
    "beta": {"betas": [0.1, 1.0], "pairs": 100, "steps": 3},
}


def fit_a_lesson(seed):
    """(points of a fit, its 4000 pairs, how often each pair is drawn); what is held out are the same pairs, flipped."""
    world = theorem.make_world(vocab_size=3, max_new_tokens=2)
    weights = theorem.all_preferences(world)
    pairs = lessons.sample_pairs(weights, 4000, seed)
    return lessons.fit(world, pairs, pairs.flip(1), steps=30, measure_every=15, seed=seed), pairs, weights


@settings(max_examples=5)
@given(st.integers(0, 10**6))
@example(2722)
def test_a_lesson_is_fitted_by_the_same_loss_and_measured_where_it_says(seed):
    """Of flipped pairs −log σ(−x) exceeds −log σ(x) by x, whatever was learnt: by the margin, on average.

    Kills: sides swapped on the way from the weights, a held-out loss of trained pairs, passes counted in steps.
    """
    points, pairs, weights = fit_a_lesson(seed)
    assert (weights[pairs[:, 0], pairs[:, 1]] > 0).all() and (pairs[:, 0] != pairs[:, 1]).all()
    assert [point["passes"] for point in points] == [0, 0.375, 0.75]
    start = [points[0][key] for key in ("loss", "held_out", "margin")]
    assert start == pytest.approx([math.log(2), math.log(2), 0], abs=1e-12)
    assert points[-1]["margin"] != 0
    for point in points:
        assert point["held_out"] - point["loss"] == pytest.approx(point["margin"], abs=1e-12)


def test_a_lesson_learns_what_its_pairs_say():
    """On average over four fits; a single one of 30 steps may be worse than its start. Kills: flipped pairs."""
    first, last = zip(*((points[0], points[-1]) for points, *_ in map(fit_a_lesson, range(4))), strict=True)
    mean = {key: statistics.fmean(point[key] for point in last) for key in last[0]}
    assert mean["loss"] < math.log(2) < mean["held_out"] and mean["margin"] > 0
    assert mean["distance"] < first[0]["distance"] and mean["reward"] > first[0]["reward"]


@pytest.fixture(params=lessons.LESSONS)
def small(request, monkeypatch):
    """The name of a lesson that measures a little, on the language with seven answers."""
    measure, _, _ = lessons.LESSONS[request.param]
    monkeypatch.setitem(lessons.LESSONS, request.param, (measure, (3, 2), SMALL[request.param]))
    monkeypatch.setattr(lessons, "HELD_OUT", 100)
    return request.param


def test_a_lessons_words_and_picture_are_made_of_what_was_measured_once(small, monkeypatch, tmp_path):
    """Kills: a lesson measured again, kept numbers of other settings taken for these, a picture the page forgot."""
    kept = lessons.measured(small, tmp_path)
    measure, sizes, _ = lessons.LESSONS[small]
    called = []
    counting = lambda world, **given: called.append(given) or measure(world, **given)  # noqa: E731
    monkeypatch.setitem(lessons.LESSONS, small, (counting, sizes, SMALL[small]))
    assert lessons.measured(small, tmp_path) == kept and called == []
    text = lessons_page.section(small, *kept, tmp_path)
    assert re.findall(r"figures/(data-\w+\.png)", text) == [f"data-{small}.png"]
    assert (tmp_path / f"data-{small}.png").read_bytes().startswith(b"\x89PNG")
    assert "{" not in text.replace("e^{−r}", "") and "nan" not in text
    name, value = next(iter(SMALL[small].items()))
    other = SMALL[small] | {name: value[:1] if isinstance(value, list) else value + 1}
    monkeypatch.setitem(lessons.LESSONS, small, (counting, sizes, other))
    lessons.measured(small, tmp_path)
    assert called == [other]


def test_the_spread_of_theory_is_that_of_many_data_sets():
    """Kills: a variance without its ½, a standard error of one data set for that of their mean."""
    world = theorem.make_world(3, 2)
    found = lessons.measure_sources(world, 1000, repeats=2)["π_ref"]
    counted = 100_000 * theorem.fit_samples(world, theorem.all_preferences(world), [100_000], 60)[0]
    deviation = found["error"] * 2**0.5
    assert deviation == pytest.approx(counted.std().item(), rel=0.4)
    assert abs(counted.mean().item() - found["theory"]) < 4 * deviation / 60**0.5
