"""Every loss of both log-ratios: its value and its slopes, against the papers, autograd, differences and float64."""

import dataclasses
import itertools
import math
import re

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch.testing import assert_close

from dpo_min.losses import LOSSES, SFT, Mixture, wpo_weights
from dpo_min.margin_losses import MARGIN_LOSSES
from dpo_min.preference import log_ratios, margin
from dpo_min.ratio_losses import (
    RATIO_LOSSES,
    alpha_transform,
    kto,
    kto_shift,
    kto_slope,
    log_odds,
    plackett_luce,
    plackett_luce_slopes,
)

NAMES = pytest.mark.parametrize("name", RATIO_LOSSES)
SIDE = st.floats(-20, 20)
BETA = st.floats(0.01, 10)
LENGTHS = st.tuples(st.integers(1, 50), st.integers(1, 50))
NUMBER = st.floats(0, 3)
# The rows whose optimum moves when f(x) is added to the reward of both answers.
SEE_Z = {"nca", "bco", "sppo", "apo_zero", "apo_down", "dpop", "orpo", "forward_kl", "jensen_shannon"}
SEE_Z |= {"alpha_divergence"}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def parameters(name):
    """Parameter → default."""
    return {key: default for key, default in RATIO_LOSSES[name].arguments.items() if default is not None}


def facts(name, a, lengths=(4, 7), offset=0.8, shift=0.6, log_ref=-2.5):
    """What a row has to know of the pair; log π(y_w) moves with a."""
    known = {"policy_chosen_logps": a + log_ref, "offset": torch.full_like(a, offset), "shift": shift}
    known |= {
        side: torch.full_like(a, n) for side, n in zip(("chosen_lengths", "rejected_lengths"), lengths, strict=True)
    }
    return {key: known[key] for key, default in RATIO_LOSSES[name].arguments.items() if default is None}


def possible(name, a, b):
    """The two as the row reads them: log-probabilities are not above 0."""
    return (a, b) if RATIO_LOSSES[name].reference else (-abs(a), -abs(b))


def test_the_table_holds_these_losses_each_with_source_and_use():
    names = "nca bco sppo apo_zero apo_down dpop rpo simpo cpo orpo slic ld r-dpo odpo".split()
    assert list(RATIO_LOSSES) == [*names, "forward_kl", "jensen_shannon", "alpha_divergence"]
    assert LOSSES == MARGIN_LOSSES | RATIO_LOSSES and len(LOSSES) == 24
    assert all(re.search(r"arXiv:\d{4}\.\d{5}", row.source) and row.about for row in RATIO_LOSSES.values())


def test_which_rows_have_no_reference_and_which_say_how_tokens_are_added_up():
    """Kills: a reference-free loss that is given log-ratios; SimPO or ORPO on sums; LD-DPO's α of another default."""
    assert {name for name, row in RATIO_LOSSES.items() if not row.reference} == {"simpo", "cpo", "orpo", "slic"}
    assert {name: row.reduce for name, row in RATIO_LOSSES.items() if row.reduce} == {
        "simpo": "mean", "orpo": "mean", "ld": 0.5,
    }  # fmt: skip


def test_the_parameters_and_their_defaults():
    """Kills: another default than the one that --help and the papers state."""
    assert {name: parameters(name) for name in RATIO_LOSSES if parameters(name)} == {
        "dpop": {"penalty": 50.0}, "rpo": {"alpha": 1.0}, "simpo": {"gamma": 0.5}, "cpo": {"alpha": 1.0},
        "slic": {"alpha": 1.0}, "r-dpo": {"alpha": 0.01}, "alpha_divergence": {"alpha": 0.5},
    }  # fmt: skip
    a, b = tensor(-0.7), tensor(-1.3)
    for name in RATIO_LOSSES:
        row, known = RATIO_LOSSES[name], facts(name, a)
        assert_close(row.value(a, b, 0.3, **known), row.value(a, b, 0.3, **known, **parameters(name)), rtol=0, atol=0)
        for part, again in zip(
            row.slopes(a, b, 0.3, **known), row.slopes(a, b, 0.3, **known, **parameters(name)), strict=True
        ):
            assert_close(part, again, rtol=0, atol=0)


