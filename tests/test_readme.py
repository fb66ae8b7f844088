"""README.md and docs/running.md say nothing that was not run: every command in them is run here, on small data."""

import contextlib
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dpo_min
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.run.session import save_model_directory
from experiments.pages import marked
from tests.labels.serving import serving

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUNNING = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README + RUNNING, re.DOTALL)
COMMANDS = list(dict.fromkeys(line for block in BLOCKS for line in block.splitlines()))  # each once

# What makes them small: fewer pairs, steps and samples for the demo, and no tests inside the tests.
SMALL = {"PAIRS": "96", "SFT_STEPS": "2", "STEPS": "2", "PYTEST_ADDOPTS": "--collect-only", "OMP_NUM_THREADS": "1"}
SMALL |= {"FRESH": "16", "EVALUATE": "--samples 4", "REPORT": "--reviews 8"}


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


def test_every_command_runs_in_order(copy):
    pytest.importorskip("experiments.report", reason="the demo is deletable")
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        small = command.replace("--pairs 2000", "--pairs 24").replace("--pairs 2 ", "--pairs 2 --max-new-tokens 8 ")
        if command.startswith("python -m dpo_min.labels") and not re.search("--report|--scorer", command):
            label(copy, command.split())
            continue
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
        "again/model",
    ):
        assert (copy / "runs" / written).exists(), written
    table = (copy / "runs/demo/report.md").read_text(encoding="utf-8")
    assert re.search(r"win rate of the policy, ties one half \| 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", table)
    assert "KL(policy‖reference)" in table and table.count("- after (true reward") == 3


def label(copy, words):
    """Run the page's server, and choose as a person would, until nothing is left."""
    with serving(copy / words[3], copy / words[5]) as served:
        pair = served.ask("next")["pair"]
        while pair:
            pair = served.choose(pair, "A" if len(pair["left"]) > len(pair["right"]) else "B")["pair"]
        assert served.end()[2] == 0


def environment():
    """This process's, with `python` being the interpreter that runs this test."""
    return os.environ | SMALL | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}


def test_make_alone_lists_the_targets(copy):
    shown = subprocess.run(["make"], cwd=copy, capture_output=True, text=True)
    for target in ("setup", "train", "test", "lint", "clean"):
        assert re.search(rf"make {target} +\w", shown.stdout), target


PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    for link in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert link.startswith("https://") or (ROOT / page).parent.joinpath(link).exists(), link


def test_the_python_of_the_readme_prints_what_stands_beside_it():
    """Kills: a renamed function, another sign, a number that was copied from elsewhere."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert len([line for line in code.splitlines() if line]) == 6
    assert printed.getvalue().strip() == code.strip().rsplit("# ")[-1]


def test_the_figures_of_speed_are_those_that_were_measured():
    """Kills: a page that was measured again under a first page that was not."""
    said = marked(README, "speed")
    assert " s and " in said and said in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_the_map_names_every_file_once_and_the_mathematics_in_its_order():
    """A row may name several files, or a family of them as name*.py. Kills: a new file that no stranger would find."""
    table = README[README.index("## The map") :]
    wings = {"": dpo_min.READING_ORDER} | {
        wing: importlib.import_module(f"dpo_min.{wing}").READING_ORDER for wing in dpo_min.WINGS
    }
    assert len(README.splitlines()) <= 150
    for wing, names in wings.items():
        folder = f"dpo_min/{wing}/" if wing else "dpo_min/"
        found = re.findall(rf"\({folder}(\w+)\.py\)", table)
        families = re.findall(rf"\[`?(\w+)\*\.py`?\]\({folder.rstrip('/')}\)", table)
        assert len(found) == len(set(found)) and set(found) <= {*names}, wing
        missing = [name for name in names if name not in found and not name.startswith(tuple(families))]
        assert missing == [], f"{wing}: the map of README.md lacks {missing}"
        if not wing:
            assert found == [*names]


def test_the_flags_and_metrics_that_the_pages_name_exist():
    shown = subprocess.run([sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    sampler = subprocess.run([sys.executable, "sample.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    evaluator = [sys.executable, "-m", "dpo_min.judge.evaluate", "--help"]
    known = subprocess.run(evaluator, cwd=ROOT, capture_output=True, text=True).stdout
    known += subprocess.run(
        [sys.executable, "-m", "dpo_min.labels", "-h"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    known += shown.stdout + sampler.stdout + " --pairs --help --nproc_per_node --png --against"
    for flag in set(re.findall(r"--[a-z][a-z-]+", README + RUNNING)):
        assert flag in known, flag
