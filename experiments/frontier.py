"""Reward against KL for DPO and what it replaces: runs methods.py, and writes frontier.md and its pictures.

    python -m experiments.frontier [--part exact|reviews|pages] [--seeds 3] [--workers 2]

Every finished run is a line of runs/frontier/exact.jsonl or reviews.jsonl; the same command goes on where it stopped.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import torch

from dpo_min.data.rows import fingerprint
from dpo_min.model.weights import model_fingerprint
from dpo_min.objective import kl_divergence, optimal_policy
from dpo_min.system.program import stop
from dpo_min.system.progress import left
from experiments import demo, frontier_page, methods

POINTS = {"exact": 20, "reviews": 6}  # measurements of a run, the reference not counted
TABLES = {"exact": methods.EXACT, "reviews": methods.REVIEWS}


def make_language(part, options):
    """The `Language` of a part."""
    if part == "exact":
        return methods.exact_language()[0]
    return methods.review_language(options.demo, options.data)


def start_worker(part, options):
    """Give a process its language, once."""
    global LANGUAGE, PART
    torch.set_num_threads(1)
    LANGUAGE, PART = make_language(part, options), part


@contextmanager
def workers(part, options):
    """A map in no order, over processes with a thread each, or in this one if it is to be one."""
    if options.workers == 1:
        start_worker(part, options)
        yield map
    else:
        with multiprocessing.get_context("spawn").Pool(options.workers, start_worker, (part, options)) as pool:
            yield pool.imap_unordered


def work(task):
    """One run of a task, (method, seed); without a method, the rewards of the reference's answers."""
    method, seed = task
    if method is None:
        return {"method": None, "seed": seed, "rewards": methods.reference_rewards(LANGUAGE)}
    return methods.run(LANGUAGE, method, seed, POINTS[PART])


def key(line):
    """What makes two runs the same: the method, the seed, and the hashes of reference and data."""
    return json.dumps([line["method"], line["seed"], line["language"]], sort_keys=True)


def read_results(path):
    """{key: line} of the finished runs; a line that was cut off by a crash does not count."""
    results = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
            results[key(line)] = line
        except (ValueError, KeyError, TypeError):
            continue
    return results


def append(path, line):
    """Add one line to the results, whole or not at all, on a line of its own."""
    broken = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with open(path, "ab", buffering=0) as file:
        file.write(b"\n" * bool(broken) + json.dumps(line).encode() + b"\n")
        os.fsync(file.fileno())


def run_part(part, options):
    """Every run of a part that is not in its file yet; returns the lines of those that are wanted and finished."""
    path = options.runs / f"{part}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    language = model_fingerprint(make_language(part, options).reference)
    tasks = [(method, seed) for seed in range(options.seeds) for method in TABLES[part]]
    if part == "reviews":
        language += fingerprint([options.data])
        tasks = [(None, 0), *tasks]
    keys = [key({"method": m and asdict(m), "seed": seed, "language": language}) for m, seed in tasks]
    results = read_results(path)
    missing = [task for task, k in zip(tasks, keys, strict=True) if k not in results]
    if missing and options.part in (part, "all"):
        start = time.perf_counter()
        with workers(part, options) as each:
            for done, line in enumerate(each(work, missing), 1):
                line["language"] = language
                append(path, line)
                results[key(line)] = line
                name = methods.Method(**line["method"]).label if line["method"] else "the reference's answers"
                seed, rest = line["seed"], left(start, done, len(missing))
                print(f"{part} {done}/{len(missing)}  {name}, seed {seed}{rest}", flush=True)
    return [results[k] for k in keys if k in results]


LEVELS = {"exact": (0.1, 0.3, 1, 2, 3), "reviews": (0.5, 1, 2, 4)}  # nats at which rewards are compared
TOLERANCE = 1e-9  # what rounding may lift a point above the optimum's curve


