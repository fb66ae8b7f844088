"""A function that a learner wrote, held against its laws: the first that fails, and why where that is certain."""

import functools
import inspect
import traceback
from dataclasses import dataclass, replace
from itertools import zip_longest
from types import SimpleNamespace

import torch

from dpo_min.learn import cut, laws_of_losses, laws_of_models, laws_of_policies, laws_of_preferences  # noqa: F401
from dpo_min.learn.shown import apart, arguments, kind, shown
from dpo_min.learn.trial import LAWS, close


@dataclass(frozen=True)
class Finding:
    """What is wrong: the law's name and sentence, the input, what came out, what the law says; where; and why."""

    law: str
    sentence: str
    given: str = ""
    got: str = ""
    says: str = ""
    line: int | None = None  # of an error in the learner's file
    why: str = ""


class Wrong(Exception):
    """A result that is not even of the right sort; its argument is the `Finding`."""


@dataclass
class Call:
    """A call in words, what came out of it, and what comes out of the project's own function."""

    given: str
    got: object = None
    want: object = None


class Yours:
    """The learner's function beside the project's: both are called, and must give the same sort of thing."""

    def __init__(self, function, real, calls, label=""):
        """`calls` is a list that each `Call` is added to; `label` begins its words."""
        self.function, self.real, self.calls, self.label = function, real, calls, label

    def __call__(self, *values):
        """What the learner's function returns; raises `Wrong`, or whatever that function raises."""
        self.calls.append(call := Call(given := self.words(values)))
        theirs = [value.clone() if isinstance(value, torch.Tensor) else value for value in values]
        call.got = self.function(*theirs)
        call.want = self.real(*values)
        if not all(map(close, theirs, values)):
            sentence = "A function leaves its arguments as they are."
            raise Wrong(Finding("inputs", sentence, given, f"{self.words(theirs)} afterwards", "what they were"))
        if kind(call.got) != kind(call.want):
            raise Wrong(
                Finding(*sort(call.got, call.want), given, kind(call.got) + note(call.got, call.want), kind(call.want))
            )
        return call.got

    def words(self, values):
        """The arguments of a call."""
        return self.label + arguments(inspect.signature(self.real).bind(*values).arguments)


def note(got, want):
    """What a result that is not of the sort that is wanted often comes from."""
    if got is None:
        return ": is there a `return`?"
    if isinstance(got, float) and isinstance(want, int):
        return ": / gives a float, and // a whole number"
    if isinstance(got, float):
        return ": `math` and `if` give one number; a tensor has .log() and .exp(), and there is torch.where"
    tensors = isinstance(got, torch.Tensor) and isinstance(want, torch.Tensor)
    if tensors and got.dtype == torch.float32 != want.dtype and want.is_floating_point():
        return ": .float(), torch.tensor and a number times True or False give float32; .to(x.dtype) gives what x has"
    return ""


def sort(got, want):
    """(law, sentence) of two results that are not of one sort."""
    if isinstance(got, torch.Tensor) and isinstance(want, torch.Tensor):
        if got.shape != want.shape:
            return "shape", "The shape of the result is the one that the docstring gives."
        return "dtype", "The dtype of the result is that of the arguments, unless the docstring gives another."
    return "kind", "The result is of the kind that the docstring gives."


def load(text, file):
    """The names that a file defines. What it imports is the project's own, so that each file is tried alone.

    Raises:
        SyntaxError, and whatever the file raises.
    """
    names = {"__name__": "dpo_min." + file.removesuffix(".py").replace("/", "."), "__file__": file}
    exec(compile(text, file, "exec"), names)
    return names


@functools.cache
def project(exercise):
    """The names of the project's own file."""
    return load(exercise.source, exercise.file)


def subject(exercise, names, calls):
    """What the laws of an exercise are given: `Yours`, or of a row both its value and its slope."""
    both = names, project(exercise)
    if exercise.name.startswith('"'):
        rows = [names["MARGIN_LOSSES"][exercise.name.strip('"')] for names in both]
        parts = {part: [getattr(row, part) for row in rows] for part in ("value", "slope")}
        return SimpleNamespace(**{part: Yours(*pair, calls, f"{part} at ") for part, pair in parts.items()})
    first, *rest = exercise.name.split(".")
    found = [functools.reduce(getattr, rest, names[first]) for names in both]
    return Yours(*(getattr(f, "fget", f) for f in found), calls)  # fget: of a property


