"""Trouble in a run's numbers, said once, in one line, with what it usually means."""

import math

import torch

from dpo_min.decode.generation import generate
from dpo_min.judge.scoring import log_ratios
from dpo_min.losses import Mixture

FAR = 1.25  # a held-out loss beyond so many times that of a policy that is its reference, or 0.25 where that is 0
PINNED = 3, 100  # train lines, and pairs in them, without a single wrong one
FALL = 0.5  # share of the reference's own nats by which the chosen side's fall is no displacement any more
DRAWN = 32, 128  # completions that a KL is estimated from, and their most tokens


class Watch:
    """Looks at every line of metrics.jsonl."""

    def __init__(self, config, say=print):
        """The run's config; `say` gets each warning."""
        self.config, self.say, self.said, self.right = config, say, set(), [0, 0]
        self.at_reference = None  # the loss there, if it has a reference and sees the two log-ratios alone
        mixture = Mixture(config.losses) if config.has_reference and config.rows == "pairs" else None
        if mixture and None not in mixture.arguments.values():
            self.at_reference = mixture.value(*torch.zeros(2), config.beta, **config.loss_options).item()

    def look(self, line):
        """Warn of what a line of metrics shows, each thing once."""
        if self.config.loss_type == "sft":  # which compares nothing
            return
        step, held_out, known = line["step"], line["split"] == "eval", self.at_reference is not None
        if held_out and known and line["loss"] - self.at_reference > (FAR - 1) * (abs(self.at_reference) or 1):
            self.warn(
                "loss",
                f"step {step}: the held-out loss {line['loss']:.3f} is far above {self.at_reference:.3f}, that of an "
                "untrained policy: it overfits or diverges; try a lower --learning-rate, fewer --epochs or "
                "a higher --beta",
            )
        if not held_out:
            right = line["rewards/accuracies"] == 1
            self.right = [self.right[0] + 1, self.right[1] + line["pairs"]] if right else [0, 0]
            if all(count >= most for count, most in zip(self.right, PINNED, strict=True)):
                self.warn(
                    "accuracy",
                    f"step {step}: every pair is ranked right: learnt by heart, or told apart by something trivial "
                    "such as length; look at python -m dpo_min.judge.lint",
                )
        drift = line["rewards/chosen"] / self.config.beta  # mean log π − log π_ref, in nats
        reference = line["logps/chosen"] - drift
        if self.config.has_reference and drift < -1 and drift < FALL * reference:
            self.warn(
                "fall",
                f"step {step}: log π of the chosen side fell from {reference:.1f} to {line['logps/chosen']:.1f} nats: "
                "the policy leaves both answers; try a lower --learning-rate or a higher --beta",
            )
        if self.config.max_kl and line.get("kl", -math.inf) > self.config.max_kl:
            self.warn(
                "kl",
                f"step {step}: KL(policy‖reference) is {line['kl']:.2f} nats an answer, past --max-kl "
                f"{self.config.max_kl:g}: it may earn its reward where no preference was seen; try a higher --beta",
            )

    def warn(self, key, text):
        """Say something for the first time."""
        if key not in self.said:
            self.said.add(key)
            self.say(f"warning: {text}")


@torch.no_grad()
def sampled_kl(policy, reference, pairs, tokenizer, seed):
    """KL(π‖π_ref) in nats an answer, on the prompts of at most `DRAWN` pairs: the mean log π − log π_ref of one answer
    each, drawn from the policy, which has that expectation. The same draws for the same policy.

    Answers end after `DRAWN` tokens: it is then the KL of their beginnings, and never more than that of the whole.
    """
    room = min(model.config.block_size for model in (policy, reference)) - 1
    prompts = [pair.prompt_ids[-max(1, room - DRAWN[1]) :] for pair in pairs[: DRAWN[0]]]
    generator = torch.Generator(policy.head_weight.device).manual_seed(seed)
    drawn = generate(
        policy, prompts, tokenizer.end_of_text, min(DRAWN[1], room), generator, vocab_size=tokenizer.vocab_size
    )
    return log_ratios(policy, reference, prompts, [completion.ids for completion in drawn]).mean().item()