def exact_section(lines):
    """(text, panel, highest excess over the optimum) of the language whose answers can be listed."""
    world, groups = methods.exact_language()[1], frontier_page.group(lines)
    points = [point for line in lines for point in line["path"]]
    excess = -min(frontier_page.gaps(world, points))
    levels = torch.tensor(LEVELS["exact"], dtype=torch.float64)
    optimum = frontier_page.optimum_reward(world.log_ref, world.reward, levels).tolist()
    best = frontier_page.best_at(world.log_ref, world.reward, LEVELS["exact"])
    last = {method.label: [run["path"][-1] for run in runs] for method, runs in groups.items()}
    distance = {k: fmean(p["distance"] for p in points) for k, points in last.items() if "distance" in points[0]}
    start = [optimal_policy(world.log_ref, world.reward, beta) for beta in (1, 0.1)]
    start = [kl_divergence(world.log_ref, policy).item() for policy in start]
    text = EXACT_TEXT.format(
        points=len(points),
        height=f"{abs(excess):.1e} {'above' if excess > 0 else 'below'}",
        warmup=methods.WARMUP,
        settings=frontier_page.settings_table(groups),
        ends=frontier_page.end_table(groups, world),
        equal=frontier_page.equal_kl_table(groups, LEVELS["exact"], optimum, best),
        costs=frontier_page.cost_table(groups),
        best=frontier_page.best_table(world.log_ref, world.reward),
        accuracy=accuracy(groups),
        start1=start[0],
        start01=start[1],
        distance=defaultdict(lambda: math.nan, distance),
        below=defaultdict(
            lambda: math.nan, {k: fmean(frontier_page.gaps(world, points)) for k, points in last.items()}
        ),
    )
    return text, ("85 answers, everything exact", *frontier_page.curves(world.log_ref, world.reward), groups), excess


def review_section(lines, seeds):
    """(text, panel) of the demo's reviews."""
    groups = frontier_page.group(lines)
    rewards = torch.tensor(next(line["rewards"] for line in lines if not line["method"]), dtype=torch.float64)
    log_ref = torch.full_like(rewards, -math.log(len(rewards)))
    highest = math.log(len(rewards) / 20)  # beyond, fewer than twenty answers carry the estimate
    levels = torch.tensor(LEVELS["reviews"], dtype=torch.float64)
    optimum, best = (
        frontier_page.optimum_reward(log_ref, rewards, levels).tolist(),
        frontier_page.best_at(log_ref, rewards, levels.tolist()),
    )
    text = REVIEWS_TEXT.format(
        prompts=len(demo.prompts(held_out=True)),
        error=next(iter(groups.values()))[0]["path"][0]["reward_error"],
        answers=len(rewards),
        highest=f"{highest:.1f}",
        finished=sum(len(runs) for runs in groups.values()),
        planned=seeds * len(methods.REVIEWS),
        seeds=seeds,
        settings=frontier_page.settings_table(groups),
        ends=frontier_page.end_table(groups),
        equal=frontier_page.equal_kl_table(groups, LEVELS["reviews"], optimum, best),
        costs=frontier_page.cost_table(groups),
        accuracy=accuracy(groups),
    )
    return text, ("the demo's reviews", *frontier_page.curves(log_ref, rewards, highest), groups)


def accuracy(groups):
    """Held-out accuracy of the reward models, as text."""
    found = {
        (run["seed"], run["reward_accuracy"]) for runs in groups.values() for run in runs if "reward_accuracy" in run
    }
    return frontier_page.with_interval([value for _, value in sorted(found)]) if found else "not there yet"


def write(options, results):
    """Pictures and the page; returns the exit code, 1 if a point lies above the optimum."""
    figures = options.out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    exact, reached = frontier_page.draw_bandit(figures / "frontier-bandit.png")
    sections, panels, excess = [BANDIT_TEXT.format(exact=f"{exact:.2f}", reached=f"{reached:.2f}")], [], 0.0
    if results["exact"]:
        text, panel, excess = exact_section(results["exact"])
        sections, panels = [*sections, text], [*panels, panel]
    if any(not line["method"] for line in results["reviews"]) and len(results["reviews"]) > 1:
        text, panel = review_section(results["reviews"], options.seeds)
        sections, panels = [*sections, text], [*panels, panel]
    if panels:
        frontier_page.draw_frontier(panels, figures / "frontier.png")
    (options.out / "frontier.md").write_text(INTRODUCTION + "\n".join(sections) + PAPER_TEXT, encoding="utf-8")
    print(f"written: {options.out / 'frontier.md'}")
    if excess > TOLERANCE:
        print(f"frontier.py: error: a point lies {excess:.1e} above the optimum, which nothing can", file=sys.stderr)
    return int(excess > TOLERANCE)


