"""The interactive page, in a real browser: what it shows is what the functions of the library return."""

import json
import math
from pathlib import Path

import pytest
import torch

from dpo_min.gradient import dpo_gradient, gradient_weight
from dpo_min.losses import LOSSES
from dpo_min.margin_losses import MARGIN_LOSSES
from dpo_min.objective import expectation, kl_divergence, log_partition, objective, optimal_policy
from experiments import explainer_numbers as numbers
from experiments import theorem
from tests.browser import chromium, needs_browser

pytestmark = needs_browser
PAGE = Path(__file__).resolve().parents[2] / "docs" / "explainer.html"
WORLD = numbers.make_world()
ANSWERS = len(WORLD.completions)
WRITTEN = 1e-8  # a number is written with ten digits


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser):
    """The page, opened; it may not complain, of an error of its script or of a file that is missing."""
    browser.get_log("browser")
    browser.get(PAGE.as_uri())
    yield Page(browser)
    assert browser.get_log("browser") == []


@pytest.fixture
def look(browser):
    """look(width, scheme, media): the size of the screen, "light" or "dark", and "print" for paper."""

    def emulate(width, scheme="light", media=""):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

    yield emulate
    emulate(1400)


class Page:
    """The page as a test sees it."""

    def __init__(self, browser):
        self.browser, self.run = browser, browser.execute_script

    def open(self):
        """Answer every question by its first choice."""
        self.run("document.querySelectorAll('.question').forEach(q => q.querySelector('button').click())")

    def set(self, name, value, event="input"):
        """Move a slider, or choose."""
        script = "const x = document.getElementById(arguments[0]); x.value = arguments[1];"
        self.run(script + "x.dispatchEvent(new Event(arguments[2], {bubbles: true}))", name, value, event)

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)

    def number(self, name):
        """What stands in a place; the rounded text has to agree with the whole number."""
        script = "const x = document.getElementById(arguments[0]), d = x.dataset;"
        text, value, digits = self.run(f"{script} return [x.textContent, d.value, d.digits]", name)
        value = float(value)
        if abs(value) < 1e6:
            assert abs(float(text.replace("−", "-")) - value) <= 0.5000001 * 10 ** -int(digits), (name, text, value)
        return value

    def bars(self, name):
        """Class of bar → the probability of every answer, checked against the widths that are drawn."""
        values = json.loads(self.run("return document.getElementById(arguments[0]).dataset.values", name))
        for kind, expected in values.items():
            widths = self.run(
                "return [...document.querySelectorAll(arguments[0])].map(i => parseFloat(i.style.width))",
                f"#{name} i.{kind}",
            )
            assert widths == pytest.approx([100 * p for p in expected], abs=1e-2)
        return values

    def column(self, table, index):
        """The numbers of a column as they are shown."""
        cells = self.run(
            "return [...document.querySelectorAll(arguments[0])].map(c => c.textContent)",
            f"#{table} tbody tr > :nth-child({index})",
        )
        return [float(cell.replace("−", "-")) for cell in cells]


# The formulas.


def points(name):
    """(h,) of a loss of the margin, or (a, b), β and what else the row takes: usual ones, kinks, and far away."""
    near, far = (-30.0, -2.5, -0.5, 0.0, 0.1, 3.7, 20.0), (-1e4, -200.0, 200.0, 1e4)
    row = LOSSES[name]
    if name in MARGIN_LOSSES:
        places = [(h,) for h in near + far]
    else:
        places = [(a, b) for a in near + far for b in near + far]
        if not row.reference:
            places = [(-abs(a), -abs(b)) for a, b in places]
    for beta in (0.05, 0.5, 1.0, 4.0):
        for scale in (0.5, 1.0):
            more = {k: 3.25 if v is None else scale * v for k, v in row.arguments.items()}
            yield from ((place, beta, more) for place in places)


