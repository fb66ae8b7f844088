"""The README says nothing that was not run: every command in it is run here, in a copy, on small data."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.run.session import save_model_directory

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]

# What makes them small: fewer pairs, steps and samples for the demo, and no tests inside the tests.
SMALL = {"PAIRS": "300", "SFT_STEPS": "3", "STEPS": "3", "PYTEST_ADDOPTS": "--collect-only", "OMP_NUM_THREADS": "1"}
SMALL |= {"FRESH": "16", "EVALUATE": "--samples 4"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project without its data and runs, with the interpreter that runs this test as its .venv."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("dpo_min", "experiments", "tests", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "sample.py", "Makefile", "requirements.txt", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(sys.prefix)
    (copy / "gpt2").mkdir()
    tokenizer = load_tokenizer("bytes")
    save_model_directory(GPT(GPTConfig(tokenizer.vocab_size, 64, 1, 2, 16)), tokenizer, copy / "gpt2")
    return copy


def test_every_command_of_the_readme_runs_in_order(copy):
    pytest.importorskip("experiments.report", reason="the demo is deletable")
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        small = command.replace("--pairs 2000", "--pairs 64")
        if command.startswith("make"):
            small = f"make -o .venv/installed {command.removeprefix('make ')}"
        shown = subprocess.run(["bash", "-c", small], cwd=copy, capture_output=True, text=True, env=environment())
        assert shown.returncode == 0, (command, shown.stdout[-2000:], shown.stderr[-2000:])
    for written in (
        "demo/report.md",
        "demo/report.png",
        "demo/curves.png",
        "demo/evaluation.png",
        "prefs/model",
        "sft/model",
        "dpo/curves.png",
    ):
        assert (copy / "runs" / written).exists(), written
    table = (copy / "runs/demo/report.md").read_text(encoding="utf-8")
    assert re.search(r"win rate of the policy, ties one half \| 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", table)
    assert "KL(policy‖reference)" in table and table.count("- after (true reward") == 3


def environment():
    """This process's, with `python` being the interpreter that runs this test."""
    return os.environ | SMALL | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}


def test_make_alone_lists_the_targets(copy):
    shown = subprocess.run(["make"], cwd=copy, capture_output=True, text=True)
    for target in ("setup", "train", "test", "lint", "clean"):
        assert re.search(rf"make {target} +\w", shown.stdout), target


def test_links_of_the_readme_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 10
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_readme_is_short_and_tours_every_file():
    import dpo_min

    assert len(README.splitlines()) <= 150
    positions = [README.index(f"dpo_min/{name}.py") for name in dpo_min.READING_ORDER]
    assert len(positions) == len(dpo_min.READING_ORDER)


def test_the_flags_and_metrics_that_the_readme_names_exist():
    shown = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    sampler = subprocess.run([sys.executable, "sample.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    evaluator = [sys.executable, "-m", "dpo_min.judge.evaluate", "--help"]
    known = subprocess.run(evaluator, cwd=ROOT, capture_output=True, text=True).stdout
    known += shown.stdout + sampler.stdout + " --pairs --help --nproc_per_node --check --against"
    for flag in set(re.findall(r"--[a-z][a-z-]+", README)):
        assert flag in known, flag
