"""Is the model better, and are the data sound? Scores, statistics, credit token by token, the linter, pictures."""

READING_ORDER = (
    "intervals",
    "statistics",
    "trained_with",
    "scoring",
    "scorers",
    "measure",
    "display",
    "credit",
    "pictures",
    "lint_lengths",
    "lint_findings",
    "lint_between",
    "lint",
    "evaluate",
)
