"""Learn the mathematics by writing it: exercises, cut from the project, that the laws correct.

    python -m dpo_min.learn              make the folder learning/ and say how to begin
    python -m dpo_min.learn check        try the laws on what is written there
    python -m dpo_min.learn hint         help with the exercise that comes next; three hints for each
    python -m dpo_min.learn reveal       show its body

`make learn` is the first of these, and `make check`, `make hint` and `make reveal` in learning/ are the others.
"""

import difflib
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

from dpo_min.learn import cut, folder
from dpo_min.learn.course import PAGE, ROOT, exercises
from dpo_min.learn.folder import near
from dpo_min.system.files import write_text
from dpo_min.system.flags import flag, parse, refuse, sections
from dpo_min.system.kinds import between
from dpo_min.system.program import mistakes, run


@dataclass
class LearnFlags:
    """Every flag of the exercises."""

    action: list[str] = flag([], "make (if none is given), check, hint or reveal", values="ACTION", positional=True)
    folder: Path = flag(Path("learning"), "where the exercises are, or are to be")
    exercise: str | None = flag(None, "which one; default: the one that comes next; for check, all in their order")
    all: bool = flag(False, "for check: fail also where an exercise is not written yet")
    seconds: float = flag(20.0, "for check: the time for one exercise", between(0.1, 1e6, "a number from 0.1 to 10^6"))


GROUPS = sections(LearnFlags, "action folder", ("check, hint and reveal", "exercise"), ("check", "all"))
EXAMPLE = "python -m dpo_min.learn check --folder learning"


def make(flags):
    """Make the folder, or what it lacks."""
    written, left = folder.make(flags.folder)
    if left:
        print(f"left as they are: {', '.join(left)}")
        print("A file that you delete is made anew.")
    if written:
        print(f"written in {near(flags.folder)}: {', '.join(written)}")
    print(
        f"\n{len(exercises())} functions there are yours to write, from their equations. Then:\n\n"
        f"    cd {near(flags.folder)}\n"
        "    make check     what is right so far, what is not, and why\n"
        "    make hint      help with the exercise that comes next\n"
        "    make reveal    its body\n"
        "    make train     when all are right: train the demo with your functions\n\n"
        f"The argument that they follow is {PAGE}."
    )
    return 0


def check(flags):
    """Run check.py, and say what it cannot: that an exercise did not end, or ended Python."""
    with mistakes():
        alone = chosen(flags).name if flags.exercise else ""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as place:
        trace = Path(place, "trace")
        command = [sys.executable, "-m", "dpo_min.learn.check", flags.folder.absolute()]
        command += [str(flags.seconds), trace, alone]
        code = subprocess.run(command, env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": path}).returncode
        stack = trace.read_text(encoding="utf-8") if trace.exists() else ""
    at = next((exercise for exercise in exercises() if exercise.name == folder.progress(flags.folder)["at"]), None)
    if at and (stack or code < 0):
        mine = rf'File "(?!{re.escape(str(ROOT / "dpo_min"))}/).*dpo_min/{re.escape(at.file)}", line (\d+)'
        line = "".join(re.findall(mine, stack)[:1])
        place = f"{near(folder.path_of(flags.folder, at))}{line and ':'}{line}"
        late = f"has not ended after {flags.seconds:g} seconds: is there a loop without end?"
        late += f" (make check SECONDS={3 * flags.seconds:g} waits longer)"
        print(f"{place}: {at.name} {late if stack else f'has ended Python itself, by signal {-code}'}")
        return 1
    if code == 3 and flags.all:
        print("\nNot all are written yet.")
        return 1
    return 0 if code == 3 else code


def chosen(flags):
    """The exercise that is asked for, or else the one that comes next.

    Raises:
        ValueError: there is none of the name, or none left.
    """
    course = exercises()
    if flags.exercise is None:
        at = folder.progress(flags.folder)["at"]
        for exercise in course:
            if exercise.name == at or (not at and not folder.is_written(flags.folder, exercise)):
                return exercise
        raise ValueError(f"all {len(course)} are written: make check says whether they are right")
    names = {exercise.name.strip('"').rpartition(".")[2]: exercise for exercise in course}
    name = flags.exercise.strip('"').rpartition(".")[2]
    if name not in names:
        near_name = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near_name[0]}? there are" if near_name else "there are"
        raise ValueError(f"--exercise: no exercise is called {name}; {hint} {', '.join(names)}")
    return names[name]


def hint(flags):
    """Print the next hint of an exercise; after the third, the third again."""
    with mistakes():
        exercise = chosen(flags)
        folder.text_of(flags.folder, exercise)
        given = folder.progress(flags.folder)["hints"]
        number = min(given.get(exercise.name, 0) + 1, len(exercise.hints) + 1)
        folder.remember(flags.folder, hints=given | {exercise.name: number})
    last = number > len(exercise.hints)
    words = "\n".join(exercise.lines) if last else exercise.hints[number - 1]
    print(f"{exercise.name}, hint {number} of {len(exercise.hints) + 1}\n\n{textwrap.indent(words, '    ')}")
    if last:
        print("\n`make reveal` shows the whole body.")
    return 0


def reveal(flags):
    """Print the body of an exercise; write it into the learner's file if nothing else stands there."""
    with mistakes():
        exercise = chosen(flags)
        path, text = folder.path_of(flags.folder, exercise), folder.text_of(flags.folder, exercise)
        bodies = cut.bodies(exercise.source, exercise.name)
        place = f"{near(ROOT / 'dpo_min' / exercise.file)}:{cut.place(exercise.source, exercise.name)}"
        print(f"{exercise.name}, as it stands in {place}\n")
        print("\n".join(textwrap.indent(textwrap.dedent(body).rstrip(), "    ") for body in bodies))
        if folder.is_written(flags.folder, exercise):
            print(f"\n{near(path)} keeps what you wrote: replace it yourself.")
        else:
            write_text(path, cut.fill(text, exercise.name, bodies))
            folder.remember(flags.folder, at=None)  # what comes next is the first that is not written
            print(f"\nwritten into {near(path)}; make check goes on from there")
    return 0


ACTIONS = {"make": make, "check": check, "hint": hint, "reveal": reveal}


def main():
    """The program."""
    with mistakes():
        flags, given = parse(LearnFlags, sys.argv[1:], __doc__.split("\n")[0], GROUPS, EXAMPLE)
        action = flags.action[0] if flags.action else "make"
        if action not in ACTIONS or len(flags.action) > 1:
            raise ValueError(f"ACTION: expected one of {', '.join(ACTIONS)}, got {' '.join(flags.action)}")
        refuse(given, [] if action == "check" else ["all", "seconds"], f"with {action}")
        refuse(given, ["exercise"] if action == "make" else [], "with make")
        if not (ROOT / PAGE).exists():
            raise ValueError(
                f"{ROOT / PAGE}: not there; the exercises need a checkout of the project, not the package alone"
            )
    return ACTIONS[action](flags)


if __name__ == "__main__":
    run(main)
