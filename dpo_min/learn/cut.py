"""The text of a Python file, with the body of a function taken out, put back or changed.

A function has a name as the documentation writes it: `kl_divergence`, `Batch.mask` for one of a class, and `"sigmoid"`
for a row of a table, whose bodies are those of its lambdas. Whatever checks the arguments stays where it is.
"""

import ast
from itertools import accumulate

HOLE = 'raise NotImplementedError("write me")'  # in the place of a body
ROW_HOLE = "..."  # in the place of a lambda's


def find(source, name):
    """The node of a function, or of a row's call; ValueError where the file has none of the name.

    Raises:
        SyntaxError: the file is not Python.
    """
    tree = ast.parse(source)
    if name.startswith('"'):
        tables = (node for node in ast.walk(tree) if isinstance(node, ast.Dict))
        rows = (row for table in tables for row in zip(table.keys, table.values, strict=True))
        found = [row for key, row in rows if isinstance(key, ast.Constant) and f'"{key.value}"' == name]
    else:
        found = [tree]
        for part in name.split("."):
            found = [x for node in found for x in node.body if getattr(x, "name", None) == part]
    if not found:
        raise ValueError(f"{name} is no longer defined here")
    return found[-1]


def place(source, name):
    """The number of the line on which it begins: a def, or the key of a row."""
    return find(source, name).lineno


def signature(source, name):
    """What it takes, as text; of a row what each lambda takes."""
    return "; ".join(ast.unparse(f.args) for f in functions(find(source, name)))


def functions(node):
    """The function itself, or the lambdas of a row."""
    return [arg for arg in node.args if isinstance(arg, ast.Lambda)] if isinstance(node, ast.Call) else [node]


def checks(statement):
    """Whether a statement does nothing but refuse wrong arguments."""
    if isinstance(statement, ast.If):
        return not statement.orelse and all(isinstance(x, ast.Raise) for x in statement.body)
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and getattr(call.func, "id", "").startswith("check_")


def spans(source, name):
    """(start, end) of each body in the text: whole lines of a function, from its docstring and checks on."""
    lines, node = source.split("\n"), find(source, name)
    starts = [0, *accumulate(len(line) + 1 for line in lines)]

    def at(line, column):
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())  # Python counts columns in bytes

    if isinstance(node, ast.Call):
        texts = [f.body for f in functions(node)]
        return [(at(x.lineno, x.col_offset), at(x.end_lineno, x.end_col_offset)) for x in texts]
    kept = [node.body[0]] if ast.get_docstring(node) else []
    kept += [statement for statement in node.body if checks(statement)]
    start = kept[-1].end_lineno if kept else node.body[0].lineno - 1
    return [(starts[start], starts[node.body[-1].end_lineno])]


def bodies(source, name):
    """The text of each body."""
    return [source[start:end] for start, end in spans(source, name)]


def fill(source, name, texts):
    """The file with these bodies in the place of its own."""
    for (start, end), text in reversed([*zip(spans(source, name), texts, strict=True)]):
        source = source[:start] + text + source[end:]
    return source


def cut(source, name):
    """The file without these bodies."""
    node = find(source, name)
    if isinstance(node, ast.Call):
        return fill(source, name, [ROW_HOLE] * len(functions(node)))
    return fill(source, name, [" " * (node.col_offset + 4) + HOLE + "\n"])


def is_written(source, name):
    """Whether no body is still missing."""
    return not any(missing(source, name))


def missing(source, name):
    """Whether each body is still missing."""
    return [text.strip() in (HOLE, ROW_HOLE) for text in bodies(source, name)]


def change(source, name, old, new):
    """The file with one piece of the body put differently; ValueError unless it stands there once."""
    texts = bodies(source, name)
    number = sum(text.count(old) for text in texts)
    if number != 1:
        raise ValueError(f"{name}: {old!r} must stand there once, and stands there {number} times")
    return fill(source, name, [text.replace(old, new) for text in texts])


def equation(source, name):
    """(number of its first line, text): the comment directly above, or else the first line of the docstring."""
    node, lines = find(source, name), source.split("\n")
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]) - 1  # of the lines above it
    start = first
    while start and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    if start < first:
        return start + 1, " ".join(line.strip("# ") for line in lines[start:first])
    if isinstance(node, ast.Call):
        return node.lineno, ""
    return node.body[0].lineno, (ast.get_docstring(node) or "").split("\n")[0]