def broken(exercise, names, calls):
    """The `Finding` of the first law that fails, or None. Whatever the learner's function raises comes through."""
    yours = subject(exercise, names, calls)
    for law in LAWS[exercise.name]:
        for trial in law(yours):
            if not trial.holds:
                got = trial.got if isinstance(trial.got, str) else shown(trial.got)
                says = trial.says + (f"; the equation gives {shown(calls[-1].want)}" if trial.more else "")
                return Finding(law.__name__, inspect.getdoc(law), trial.given or calls[-1].given, got, says)
    for call in () if exercise.laws_only else calls:
        if not close(call.got, call.want):
            sentence = "It is the number that the equation gives."
            return Finding("equation", sentence, call.given, *apart(call.got, call.want))
    return None


def answers(exercise, names):
    """[(calls, the error that ended them or "")] of a function under each of its laws, whether they hold or not."""
    found = []
    for law in LAWS[exercise.name]:
        calls, end = [], ""
        try:
            for _ in law(subject(exercise, names, calls)):
                pass
        except Wrong as wrong:
            end = wrong.args[0].law
        except (Exception, SystemExit) as error:
            end = f"{type(error).__name__}: {error}"
        found.append((calls, end))
    return found


def same(mine, theirs):
    """Whether a function gives what a mistake gives wherever that is wrong, or always if it only rounds wrongly."""
    parts = [(*ours, *its) for ours, its in zip(mine, theirs, strict=True)]
    if any(end and end != my_end for _, my_end, _, end in parts):
        return False
    pairs = [pair for my_calls, _, calls, _ in parts for pair in zip_longest(my_calls, calls)]
    pairs = [(my_call or Call(""), call) for my_call, call in pairs if call]
    wrong = [(my_call, call) for my_call, call in pairs if not close(call.got, call.want)]
    by_rounding = not wrong and not any(end for *_, end in parts)
    return all(close(my_call.got, call.got) for my_call, call in (pairs if by_rounding else wrong))


@functools.cache
def known(exercise):
    """[(mistake, its answers)] of the mistakes of an exercise."""
    texts = [cut.change(exercise.source, exercise.name, mistake.has, mistake.put) for mistake in exercise.mistakes]
    found = [answers(exercise, load(text, exercise.file)) for text in texts]
    return list(zip(exercise.mistakes, found, strict=True))


def explained(exercise, names, found):
    """The `Finding`, and what is said of the known mistake that breaks the same law in the same way, if any does."""
    mine = answers(exercise, names)
    same_law = ((mistake, theirs) for mistake, theirs in known(exercise) if mistake.law == found.law)
    return replace(found, why=next((mistake.says for mistake, theirs in same_law if same(mine, theirs)), ""))


def examine(exercise, text, file):
    """The `Finding` against a learner's text of a file, or None where every law of the exercise holds.

    Args: file, the path that errors name.
    """
    calls, names = [], None
    try:
        wanted, got = (cut.signature(source, exercise.name) for source in (exercise.source, text))
        if got != wanted:
            sentence = "Others call it: the arguments stay what they are."
            return Finding("signature", sentence, "", f"({got})", f"({wanted})")
        names = load(text, file)
        found = broken(exercise, names, calls)
        return found and explained(exercise, names, found)
    except Wrong as wrong:
        return explained(exercise, names, wrong.args[0])
    except SyntaxError as error:
        return Finding("error", f"Python cannot read the file: {error.msg}", line=error.lineno)
    except (Exception, SystemExit) as error:
        found = failure(exercise, text, file, error, calls[-1].given if calls else "")
        return explained(exercise, names, found) if calls else found


def failure(exercise, text, file, error, given):
    """The `Finding` of an error: on the last line of the exercise that it came from, or else of the file."""
    passed = traceback.walk_tb(error.__traceback__)
    mine = [number for frame, number in passed if frame.f_code.co_filename == file]
    if not mine and not isinstance(error, ValueError):
        raise error  # not the learner's
    if isinstance(error.__cause__, RecursionError):
        error = error.__cause__
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, NotImplementedError) and f'"{error}"' in cut.HOLE:  # and not what PyTorch has not implemented
        words = f"the line `{cut.HOLE}` still stands there"
    node = cut.find(text, exercise.name) if mine else None
    inside = [number for number in mine if node.lineno <= number <= node.end_lineno]
    which = 0 if isinstance(error, RecursionError) else -1  # where it calls itself, and not where it was stopped
    return Finding("error", words, given, line=(inside or mine or [None])[which])