def test_a_row_of_the_table_cannot_be_changed():
    """Kills: a default that one caller sets for all."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        RATIO_LOSSES["ld"].reduce = 0.2


# What each loss is, spelled out from the papers in plain float arithmetic, where that does not overflow.
def oracle(name, a, b, beta, number, lengths, offset, shift, logp):
    def sigma(x):
        return 1 / (1 + math.exp(-x))

    def pushed(x):
        return math.log(1 + math.exp(-x))

    def f_margin(derivative):
        return pushed(beta * (derivative(math.exp(a)) - derivative(math.exp(b))))

    def odds(logp):
        return math.exp(logp) / (1 - math.exp(logp))

    n_w, n_l = lengths
    return {
        "nca": lambda: -math.log(sigma(beta * a)) - 0.5 * math.log(sigma(-beta * a)) - 0.5 * math.log(sigma(-beta * b)),
        "bco": lambda: -math.log(sigma(beta * a - shift)) - math.log(sigma(-(beta * b - shift))),
        "sppo": lambda: (a - 1 / beta * (1 - 0.5)) ** 2 + (b - 1 / beta * (0 - 0.5)) ** 2,
        "apo_zero": lambda: -sigma(beta * a) + sigma(beta * b),
        "apo_down": lambda: sigma(beta * a) - sigma(beta * a - beta * b),
        "dpop": lambda: pushed(beta * (a - b) - beta * number * max(0.0, -a)),
        "rpo": lambda: pushed(beta * (a - b)) + number * -logp / n_w,
        "simpo": lambda: pushed(beta * a - beta * b - number),
        "cpo": lambda: pushed(beta * a - beta * b) - number * a,
        "orpo": lambda: -a + beta * pushed(math.log(odds(a) / odds(b))),
        "slic": lambda: max(0.0, 1 / beta - a + b) - number * a,
        "ld": lambda: pushed(beta * (a - b)),
        "r-dpo": lambda: pushed(beta * a - beta * b + (number * n_w - number * n_l)),
        "odpo": lambda: pushed(beta * a - beta * b - offset),
        "forward_kl": lambda: f_margin(lambda u: -1 / u),
        "jensen_shannon": lambda: f_margin(lambda u: math.log(2 * u / (1 + u))),
        "alpha_divergence": lambda: f_margin(lambda u: (1 - u**-number) / number if number else math.log(u)),
    }[name]()


@NAMES
@given(a=st.floats(-4, 4), b=st.floats(-4, 4), beta=st.floats(0.05, 5), number=NUMBER, lengths=LENGTHS,
       offset=NUMBER, shift=st.floats(-2, 2))  # fmt: skip
@example(a=-0.5, b=0.5, beta=0.1, number=0.5, lengths=(4, 7), offset=0.7, shift=0.3)
@example(a=0.5, b=-1.5, beta=1.0, number=2.0, lengths=(9, 2), offset=0.7, shift=-0.3)
def test_the_value_is_the_papers_formula(name, a, b, beta, number, lengths, offset, shift):
    """Kills: any term of any value, chosen and rejected swapped, a weight on the wrong term."""
    a, b = possible(name, a, b)
    assume(max(a, b) < -1e-3 or name != "orpo")  # a certain answer has infinite odds
    assume(name != "alpha_divergence" or number == 0 or number > 1e-3)  # where the oracle's 1 − u^−α cancels
    x, y = tensor(a, b)[:, None]
    given = dict.fromkeys(parameters(name), number) | facts(name, x, lengths, offset, shift)
    try:
        expected = oracle(name, a, b, beta, number, lengths, offset, shift, a - 2.5)
    except OverflowError:
        assume(False)
    assert RATIO_LOSSES[name].value(x, y, beta, **given).item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


@NAMES
@given(a=SIDE, b=SIDE, beta=BETA, number=NUMBER, lengths=LENGTHS, offset=NUMBER, shift=st.floats(-2, 2))
@example(a=0.0, b=0.0, beta=0.1, number=0.5, lengths=(4, 7), offset=0.7, shift=0.3)
@example(a=-0.5, b=0.5, beta=1.0, number=2.0, lengths=(9, 2), offset=0.7, shift=-0.3)
@example(a=1e4, b=-1e4, beta=1.0, number=0.5, lengths=(1, 1), offset=0.0, shift=0.0)
@example(a=-1e4, b=1e4, beta=0.1, number=0.5, lengths=(1, 1), offset=0.0, shift=0.0)
@example(a=-60.0, b=-70.0, beta=1e-3, number=0.5, lengths=(1, 1), offset=0.0, shift=0.0)  # past e^30
@example(a=-1e-17, b=-1e-17, beta=0.1, number=0.5, lengths=(1, 1), offset=0.0, shift=0.0)  # certain answers
def test_the_slopes_are_the_derivatives_of_the_value(name, a, b, beta, number, lengths, offset, shift):
    """Kills: a sign, a β dropped or squared, the slope by one side given as the other's."""
    x, y = (z.requires_grad_() for z in tensor(*possible(name, a, b))[:, None])
    row, given = RATIO_LOSSES[name], dict.fromkeys(parameters(name), number)
    slopes = torch.autograd.grad(row.value(x, y, beta, **given, **facts(name, x, lengths, offset, shift)).sum(), (x, y))
    found = row.slopes(x.detach(), y.detach(), beta, **given, **facts(name, x.detach(), lengths, offset, shift))
    for mine, autograd in zip(found, slopes, strict=True):
        assert mine.dtype == torch.float64 and mine.shape == (1,)
        assert_close(mine, autograd, rtol=1e-9, atol=1e-12 * max(beta, 1 / beta))


