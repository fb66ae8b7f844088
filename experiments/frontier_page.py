"""The page of frontier.py: what the finished runs say, as words, tables and pictures. It trains nothing."""

import math
from collections import defaultdict
from statistics import fmean

import torch

from dpo_min.objective import kl_divergence, optimal_policy
from dpo_min.rl.rlhf import best_of_n_kl_bound
from experiments import demo, methods
from experiments.frontier_curve import DRAWS, best_of_draws, gaps, optima, optimum_reward, reward_at
from experiments.methods import Method
from experiments.pages import folded, table, with_interval

LEVELS = {"exact": (0.1, 0.3, 1, 2, 3), "reviews": (0.5, 1, 2, 4)}  # nats at which rewards are compared


def group(lines):
    """{method: its runs}, in the order of the table they were made from."""
    groups = {}
    for line in lines:
        if line["method"]:
            groups.setdefault(Method(**line["method"]), []).append(line)
    return groups


def settings_table(groups):
    """What each method was given."""

    def size(m):
        unit = "answers" if m.kind in ("reinforce", "ppo") else "pairs"
        again = f", each used in {m.epochs} passes of {m.minibatches} parts" if m.kind == "ppo" else ""
        return f"{m.steps} × {m.batch} {unit}{again}"

    rows = [(m.label, f"{m.learning_rate:g}", size(m), len(runs)) for m, runs in groups.items()]
    return table(("method", "learning rate", "steps", "runs"), rows)


def cost_table(groups):
    """What each method cost: means over its runs."""
    offline = max((m.batch * m.steps for m in groups if m.kind not in ("reinforce", "ppo")), default=0)
    columns = {"updates": ".0f", "generated": ",.0f", "processor_seconds": ".1f"}
    rows = []
    for m, runs in groups.items():
        means = [format(fmean(run[key] for run in runs), spec) for key, spec in columns.items()]
        rows.append((m.label, f"{offline if m.preferences else 0:,}", *means))
    return table(("method", "labelled pairs", "gradient steps", "generated tokens", "processor seconds"), rows)


def end_table(groups, world=None):
    """Where the runs ended: means over them with intervals."""
    heads = ["method", "KL(π‖π_ref)", "E[r]"] + (["below the optimum", "KL(π‖π_r)"] if world else ["tokens an answer"])
    rows = []
    for m, runs in groups.items():
        last = [run["path"][-1] for run in runs]
        row = [m.label, *(with_interval([point[key] for point in last]) for key in ("kl", "reward"))]
        if world:
            row.append(with_interval(gaps(world, last)))
            row.append(with_interval([p["distance"] for p in last], 4) if "distance" in last[0] else "")
        else:
            row.append(with_interval([point["length"] for point in last], 1))
        rows.append(row)
    return table(heads, rows)


def equal_kl_table(groups, levels, log_ref, reward):
    """Reward at equal KL: means over the runs that reached it, with how many they were if not all."""
    optimum = optimum_reward(log_ref, reward, torch.tensor(levels, dtype=torch.float64)).tolist()
    best = [reward_at(best_of_draws(log_ref, reward), kl) for kl in levels]
    rows = [("**optimum**", *(f"{r:.3f}" for r in optimum))]
    rows += [("best of n", *("–" if r is None else f"{r:.3f}" for r in best))]
    for m, runs in groups.items():
        row = [m.label]
        for kl in levels:
            found = [r for r in (reward_at(run["path"], kl) for run in runs) if r is not None]
            few = f" ({len(found)} of {len(runs)})" if len(found) < len(runs) else ""
            row.append(with_interval(found) + few if found else "–")
        rows.append(row)
    return table(("method", *(f"KL = {kl:g}" for kl in levels)), rows)


