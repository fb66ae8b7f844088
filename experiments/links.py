"""Links from prose to code, kept true: `python -m experiments.links docs/derivation.md` renews their line numbers.

A link is written [`name`](path.py#L1), the name being what is defined on that line: a function, a class, a
constant, or a row of LOSSES in quotation marks.
"""

import re
import sys
from pathlib import Path

LINK = re.compile(r"\[`([^`]+)`\]\(([^)#]+\.py)#L\d+\)")


def find(name, path):
    """The number of the one line of `path` that defines `name`; ValueError if there is none, or more than one."""
    last = re.escape(name.split(".")[-1])
    definition = re.compile(rf"\s*(def|class) {last}\b|{last} = |    {last}: ")
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, 1) if definition.match(line)]
    if len(found) != 1:
        raise ValueError(f"{path}: {name} is defined on {len(found)} lines, expected 1")
    return found[0]


def renew(text, directory):
    """The text of a page in `directory`, every link to code carrying the line on which its name is defined."""

    def link(match):
        name, path = match.groups()
        return f"[`{name}`]({path}#L{find(name, directory / path)})"

    return LINK.sub(link, text)


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]):
        page.write_text(renew(page.read_text(encoding="utf-8"), page.parent), encoding="utf-8")
