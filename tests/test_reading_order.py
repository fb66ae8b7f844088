"""The house: every file imports only files above it, and the core needs neither tools nor anything it did not name."""

import ast
import sys
from pathlib import Path

import dpo_min

PACKAGE = Path(dpo_min.__file__).parent
RUNTIME = {"torch", "tiktoken", "numpy"}


def imports(path):
    """Full names of the modules that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def out_of_order(name, names, order):
    """The modules of the package that `name` imports although they do not stand above it."""
    ours = {n.split(".")[1] for n in names if n.startswith("dpo_min.")}
    return sorted(ours - set(order[: order.index(name)]))


def test_the_reading_order_names_every_file_once():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert sorted(dpo_min.READING_ORDER) == sorted(files)


def test_every_file_imports_only_files_above_it():
    for name in dpo_min.READING_ORDER:
        assert out_of_order(name, imports(PACKAGE / f"{name}.py"), dpo_min.READING_ORDER) == [], name


def test_an_import_from_below_or_of_tools_would_be_seen():
    order = ("losses", "data")
    assert out_of_order("losses", ["torch", "dpo_min.data"], order) == ["data"]
    assert out_of_order("data", ["dpo_min.losses", "dpo_min.tools.demo"], order) == ["tools"]


def test_the_core_imports_no_package_beyond_the_three():
    for path in [*PACKAGE.glob("*.py"), *(PACKAGE.parent / name for name in ("train.py", "sample.py"))]:
        roots = {name.split(".")[0] for name in imports(path)}
        assert roots <= RUNTIME | {"dpo_min"} | set(sys.stdlib_module_names), path


def test_nothing_imports_hugging_face():
    for path in PACKAGE.parent.glob("[dts]*/**/*.py"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert roots.isdisjoint({"transformers", "datasets", "trl", "accelerate", "tokenizers", "safetensors"}), path


def test_the_first_read_stays_short():
    def lines(*names):
        return sum(len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in names)

    assert lines("gpt") <= 200
    assert lines("objective", "preference", "losses", "gradient", "logprob") < 450
    assert len((PACKAGE.parent / "train.py").read_text(encoding="utf-8").splitlines()) <= 350


def test_nothing_on_the_way_of_dpo_imports_the_other_road():
    """rlhf.py and ppo.py can be deleted with the tools that use them. Kills: a loss or a metric that lives there."""
    for name in (*dpo_min.READING_ORDER, "../train", "../sample"):
        if name not in ("rlhf", "ppo"):
            assert {"dpo_min.rlhf", "dpo_min.ppo"}.isdisjoint(imports(PACKAGE / f"{name}.py")), name


def test_the_other_road_reads_in_one_sitting():
    for name in ("rlhf", "ppo"):
        assert len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 300