@pytest.mark.parametrize("name", LOSSES)
def test_every_formula_is_that_of_the_table(page, name):
    """Kills: a sign, a bracket or a default that is lost in the translation, an exponential that overflows."""
    asked = [*points(name)]
    kind = "slope" if name in MARGIN_LOSSES else "slopes"
    found = page.run(
        f"const row = LOSSES[arguments[0]]; return arguments[1].map(x => [row.value(...x), row.{kind}(...x)].flat())",
        name,
        [[*place, beta, *more.values()] for place, beta, more in asked],
    )
    for (place, beta, more), values in zip(asked, found, strict=True):
        x = [torch.tensor(part, dtype=torch.float64) for part in place]
        known = LOSSES[name].arguments
        facts = {k: v if known[k] is not None else torch.tensor(v, dtype=torch.float64) for k, v in more.items()}
        slopes = getattr(LOSSES[name], kind)(*x, beta, **facts)
        expected = [LOSSES[name].value(*x, beta, **facts), *(slopes if isinstance(slopes, tuple) else [slopes])]
        assert values == pytest.approx([float(e) for e in expected], rel=1e-9, abs=1e-9), (place, beta, more)


# 1. β.


def test_the_slider_shows_the_optimum_at_every_place(page):
    page.open()
    log_ref, reward = WORLD.log_ref, WORLD.reward
    for place, beta in enumerate(numbers.BETAS):
        page.set("beta", place)
        log_policy = optimal_policy(log_ref, reward, beta)
        assert page.number("beta-value") == pytest.approx(beta, rel=WRITTEN)
        assert page.number("z") == pytest.approx(log_partition(log_ref, reward, beta).exp().item(), rel=WRITTEN)
        assert page.number("beta-reward") == pytest.approx(expectation(log_policy, reward).item(), rel=WRITTEN)
        kl = kl_divergence(log_policy, log_ref).item()
        assert page.number("beta-kl") == pytest.approx(kl, rel=WRITTEN, abs=1e-12)
        assert page.number("beta-j") == pytest.approx(objective(log_policy, log_ref, reward, beta).item(), rel=WRITTEN)
        assert page.bars("beta-table")["now"] == pytest.approx(log_policy.exp().tolist(), rel=WRITTEN, abs=1e-12)
        assert page.column("beta-table", 4) == pytest.approx(log_policy.exp().tolist(), abs=5.1e-4)
    assert page.column("beta-table", 2) == pytest.approx(reward.tolist(), abs=5.1e-3)


# How far the dot of a chart is from its curve, and the angle between the curve and the tangent there, if there is one.
NEAR = """
    const find = (kind) => document.querySelector(arguments[0] + kind);
    const [dot, curve, tangent] = [".dot", ".curve", ".tangent"].map(find);
    const [x, y, length] = [dot.cx.baseVal.value, dot.cy.baseVal.value, curve.getTotalLength()];
    const points = Array.from({length: 3001}, (_, k) => curve.getPointAtLength(k * length / 3000));
    const far = points.map((p) => Math.hypot(p.x - x, p.y - y)), k = far.indexOf(Math.min(...far));
    const angle = (p, q) => Math.atan2(q.y - p.y, q.x - p.x);
    const ends = tangent && [0, tangent.getTotalLength()].map((l) => tangent.getPointAtLength(l));
    return [far[k], tangent ? Math.abs(angle(...ends) - angle(points[k - 20], points[k + 20])) : 0];
"""


@pytest.mark.parametrize("place", [0, 20, 40, 80])
def test_the_dot_lies_on_the_curve_of_all_optima(page, place):
    """Kills: a chart whose axes are scaled in two ways."""
    page.open()
    page.set("beta", place)
    assert page.run(NEAR, "#beta-chart ")[0] < 0.5


# 2. One pair.


