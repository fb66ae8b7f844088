"""Where the reward went: β (log π − log π_ref) of every token.

log π(y|x) is a sum over the tokens of y, and so is the implicit reward (DPO, arXiv:2305.18290, Eq. 5, without Z):

    r(x, y) = Σ_t β [log π(y_t | x, y_<t) − log π_ref(y_t | x, y_<t)]

Nobody labelled tokens, and the loss saw only the sum. The token-level reading of DPO takes each term as the reward of
its token (Rafailov et al., "From r to Q*", arXiv:2404.12358).
"""

import codecs
import math
import sys
from dataclasses import dataclass, replace

import torch

from dpo_min.data.tokenizing import encode_pair, truncate
from dpo_min.judge.display import page, show
from dpo_min.judge.scoring import token_rewards
from dpo_min.judge.trained_with import run_settings
from dpo_min.system.streams import as_json
from dpo_min.system.text import visible


@dataclass(frozen=True)
class Span:
    """As few tokens as end together with a character: their text (empty for a control token) and their reward."""

    text: str
    ids: list[int]
    reward: float


def spans(tokenizer, ids, rewards):
    """The `Span`s of a completion, which add up to its text, to its ids and to its reward."""
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    found, text, held, reward = [], "", [], 0.0
    for place, (token, share) in enumerate(zip(ids, rewards, strict=True), 1):
        text += characters.decode(tokenizer.decode_bytes([token]), final=place == len(ids))
        held, reward = [*held, token], reward + float(share)
        if not characters.getstate()[0]:  # no character is incomplete
            found.append(Span(text, held, reward))
            text, held, reward = "", [], 0.0
    return found


@dataclass(frozen=True)
class Answer:
    """A completion: its model or its side of a pair, its ids, its number, and its spans if it was judged."""

    name: str
    ids: list[int]
    number: int = 0
    spans: list[Span] | None = None

    @property
    def reward(self):
        """β (log π − log π_ref) of the whole; None if it was not judged."""
        return None if self.spans is None else math.fsum(span.reward for span in self.spans)


class Judge:
    """What sample.py does with a reference: it judges answers, shows them, and writes them to a page at the end.

    If the tokenizers or the numbers of positions of the two models differ, their answers are shown and not compared.
    """

    def __init__(self, flags, models, reading, device, dtype):
        """Name → model, and name → (tokenizer, template), of "model" and "reference".

        Raises:
            ValueError: --credit, and the models cannot be compared; or the row leaves no room for an answer.
        """
        self.flags, self.models, self.groups = flags, models, []
        (self.tokenizer, self.template), (theirs_reading, _) = (reading[name] for name in ("model", "reference"))
        self.autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)
        self.settings = run_settings(flags.model)
        ours, theirs = (models[name].config for name in ("model", "reference"))
        same = self.tokenizer.fingerprint() == theirs_reading.fingerprint()
        self.comparable = ours.block_size == theirs.block_size and same
        if flags.credit and not self.comparable:
            raise ValueError("--credit: the tokenizers or the numbers of positions of --model and --reference differ")
        if flags.pair:
            self.prompt_ids, self.given = self.read_given(ours.block_size)

    def read_given(self, positions):
        """(the prompt's ids, (row, ids) of each answer) of --pair or --completion, cut and ended as in training."""
        flags, max_length = self.flags, min(self.settings["max_length"] or positions, positions)
        longest_prompt = self.settings["max_prompt_length"]
        whole = encode_pair(flags.pair, self.tokenizer, self.template)
        kept = truncate(*whole, max_length, longest_prompt)
        if not kept:
            raise ValueError(f"--credit: the prompt leaves no room for an answer in {max_length} tokens")
        if kept != whole:
            print(f"cut to {max_length} tokens, as in training", file=sys.stderr)
        prompt, *sides = kept

        def row(name, ids):
            text = {"prompt": flags.prompt, "model": name, "sample": 0, "completion": self.tokenizer.decode(ids)}
            return text | {"ended": ids[-1] == self.tokenizer.end_of_text}

        names = ["chosen", "rejected"] if flags.completion is None else ["completion"]
        return prompt, [(row(name, ids), ids) for name, ids in zip(names, sides, strict=False)]

    def show(self, prompt, ids=None, drawn=None):
        """Judge and print the answers to a prompt: its text, its ids, and (row of --jsonl, ids) of each answer.

        Without any answers, those that were given.
        """
        ids, drawn = (self.prompt_ids, self.given) if drawn is None else (ids, drawn)
        answers = [Answer(row["model"], completion, row["sample"]) for row, completion in drawn]
        if self.comparable:
            answers = self.judge(ids, answers)
        self.groups.append((prompt, answers))
        if not self.flags.jsonl:
            print(f"\n{visible(prompt)}")
            show(answers, [row["completion"] for row, _ in drawn], self.flags)
            return
        for (row, _), answer in zip(drawn, answers, strict=True):
            if answer.spans is not None:
                row |= {"reward": answer.reward, "credit": [[span.text, span.reward] for span in answer.spans]}
            print(as_json(row), flush=True)

    def judge(self, prompt_ids, answers):
        """The answers with their spans."""
        completions, prompts = [answer.ids for answer in answers], [prompt_ids] * len(answers)
        models = self.models["model"], self.models["reference"]
        with self.autocast:
            rewards = token_rewards(*models, prompts, completions, self.flags.beta, self.settings["reduce"])
        found = [spans(self.tokenizer, answer.ids, r.tolist()) for answer, r in zip(answers, rewards, strict=True)]
        return [replace(answer, spans=s) for answer, s in zip(answers, found, strict=True)]

    def close(self):
        """Write the page, if there is to be one."""
        if self.flags.html:
            text = page(self.groups, self.flags.beta)
            self.flags.html.write_text(text, encoding="utf-8")