@NAMES
@given(a=st.floats(-8, 8), b=st.floats(-8, 8), beta=st.floats(0.05, 5), number=st.floats(0, 1), lengths=LENGTHS)
@example(a=-0.5, b=0.5, beta=1.0, number=0.5, lengths=(9, 2))
def test_the_slopes_agree_with_central_differences(name, a, b, beta, number, lengths):
    """Kills: a value and a slope that are wrong together, where autograd would agree with both."""
    a, b = possible(name, a, b)
    assume(name != "slic" or abs(a - b - 1 / beta) > 1e-4)  # its kink
    assume(name != "dpop" or abs(a) > 1e-4)
    assume(name != "orpo" or max(a, b) < -1e-2)
    row, step, given = RATIO_LOSSES[name], 1e-5, dict.fromkeys(parameters(name), number)
    x, y = tensor(a, b)[:, None]

    def value(x, y):
        return row.value(x, y, beta, **given, **facts(name, x, lengths))

    by_a, by_b = (
        (value(x + step, y) - value(x - step, y)) / (2 * step),
        (value(x, y + step) - value(x, y - step)) / (2 * step),
    )
    scale = 1 + abs(value(x, y).item())
    for mine, difference in zip(row.slopes(x, y, beta, **given, **facts(name, x, lengths)), (by_a, by_b), strict=True):
        assert_close(mine, difference, rtol=1e-4, atol=1e-5 * scale)


FAR = torch.tensor([-1e4, -1e3, -100, -31, -1, 0, 1, 31, 100, 1e3, 1e4])


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("beta", [0.01, 1.0, 10.0])
def test_value_and_slopes_are_finite_and_equal_to_float64_far_out(name, dtype, beta):
    """On [−1e4, 1e4]², beyond where a log-ratio can be. Kills: log of a σ that is 0, an exponential that overflows."""
    a, b = (x.flatten().to(dtype) for x in torch.meshgrid(FAR, FAR, indexing="ij"))
    row = RATIO_LOSSES[name]

    def all_of(dtype):
        x, y = a.to(dtype), b.to(dtype)
        known = facts(name, x)
        return row.value(x, y, beta, **known), *row.slopes(x, y, beta, **known)

    for here, exact in zip(all_of(dtype), all_of(torch.float64), strict=True):
        assert here.dtype == dtype and here.isfinite().all()
        if dtype == torch.float32:
            scale = exact.abs().max().item()
            close = name not in ("orpo",) or None  # a certain answer's odds are those of the rounding of its type
            if close:
                assert_close(here.double(), exact, rtol=1e-4, atol=1e-7 * scale + 1e-6)


# Identities between rows


@given(a=SIDE, b=SIDE, beta=BETA, lengths=LENGTHS)
@example(a=-0.5, b=0.5, beta=0.1, lengths=(4, 7))
def test_rows_whose_own_term_is_0_are_dpo(a, b, beta, lengths):
    """h-only cases agree with the first table. Kills: a term that its weight does not switch off."""
    a, b = tensor(a, b)[:, None]
    dpo, h = MARGIN_LOSSES["sigmoid"], a - b
    for name, off in {
        "dpop": {"penalty": 0.0}, "rpo": {"alpha": 0.0}, "simpo": {"gamma": 0.0}, "cpo": {"alpha": 0.0}, "ld": {},
        "r-dpo": {"alpha": 0.0}, "odpo": {}, "alpha_divergence": {"alpha": 0.0},
    }.items():  # fmt: skip
        known = facts(name, a, lengths, offset=0.0) | off
        assert torch.equal(RATIO_LOSSES[name].value(a, b, beta, **known), dpo.value(h, beta)), name
        by_a, by_b = RATIO_LOSSES[name].slopes(a, b, beta, **known)
        assert_close(by_a, dpo.slope(h, beta), rtol=1e-12, atol=0, msg=name)
        assert_close(by_b, -dpo.slope(h, beta), rtol=1e-12, atol=0, msg=name)


