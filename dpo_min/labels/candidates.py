r"""Answers to choose between: one line for each prompt.

    {"prompt": "…", "answers": ["…", "…"], "logps": [-41.0, -50.2], "model": "3f1c…"}

`logps` are log π(y|x) of the answers in nats, summed over their tokens, the end-of-text included, under the model that
drew them. `model` is the fingerprint of its weights, or a list with one fingerprint for each answer. A prompt is a text
or the messages of a dialogue. Two draws may be equal: they stay, because they are what the model says, but no pair is
made of them.
"""

import json
from dataclasses import asdict, dataclass
from itertools import combinations

from dpo_min.data.forms import check_text, read_prompt
from dpo_min.data.lines import read_rows
from dpo_min.data.messages import BadRow
from dpo_min.data.rows import decoded, is_number, reasons

COLUMNS = {"prompt", "answers", "logps", "model"}


@dataclass(frozen=True)
class Candidates:
    """A prompt and its answers; a file from elsewhere may lack `logps` and `model`."""

    prompt: str | list
    answers: list[str]
    logps: list[float] | None = None
    model: str | list[str] | None = None

    @property
    def models(self):
        """The fingerprint of each answer's model."""
        return self.model if isinstance(self.model, list) else [self.model] * len(self.answers)

    @property
    def key(self):
        """What a prompt is drawn for once: the prompt and the models."""
        return json.dumps([self.prompt, self.model])

    def as_row(self):
        """The line, decoded."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def pairs(self):
        """Places (i, j), i < j, of the answers that can be compared: both say something, and not the same.

        Answers of two models come first, then neighbours; a pair of texts comes once.
        """
        seen, found, models = set(), [], self.models
        order = combinations(range(len(self.answers)), 2)
        for i, j in sorted(order, key=lambda ij: (models[ij[0]] == models[ij[1]], ij[1] - ij[0], ij[0])):
            texts = frozenset((self.answers[i], self.answers[j]))
            if len(texts) == 2 and "" not in texts and texts not in seen:
                seen.add(texts)
                found.append((i, j))
        return found


def read_candidates(path):
    """The `Candidates` of a file, each once, in its order; a last line that is still being written is left out.

    Raises:
        ValueError: the file cannot be read, or a line is not candidates, as "file:line: reason".
    """
    found = {}
    for number, line, _ in read_rows(path):
        try:
            candidates = parse_candidates(line)
        except BadRow as error:
            if not line.endswith(b"\n") and str(error).startswith(("not JSON", "not UTF-8")):
                continue
            raise ValueError(f"{path}:{number}: {error}") from error
        found.setdefault(json.dumps([candidates.key, candidates.answers]), candidates)
    return [*found.values()]


def parse_candidates(line):
    """The `Candidates` in a line of bytes; BadRow with the reason where there are none."""
    with reasons(line):
        row = decoded(line)
    if not isinstance(row, dict) or not {"prompt", "answers"} <= row.keys() <= COLUMNS:
        raise BadRow("expected an object with prompt and answers, and with logps and model if they are known")
    if isinstance(row["prompt"], dict):
        raise BadRow("prompt must be a text or a list of messages")
    read_prompt(row["prompt"])
    candidates = Candidates(**row)
    answers, logps = candidates.answers, candidates.logps
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise BadRow("answers must be a list of texts")
    size = len(answers)
    check_text(answers="".join(answers), prompt=json.dumps(row["prompt"], ensure_ascii=False))
    if logps is not None and not (isinstance(logps, list) and len(logps) == size and all(map(is_number, logps))):
        raise BadRow("logps must be one number for each answer")
    models = candidates.models
    if models != [None] * size and not (len(models) == size and all(isinstance(model, str) for model in models)):
        raise BadRow("model must be a text, or one for each answer")
    return candidates
