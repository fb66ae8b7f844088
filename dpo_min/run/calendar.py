"""How many steps a run takes, and after which of them it logs, evaluates and saves."""

import math
from dataclasses import dataclass, replace


def count_steps(flags, pairs):
    """(steps of the run, steps of an epoch); the last step of an epoch takes what is left of it."""
    epoch_steps = math.ceil(len(pairs) / flags.batch_size)
    return flags.max_steps or math.ceil(flags.epochs * epoch_steps), epoch_steps


@dataclass(frozen=True)
class Calendar:
    """When a run logs, evaluates and saves: each after every so many steps, and all after the last one.

    The last step of a run is often not a step at which a longer run would log or evaluate. What is written only
    because the run ends there is its closing: a run that goes on to more steps takes it back, so that it has the
    lines, the sums and the best loss that it would have had without the stop.
    """

    steps: int
    log_every: int
    eval_every: int
    save_every: int

    def logs(self, step):
        """Whether a train line is due."""
        return step == 1 or step % self.log_every == 0 or step == self.steps

    def evaluates(self, step):
        """Whether the held-out pairs are due."""
        return step % self.eval_every == 0 or step == self.steps

    def saves(self, step):
        """Whether a checkpoint is due."""
        return step % self.save_every == 0 or step == self.steps

    def closing(self, step):
        """The splits whose line is due only because the run ends with this step."""
        if step < self.steps:
            return []
        longer = replace(self, steps=math.inf)  # a run that does not end here
        due = {"train": longer.logs(step), "eval": longer.evaluates(step)}
        return [split for split, is_due in due.items() if not is_due]