@given(a=SIDE, b=SIDE, beta=BETA)
@example(a=-40.0, b=-35.0, beta=0.1)
def test_the_divergences_meet_at_their_ends(a, b, beta):
    """α = 1 is forward KL, α → 0 reverse KL, which is DPO; the α-divergence of an α too small to see is that too."""
    a, b = tensor(a, b)[:, None]
    forward, alpha, dpo = RATIO_LOSSES["forward_kl"], RATIO_LOSSES["alpha_divergence"], MARGIN_LOSSES["sigmoid"]
    assert_close(alpha.value(a, b, beta, alpha=1.0), forward.value(a, b, beta), rtol=0, atol=0)
    for x, y in zip(alpha.slopes(a, b, beta, alpha=1.0), forward.slopes(a, b, beta), strict=True):
        assert_close(x, y, rtol=0, atol=0)
    for tiny in (1e-8, 1e-10, 1e-300):
        assert_close(alpha.value(a, b, beta, alpha=tiny), dpo.value(a - b, beta), rtol=1e-4, atol=1e-5)


@given(a=st.floats(-200, 200), alpha=st.floats(1e-3, 3))
@example(a=-30.0, alpha=1.0)
@example(a=-31.0, alpha=1.0)
def test_the_transform_of_a_divergence_is_increasing_concave_and_goes_on_as_its_tangent(a, alpha):
    """f convex makes f′ increasing. Kills: another point, or slope, where the exponential is left."""
    x = tensor(a, a + 1e-3, a + 2e-3)
    values = alpha_transform(x, alpha)
    rise = values.diff()
    assert (rise >= 0).all()
    assert rise[1] <= rise[0] * (1 + 1e-6) + 1e-9
    if -alpha * a > 30:
        assert values[0].item() == pytest.approx(-(math.exp(30) * (1 - alpha * a - 30) - 1) / alpha, rel=1e-12)
    else:
        assert values[0].item() == pytest.approx((1 - math.exp(-alpha * a)) / alpha, rel=1e-9, abs=1e-12)


@given(logp=st.floats(-700, -1e-6))
@example(logp=-math.log(2))
def test_orpos_odds_are_p_over_1_minus_p(logp):
    """Kills: the odds upside down, 1 + p for 1 − p."""
    found = log_odds(tensor(logp)).item()
    assert found == pytest.approx(logp - math.log(-math.expm1(logp)), rel=1e-9, abs=1e-9)
    assert (found > 0) == (logp > -math.log(2))


def test_an_answer_that_is_certain_has_large_odds_and_not_infinite_ones():
    for dtype in (torch.float32, torch.float64):
        zero = torch.zeros(1, dtype=dtype)
        assert log_odds(zero).item() == pytest.approx(-math.log(torch.finfo(dtype).eps), rel=1e-3)
        assert all(x.isfinite().all() for x in RATIO_LOSSES["orpo"].slopes(zero, zero, 0.1))


@given(a=SIDE, b=SIDE, beta=BETA)
def test_slic_is_the_hinge_scaled_and_sppo_two_squares_of_ipo(a, b, beta):
    """hinge(h)/β = max(0, 1/β − h); SPPO's two targets are half of IPO's each way. Kills: δ and β exchanged."""
    a, b = tensor(a, b)[:, None]
    hinge = MARGIN_LOSSES["hinge"].value(a - b, beta) / beta
    assert_close(RATIO_LOSSES["slic"].value(a, b, beta, alpha=0.0), hinge, rtol=1e-12, atol=1e-12)
    ipo = MARGIN_LOSSES["ipo"]
    assert_close(RATIO_LOSSES["sppo"].value(a, b, beta), ipo.value(a, beta) + ipo.value(-b, beta), rtol=1e-12, atol=0)


@given(a=SIDE, b=SIDE, beta=BETA, shift=st.floats(-3, 3))
def test_bco_is_two_classifiers_and_the_shift_moves_both(a, b, beta, shift):
    """Adding δ/β to both log-ratios undoes the shift. Kills: a shift on one side alone, or of the wrong sign."""
    a, b = tensor(a, b)[:, None]
    bco, dpo = RATIO_LOSSES["bco"].value, MARGIN_LOSSES["sigmoid"].value
    assert_close(bco(a, b, beta, shift=0.0), dpo(a, beta) + dpo(-b, beta), rtol=1e-12, atol=1e-12)
    assert_close(
        bco(a + shift / beta, b + shift / beta, beta, shift=shift), bco(a, b, beta, shift=0.0), rtol=1e-9, atol=1e-9
    )