def best_table(log_ref, reward):
    """Best of n: its reward, its KL and the bound on it."""
    places = zip(DRAWS, best_of_draws(log_ref, reward), strict=True)
    rows = [(n, f"{p['reward']:.3f}", f"{p['kl']:.3f}", f"{best_of_n_kl_bound(n):.3f}") for n, p in places]
    return table(("n", "E[r]", "KL(π‖π_ref)", "log n − (n − 1)/n"), rows)


def accuracy(groups):
    """Held-out accuracy of the reward models, as text."""
    found = {
        (run["seed"], run["reward_accuracy"]) for runs in groups.values() for run in runs if "reward_accuracy" in run
    }
    return with_interval([value for _, value in sorted(found)]) if found else "not there yet"


def exact_section(lines):
    """(text, panel, highest excess over the optimum) of the language whose answers can be listed."""
    world, groups = methods.exact_language()[1], group(lines)
    log_ref, reward = world.log_ref, world.reward
    points = [point for line in lines for point in line["path"]]
    excess = -min(gaps(world, points))
    last = {method.label: [run["path"][-1] for run in runs] for method, runs in groups.items()}
    distance = {k: fmean(p["distance"] for p in points) for k, points in last.items() if "distance" in points[0]}
    start = [kl_divergence(log_ref, optimal_policy(log_ref, reward, beta)).item() for beta in (1, 0.1)]
    text = EXACT_TEXT.format(
        points=len(points),
        height=f"{abs(excess):.1e} {'above' if excess > 0 else 'below'}",
        warmup=methods.WARMUP,
        settings=folded("What each method was given", settings_table(groups)),
        ends=folded("Where the runs end, in numbers", end_table(groups, world)),
        equal=folded("E[r] at equal KL, in numbers", equal_kl_table(groups, LEVELS["exact"], log_ref, reward)),
        costs=folded("What each method cost", cost_table(groups)),
        best=folded("Best of n, in numbers", best_table(log_ref, reward)),
        accuracy=accuracy(groups),
        start1=start[0],
        start01=start[1],
        distance=defaultdict(lambda: math.nan, distance),
        below=defaultdict(lambda: math.nan, {k: fmean(gaps(world, points)) for k, points in last.items()}),
    )
    panel = "85 answers, everything exact", optima(log_ref, reward), best_of_draws(log_ref, reward), groups
    return text, panel, excess


def review_section(lines, seeds):
    """(text, panel) of the demo's reviews."""
    groups = group(lines)
    rewards = torch.tensor(next(line["rewards"] for line in lines if not line["method"]), dtype=torch.float64)
    log_ref = torch.full_like(rewards, -math.log(len(rewards)))
    highest = math.log(len(rewards) / 20)  # beyond, fewer than twenty answers carry the estimate
    text = REVIEWS_TEXT.format(
        prompts=len(demo.prompts(held_out=True)),
        error=next(iter(groups.values()))[0]["path"][0]["reward_error"],
        answers=len(rewards),
        highest=f"{highest:.1f}",
        finished=sum(len(runs) for runs in groups.values()),
        planned=seeds * len(methods.REVIEWS),
        seeds=seeds,
        settings=folded("What each method was given", settings_table(groups)),
        ends=folded("Where the runs end, in numbers", end_table(groups)),
        equal=folded("E[r] at equal KL, in numbers", equal_kl_table(groups, LEVELS["reviews"], log_ref, rewards)),
        costs=folded("What each method cost", cost_table(groups)),
        accuracy=accuracy(groups),
    )
    curves = [[p for p in places(log_ref, rewards) if p["kl"] <= highest] for places in (optima, best_of_draws)]
    return text, ("the demo's reviews, every figure from samples", *curves, groups)


