"""The notebook to read: runs the code in walkthrough.md and writes walkthrough.ipynb, with every output in its place.

    python -m experiments.walkthrough [--out docs]

The text of walkthrough.md becomes cells of Markdown and each block of Python a cell of code. `python sampled` marks a
cell whose output is drawn from a trained model: another processor draws other words. No package of Jupyter is needed.
"""

import argparse
import base64
import contextlib
import io
import json
import re
from pathlib import Path

from dpo_min.system.files import write_text
from dpo_min.system.picture import pyplot

SOURCE = Path(__file__).with_name("walkthrough.md")
FENCE = re.compile(r"^```python( sampled)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def cells(text):
    """The cells in their order: (kind, source, tags), the kinds being "markdown" and "code"."""
    end = 0
    for block in FENCE.finditer(text):
        yield "markdown", text[end : block.start()].strip(), []
        yield "code", block[2].strip(), ["sampled"] if block[1] else []
        end = block.end()
    yield "markdown", text[end:].strip(), []


def execute(source, names):
    """Run a cell in the namespace `names`: what it printed, and each of its pictures as the bytes of a PNG."""
    plt, printed, pictures = pyplot(), io.StringIO(), []
    with contextlib.redirect_stdout(printed):
        exec(compile(source, "<cell>", "exec"), names)
    for number in plt.get_fignums():
        picture = io.BytesIO()
        figure = plt.figure(number)
        figure.savefig(picture, dpi=80, format="png", metadata={"Software": None})
        plt.close(figure)
        pictures.append(picture.getvalue())
    return printed.getvalue(), pictures


def outputs(printed, pictures):
    """The outputs of a cell, as the format has them."""
    found = [{"output_type": "stream", "name": "stdout", "text": lines(printed)}] if printed else []
    for picture in pictures:
        data = {"image/png": base64.b64encode(picture).decode("ascii"), "text/plain": ["<picture>"]}
        found.append({"output_type": "display_data", "metadata": {}, "data": data})
    return found


def lines(text):
    """A text as the format wants it, a list of lines that keep their ends."""
    return text.splitlines(keepends=True)


def notebook(text):
    """The notebook of a source, executed: a dict in the format nbformat 4.5."""
    names, found, count = {"__name__": "__main__"}, [], 0
    pyplot().close("all")  # what others left open is not a cell's
    for kind, source, tags in cells(text):
        if not source:
            continue
        cell = {"cell_type": kind, "id": f"cell-{len(found)}", "metadata": {}, "source": lines(source)}
        if kind == "code":
            count += 1
            cell |= {"metadata": {"tags": tags} if tags else {}, "execution_count": count}
            cell["outputs"] = outputs(*execute(source, names))
        found.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": found, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main():
    """Write the notebook."""
    parser = argparse.ArgumentParser(description="Write the notebook to read.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="the folder of walkthrough.ipynb")
    path = parser.parse_args().out / "walkthrough.ipynb"
    made = notebook(SOURCE.read_text(encoding="utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(made, ensure_ascii=False, indent=1) + "\n")
    print(f"written: {path}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