INTRODUCTION = """# The frontier: DPO beside what it replaces

`make frontier` wrote this page. Every method starts from the same reference. What it learns from differs: preferences,
a reward model fitted to the same preferences, or the true reward itself; what it is judged by is always the true
reward. A measurement is a point: how far the policy has drifted, KL(π‖π_ref), and what it earns, E[r]. The line is the
optimum, π_r ∝ π_ref e^{r/β} for every β. As J(π) ≤ β log Z for every policy
([objective.py](../dpo_min/objective.py)), nothing lies above it.

![Every measurement of every run, reward against KL, below the curve of the optimum](figures/frontier.png)

Every measurement of every run is there, those beyond 12 nats as arrows at the edge; the axis of KL is the root's, on
which the curve begins as a straight line.

"""

BANDIT_TEXT = """## First, five arms

The policy gradient where it can be seen whole ([rlhf.py](../dpo_min/rl/rlhf.py)): a softmax over five arms. The exact
gradient ends at E[r] = {exact}. Four draws a step lead to the same place with a leave-one-out baseline, if not always
soon; without one, every arm that is drawn is pushed up, and some runs settle on an arm that is not the best. Maximum
likelihood of the arms preferred in 500 pairs ends at {reached}: it repeats what was preferred as often as it was
preferred, and then it stands still.

![E[r] by step: exact, sampled with and without a baseline, and maximum likelihood](figures/frontier-bandit.png)
"""

EXACT_TEXT = """## A language that can be listed

Five tokens, one of them end-of-text, answers of at most three: 85 answers. The reference is a GPT with random
weights, each answer's reward a standard normal number, so E[r] and KL are sums over all answers, in float64.
Preferences are drawn from the reference and judged once each by Bradley and Terry, with whom no ranking can agree on
more than 75 % of the pairs; the reward models agree on a share of {accuracy} of held-out ones. {points} measurements
were taken; the highest lies {height} the curve.

{settings}

All use AdamW, {warmup} steps of warm-up, a cosine. 3e-3 is the best of 1e-3, 3e-3 and 1e-2 for DPO and PPO, by J(π)
in runs that are not among these; for REINFORCE the three are alike, and the other methods have it from there. The
reward model's rate, 1e-3, is the best of the same three by accuracy on the first data set's held-out pairs; it falls
to 0 in a straight line. PPO: clip 0.2, λ = 0.95, γ = 1, a fixed β, a value network of its own.

### Where the runs end

"Below the optimum" is what the curve has at the same KL, less E[r]. KL(π‖π_r) is from the optimum of the run's own β;
for the reference it is {start1:.4f} at β = 1 and {start01:.2f} at β = 0.1. ± is Student's 95 % interval over the
runs.

{ends}

### At the same drift

E[r] where a run first has that KL, on the line between two measurements; – where no run gets there. A run at low β
passes the small values within a few large steps, far from any optimum: to be at a small KL and well, choose the β for
it.

{equal}

### What it cost

{costs}

Processor seconds are of one thread; wall seconds are longer where the machine had other work.

### Best of n

{best}

### What came out

- **All approach π_r.** At β = 1, KL(π‖π_r) falls from {start1:.4f} to {distance[DPO, β = 1]:.4f} under DPO,
  {distance[REINFORCE, β = 1]:.4f} under REINFORCE, {distance[PPO, true reward, β = 1]:.4f} under PPO and
  {distance[PPO, learned reward, β = 1]:.4f} under PPO with a learned reward. DPO ends {below[DPO, β = 1]:.3f} below the
  optimum's curve at β = 1, {below[DPO, β = 5]:.3f} at β = 5, {below[DPO, β = 0.1]:.3f} at β = 0.1 and
  {below[DPO, β = 0.05]:.3f} at β = 0.05, where one pass ends at half of the drift that the optimum has.
- **What separates DPO from the curve is data.** Its pairs hold one noisy bit each. In expectation over all pairs the
  same loss takes a GPT to π_r itself ([proof.md](proof.md), b). The true reward tells REINFORCE and PPO the worth of
  every answer that they draw.
- **At β = 0.1 the true reward is not enough.** REINFORCE and PPO stop {distance[REINFORCE, β = 0.1]:.2f} and
  {distance[PPO, true reward, β = 0.1]:.2f} nats from π_r: both hold the second-best answer, almost alone (r = 2.039,
  π_ref = 0.018). The best (r = 2.189, π_ref = 0.005) has gone from what they draw, and what is not drawn is not learnt.
- **Imitating the chosen side** drifts little and gains little; pushing the rejected side down as well gains more, at a
  growing loss against the curve, as nothing holds the policy.
- **IPO** ends nearer the reference than DPO at the same β, being bound for the optimum of another reward (proof.md, d).
- **Best of n** keeps close to the curve without any training; its price is n answers to every question. The bound that
  is quoted for its KL is exceeded nowhere, and is too high where n is large.
"""