INTRODUCTION = """# The frontier: DPO beside what it replaces

`make frontier` wrote this page. Every method starts from the same reference. They learn from different things: from
preferences, from a reward model that was fitted to the same preferences, or from the true reward itself. All of them
are judged by the true reward. A measurement is a point: KL(π‖π_ref) says how far the policy has drifted, and E[r] what
it earns. The thick line is the optimum, π_r ∝ π_ref e^{r/β}, for every β. Because J(π) ≤ β log Z for every policy
([objective.py](../dpo_min/objective.py)), no policy lies above it.

**DPO ends just below the optimum. At the same β it is level with or ahead of PPO on a reward model that was fitted to
the same preferences, and it is behind the methods that see the true reward.** This is what the listed language shows,
where nothing is estimated (upper panel). On the reviews three runs a method leave wide intervals.

![Where each method ends, reward against KL, below the curve of the optimum](figures/frontier.png)

A mark is the mean end of three runs, with its 95 % intervals in both directions and β or α beside it. The faint lines
are the runs on their way. The axis of KL is the root of KL, on which the curve of the optimum starts as a straight
line.

"""

BANDIT_TEXT = """## First, five arms

Here the policy gradient can be seen whole ([rlhf.py](../dpo_min/rl/rlhf.py)): the policy is a softmax over five arms.
The exact gradient ends at E[r] = {exact}. Four draws a step lead to the same place if a leave-one-out baseline is taken
off, though not always soon. Without a baseline every arm that is drawn is pushed up, and some runs settle on an arm
that is not the best. Maximum likelihood of the arms that were preferred in 500 pairs ends at {reached}: it repeats an
arm as often as it was preferred, and then it stands still.

![E[r] by step: exact, sampled with and without a baseline, and maximum likelihood](figures/frontier-bandit.png)
"""

EXACT_TEXT = """## A language that can be listed

The language has five tokens, one of them end-of-text, and answers of at most three tokens: 85 answers. The reference is
a GPT with random weights, and each answer's reward is a standard normal number. So E[r] and KL are sums over all
answers, in float64.

- **All methods with a β approach π_r.** At β = 1, KL(π‖π_r) falls from {start1:.4f} to {distance[DPO, β = 1]:.4f} under
  DPO, to {distance[REINFORCE, β = 1]:.4f} under REINFORCE, to {distance[PPO, true reward, β = 1]:.4f} under PPO, and to
  {distance[PPO, learned reward, β = 1]:.4f} under PPO with a learned reward. DPO ends {below[DPO, β = 1]:.3f} below the
  optimum's curve at β = 1, {below[DPO, β = 5]:.3f} at β = 5, {below[DPO, β = 0.1]:.3f} at β = 0.1 and
  {below[DPO, β = 0.05]:.3f} at β = 0.05. At β = 0.05 one pass ends at half of the drift that the optimum has.
- **Data separate DPO from the curve.** Each of its pairs holds one noisy bit. In expectation over all pairs the same
  loss takes a GPT to π_r itself ([proof.md](proof.md), b). REINFORCE and PPO are told the true reward of every answer
  that they draw.
- **At β = 0.1 the true reward is not enough.** REINFORCE and PPO stop {distance[REINFORCE, β = 0.1]:.2f} and
  {distance[PPO, true reward, β = 0.1]:.2f} nats from π_r. Both hold almost only the second-best answer (r = 2.039,
  π_ref = 0.018). The best answer (r = 2.189, π_ref = 0.005) no longer appears among their draws, and a policy does not
  learn about answers that it does not draw.
- **Imitating the chosen side** drifts little and gains little. Pushing the rejected side down as well (unlikelihood)
  gains more, but it falls further and further below the curve, because nothing holds the policy near the reference.
- **IPO** ends nearer the reference than DPO at the same β, because its optimum is that of another reward (proof.md, d).
- **Best of n** keeps close to the curve without any training. Its price is n answers to every question. The bound that
  is usually quoted for its KL is never exceeded, and it is too high where n is large.

{ends}

"Below the optimum" is the curve's reward at the same KL minus E[r]. KL(π‖π_r) is measured from the optimum of the run's
own β; for the reference it is {start1:.4f} at β = 1 and {start01:.2f} at β = 0.1. ± is Student's 95 % interval over the
runs.

{equal}

This is E[r] where a run first has that KL, on the line between two measurements; – means that no run gets there. A run
at a low β passes the small values of KL within a few large steps, far from any optimum. To be good at a small KL,
choose the β whose optimum lies there.

{best}

{costs}

Processor seconds are those of one thread.

{settings}

Preferences are drawn from the reference and judged once each by Bradley and Terry's judge. No ranking can agree with
this judge on more than 75 % of the pairs; the reward models agree with it on a share of {accuracy} of held-out ones.
{points} measurements were taken. The highest lies {height} the curve.

All methods use AdamW, {warmup} steps of warm-up and a cosine. For DPO and PPO the learning rate 3e-3 is the best of
1e-3, 3e-3 and 1e-2, by J(π) in runs that are not among these. For REINFORCE the three rates are alike. The other
methods were given the same rate. The reward model's rate, 1e-3, is the best of the same three by accuracy on the
held-out pairs of the first data set; it falls to 0 in a straight line. PPO has clip 0.2, λ = 0.95, γ = 1, a fixed β and
a value network of its own.
"""

