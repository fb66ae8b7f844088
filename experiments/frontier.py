"""Reward against KL for DPO and the methods that it replaces: runs methods.py, writes frontier.md and its pictures.

    python -m experiments.frontier [--part exact|reviews|pages] [--seeds 3] [--workers 2]

Every finished run becomes a line of runs/frontier/exact.jsonl or reviews.jsonl. If the command is stopped and started
again, it makes only the runs that are missing.
"""

import argparse
import json
import multiprocessing
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from dpo_min.data.hashed_files import data_hash
from dpo_min.labels.journal import Journal
from dpo_min.model.weights import model_fingerprint
from dpo_min.system.program import mistakes, stop
from dpo_min.system.progress import left
from experiments import frontier_page, frontier_pictures, methods

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
    """A map without order, over processes with one thread each; with one worker, in this process."""
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


def run_part(part, options):
    """Every run of a part that is not in its file yet; returns the lines of those that are wanted and finished."""
    path = options.runs / f"{part}.jsonl"
    language = model_fingerprint(make_language(part, options).reference)
    tasks = [(method, seed) for seed in range(options.seeds) for method in TABLES[part]]
    if part == "reviews":
        language += data_hash([options.data])
        tasks = [(None, 0), *tasks]
    keys = [key({"method": m and asdict(m), "seed": seed, "language": language}) for m, seed in tasks]
    results = read_results(path)
    missing = [task for task, k in zip(tasks, keys, strict=True) if k not in results]
    if missing and options.part in (part, "all"):
        start = time.perf_counter()
        with workers(part, options) as each, Journal(path) as journal:
            for done, line in enumerate(each(work, missing), 1):
                line["language"] = language
                journal.append(line)
                results[key(line)] = line
                name = methods.Method(**line["method"]).label if line["method"] else "the reference's answers"
                seed, rest = line["seed"], left(start, done, len(missing))
                print(f"{part} {done}/{len(missing)}  {name}, seed {seed}{rest}", flush=True)
    return [results[k] for k in keys if k in results]


TOLERANCE = 1e-9  # what rounding may lift a point above the optimum's curve


def write(options, results):
    """Pictures and the page; returns the exit code, 1 if a point lies above the optimum."""
    figures = options.out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    exact, reached = frontier_pictures.draw_bandit(figures / "frontier-bandit.png")
    bandit = frontier_page.BANDIT_TEXT.format(exact=f"{exact:.2f}", reached=f"{reached:.2f}")
    sections, panels, excess = [bandit], [], 0.0
    if results["exact"]:
        text, panel, excess = frontier_page.exact_section(results["exact"])
        sections, panels = [*sections, text], [*panels, panel]
    if any(not line["method"] for line in results["reviews"]) and len(results["reviews"]) > 1:
        text, panel = frontier_page.review_section(results["reviews"], options.seeds)
        sections, panels = [*sections, text], [*panels, panel]
    if panels:
        frontier_pictures.draw_frontier(panels, figures / "frontier.png")
    page = frontier_page.INTRODUCTION + "\n".join(sections) + frontier_page.PAPER_TEXT
    (options.out / "frontier.md").write_text(page, encoding="utf-8")
    print(f"written: {options.out / 'frontier.md'}")
    if excess > TOLERANCE:
        print(f"frontier.py: error: a point lies {excess:.1e} above the optimum, which nothing can", file=sys.stderr)
    return int(excess > TOLERANCE)


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
        with mistakes():
            results = {part: run_part(part, options) for part in TABLES}
    except KeyboardInterrupt:
        stop("stopped; what is finished is kept, and the same command goes on", code=130)
    return write(options, results)


if __name__ == "__main__":
    sys.exit(main())