@pytest.mark.parametrize("name", LOSSES)
def test_a_pair_shows_the_loss_its_slopes_and_the_weight(page, name):
    """Kills: a and b exchanged, a fact of the pair that is not passed on, the slope of another loss."""
    page.open()
    page.set("loss", name, "change")
    row, (refs, lengths) = LOSSES[name], (numbers.REFERENCE, numbers.LENGTHS)
    for place, beta in ((3, 0.1), (5, 0.5)):
        page.set("pair-beta", place)
        for chosen, rejected in ((-14.5, -9.0), (-12.0, -10.0), (-3.1, -20.4), (-24.0, -0.2)):
            page.set("chosen", chosen)
            page.set("rejected", rejected)
            logps = torch.tensor([[chosen], [rejected]], dtype=torch.float64)
            scale = torch.tensor(lengths if row.reduce == "mean" else (1, 1), dtype=torch.float64)[:, None]
            a, b = logps - torch.tensor(refs, dtype=torch.float64)[:, None] if row.reference else logps / scale
            given = {"policy_chosen_logps": logps[0], "chosen_lengths": lengths[0], "rejected_lengths": lengths[1]}
            given |= numbers.FACTS
            more = {k: torch.as_tensor(given[k], dtype=torch.float64) for k, v in row.arguments.items() if v is None}
            shown = [page.number(place) for place in ("a", "b", "h", "pair-loss", "slope-a", "slope-b", "weight")]
            h = a - b
            if name in MARGIN_LOSSES:
                loss, slope = row.value(h, beta), row.slope(h, beta)
                slopes = slope, -slope
            else:
                loss, slopes = row.value(a, b, beta, **more), row.slopes(a, b, beta, **more)
            expected = [a, b, h, loss, *slopes, -slopes[0] / beta]
            assert shown == pytest.approx([float(x) for x in expected], rel=1e-9, abs=1e-9), (chosen, rejected, beta)
            if name == "sigmoid":
                closed = [*dpo_gradient(h, beta), gradient_weight(h, beta)]
                assert shown[4:] == pytest.approx([float(x) for x in closed], rel=1e-9)


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "nca", "simpo", "orpo", "cpo", "rpo"])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_the_dot_lies_on_the_curve_of_the_loss_and_the_tangent_along_it(page, side, name):
    """Kills: the curve of the other answer, a slope per token against a curve per answer."""
    page.open()
    page.set("loss", name, "change")
    page.set("pair-beta", 5)
    page.set("chosen", -11.5)
    page.set("rejected", -9.2)
    distance, angle = page.run(NEAR, f"#{side}-chart ")
    assert distance < 0.6 and angle < 0.06


def test_the_parameters_of_a_loss_can_be_set_and_a_wrong_one_changes_nothing(page):
    page.open()
    page.set("loss", "cdpo", "change")
    page.set("chosen", -8)
    page.set("rejected", -10)
    page.set("argument-label_smoothing", "0.3")
    before = page.number("pair-loss")
    h = torch.tensor([4.0], dtype=torch.float64)
    assert before == pytest.approx(LOSSES["cdpo"].value(h, 0.1, 0.3).item(), rel=1e-9)
    for wrong in ("0.7", "-1", ""):
        page.set("argument-label_smoothing", wrong)
        assert page.number("pair-loss") == before


# 3. Steps.


def test_a_gpt_that_sees_one_pair_moves_as_plain_gradient_descent_moves_it(page):
    """Against `fit_pair`, which makes docs/proof.md. Kills: another rate or β, a history that begins one step late."""
    page.open()
    page.click("#step-reset")
    chosen, rejected = numbers.PAIR
    history = theorem.fit_pair(WORLD, chosen, rejected, numbers.PAIR_STEPS, numbers.GPT_RATE, numbers.PAIR_BETA)
    assert theorem.displaced(WORLD, history, chosen, rejected)
    for step, log_policy in enumerate(history):
        assert page.number("step-number") == step
        assert page.bars("step-table")["now"] == pytest.approx(log_policy.exp().tolist(), rel=1e-6)
        h = (log_policy - WORLD.log_ref)[[chosen, rejected]]
        h = (h[0] - h[1])[None]
        assert page.number("step-h") == pytest.approx(h.item(), rel=1e-6, abs=1e-8)
        assert page.number("step-loss") == pytest.approx(LOSSES["sigmoid"].value(h, numbers.PAIR_BETA).item(), rel=1e-6)
        assert page.number("step-weight") == pytest.approx(gradient_weight(h, numbers.PAIR_BETA).item(), rel=1e-6)
        assert page.column("step-table", 4) == pytest.approx((log_policy - WORLD.log_ref).tolist(), abs=5.1e-3)
        page.click("#step")
    assert page.run("return document.getElementById('step').disabled")


