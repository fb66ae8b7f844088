"""A model directory as a scorer: the implicit reward β (log π(y|x) − log π_ref(y|x)) of each answer (DPO, Eq. 5).

Eq. 5 also has β log Z(x). It is the same for all answers to one prompt, so between them it decides nothing.
"""

import torch

from dpo_min.data.chat_template import check_reference, use_template
from dpo_min.data.forms import put_together, read_prompt
from dpo_min.data.rows import Preference
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import encode_pair
from dpo_min.judge.scorers import worth
from dpo_min.judge.scoring import token_rewards
from dpo_min.judge.trained_with import run_settings
from dpo_min.model.model_directory import read_config
from dpo_min.model.weights import load_model
from dpo_min.system.devices import choose_device


class ImplicitReward:
    """The reward that a model implies against its reference; β and the reduction over tokens are those of its run."""

    def __init__(self, model, reference):
        """Load both directories.

        Raises:
            ValueError: one of them is no model, or their tokenizers differ.
        """
        for directory in (model, reference):
            read_config(directory)  # which says what a directory is that is no model's
        settings, self.tokenizer = run_settings(model), load_tokenizer(model)
        self.template = use_template(self.tokenizer, "auto", None)
        check_reference(reference, self.tokenizer, self.template, f"--scorer {model}")
        self.device, self.dtype = choose_device("auto", "auto")
        self.models = [load_model(directory).to(self.device).eval() for directory in (model, reference)]
        self.how = settings["beta"], settings["reduce"]

    def scores(self, prompt, answers):
        """The rewards of K answers to a prompt, K numbers; an answer too long for the models' positions is cut.

        Raises:
            ValueError: the prompt leaves no room for an answer, or a reward is not finite.
        """
        rows = [put_together(read_prompt(prompt), (), answer, answer, whole=False) for answer in answers]
        sides = [self.template.sides(*row) for row in rows]
        ids = [encode_pair(Preference(*side), self.tokenizer, self.template)[:2] for side in sides]
        positions = min(model.config.block_size for model in self.models)
        asked = ids[0][0]
        if len(asked) >= positions:
            raise ValueError(f"a prompt of {len(asked)} tokens leaves no room in the models' {positions} positions")
        completions = [answer[: positions - len(asked)] for _, answer in ids]
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            rewards = token_rewards(*self.models, [asked] * len(ids), completions, *self.how)
        return [worth(reward.double().sum()) for reward in rewards]
