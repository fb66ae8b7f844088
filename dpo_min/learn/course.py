"""The exercises of course.toml, each with the text that it is cut from and the place where it is explained."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from dpo_min.learn import cut

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
PAGE = "docs/derivation.md"


@dataclass(frozen=True)
class Mistake:
    """A piece of a body, what is put in its place, the law that this breaks, and what is said to whoever did it."""

    has: str
    put: str
    law: str
    says: str


@dataclass(frozen=True)
class Exercise:
    """A function to write: its name in `cut`, its file, two hints, and mistakes that are known by name."""

    name: str
    file: str
    hints: tuple
    mistakes: tuple
    see: str = ""
    laws_only: bool = False  # whether more than one result is right, so that only the laws decide

    @property
    def source(self):
        """The project's own file."""
        return (PACKAGE / self.file).read_text(encoding="utf-8")

    @property
    def lines(self):
        """The line of the project's body on which most goes wrong, that of the first mistake; for a row, its bodies."""
        lines = [line.strip() for text in cut.bodies(self.source, self.name) for line in text.splitlines()]
        return lines if self.formula else [line for line in lines if self.mistakes[0].has in line]

    @property
    def explained(self):
        """Where a page explains it: docs/derivation.md#section, and the number of the equation if it has one."""
        if self.see:
            return self.see
        above = page().partition(f"[`{self.name}`](")[0]
        heading = re.findall(r"^#+ (.*)$", above, re.MULTILINE)[-1]
        equations = re.findall(r"^    \((\d+)\)", above, re.MULTILINE)
        in_table = above.rpartition("\n")[2].startswith("|")
        return f"{PAGE}#{anchor(heading)}" + ("" if in_table else f", equation ({equations[-1]})")

    @property
    def formula(self):
        """ℓ of a row, from the table of docs/derivation.md, which calls x u; nothing for a function."""
        if not self.name.startswith('"'):
            return ""
        (formula,) = re.findall(rf"^\| \[`{self.name}`\][^|]*\| ([^|]*) \|", page(), re.MULTILINE)
        return formula.replace("u", "x")


def page():
    """The text of docs/derivation.md."""
    return (ROOT / PAGE).read_text(encoding="utf-8")


def anchor(heading):
    """What a heading is called in a link."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def exercises():
    """All of them, in the order in which they are written."""
    with open(Path(__file__).with_name("course.toml"), "rb") as file:
        found = tomllib.load(file)["exercise"]
    return [
        Exercise(hints=tuple(row.pop("hints")), mistakes=tuple(Mistake(**m) for m in row.pop("mistake")), **row)
        for row in found
    ]


def hollow(file):
    """The text of one of the project's files without the bodies that are to be written."""
    mine = [exercise for exercise in exercises() if exercise.file == file]
    text = mine[0].source
    for exercise in mine:
        text = cut.cut(text, exercise.name)
        if exercise.formula:
            lines, number = text.split("\n"), cut.place(text, exercise.name) - 1
            indent = " " * (len(lines[number]) - len(lines[number].lstrip()))
            lines.insert(number, f"{indent}# ℓ(h) = {exercise.formula}, and below it ℓ′(h); x = βh, s = σ(x), e = ε")
            text = "\n".join(lines)
    return text
