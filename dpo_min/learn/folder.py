"""The learner's folder: files with bodies to write, and beside them the project's own, found where these are not.

learning/dpo_min/objective.py     to be written
learning/dpo_min/__init__.py      the package, which looks in the project for the files that it lacks
learning/Makefile                 check, hint, reveal, train
learning/progress.json            where the learner is, and which hints were given
"""

import json
import os
import sys
from pathlib import Path

from dpo_min.learn import cut
from dpo_min.learn.course import PACKAGE, ROOT, exercises, hollow
from dpo_min.system.files import make_directory, read_json, write_text

ELSEWHERE = """

# What is not here is the project's own.
from pathlib import Path  # noqa: E402

__path__.append(str(Path(__file__).parent / {place!r}))
"""

MAKEFILE = Path(__file__).with_name("learner.mk")  # but for where the project, its Python and the runs are


def make(folder):
    """Write the folder; files that are there already are left as they are. Returns (written, left)."""
    files = dict.fromkeys(exercise.file for exercise in exercises())
    texts = {f"dpo_min/{file}": hollow(file) for file in files}
    for wing in {os.path.dirname(file) for file in files}:
        place = os.path.relpath(PACKAGE / wing, folder.resolve() / "dpo_min" / wing)
        init = (PACKAGE / wing / "__init__.py").read_text(encoding="utf-8")
        texts[os.path.join("dpo_min", wing, "__init__.py")] = init + ELSEWHERE.format(place=place)
    project, python = os.path.relpath(ROOT, folder.resolve()), Path(sys.executable)
    python = os.path.join(project, python.relative_to(ROOT)) if python.is_relative_to(ROOT) else python
    run = os.path.relpath(folder.resolve() / "runs" / "demo", ROOT)
    about = f"PROJECT := {project}\nPY := {python}\nRUN := {run}\n\n"
    texts["Makefile"] = about + MAKEFILE.read_text(encoding="utf-8")
    written, left = [], []
    for name, text in texts.items():
        path = folder / name
        if path.exists():
            left.append(name)
            continue
        make_directory(path.parent)
        write_text(path, text)
        written.append(name)
    return written, left


def near(path):
    """A path as one would type it from here."""
    return min(os.path.relpath(path), str(path), key=len)


def path_of(folder, exercise):
    """The learner's file of an exercise."""
    return folder / "dpo_min" / exercise.file


def text_of(folder, exercise):
    """What it holds. ValueError where there is none, or it is no text."""
    path = path_of(folder, exercise)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: not there; `make learn` in the project makes what is missing, and no more") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def is_written(folder, exercise):
    """Whether the learner has written it; so counts a file that Python cannot read or that lacks it: check says so."""
    text = text_of(folder, exercise)
    try:
        return cut.is_written(text, exercise.name)
    except (SyntaxError, ValueError):
        return True


def progress(folder):
    """{"at": name of the exercise that comes next, "hints": name → hints given}; what is not readable is forgotten."""
    try:
        found = read_json(folder / "progress.json")
    except ValueError:
        found = {}
    hints = found.get("hints")
    return {"at": found.get("at"), "hints": hints if isinstance(hints, dict) else {}}


def remember(folder, **changes):
    """Change some of `progress`."""
    write_text(folder / "progress.json", json.dumps(progress(folder) | changes, ensure_ascii=False, indent=1) + "\n")
