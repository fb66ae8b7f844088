"""What preference data do, in six lessons, each measured in runs: writes data.md and its pictures.

    python -m experiments.lessons [--out docs] [--runs runs/lessons]

Every answer of the language can be listed, so reward, KL and the distance from π_r are exact; only the data are drawn.
What a lesson measured is kept in runs/lessons/NAME.json, from which the page and the pictures are made again.
"""

import argparse
import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.losses import LOSSES
from dpo_min.model.weights import model_fingerprint
from dpo_min.objective import expectation, kl_divergence, objective, optimal_policy
from dpo_min.preference import margin
from dpo_min.rl.rlhf import update
from dpo_min.run.optimizer import schedule
from dpo_min.system.files import read_json, write_text
from experiments import lessons_page, theorem

SEEDS = (0, 1, 2)
BATCH = 100  # pairs to a step
HELD_OUT = 20_000  # pairs that only measure
HELD_OUT_SEED = 999


def sample_pairs(weights, count, seed):
    """Preferences drawn from `weights` (Y, Y), as indices (count, 2): chosen, rejected."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.multinomial(weights.flatten(), count, replacement=True, generator=generator)
    return torch.stack([flat // len(weights), flat % len(weights)], dim=1)


def fit(world, pairs, held_out, steps, measure_every, beta=None, shape="cosine", seed=0):
    """Train a copy of the reference by DPO on `pairs` (N, 2), as many passes as `steps` take; measured as it goes.

    Returns a list of dicts: passes, exact kl, reward and distance from π_r, and on held-out and trained pairs the mean
    loss, and the implicit reward's margin.
    """
    beta, generator = beta or world.beta, torch.Generator().manual_seed(seed)
    policy = copy.deepcopy(world.reference).requires_grad_(True)
    batch = pack([TokenizedPair(theorem.PROMPT, list(y), list(y)) for y in world.completions], chosen_only=True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0)
    points, order = [], torch.empty(0, dtype=torch.long)
    for step in range(steps + 1):
        log_policy = batch_logps(policy, batch)  # (Y,) every answer, so that the exact policy is at hand
        if step % measure_every == 0 or step == steps:
            passes = {"passes": step * BATCH / len(pairs)}
            points.append(passes | measure_exactly(world, log_policy.detach(), pairs, held_out, beta))
        if step == steps:
            return points
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(pairs), generator=generator)])
        rows, order = pairs[order[:BATCH]], order[BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * schedule(shape, step + 1, steps, 20)
        update(optimizer, LOSSES["sigmoid"].value(margins(world, log_policy, rows), beta).mean())


def margins(world, log_policy, rows):
    """The margin h of each pair of `rows` (B, 2) under log π (Y,), (B,)."""
    (i, j), ref = rows.T, world.log_ref
    return margin(log_policy[i], log_policy[j], ref[i], ref[j])


def measure_exactly(world, log_policy, pairs, held_out, beta):
    """Name → number of a policy log π (Y,) that was trained on `pairs`: see `fit`."""
    h, outside = margins(world, log_policy, pairs), margins(world, log_policy, held_out)
    return {
        "kl": kl_divergence(log_policy, world.log_ref).item(),
        "reward": expectation(log_policy, world.reward).item(),
        "distance": kl_divergence(log_policy, optimal_policy(world.log_ref, world.reward, beta)).item(),
        "held_out": LOSSES["sigmoid"].value(outside, beta).mean().item(),
        "loss": LOSSES["sigmoid"].value(h, beta).mean().item(),
        "margin": beta * h.mean().item(),
    }


# The lessons. Each measures, and returns what its part of the page is made from: numbers, lists and names.


def measure_pairs(world, sizes, steps):
    """How many pairs: KL(π‖π_r) against N, at the end and where the held-out loss was lowest; by data set."""
    weights = theorem.all_preferences(world)
    held_out = sample_pairs(weights, HELD_OUT, HELD_OUT_SEED)
    last, best = [], []
    for n in sizes:
        runs = [fit(world, sample_pairs(weights, n, seed), held_out, steps, 10, seed=seed) for seed in SEEDS]
        last.append([run[-1]["distance"] for run in runs])
        best.append([min(run, key=lambda point: point["held_out"])["distance"] for run in runs])
    start = kl_divergence(world.log_ref, world.optimum).item()
    return {"last": last, "best": best, "constant": theorem.asymptotic_kl(world, weights), "start": start}


def measure_noise(world, rates):
    """Label noise: (KL(π‖π_ref), E[r], KL(π‖π_r)) where unlimited data end, the noise ignored and its rate known."""
    found = {"sigmoid": [], "robust": []}
    for rate in rates:
        weights = theorem.all_preferences(world, rate)
        for name, ends in found.items():
            told = (name, rate) if name == "robust" and rate else ("sigmoid", None)
            log_policy, _ = theorem.fit_table(world, weights, *told)
            drift, distance = (kl_divergence(log_policy, other).abs() for other in (world.log_ref, world.optimum))
            ends.append([drift.item(), expectation(log_policy, world.reward).item(), distance.item()])
    return found


def measure_sources(world, pairs, repeats):
    """Pairs from elsewhere: N · KL(π‖π_r) by theory and as counted, with standard errors, by where pairs are drawn.

    The standard error of the count is theory's too: one estimated from the same few data sets is too small whenever
    their mean is, because N · KL is far from normal.
    """
    sources = {
        "π_ref": world.log_ref,
        "π_r, the optimum": world.optimum,
        "half π_ref, half π_r": torch.logaddexp(world.log_ref, world.optimum) - torch.tensor(2.0).log(),
        "every answer alike": torch.zeros_like(world.log_ref).log_softmax(-1),
        "π_ref, sharpened (∝ π_ref²)": (2 * world.log_ref).log_softmax(-1),
        "π_ref, tilted away from r (∝ π_ref e⁻ʳ)": optimal_policy(world.log_ref, -world.reward, 1.0),
    }
    found = {}
    for name, log_source in sources.items():
        weights = theorem.all_preferences(replace(world, log_ref=log_source))
        spread = theorem.asymptotic_spread(world, weights)
        counted = pairs * theorem.fit_samples(world, weights, [pairs], repeats)[0]
        found[name] = {
            "theory": spread.trace().item() / 2,
            "counted": counted.mean().item(),
            "error": (spread @ spread).trace().div(2 * repeats).sqrt().item(),
            "largest": (torch.linalg.eigvals(spread).real.max() / spread.trace()).item(),
        }
    return found


def measure_epochs(world, pairs, steps, beta):
    """One epoch against many: the `points` of `fit`, by data set, over the passes through a small data set."""
    weights = theorem.all_preferences(world)
    held_out = sample_pairs(weights, HELD_OUT, HELD_OUT_SEED)
    return [
        fit(world, sample_pairs(weights, pairs, seed), held_out, steps, 15, beta, "constant", seed) for seed in SEEDS
    ]


def measure_length(world, prices):
    """Labels that go with length: where unlimited data end if the judge pays for each token, by price."""
    lengths = torch.tensor([float(len(y)) for y in world.completions], dtype=torch.float64)

    def measured(log_policy, judged):
        ends = {"tokens": lengths, "reward": world.reward, "judged": judged}
        ends = {name: expectation(log_policy, f).item() for name, f in ends.items()}
        ends["kl"] = kl_divergence(log_policy, world.log_ref).item()
        return ends | {"objective": objective(log_policy, world.log_ref, world.reward, world.beta).item()}

    found = {"reference": measured(world.log_ref, world.reward), "ends": []}
    for price in prices:
        judged = replace(world, reward=world.reward + price * lengths)
        log_policy, _ = theorem.fit_table(judged, theorem.all_preferences(judged))
        found["ends"].append(measured(log_policy, judged.reward))
    return found


def measure_beta(world, betas, pairs, steps):
    """β too low and too high: where DPO ends on the same pairs, means over data sets; and the optimum, finely."""
    weights = theorem.all_preferences(world)
    held_out = sample_pairs(weights, HELD_OUT, HELD_OUT_SEED)
    ends = []
    for beta in betas:
        runs = [fit(world, sample_pairs(weights, pairs, s), held_out, steps, steps, beta, seed=s)[-1] for s in SEEDS]
        ends.append({key: sum(run[key] for run in runs) / len(runs) for key in ("kl", "reward")})

    def optimum(beta):
        log_policy = optimal_policy(world.log_ref, world.reward, beta)
        kl = kl_divergence(log_policy, world.log_ref).item()
        return {"beta": beta, "kl": kl, "reward": expectation(log_policy, world.reward).item()}

    low, high = (torch.tensor(float(beta)).log10() for beta in (betas[0], betas[-1]))
    curve = torch.logspace(low, high, 121, dtype=torch.float64).tolist()
    return {"ends": ends, "optima": [optimum(beta) for beta in betas], "curve": [optimum(beta) for beta in curve]}


LESSONS = {  # name → (what measures it, the language's sizes, its settings)
    "pairs": (measure_pairs, (5, 2), {"sizes": [300, 1000, 3000, 10_000, 30_000], "steps": 300}),
    "noise": (measure_noise, (5, 2), {"rates": [0.0, 0.05, 0.1, 0.2, 0.3, 0.4]}),
    "sources": (measure_sources, (5, 2), {"pairs": 10_000_000, "repeats": 100}),
    "epochs": (measure_epochs, (5, 2), {"pairs": 100, "steps": 400, "beta": 0.05}),
    "length": (measure_length, (3, 4), {"prices": [0.0, 0.25, 0.5, 1.0, 2.0]}),
    "beta": (measure_beta, (5, 2), {"betas": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0], "pairs": 300, "steps": 300}),
}


def measured(name, directory):
    """(settings, what was found) of a lesson: kept from an earlier run with the same settings and reference, or new."""
    measure, sizes, settings = LESSONS[name]
    world, path = theorem.make_world(*sizes), directory / f"{name}.json"
    key = {"settings": settings, "reference": model_fingerprint(world.reference)}
    kept = read_json(path) if path.exists() else {}
    if {k: kept.get(k) for k in key} != key:
        kept = key | {"found": measure(world, **settings)}
        directory.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(kept))
    return settings, kept["found"]


def main():
    """Measure every lesson that is not measured yet, draw its picture, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="directory of data.md (default: docs)")
    parser.add_argument("--runs", type=Path, default=Path("runs/lessons"), help="where measurements are kept")
    options = parser.parse_args()
    (options.out / "figures").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # matrices this small gain nothing from a second
    sections = []
    for name in LESSONS:
        sections.append(lessons_page.section(name, *measured(name, options.runs), options.out / "figures"))
        print(f"{name}\n{sections[-1]}", flush=True)
    sections.append(lessons_page.on_policy(options.out / "rounds.md"))
    (options.out / "data.md").write_text(lessons_page.INTRODUCTION + "\n".join(sections), encoding="utf-8")
    print(f"written: {options.out / 'data.md'}")


if __name__ == "__main__":
    sys.exit(main())