@pytest.mark.parametrize(("chosen", "rejected"), [(4, 3), (0, 6), (5, 1)])
def test_a_table_moves_by_the_closed_form_of_the_gradient(page, chosen, rejected):
    """z_w rises and z_l falls by rate · βσ(−βh), and nothing else moves but the sum."""
    page.open()
    page.click("input[name=learner][value=table]")
    page.set("step-chosen", chosen, "change")
    page.set("step-rejected", rejected, "change")
    z = WORLD.log_ref.clone()
    for _ in range(numbers.PAIR_STEPS + 1):
        log_policy = z.log_softmax(dim=-1)
        assert page.bars("step-table")["now"] == pytest.approx(log_policy.exp().tolist(), rel=1e-6)
        h = (log_policy - WORLD.log_ref)[chosen] - (log_policy - WORLD.log_ref)[rejected]
        slopes = dpo_gradient(h[None], numbers.PAIR_BETA)
        z[chosen] -= numbers.TABLE_RATE * slopes[0].item()
        z[rejected] -= numbers.TABLE_RATE * slopes[1].item()
        page.click("#step")


def test_all_preferences_lead_to_the_optimum(page):
    page.open()
    page.click("input[name=learner][value=all]")
    assert page.number("step-distance") == pytest.approx(kl_divergence(WORLD.log_ref, WORLD.optimum).item(), rel=1e-6)
    page.click("#step-end")
    bars = page.bars("step-table")
    assert page.number("step-distance") < 1e-3
    assert bars["goal"] == pytest.approx(WORLD.optimum.exp().tolist(), rel=WRITTEN)
    assert bars["now"] == pytest.approx(bars["goal"], abs=0.01)
    page.click("#step-back")
    assert page.number("step-number") == numbers.ALL_STEPS - 1


# 4. Data.


@pytest.mark.parametrize("noise", range(len(numbers.NOISE)))
def test_unlimited_data_end_where_the_minimum_of_the_loss_is(page, noise):
    """Against L-BFGS. Kills: labels that are flipped at another rate than the loss is told."""
    page.open()
    page.set("noise", noise)
    page.set("size", len(numbers.SIZES))
    preferences = theorem.all_preferences(WORLD, numbers.NOISE[noise])
    for name in numbers.DATA_LOSSES:
        page.click(f"input[name=data-loss][value={name}]")
        smoothing = numbers.NOISE[noise] if LOSSES[name].arguments else None
        best, _ = theorem.fit_table(WORLD, preferences, name, smoothing)
        assert page.bars("data-table")["now"] == pytest.approx(best.exp().tolist(), abs=1e-3)
        assert page.number("data-distance") == pytest.approx(kl_divergence(best, WORLD.optimum).abs().item(), abs=1e-3)


def test_few_pairs_scatter_and_many_do_not(page):
    """Every circle lies below the curve, and with more data the mean distance from the optimum falls."""
    page.open()
    page.set("noise", 0)
    distances = []
    for place in range(len(numbers.SIZES) + 1):
        page.set("size", place)
        distances.append(page.number("data-distance"))
        circles = page.run("return document.querySelectorAll('#data-chart .ring').length")
        assert circles == page.number("data-sets") == (numbers.DATA_SETS if place < len(numbers.SIZES) else 1)
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-4


# Questions, looks, and use without a mouse.

