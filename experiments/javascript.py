"""The tables of losses in JavaScript, translated from their own source, so that a page computes what the library does.

A loss stands in its table alone: a new row comes to the page by itself, or is refused here where it uses something that
this file cannot translate. tests/experiments/test_explainer_page.py compares every formula with the library's.
"""

import ast
from pathlib import Path

from dpo_min import margin_losses, ratio_losses

FUNCTIONS = {name: f"Math.{name}" for name in ("exp", "log", "expm1")} | {n: n for n in ("sigmoid", "logsigmoid")}
METHODS = {"exp": "Math.exp({})", "log": "Math.log({})", "relu": "Math.max({}, 0)", "to": "Number({})"}
LIMITS = {"max": "Math.min", "min": "Math.max"}  # clamp(max=x) is the lesser of the two
OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.Lt: "<", ast.LtE: "<="}

# What PyTorch has and JavaScript lacks: log σ(x) = min(x, 0) − log(1 + e^−|x|), where nothing overflows.
PRELUDE = """const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const logsigmoid = (x) => Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));"""


class Translator:
    """One table and what its formulas call: `needed` collects the definitions, name → JavaScript, in their order."""

    def __init__(self, module):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        self.functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
        self.values = {node.targets[0].id: node.value for node in assigned}
        self.needed = {}

    def table(self, name):
        """Row → (value, slope) of the dict `name`, both as JavaScript."""
        rows = self.values[name]
        return {
            key.value: tuple(self.expression(part) for part in row.args[:2])
            for key, row in zip(rows.keys, rows.values, strict=True)
        }

    def expression(self, node):
        """JavaScript of an expression; brackets stand round every operation, as the two languages bind differently."""
        match node:
            case ast.Constant(value=int() | float() as value):
                return repr(value)
            case ast.Name(id=name):
                return self.name(name)
            case ast.Lambda(args=arguments, body=body):
                return f"({self.parameters(arguments)}) => {self.expression(body)}"
            case ast.Tuple(elts=parts):
                return f"[{', '.join(map(self.expression, parts))}]"
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return f"(-{self.expression(operand)})"
            case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
                if type(op) in OPERATORS:
                    return f"({self.expression(left)} {OPERATORS[type(op)]} {self.expression(right)})"
            case ast.Attribute(value=ast.Call(func=ast.Name(id="finfo")), attr="eps"):
                return "Number.EPSILON"  # of float64, as every number in JavaScript is
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS | self.functions:
                return f"{FUNCTIONS.get(name) or self.name(name)}({', '.join(map(self.expression, arguments))})"
            case ast.Call(func=ast.Attribute(value=value, attr="clamp"), keywords=[ast.keyword(arg=side, value=limit)]):
                return f"{LIMITS[side]}({self.expression(value)}, {self.expression(limit)})"
            case ast.Call(func=ast.Attribute(value=value, attr=method)) if method in METHODS:
                return METHODS[method].format(self.expression(value))
        raise ValueError(f"no JavaScript is known for: {ast.unparse(node)}")

    def name(self, name):
        """A name as it is; what it stands for in the table's file is translated once."""
        if name in self.functions and name not in self.needed:
            self.needed[name] = None  # its own callees come before it
            text = self.function(self.functions[name])
            del self.needed[name]
            self.needed[name] = text
        elif name in self.values and name not in self.needed:
            self.needed[name] = f"const {name} = {self.expression(self.values[name])};"
        return name

    def parameters(self, arguments):
        """The parameters of a function, with their defaults."""
        bare = len(arguments.args) - len(arguments.defaults)
        defaults = [""] * bare + [f" = {self.expression(default)}" for default in arguments.defaults]
        return ", ".join(argument.arg + default for argument, default in zip(arguments.args, defaults, strict=True))

    def function(self, node):
        """A function of assignments, early returns and a return."""
        known = {argument.arg for argument in node.args.args}
        lines = [self.statement(line, known) for line in node.body if not is_docstring(line)]
        return f"function {node.name}({self.parameters(node.args)}) {{\n  " + "\n  ".join(lines) + "\n}"

    def statement(self, node, known):
        """A statement; `known` are the names that exist already."""
        match node:
            case ast.Return(value=value):
                return f"return {self.expression(value)};"
            case ast.If(test=test, body=[inner], orelse=[]):
                return f"if ({self.expression(test)}) {self.statement(inner, known)}"
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                return f"{'' if name in known else 'const '}{name} = {self.expression(value)};"
            case ast.Assign(targets=[ast.Tuple() as names], value=value):
                return f"const {self.expression(names)} = {self.expression(value)};"
        raise ValueError(f"no JavaScript is known for: {ast.unparse(node)}")


def is_docstring(node):
    """Whether a statement is a text that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def losses():
    """The script that defines `LOSSES`: name → {value, slope} of h, β, ε, or {value, slopes} of a, b, β and more."""
    definitions, rows = [PRELUDE], []
    for module, name, slope in ((margin_losses, "MARGIN_LOSSES", "slope"), (ratio_losses, "RATIO_LOSSES", "slopes")):
        translator = Translator(module)
        for row, (value, derivative) in translator.table(name).items():
            rows.append(f'  "{row}": {{\n    value: {value},\n    {slope}: {derivative},\n  }},')
        definitions += translator.needed.values()
    return "\n".join([*definitions, "const LOSSES = {", *rows, "};"])
