"""What the command line has to know of losses, read from the text of their tables: to import them loads PyTorch."""

import ast
from pathlib import Path
from typing import NamedTuple

from dpo_min.system.flags import flag
from dpo_min.system.kinds import Accepts, between

WEIGHT = between(0, 10**6, "a number from 0 to 10^6")


class Row(NamedTuple):
    """What is written in the row of a loss."""

    reference: bool  # whether it has one
    reduce: str | float | None  # how log π is added up over tokens, where the row decides it
    smoothing: float | None  # the default of ε
    arguments: dict  # what it takes besides log-ratios and β: name → default, None for a fact of the pair


def read_rows():
    """Name → `Row` of every loss."""
    rows = {}
    for name in ("margin_losses", "ratio_losses"):
        tree = ast.parse(Path(__file__).parents[1].joinpath(f"{name}.py").read_text(encoding="utf-8"))
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        (table,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == name.upper())
        for key, row in zip(table.keys, table.values, strict=True):
            formula = functions.get(getattr(row.args[0], "id", None), row.args[0]).args
            defaults = [None] * len(formula.args) + [ast.literal_eval(default) for default in formula.defaults]
            arguments = dict(zip([a.arg for a in formula.args][3:], defaults[len(formula.defaults) + 3 :], strict=True))
            said = {k.arg: ast.literal_eval(k.value) for k in row.keywords}
            rows[key.value] = Row(said.get("reference", True), said.get("reduce"), said.get("smoothing"), arguments)
    return rows


OTHERS = {"plackett_luce": "lists", "kto": "thumbs"}  # losses of rows that are no pairs
ROWS = read_rows()
LOSS_NAMES = [*ROWS]
SMOOTHED = [name for name, row in ROWS.items() if row.smoothing]


def parameters():
    """Parameter → {loss: its default}; LD's weight of the tokens past the shorter answer is called tail."""
    found = {}
    for name, row in ROWS.items():
        tail = {"tail": row.reduce} if isinstance(row.reduce, float) else {}
        for parameter, default in (row.arguments | tail).items():
            if default is not None:
                found.setdefault(parameter, {})[name] = default
    return found


PARAMETERS = parameters()


def parameter_flags():
    """The fields of the flags `--loss-alpha` and the like, one for each parameter, as `make_dataclass` takes them."""
    for name, defaults in PARAMETERS.items():
        shown = ", ".join(f"{value:g} in {loss}" for loss, value in defaults.items())
        yield f"loss_{name}", float | None, flag(None, f"the loss's {name}; default: {shown}", WEIGHT)


def loss_weights(text):
    """{name: weight} of a --loss-type: one loss, or several with weights, such as sigmoid:1,sft:0.1.

    Raises:
        ValueError: a loss is unknown or comes twice, a weight is out of range, or all are 0, two losses read different
            log-probabilities of a pair, or sft is weighed alone, or one that sees no pair at all.
    """
    if text in OTHERS:
        return {text: 1.0}
    parts = [part.partition(":") for part in text.split(",")]
    weights = {name: float(weight) if colon else 1.0 for name, colon, weight in parts}
    reads = {ROWS[name][:2] for name in weights if name in ROWS}
    fits = len(reads) == 1 and not ("sft" in weights and isinstance(min(reads)[1], float))
    known = len(weights) == len(parts) and weights.keys() <= {*ROWS, "sft"}
    weighed = all(map(WEIGHT.test, weights.values())) and any(weights.values())
    if not known or not (fits or text == "sft") or not weighed:
        raise ValueError(text)
    return weights


LOSS = Accepts(
    loss_weights,
    f"one of {', '.join([*LOSS_NAMES, *OTHERS])}, sft, or a weighted mix, such as "
    "sigmoid:1,sft:0.1, of losses that read the same log-probabilities",
)