QUESTIONS = ["beta_kl", "beta_low", "slope_0", "both_fall", "displaced", "gains", "noise", "few", "told"]


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_prediction_is_judged_and_only_then_the_result_is_shown(page, name):
    """Kills: a question that gives its answer away, one with no right choice or with two."""
    truth = json.loads(page.run("return document.getElementById('numbers').textContent"))["truth"]
    assert sorted(truth) == sorted(QUESTIONS)
    found = page.run("return [...document.querySelectorAll('.question')].map(q => q.dataset.question)")
    assert found == QUESTIONS
    hidden = "return [...document.querySelectorAll('.reveal')].map(r => getComputedStyle(r).display === 'none')"
    assert page.run(hidden) == [True] * 4
    judged = page.run(
        """const q = document.querySelector(`[data-question=${arguments[0]}]`);
           return [...q.querySelectorAll("button")].map(b => {
             b.click();
             return [b.dataset.choice, q.querySelector("b").textContent, q.querySelector("[role=status]").textContent];
           })""",
        name,
    )
    assert [choice for choice, verdict, _ in judged if verdict == "Yes."] == [truth[name]]
    assert {verdict for _, verdict, _ in judged} == {"Yes.", "No."}
    assert not any(word in text for _, _, text in judged for word in ("undefined", "NaN"))


def contrast(first, second):
    """The ratio of two colours by WCAG 2: at least 4.5 for text."""

    def luminance(colour):
        parts = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1400])
def test_it_fits_the_screen_and_can_be_read(page, look, width, scheme):
    """Kills: a table wider than a phone, grey on grey in the dark."""
    look(width, scheme)
    page.open()
    for learner in ("gpt", "all"):
        page.click(f"input[name=learner][value={learner}]")
        assert page.run("return document.documentElement.scrollWidth") <= width
    paper = page.run("return getComputedStyle(document.body).backgroundColor")
    for selector in ("body", ".note", "a", ".numbers dt", ".answer b", "legend", "figcaption"):
        ink = page.run("return getComputedStyle(document.querySelector(arguments[0])).color", selector)
        assert contrast(ink, paper) >= 4.5, (selector, ink, paper)
    sizes = page.run("""return [...document.querySelectorAll("button, select")].filter(x => x.offsetParent)
        .map(x => Math.min(x.offsetHeight, x.offsetWidth))""")
    assert min(sizes) >= 40  # what a thumb hits


def test_it_needs_nothing_from_outside(page):
    assert page.run("return performance.getEntriesByType('resource').length") == 0


def test_every_control_has_a_name_and_is_reached_by_the_keyboard(page):
    """Kills: a slider without a label, a control that is left out of the order of Tab."""
    from selenium.webdriver.common.keys import Keys

    page.open()
    kinds = ", ".join(f"main {kind}:enabled" for kind in ("button", "select", "input"))
    controls = page.browser.find_elements("css selector", kinds)
    names = [control.accessible_name for control in controls]
    assert len(controls) > 45 and all(names), names
    reached = set()
    page.run("document.activeElement.blur()")
    for _ in range(len(controls) + 10):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.browser.switch_to.active_element.id)
    left = [control for control in controls if control.id not in reached]
    assert all(control.get_attribute("type") == "radio" for control in left)  # of which Tab reaches one a group
    slider = page.browser.find_element("id", "beta")
    before = page.number("beta-value")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert page.number("beta-value") > before
    step = page.browser.find_element("id", "step-reset")
    step.send_keys(Keys.ENTER)
    page.browser.find_element("id", "step").send_keys(Keys.SPACE)
    assert page.number("step-number") == 1
    assert math.isclose(page.run("return parseFloat(getComputedStyle(document.activeElement).outlineWidth)"), 3)


def test_what_changes_is_read_out(page):
    """Every place whose number changes by a control lies in a region that a screen reader announces."""
    page.open()
    silent = page.run("""return [...document.querySelectorAll("[data-value]")]
        .filter(x => !x.closest("[role=status], output")).map(x => x.id)""")
    assert silent == []


def test_printed_it_shows_everything(page, look):
    look(800, "dark", media="print")
    hidden = page.run("return [...document.querySelectorAll('.reveal')].map(r => getComputedStyle(r).display)")
    assert hidden == ["block"] * 4
    assert page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
