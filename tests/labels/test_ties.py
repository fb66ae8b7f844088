"""Ties on their way into the loss: left out, or trained both ways at half weight."""

import json
from dataclasses import replace

import pytest
import torch

from dpo_min.data.batch import pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.run.criterion import Criterion
from dpo_min.run.job import prepare
from dpo_min.run.loss_flags import ROWS


def rows(path, ties):
    row = {"chosen": "yes", "rejected": "no", "offset": 1.0}
    path.write_text(
        "".join(json.dumps({"prompt": str(i)} | row | ({"tie": True} if t else {})) + "\n" for i, t in ties)
    )
    return path


def job(tmp_path, *more):
    data = rows(tmp_path / "prefs.jsonl", enumerate([True, False, False, True, False]))
    return prepare(["--data", str(data), "--out", str(tmp_path / "run"), "--eval-fraction", "0", *more])


def test_ties_are_left_out_or_kept_with_their_mark(tmp_path, capsys):
    """Kills: a tie that trains as if its first side had been chosen."""
    assert [pair.tie for pair in job(tmp_path).pairs] == [False] * 3
    assert "2 ties, left out" in capsys.readouterr().out
    assert [pair.tie for pair in job(tmp_path, "--ties", "half").pairs] == [True, False, False, True, False]
    assert "2 ties, trained on both ways" in capsys.readouterr().out


def test_the_flag_is_refused_where_no_row_is_a_tie(tmp_path, capsys):
    data = rows(tmp_path / "prefs.jsonl", enumerate([False] * 3))
    with pytest.raises(SystemExit) as stopped:
        prepare(["--data", str(data), "--out", str(tmp_path / "run"), "--ties", "half"])
    assert stopped.value.code == 2 and "--ties half: no row is a tie" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(set(ROWS)))
def test_the_loss_of_a_tie_is_the_mean_of_both_ways(name, tmp_path):
    """For every loss, of a tie among other pairs. Kills: one way alone, the sum, facts that are not turned round."""
    flags = job(
        tmp_path, "--loss-type", name, *(["--label-smoothing", "0.2"] if name in ("cdpo", "robust") else [])
    ).flags
    tie = TokenizedPair([1, 2], [3, 4, 5], [6, 7], "a", 0.0, tie=True)
    other = TokenizedPair([1], [3], [6, 7, 8, 9], "b", 0.5)
    one, two = replace(tie, tie=False), TokenizedPair([1, 2], [6, 7], [3, 4, 5], "a", 0.0)
    found = losses(flags, [other, tie, one, two])
    assert found[1] == pytest.approx((found[2] + found[3]) / 2, rel=1e-6)
    assert found[2] != pytest.approx(found[3], rel=1e-3)
    assert found[0] == losses(flags, [other])[0]


def losses(flags, pairs):
    """The loss of each pair by made-up log-probabilities, which depend on the answer alone."""
    batch, criterion = pack(pairs), Criterion(flags)

    def logps(of):
        return torch.tensor([float(sum((i * i * of) % 7 for i in ids)) for side in (0, 1) for ids in sides(side)]) / -3

    def sides(side):
        return [pair.completions[side] for pair in pairs]

    policy, reference = logps(3).chunk(2), logps(5).chunk(2)
    a, b = (p - r for p, r in zip(policy, reference, strict=True))
    return criterion.value(a, b, policy, pairs, batch, None).tolist()