# What a loss does to each side alone


def slopes_at(name, a, b, beta=1.0, **more):
    x, y = tensor(a), tensor(b)
    return [slope.item() for slope in RATIO_LOSSES[name].slopes(x, y, beta, **facts(name, x, **more))]


def test_what_each_row_does_to_each_side_alone():
    """Kills: a sentence of the table that is not true."""
    assert slopes_at("nca", math.log(2), 0.0)[0] == pytest.approx(0, abs=1e-15)  # a is drawn to log(2)/β
    assert slopes_at("nca", 1.0, -9.0)[0] > 0 > slopes_at("nca", 0.5, 0.0)[0]
    assert 0 < slopes_at("nca", 0.0, -9.0)[1] < 1e-3  # b falls for ever, ever more slowly
    before, after = slopes_at("bco", 0.1, 0.0, shift=0.5), slopes_at("bco", 3.0, -3.0, shift=0.5)
    assert before[0] < after[0] < 0 < after[1] < before[1]
    assert slopes_at("sppo", 0.5, -0.5) == [0, 0]
    assert [abs(s) for s in slopes_at("apo_zero", 0.0, 0.0)] == [0.25, 0.25]  # hardest at 0
    assert abs(slopes_at("apo_zero", 9.0, -9.0)[0]) < 1e-3
    assert slopes_at("apo_down", 0.0, 0.0) == [0, 0.25]  # b falls first
    assert slopes_at("apo_down", 0.0, -2.0)[0] > 0  # and a after it
    by_a, by_b = slopes_at("dpop", -1e-9, 0.0)
    assert by_a == pytest.approx(-51 * by_b, rel=1e-12)  # 1 + λ times as hard
    by_a, by_b = slopes_at("dpop", 1.0, 0.0)
    assert by_a == -by_b  # above the reference, DPO
    dpo = MARGIN_LOSSES["sigmoid"].slope(tensor(0.0), 1.0).item()
    assert slopes_at("rpo", 0.0, 0.0) == [dpo - 1 / 4, -dpo]
    assert slopes_at("cpo", -1.0, -1.0) == [dpo - 1, -dpo]
    assert slopes_at("slic", -1.0, -9.0) == [-1, 0] and slopes_at("slic", -1.0, -1.0) == [-2, 1]
    for name, push in {
        "forward_kl": lambda u: 1 / u, "jensen_shannon": lambda u: 1 / (1 + u), "alpha_divergence": lambda u: u**-0.5,
    }.items():  # fmt: skip
        by_a, by_b = slopes_at(name, -1.0, 0.5)
        assert by_a / by_b == pytest.approx(-push(math.exp(-1.0)) / push(math.exp(0.5)), rel=1e-12), name


@NAMES
@given(a=SIDE, b=SIDE, c=st.floats(0.5, 3), beta=st.floats(0.2, 2))
def test_a_reward_with_f_of_x_added_is_told_apart_by_some_rows_and_never_by_the_others(name, a, b, c, beta):
    """ℓ(a + c, b + c) − ℓ(a, b) is a constant where Z(x) is not seen, and then no optimum moves.

    Kills: the list of those that see Z at the top of the table.
    """
    row, a, b = RATIO_LOSSES[name], *tensor(*possible(name, a, b))[:, None]
    c = c if row.reference else -c
    known = facts(name, a)
    shifted = row.slopes(a + c, b + c, beta, **known)
    moved = max((x - y).abs().item() for x, y in zip(shifted, row.slopes(a, b, beta, **known), strict=True))
    if name in SEE_Z:
        grid = torch.linspace(-3, 3, 25, dtype=torch.float64)
        x, y = (z.flatten() for z in torch.meshgrid(*possible(name, grid, grid + 0.1), indexing="ij"))
        known = facts(name, x)
        pairs = zip(row.slopes(x + c, y + c, beta, **known), row.slopes(x, y, beta, **known), strict=True)
        assert max((p - q).abs().max().item() for p, q in pairs) > 1e-4
    else:
        assert moved <= 1e-9 * max(beta, 1) * 20