REVIEWS_TEXT = """## The demo's reviews

The reference is the demo's own; the true reward counts words of praise against words of complaint. E[r] and KL are
means over one answer to each of {prompts} held-out prompts at every measurement, each with a sampling error: for E[r]
about {error:.2f} at the start and less later. The optimum and best of n are estimated from {answers} answers of the
reference, as π_r/π_ref depends on an answer's reward alone; beyond {highest} nats fewer than twenty answers carry the
estimate, and it is not drawn. {finished} runs are finished, of {planned} that make up {seeds} of each method. The
reward models rank a share of {accuracy} of held-out pairs as labelled; the true reward ranks 0.82 of them so.

{settings}

The same optimizer and schedule as above. The rates were set after one look at single runs, not searched.

### Where the runs end

{ends}

### At the same drift

{equal}

### What it cost

{costs}
"""

PAPER_TEXT = """
## The paper's figure beside it

Figure 2, left, of [the paper](https://arxiv.org/abs/2305.18290) compares these on film reviews with GPT-2-large and a
sentiment classifier as the true reward. Its code was not released. What it found, and what came out here:

| the paper | the listed language | the demo's reviews |
|---|---|---|
| DPO beats PPO on a learned reward | yes at β = 1; level at β = 0.1 | on average, at the better β of each drift |
| DPO beats PPO even on the true reward | no | on average, at a small drift; later PPO earns more than any DPO |
| supervised fitting gains little | yes | yes |
| unlikelihood is far below | yes | at α = 1 it drifts off; at α = 0.5 it is as good as DPO |

**Where ours differs, and why.**

- *PPO on the true reward.* On the listed language the reason can be named: the true reward tells the worth of every
  answer drawn, a label one noisy bit about two, and DPO on all pairs at once ends in π_r. The paper's PPO was another
  program at another size; why it fell behind there cannot be told from here.
- *REINFORCE and PPO on the reviews* drift far in their first steps, at rates that were not searched: at the same drift
  they earn less than DPO at β = 1 and β = 5, and later more. No method comes near the estimated optimum in a single
  pass over 3,200 pairs or in 1,600 to 3,200 drawn answers.
- *Unlikelihood.* Over all pairs its loss is −2 Σ_y π_ref(y) [P(y wins) − α P(y loses)] log π(y). Where the bracket is
  positive that asks for π ∝ π_ref · [·], a tilt towards what wins; where it is negative, for answers that win less than
  α as often as they lose, the loss falls without end: one answer in four at α = 0.5, two in five at α = 1. A single
  pass at α = 0.5 has the tilt and not yet much of the fall; at α = 1 it has both.
- With so few runs the intervals are wide, on the reviews above all: only large differences there mean anything.
"""


def main():
    """Make the runs that are missing, then the tables, pictures and the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--part", choices=["exact", "reviews", "all", "pages"], default="all", help="pages: no new run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"), help="where results are kept")
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the demo's run, for its reference")
    parser.add_argument("--data", type=Path, default=Path("runs/demo-data/prefs.jsonl"), help="the demo's preferences")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="directory of frontier.md")
    options = parser.parse_args()
    if not 1 <= options.seeds <= 10 or options.workers < 1:
        stop("--seeds must be from 1 to 10, --workers at least 1")
    if not (options.demo / "reference" / "config.json").exists() or not options.data.exists():
        stop(f"--demo {options.demo} or --data {options.data} is not there: `make train` makes both")
    torch.set_num_threads(1)
    try:
        results = {part: run_part(part, options) for part in TABLES}
    except KeyboardInterrupt:
        stop("stopped; what is finished is kept, and the same command goes on", code=130)
    return write(options, results)


if __name__ == "__main__":
    sys.exit(main())