REVIEWS_TEXT = """## The demo's reviews

The reference is the demo's own. The true reward counts words of praise against words of complaint. At every measurement
E[r] and KL are means over one answer to each of {prompts} held-out prompts, so that each has a sampling error: for E[r]
it is about {error:.2f} at the start and less later. The optimum and best of n are estimated from {answers} answers of
the reference, because π_r/π_ref depends on an answer's reward alone. Beyond {highest} nats fewer than twenty answers
carry this estimate, and it is not drawn. {finished} runs are finished, of {planned} that make up {seeds} of each
method. The reward models rank a share of {accuracy} of held-out pairs as labelled; the true reward ranks 0.80 of all
pairs so, where a tie counts one half.

{ends}

{equal}

{costs}

{settings}

Optimizer and schedule are the same as above. The learning rates were set after one look at single runs. They were not
searched.
"""

PAPER_TEXT = """
## The paper's figure beside it

Figure 2, left, of [the paper](https://arxiv.org/abs/2305.18290) compares these methods on film reviews, with
GPT-2-large and a sentiment classifier as the true reward. Its code was not released. This is what it found, and what
came out here:

| the paper | the listed language | the demo's reviews |
|---|---|---|
| DPO beats PPO on a learned reward | yes at β = 1; level at β = 0.1 | on average, at the better β of each drift |
| DPO beats PPO even on the true reward | no | on average, at a small drift; later PPO earns more than any DPO |
| supervised fitting gains little | yes | yes |
| unlikelihood is far below | yes | at α = 1 it drifts off; at α = 0.5 it is as good as DPO |

**Where our results differ, and why.**

- *PPO on the true reward.* On the listed language the reason can be named: the true reward tells the worth of every
  answer that is drawn, whereas a label tells one noisy bit about two answers; and DPO on all pairs at once ends in π_r.
  The paper's PPO was another program at another size. Why it fell behind there cannot be told from here.
- *REINFORCE and PPO on the reviews* drift far in their first steps, at learning rates that were not searched. At the
  same drift they earn less than DPO at β = 1 and β = 5, and later they earn more. No method comes near the estimated
  optimum in a single pass over 3,200 pairs or in 1,600 to 3,200 drawn answers.
- *Unlikelihood.* Over all pairs its loss is −2 Σ_y π_ref(y) [P(y wins) − α P(y loses)] log π(y). Where the bracket is
  positive, the loss asks for π ∝ π_ref · [·], a tilt towards the answers that win. Where the bracket is negative, the
  loss falls without end. That is so for answers that win less than α times as often as they lose: one answer in four at
  α = 0.5, and two in five at α = 1. A single pass at α = 0.5 shows the tilt and not yet much of the fall; at α = 1 it
  shows both.
- With so few runs the intervals are wide, above all on the reviews. Only large differences mean anything there.
"""