@NAMES
def test_no_pair_sees_another(name):
    """Any micro-batches, the same gradient. Kills: a mean or an order over the batch inside a loss."""
    generator = torch.Generator().manual_seed(0)
    a, b = possible(name, *torch.randn(2, 12, generator=generator, dtype=torch.float64))
    row, known = RATIO_LOSSES[name], facts(name, a)
    whole = [row.value(a, b, 0.3, **known), *row.slopes(a, b, 0.3, **known)]
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        some = {key: value if isinstance(value, float) else value[part] for key, value in known.items()}
        parts = [row.value(a[part], b[part], 0.3, **some), *row.slopes(a[part], b[part], 0.3, **some)]
        for mine, all_ in zip(parts, whole, strict=True):
            assert torch.equal(mine, all_[part])


# What is refused


@NAMES
@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf, math.nan])
def test_a_beta_that_is_not_a_positive_number_is_refused(name, beta):
    a = tensor(-0.5)
    for part in (RATIO_LOSSES[name].value, RATIO_LOSSES[name].slopes):
        with pytest.raises(ValueError, match=f"beta must be a positive number, got {beta}"):
            part(a, a, beta, **facts(name, a))


@NAMES
def test_a_name_without_effect_a_fact_that_is_missing_and_a_number_out_of_range_are_refused(name):
    """Kills: an option that is taken and forgotten; a default in the place of a fact; a bound that is moved."""
    a, row = tensor(-0.5), RATIO_LOSSES[name]
    known = facts(name, a)
    for part in (row.value, row.slopes):
        with pytest.raises(ValueError, match=r"^nonsense has no effect under this loss: leave it out"):
            part(a, a, 0.1, nonsense=1.0, **known)
        for missing in known:
            with pytest.raises(ValueError, match=f"^this loss needs {missing}"):
                part(a, a, 0.1, **{key: value for key, value in known.items() if key != missing})
        for parameter in parameters(name):
            for bad in (-1e-9, -1.0, 1_000_001.0, math.inf, math.nan):
                with pytest.raises(ValueError, match=f"^{parameter} must be a number from 0 to 1,000,000, got {bad}"):
                    part(a, a, 0.1, **known, **{parameter: bad})
            for fine in (0.0, 1e6):
                assert all(torch.isfinite(x).all() for x in part(a, a, 0.1, **known, **{parameter: fine}))


# Mixes, weights, the two log-ratios


@given(a=SIDE, b=SIDE, beta=BETA, alpha=NUMBER, lengths=LENGTHS)
def test_dpo_with_a_part_of_sft_is_rpo(a, b, beta, alpha, lengths):
    """To the bit. Kills: a weight on the wrong part, a part that is left out."""
    a, b = tensor(a, b)[:, None]
    known = facts("rpo", a, lengths)
    mixed = Mixture({"sigmoid": 1.0, "sft": alpha}).value(
        a, b, beta, **known, shift=0.3, rejected_lengths=known["chosen_lengths"]
    )
    assert_close(mixed, RATIO_LOSSES["rpo"].value(a, b, beta, **known, alpha=alpha), rtol=1e-14, atol=0)
    assert SFT.source == "supervised fine-tuning"
    assert_close(SFT.value(a, b, beta, **known), -known["policy_chosen_logps"] / lengths[0], rtol=0, atol=0)
    x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
    slopes = torch.autograd.grad(SFT.value(x, y, beta, **facts("rpo", x, lengths)).sum(), (x, y), allow_unused=True)
    by_a, by_b = SFT.slopes(a, b, beta, **known)
    assert_close(by_a, slopes[0], rtol=1e-12, atol=0)
    assert by_b.item() == 0 and slopes[1] is None


