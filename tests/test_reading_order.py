"""The house: every file imports only files above it, by whatever means, and stays short enough to be read."""

import ast
import importlib
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import dpo_min

PACKAGE = Path(dpo_min.__file__).parent
ROOT = PACKAGE.parent
RUNTIME = {"torch", "tiktoken", "numpy"}
PICTURES = {"matplotlib"}  # the extra `plots`
IMPORTERS = {"import_module", "run_module", "run_path", "__import__", "find_spec", "importorskip"}
CODE = re.compile(r"(?:from|import) (dpo_min[.\w]*)")


def modules():
    """Dotted name → path of every file of the package, in the reading order of the house."""
    order = [f"dpo_min.{name}" for name in dpo_min.READING_ORDER]
    for wing in dpo_min.WINGS:
        order += [f"dpo_min.{wing}.{name}" for name in importlib.import_module(f"dpo_min.{wing}").READING_ORDER]
    return {name: PACKAGE.parent / (name.replace(".", "/") + ".py") for name in order}


MODULES = modules()


def imports(path):
    """Full names of the modules that a file imports: by statement, by name in a call, or in code that it holds as text.

    A module whose name is computed appears as "?".
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if function in IMPORTERS:
                yield node.args[0].value if isinstance(node.args[0], ast.Constant) else "?"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from CODE.findall(node.value)


def out_of_order(name, names, order):
    """What `name` imports of the house although it does not stand above it."""
    above = set(order[: order.index(name)])
    ours = {n for n in names if n in order or n.split(".")[0] in ("experiments", "train", "sample", "tests")}
    return sorted(ours - above - {name})


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_only_files_above_it(name):
    assert out_of_order(name, imports(MODULES[name]), [*MODULES]) == []


def test_the_reading_orders_name_every_file_once():
    files = {path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    assert sorted(MODULES.values()) == sorted(files)


def test_every_wing_says_what_it_is_for_and_imports_nothing_by_itself():
    for wing in ("", *dpo_min.WINGS):
        path = PACKAGE / wing / "__init__.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert len(ast.get_docstring(tree)) > 60, path
        assert {*imports(path)} <= {"importlib", "importlib.import_module", "?", "dpo_min", "dpo_min.exports"}, path


def test_the_public_names_are_found_in_their_wings_and_load_nothing_before_their_use():
    """Kills: a module with the name of what its wing exports, which would hide it once it is imported."""
    public = {
        "model": ("load_model", "save_model"),
        "data": ("load_preferences", "parse_row", "BadRow", "load_tokenizer"),
    }
    public["decode"] = "generate", "decoding_weights"
    for wing, names in public.items():
        package = importlib.import_module(f"dpo_min.{wing}")
        assert {*names}.isdisjoint(package.READING_ORDER)
        for name in names:
            assert getattr(package, name).__module__.startswith(f"dpo_min.{wing}.")
        with pytest.raises(AttributeError, match="has no attribute"):
            _ = package.absent
    code = "import sys, dpo_min.model, dpo_min.data, dpo_min.decode; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_an_import_from_below_would_be_seen_however_it_is_written(tmp_path):
    """Kills: a check of import statements alone."""
    order = ["dpo_min.losses", "dpo_min.data.rows"]
    for line in (
        "import dpo_min.data.rows",
        "from dpo_min.data import rows",
        "from dpo_min.data.rows import tokenize",
        "def f():\n    from dpo_min.data import rows",
        "importlib.import_module('dpo_min.data.rows')",
        "import_module('dpo_min.data.rows')",
        "runpy.run_module('dpo_min.data.rows')",
        "__import__('dpo_min.data.rows')",
        "run([python, '-c', 'from dpo_min.data.rows import serve; serve()'])",
    ):
        (tmp_path / "losses.py").write_text(line)
        assert out_of_order("dpo_min.losses", imports(tmp_path / "losses.py"), order) == ["dpo_min.data.rows"], line
    assert out_of_order("dpo_min.losses", ["experiments.demo", "train"], order) == ["experiments.demo", "train"]


def test_only_a_users_own_module_is_imported_by_a_computed_name():
    assert [name for name in MODULES if "?" in imports(MODULES[name])] == ["dpo_min.judge.scorers"]


def test_the_package_imports_no_package_beyond_the_three():
    programs = [ROOT / "train.py", ROOT / "sample.py"]
    for path in [*MODULES.values(), *programs]:
        roots = {name.split(".")[0] for name in imports(path)} - {"?"}
        pictures = PICTURES if "picture" in path.name else set()
        assert roots <= RUNTIME | pictures | {"dpo_min"} | set(sys.stdlib_module_names), path


def test_nothing_imports_hugging_face():
    peers = {"transformers", "datasets", "trl", "accelerate", "tokenizers", "safetensors", "peft"}
    for path in [*MODULES.values(), *ROOT.glob("*.py"), *ROOT.glob("experiments/*.py"), *ROOT.glob("tests/**/*.py")]:
        assert {name.split(".")[0] for name in imports(path)}.isdisjoint(peers), path


def test_nothing_on_the_way_of_dpo_imports_the_road_that_it_replaces():
    """rl/ can be deleted with the experiments that use it. Kills: a loss or a metric that lives there."""
    for path in [*MODULES.values(), ROOT / "train.py", ROOT / "sample.py"]:
        if path.parent.name != "rl":
            assert not any(name.startswith("dpo_min.rl") for name in imports(path)), path


# How long things may be.

LONGEST_FILE, LONGEST_FUNCTION = 300, 40
# Everything that a preference in text passes on its way to a step.
DATA = [f"data.{name}" for name in ("lines", "forms", "rows", "tokenizer", "tokenizing", "batch")]
WAY = ("objective", "preference", "margin_losses", "losses", "logprob", "model.attention", "model.gpt", *DATA)


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_longer_than_one_idea():
    assert {name: lines(path) for name, path in MODULES.items() if lines(path) > LONGEST_FILE} == {}


def test_no_function_is_longer_than_a_paragraph():
    """Its docstring is not counted."""
    long = {}
    for name, path in {**MODULES, "train": ROOT / "train.py", "sample": ROOT / "sample.py"}.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                size = node.end_lineno - first.lineno + 2  # with its def
                if size > LONGEST_FUNCTION:
                    long[f"{name}.{node.name}"] = size
    assert long == {}


def code_lines(path):
    """Lines that hold code: without docstrings, comments and blank lines."""
    text = path.read_text(encoding="utf-8")
    documented = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    held = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            held |= set(range(token.start[0], token.end[0] + 1))
    return len(held - documented)


NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def test_the_house_keeps_its_limits():
    """The table of losses of both log-ratios is looked up, not read through; the rest is the first sitting."""
    first = [name for name in dpo_min.READING_ORDER if name != "ratio_losses"]
    assert sum(lines(MODULES[f"dpo_min.{name}"]) for name in first) <= 650
    assert lines(ROOT / "train.py") <= 260
    assert sum(lines(MODULES[f"dpo_min.{name}"]) for name in WAY) + lines(ROOT / "train.py") <= 2000
    assert sum(map(code_lines, MODULES.values())) <= 8790
