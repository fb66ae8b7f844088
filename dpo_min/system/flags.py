"""Command-line flags from a dataclass: one field is one flag, and a mistake is one line that names it."""

import argparse
import difflib
from dataclasses import MISSING, field, fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

from dpo_min.system.launcher import program_name


def flag(default, about, accepts=None, values="PATH", positional=False):
    """A field of a dataclass of flags: its default, when to change it, and what it accepts (`Accepts`, or a list).

    Args:
        values: what `--help` calls each value of a field that is a list, or a tuple with a name for each.
        positional: whether the values, of a list, stand alone, without the flag's name before them.
    """
    choices, accepts = (accepts, None) if isinstance(accepts, list) else (None, accepts)
    metadata = {"about": about, "accepts": accepts, "choices": choices, "values": values, "positional": positional}
    if default is MISSING or not isinstance(default, list):
        return field(default=default, metadata=metadata)
    return field(default_factory=lambda: list(default), metadata=metadata)


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line and an unknown flag suggests the nearest known one."""

    def error(self, message):
        """Raise ValueError, which the program turns into its one line."""
        raise ValueError(message)

    def parse_args(self, argv):
        """As argparse, naming the first unknown argument."""
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            self.error(f"{unknown[0]}: unknown argument; {hint}--help lists all")
        return namespace


def parse(flags_class, argv, description, groups=(), example=""):
    """(flags, the set of field names that were given); `--help` prints and exits.

    Args:
        flags_class: a dataclass whose fields are made by `flag`.
        groups: (title, names of fields) in the order in which `--help` lists them; fields in none come last.
        example: a command that `--help` ends with.

    Raises:
        ValueError: an unknown flag, or a value out of range; the message names the flag and what it accepts.
    """
    epilog = example and f"example: {example}"
    parser = Parser(
        program_name(), description=description, epilog=epilog, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    known = {f.name: f for f in fields(flags_class)}
    for title, names in groups:
        group = parser.add_argument_group(title)
        for name in names.split():
            add_argument(group, known.pop(name))
    for f in known.values():
        add_argument(parser, f)
    given = vars(parser.parse_args(argv))
    for f in fields(flags_class):
        if f.default is MISSING and f.default_factory is MISSING and not given.get(f.name):
            raise ValueError(f"{spelling(f)} is required: {f.metadata['about']}")
    return flags_class(**given), set(given)


def sections(flags_class, first, *starts):
    """The groups of `parse`: the flags to know first, then the others in sections, in the order of their definition.

    Args:
        first: names of fields, in one string.
        starts: (title, the field that opens the section); fields before the first section belong to it, and sections
            of one title are one group.
    """
    groups, opens = {"to begin with": first.split()}, {name: title for title, name in starts}
    title = starts[0][0]
    for f in fields(flags_class):
        title = opens.get(f.name, title)
        if f.name not in groups["to begin with"]:
            groups.setdefault(title, []).append(f.name)
    return [(title, " ".join(names)) for title, names in groups.items()]


def spelling(field):
    """What a flag is called on the command line."""
    return field.metadata["values"] if field.metadata["positional"] else "--" + field.name.replace("_", "-")


def add_argument(parser, field):
    """Tell argparse of one field."""
    kind, about = field.type, field.metadata
    if isinstance(kind, UnionType):  # `int | None`: None means "not given"
        kind = next(k for k in get_args(kind) if k is not type(None))
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    settings = {"help": about["about"].replace("%", "%%")}
    if default is not MISSING and default is not None and default is not False and default != []:
        settings["help"] += f" (default: {default})"
    if about["positional"]:
        parser.add_argument(field.name, nargs="*", metavar=about["values"], **settings)
        return
    if kind is bool:
        settings["action"] = "store_true"
    elif get_origin(kind) is list:
        values = about["values"]
        settings |= {"nargs": len(values) if isinstance(values, tuple) else "+", "action": "extend"}
        settings |= {"type": converter(get_args(kind)[0], about["accepts"]), "metavar": values}
    else:
        settings |= {"type": converter(kind, about["accepts"]), "choices": about["choices"]}
        if not about["choices"]:
            settings["metavar"] = {int: "N", float: "X", Path: "PATH", str: "TEXT"}[kind]
    parser.add_argument(spelling(field), dest=field.name, **settings)


def converter(kind, accepts):
    """Turn a flag's text into a value of `kind`, or say what the flag accepts."""

    def convert(text):
        try:
            value = kind(text)
            fine = accepts.test(value) if accepts else text or kind is str  # an unset variable is no path
            if fine:
                return value
        except ValueError:
            pass
        words = accepts.words if accepts else {Path: "a path"}.get(kind, kind.__name__)
        raise argparse.ArgumentTypeError(f"expected {words}, got {text!r}")

    return convert


def refuse(given, names, reason):
    """Raise ValueError if one of the fields `names` was given although it would have no effect."""
    for name in names:
        if name in given:
            raise ValueError(f"--{name.replace('_', '-')} has no effect {reason}; leave it out")