@given(a=SIDE, b=SIDE, beta=BETA, epsilon=st.floats(0.01, 0.4), weights=st.tuples(NUMBER, NUMBER))
def test_a_mix_is_the_weighted_sum_and_each_part_takes_what_it_knows(a, b, beta, epsilon, weights):
    """Kills: a margin loss given a for a − b, a parameter that reaches the wrong part, weights that are swapped."""
    a, b = tensor(a, b)[:, None]
    mix = Mixture(dict(zip(("cdpo", "dpop", "nca"), (*weights, 0.7), strict=True)))
    assert mix.arguments == {"label_smoothing": 0.1, "penalty": 50.0}
    found = mix.value(a, b, beta, label_smoothing=epsilon, penalty=2.0)
    parts = MARGIN_LOSSES["cdpo"].value(a - b, beta, epsilon), RATIO_LOSSES["dpop"].value(a, b, beta, penalty=2.0)
    expected = weights[0] * parts[0] + weights[1] * parts[1] + 0.7 * RATIO_LOSSES["nca"].value(a, b, beta)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_mix_of_one_row_is_that_row_to_the_bit(name):
    a, b = -torch.rand(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mix = Mixture({name: 1.0})
    row = LOSSES[name]
    assert (mix.reference, mix.reduce, mix.arguments) == (row.reference, row.reduce, row.arguments)
    known = facts(name, a) if name in RATIO_LOSSES else {}
    alone = row.value(a, b, 0.3, **known) if name in RATIO_LOSSES else row.value(a - b, 0.3)
    assert torch.equal(mix.value(a, b, 0.3, **known), alone)


@pytest.mark.parametrize(
    "weights", [{"sigmoid": 1, "simpo": 1}, {"simpo": 1, "cpo": 1}, {"sigmoid": 1, "ld": 1}, {"sft": 1}]
)
def test_parts_that_read_different_log_probabilities_cannot_be_mixed(weights):
    with pytest.raises(ValueError, match="must read the same log-probabilities of a pair"):
        Mixture(weights)


@given(st.lists(st.tuples(st.floats(-5, 1), st.floats(-5, 1)), min_size=1, max_size=5))
def test_wpos_weight_is_the_product_of_both_sides_and_has_no_gradient(sides):
    """Kills: a sum of two probabilities, one side alone, weights that are trained."""
    chosen, rejected = (x.clone().requires_grad_() for x in torch.tensor(sides, dtype=torch.float64).T)
    weights = wpo_weights(chosen, rejected)
    assert not weights.requires_grad
    assert_close(weights, tensor(*[math.exp(c) * math.exp(r) for c, r in sides]), rtol=1e-12, atol=0)


@given(st.lists(st.tuples(*[st.floats(-1000, 0)] * 4), min_size=1, max_size=5))
def test_the_margin_is_the_difference_of_the_two_log_ratios_to_the_bit(rows):
    logps = torch.tensor(rows, dtype=torch.float64).T
    a, b = log_ratios(*logps)
    assert torch.equal(a, logps[0] - logps[2]) and torch.equal(b, logps[1] - logps[3])
    assert torch.equal(margin(*logps), a - b)


# Ranked lists

LISTS = st.lists(st.lists(st.floats(-30, 30), min_size=1, max_size=5), min_size=1, max_size=4)


def padded(lists, junk=0.0):
    """Ratios (B, K) and where there is an answer, (B, K)."""
    width = max(map(len, lists))
    rows = [[*some, *[junk] * (width - len(some))] for some in lists]
    present = [[k < len(some) for k in range(width)] for some in lists]
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(present)


@given(lists=LISTS, beta=BETA)
@example(lists=[[1.0, -2.0, 0.5], [3.0, 4.0]], beta=0.1)
def test_a_ranked_list_is_chosen_answer_by_answer(lists, beta):
    """Kills: a rank left out, a better answer in a worse one's denominator, padding that is counted."""
    expected = []
    for some in lists:
        x = [beta * a for a in some]
        most = max(x)
        ranks = [most + math.log(sum(math.exp(y - most) for y in x[k:])) - x[k] for k in range(len(x))]
        expected.append(sum(ranks))
    for junk in (0.0, 1e4, -1e4):
        found = plackett_luce(*reversed_arguments(padded(lists, junk), beta))
        assert_close(found, tensor(*expected), rtol=1e-9, atol=1e-9)


def reversed_arguments(ratios_and_present, beta):
    return ratios_and_present[0], beta, ratios_and_present[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(a=st.floats(-1e4, 1e4, width=32), b=st.floats(-1e4, 1e4, width=32), beta=st.floats(1e-3, 1e3))
def test_a_list_of_two_is_dpo_to_the_bit(dtype, a, b, beta):
    """Kills: log-sum-exp of all answers less the best, which rounds differently."""
    ratios, present = torch.tensor([[a, b]], dtype=dtype), torch.ones(1, 2, dtype=torch.bool)
    h = ratios[:, 0] - ratios[:, 1]
    assert torch.equal(plackett_luce(ratios, beta, present), MARGIN_LOSSES["sigmoid"].value(h, beta))
    slopes = plackett_luce_slopes(ratios, beta, present)[0]
    assert_close(slopes[0], MARGIN_LOSSES["sigmoid"].slope(h, beta)[0], rtol=1e-6, atol=1e-30)
    assert slopes[1] == -slopes[0]


@given(ratios=st.lists(st.floats(-20, 20), min_size=1, max_size=5), beta=BETA)
def test_the_chances_of_all_orders_sum_to_one(ratios, beta):
    """K! of them. Kills: a loss that is no −log-likelihood of an order."""
    orders = torch.tensor(list(itertools.permutations(ratios)), dtype=torch.float64)
    chances = (-plackett_luce(orders, beta, torch.ones_like(orders, dtype=torch.bool))).exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-9)


@given(lists=LISTS, beta=BETA, f=st.floats(-10, 10))
@example(lists=[[1e4, -1e4, 1e4], [-1e4]], beta=1.0, f=0.0)
@example(lists=[[0.0]], beta=1.0, f=0.0)
def test_the_slopes_of_a_list_are_the_derivatives_and_f_of_x_changes_nothing(lists, beta, f):
    """Kills: nan where nothing is worse, a slope on padding, slopes that do not sum to 0, a Z(x) that is seen."""
    ratios, present = padded(lists)
    ratios.requires_grad_()
    value = plackett_luce(ratios, beta, present)
    (slopes,) = torch.autograd.grad(value.sum(), ratios)
    found = plackett_luce_slopes(ratios.detach(), beta, present)
    assert value.isfinite().all() and found.isfinite().all()
    assert_close(found, slopes, rtol=1e-9, atol=1e-9 * beta)
    assert (found[~present] == 0).all()
    assert_close(found.sum(dim=1), torch.zeros(len(lists), dtype=torch.float64), rtol=0, atol=1e-9 * beta)
    moved = plackett_luce(ratios + f, beta, present)
    assert_close(moved, value, rtol=1e-6, atol=1e-9 * (1 + beta * ratios.abs().max().item()))


# Single thumbs


@given(a=SIDE, label=st.booleans(), z=st.floats(0, 5), beta=BETA, weight=st.floats(0.1, 3))
@example(a=0.5, label=True, z=0.2, beta=0.1, weight=1.0)
@example(a=0.5, label=False, z=0.2, beta=0.1, weight=4 / 3)
@example(a=0.0, label=True, z=3.0, beta=7.0, weight=2.0)
def test_kto_is_lambda_less_the_value_of_the_thumb(a, label, z, beta, weight):
    """v = λ_D σ(β(r − z)) or λ_U σ(β(z − r)). Kills: β left off z, a sign, a weight on half of it."""
    r = a
    v = weight / (1 + math.exp(-beta * (r - z))) if label else weight / (1 + math.exp(-beta * (z - r)))
    x, labels, weights = tensor(a).requires_grad_(), torch.tensor([label]), tensor(weight)
    value = kto(x, beta, labels, z, weights)
    assert value.item() == pytest.approx(weight - v, rel=1e-9, abs=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), x)
    rounding = 1e-15 * weight * beta  # of autograd's σ (1 − σ), where σ is almost 1
    assert_close(kto_slope(x.detach(), beta, labels, z, weights), slope, rtol=1e-9, atol=1e-15 + rounding)
    assert (slope.item() <= 0) == label or slope.item() == 0


