"""What `evaluate.py` reports of two models, measured: accuracy, calibration, KL, win rate."""

import torch

from dpo_min.judge.scorers import score
from dpo_min.judge.scoring import draw_answers, groups, kl_estimates, pair_logps
from dpo_min.judge.statistics import calibration, correlation, mean, rate
from dpo_min.metrics import wins
from dpo_min.model.weights import load_model
from dpo_min.system.devices import choose_device


def measure(flags, settings, tokenizer, pairs, scorer):
    """({figure: `Figure`}, the bins of the calibration, reward margins (N,), length gaps (N,)) of the two models."""
    device, dtype = choose_device(flags.device, flags.dtype)
    policy, reference = (load_model(d).to(device).eval().requires_grad_(False) for d in (flags.model, flags.reference))
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        logps = pair_logps(policy, reference, pairs, settings["reduce"], flags.micro_batch_size).double()  # (2, 2, N)
        change = logps[0] - logps[1]  # (2, N)
        margins = flags.beta * (change[0] - change[1])
        gaps = torch.tensor([len(pair.chosen_ids) - len(pair.rejected_ids) for pair in pairs], dtype=torch.float64)
        error, bins = calibration(margins)
        figures = {
            "accuracy": rate(wins(margins, torch.zeros_like(margins))),
            "likelier": rate(wins(*logps[0])),
            "likelier_reference": rate(wins(*logps[1])),
            "margin": mean(margins),
            "log_ratio_chosen": mean(change[0]),
            "log_ratio_rejected": mean(change[1]),
            "length_correlation": correlation(margins, gaps),
            "calibration_error": error,
        }
        length = flags.max_new_tokens
        asked = [pair.prompt_ids[length - settings["positions"] :] for pair in pairs]
        asked = [asked[i % len(asked)] for i in range(flags.samples)]
        limits, known = (tokenizer.end_of_text, length), {"vocab_size": tokenizer.vocab_size}
        ours = draw_answers(policy, asked, *limits, flags.seed, flags.micro_batch_size, **known)
        estimates = kl_estimates(policy, reference, asked, ours, flags.micro_batch_size, **known)
        figures["kl_mean_log_ratio"], figures["kl_sum_of_tokens"] = map(mean, estimates)
        if callable(scorer):  # another seed: the two answers to a prompt are to be independent
            theirs = draw_answers(reference, asked, *limits, flags.seed ^ 1, flags.micro_batch_size, **known)
            prompts, *texts = ([tokenizer.decode(ids) for ids in column] for column in (asked, ours, theirs))
            scores = (score_all(flags.scorer, scorer, prompts, answers) for answers in texts)
            figures["win_rate"] = rate(wins(*scores))
        elif scorer:
            figures["win_rate"] = rate(torch.tensor(scorer))
    return figures, bins, margins, gaps


def score_all(name, scorer, prompts, answers):
    """The scores of answers to prompts, (n,); ValueError where the scorer fails or returns no number."""
    places = groups("answers scored", [0] * len(prompts), 1)
    scores = [score(name, scorer, prompts[i], answers[i]) for (i,) in places]
    return torch.tensor(scores, dtype=torch.float64)
