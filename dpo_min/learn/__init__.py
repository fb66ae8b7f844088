"""Exercises: the functions of the mathematics without their bodies, and laws that say what is wrong with yours.

`make learn` cuts them out of the project's own files, so that no second copy can differ. Read cut.py for how a body is
taken out and put back, course.toml for the exercises, their hints and the mistakes that are known by name, and the
files of laws for what has to hold. judge.py holds a function against its laws, and check.py goes through all of them.
"""

READING_ORDER = (
    "cut",
    "course",
    "folder",
    "shown",
    "trial",
    "laws_of_policies",
    "laws_of_preferences",
    "laws_of_losses",
    "laws_of_models",
    "judge",
    "check",
    "__main__",
)