def test_kto_is_finite_far_out():
    for a in (-1e4, 1e4):
        for label in (False, True):
            arguments = torch.tensor([a]), 10.0, torch.tensor([label]), 0.5, torch.ones(1)
            assert kto(*arguments).isfinite().all() and kto_slope(*arguments).isfinite().all()


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6))
@example([-1.0, -2.0])
@example([1.0, -0.5])
def test_the_shift_of_kto_is_the_mean_of_mismatched_answers_and_never_negative(ratios):
    """Kills: a sum, a maximum over each answer alone, a shift below 0."""
    assert type(kto_shift(tensor(*ratios))) is float  # which carries no gradient
    assert kto_shift(tensor(*ratios)) == pytest.approx(max(0.0, sum(ratios) / len(ratios)), abs=1e-12)


def test_slic_has_the_slopes_of_its_value_at_the_kink_too():
    """Kills: a margin of exactly 1/β that still pushes, where PyTorch's own slope of max(0, ·) is 0."""
    a, b = tensor(0.5).requires_grad_(), tensor(0.0).requires_grad_()
    expected = torch.autograd.grad(LOSSES["slic"].value(a, b, 2.0).sum(), (a, b))
    for slope, autograd in zip(LOSSES["slic"].slopes(a.detach(), b.detach(), 2.0), expected, strict=True):
        assert_close(slope, autograd, rtol=0, atol=0)
