"""The flags that say how rows are read and written, for every program that takes preferences."""

from dataclasses import dataclass

from dpo_min.data.forms import NAMES, Columns
from dpo_min.data.templates import TEMPLATES
from dpo_min.system.flags import flag
from dpo_min.system.kinds import TEXT

NAMED = ("prompt_column", "chosen_column", "rejected_column", "ignore_columns")


@dataclass(kw_only=True)
class RowFlags:
    """How rows are read, and how dialogues are written."""

    template: str = flag("auto", "how turns are written; auto: as the model's own chat template", ["auto", *TEMPLATES])
    system: str | None = flag(None, "system text of dialogues that have none; default: the template's own", TEXT)
    prompt_column: str | None = flag(None, "the column that holds the prompt, where rows call it something else", TEXT)
    chosen_column: str | None = flag(None, "the column that holds the chosen answer; default: chosen", TEXT)
    rejected_column: str | None = flag(None, "the column that holds the rejected answer; default: rejected", TEXT)
    ignore_columns: list[str] = flag([], "columns that hold text and are not read", TEXT, "NAME")

    @property
    def columns(self):
        """The `Columns` of the rows.

        Raises:
            ValueError: two sides come from one column.
        """
        sides = self.prompt_column, self.chosen_column or NAMES.chosen, self.rejected_column or NAMES.rejected
        if len({*sides}) < 3:
            raise ValueError(f"--prompt-column, --chosen-column, --rejected-column: the same column twice in {sides}")
        return Columns(*sides, tuple(self.ignore_columns))
