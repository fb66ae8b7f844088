"""Plausible mistakes, each with the test that catches it: on the file with that mistake in it, that test fails.

`make mutants` tries every small change of the files of the derivation; these are the mistakes that people make.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import mutants

OBJECTIVE, PREFERENCE = "tests/test_objective.py::test_", "tests/test_preference.py::test_"
LOSSES, RATIOS = "tests/test_losses.py::test_", "tests/test_ratio_losses.py::test_"
GRADIENT = "tests/test_gradient.py::test_"
LOGPROB, EXACT = "tests/test_logprob.py::test_", "tests/test_exact.py::test_"
PACKING, REFERENCE = "tests/data/test_batch.py::test_", "tests/run/test_stored_reference.py::test_"
METRICS = "tests/test_metrics.py::test_"
GPT, GENERATE, TRAIN = (
    "tests/model/test_gpt.py::test_",
    "tests/decode/test_generation.py::test_",
    "tests/test_train.py::test_",
)
VERDICTS = "tests/labels/test_verdicts.py::test_"
SAMPLING = "tests/decode/test_sampling.py::test_"

BY_HAND = OBJECTIVE + "objective_and_optimum_worked_by_hand"
KL_BY_HAND = OBJECTIVE + "kl_worked_by_hand_in_both_directions"
MARGIN_BY_HAND = PREFERENCE + "margin_worked_by_hand"
FORMULA, SLOPE = LOSSES + "the_value_is_the_papers_formula", LOSSES + "the_slope_is_the_derivative_of_the_value"
FAR_OUT = LOSSES + "value_and_slope_are_finite_and_equal_to_float64_far_out"
GRADIENT_BY_HAND = GRADIENT + "weight_and_gradient_worked_by_hand"
LOOP = LOGPROB + "the_sum_is_the_loop_over_tokens"
TO_ONE = LOGPROB + "the_probabilities_of_all_completions_sum_to_one"
FUSED = LOGPROB + "token_logprobs_have_value_and_gradients_of_the_full_softmax"
PACKED = PACKING + "a_packed_batch_has_the_log_probabilities_and_gradients_of_padded_rows"
MOVES = TRAIN + "one_step_moves_the_policy_and_not_the_reference"
LABELS = "tests/labels/test_"
TIES = LABELS + "ties.py::test_ties_are_"
BOTH_WAYS = LABELS + "ties.py::test_the_loss_of_a_tie_is_the_mean_of_both_ways"
MICRO = TRAIN + "micro_batches_of_any_sizes_give_the_gradient_and_metrics_of_the_full_batch"

# name → (file, what stands there once, what is put in its place, the test that fails)
MUTANTS = {
    # The objective and its optimum
    "the KL is rewarded": ("objective", "reward) - beta * kl", "reward) + beta * kl", BY_HAND),
    "J without β": ("objective", "- beta * kl_divergence", "- kl_divergence", BY_HAND),
    "J with β²": ("objective", "- beta * kl_divergence", "- beta**2 * kl_divergence", BY_HAND),
    "J divides by β": ("objective", "- beta * kl_divergence", "- 1 / beta * kl_divergence", BY_HAND),
    "J with the KL reversed": (
        "objective",
        "kl_divergence(log_policy, log_ref)\n",
        "kl_divergence(log_ref, log_policy)\n",
        OBJECTIVE + "objective_is_the_mean_of_reward_less_beta_log_ratio",
    ),
    "KL under the other distribution": ("objective", "(log_p, log_p - log_q)", "(log_q, log_p - log_q)", KL_BY_HAND),
    "KL reversed": ("objective", "(log_p, log_p - log_q)", "(log_q, log_q - log_p)", KL_BY_HAND),
    "KL negated": ("objective", "(log_p, log_p - log_q)", "(log_p, log_q - log_p)", KL_BY_HAND),
    "0 · ∞ is NaN": (
        "objective",
        "torch.where(log_p == -inf, 0.0, p * f)",
        "(log_p.exp() * f)",
        OBJECTIVE + "an_impossible_completion_does_not_count_whatever_its_value",
    ),
    "a probability that underflows counts as none": (
        "objective",
        "p.clamp(min=torch.finfo(p.dtype).tiny)",
        "p",
        OBJECTIVE + "a_completion_too_unlikely_for_a_float_still_has_infinite_weight_against_infinity",
    ),
    "Z forgotten": ("objective", ".log_softmax(dim=-1)", "", BY_HAND),
    "π_r without its logarithm": ("objective", ".log_softmax(dim=-1)", ".softmax(dim=-1)", BY_HAND),
    "Z of β r": ("objective", "reward / beta).logsumexp", "reward * beta).logsumexp", BY_HAND),
    "π_r of β r": ("objective", "reward / beta).log_softmax", "reward * beta).log_softmax", BY_HAND),
    "π_r without π_ref": (
        "objective",
        "(log_ref + reward / beta).log_softmax",
        "(0 * log_ref + reward / beta).log_softmax",
        OBJECTIVE + "an_infinitely_dear_drift_leaves_exactly_the_reference",
    ),
    "log Z spelled out": (
        "objective",
        ".logsumexp(dim=-1)",
        ".exp().sum(dim=-1).log()",
        OBJECTIVE + "everything_is_finite_over_the_whole_range_of_reward_and_beta",
    ),
    "implicit reward upside down": (
        "objective",
        "beta * (log_policy - log_ref)",
        "beta * (log_ref - log_policy)",
        BY_HAND,
    ),
    "implicit reward without β": ("objective", "beta * (log_policy - log_ref)", "log_policy - log_ref", BY_HAND),
    "equal is taken for impossible": (
        "objective",
        "(log_policy == -inf) & (log_ref == -inf)",
        "log_policy == log_ref",
        OBJECTIVE + "implicit_reward_moves_with_both_policies_even_where_they_are_equal",
    ),
    "β = 0 is let in": (
        "objective",
        "0 < beta < inf",
        "0 <= beta < inf",
        OBJECTIVE + "beta_that_is_not_positive_and_finite_is_refused[0.0-objective]",
    ),
    # Preferences and the margin
    "Bradley–Terry with the answers swapped": (
        "preference",
        "torch.sigmoid(reward_chosen - reward_rejected)",
        "torch.sigmoid(reward_rejected - reward_chosen)",
        PREFERENCE + "bradley_terry_worked_by_hand",
    ),
    "log P as the logarithm of P": (
        "preference",
        "F.logsigmoid(reward_chosen - reward_rejected)",
        "bradley_terry(reward_chosen, reward_rejected).log()",
        PREFERENCE + "the_log_form_keeps_what_the_probability_loses",
    ),
    "the margin is a sum": ("preference", "return a - b\n", "return a + b\n", MARGIN_BY_HAND),
    "the margin of rejected over chosen": ("preference", "return a - b\n", "return b - a\n", MARGIN_BY_HAND),
    "the references swapped": (
        "preference",
        "policy_chosen_logps - reference_chosen_logps",
        "policy_chosen_logps - reference_rejected_logps",
        MARGIN_BY_HAND,
    ),
    "the margin without its reference": (
        "preference",
        "policy_chosen_logps - reference_chosen_logps",
        "policy_chosen_logps",
        MARGIN_BY_HAND,
    ),
    "the margin in another order": (
        "preference",
        "return a - b\n",
        "return policy_chosen_logps - policy_rejected_logps - reference_chosen_logps + reference_rejected_logps\n",
        PREFERENCE + "a_policy_equal_to_its_reference_has_margin_exactly_zero",
    ),
    # Losses and slopes
    "the loss with the wrong sign": (
        "margin_losses",
        "_: -logsigmoid(beta * h)",
        "_: logsigmoid(beta * h)",
        FORMULA + "[sigmoid]",
    ),
    "βh with its sign changed, which is the loss of the rejected answer": (
        "margin_losses",
        "_: -logsigmoid(beta * h)",
        "_: -logsigmoid(-beta * h)",
        FORMULA + "[sigmoid]",
    ),
    "the loss without β": ("margin_losses", "_: -logsigmoid(beta * h)", "_: -logsigmoid(h)", FORMULA + "[sigmoid]"),
    "the loss with β²": (
        "margin_losses",
        "_: -logsigmoid(beta * h)",
        "_: -logsigmoid(beta**2 * h)",
        FORMULA + "[sigmoid]",
    ),
    "−log σ spelled out": (
        "margin_losses",
        "_: -logsigmoid(beta * h)",
        "_: -sigmoid(beta * h).log()",
        FAR_OUT + "[dtype0-sigmoid]",
    ),
    "−σ for −log σ": (
        "margin_losses",
        "_: -logsigmoid(beta * h)",
        "_: -sigmoid(beta * h)",
        LOSSES + "dpo_is_minus_log_sigma_and_not_minus_sigma",
    ),
    "the slope with the wrong sign": (
        "margin_losses",
        "_: -beta * sigmoid(-beta * h)",
        "_: beta * sigmoid(-beta * h)",
        SLOPE + "[sigmoid]",
    ),
    "the slope of a pair that is right": (
        "margin_losses",
        "_: -beta * sigmoid(-beta * h)",
        "_: -beta * sigmoid(beta * h)",
        SLOPE + "[sigmoid]",
    ),
    "the slope without β": (
        "margin_losses",
        "_: -beta * sigmoid(-beta * h)",
        "_: -sigmoid(-beta * h)",
        SLOPE + "[sigmoid]",
    ),
    "the slope with β²": (
        "margin_losses",
        "_: -beta * sigmoid(-beta * h)",
        "_: -(beta**2) * sigmoid(-beta * h)",
        SLOPE + "[sigmoid]",
    ),
    "cDPO with ε on the wrong side": (
        "margin_losses",
        "-(1 - e) * logsigmoid(beta * h) - e * logsigmoid(-beta * h)",
        "-e * logsigmoid(beta * h) - (1 - e) * logsigmoid(-beta * h)",
        LOSSES + "cdpo_is_the_mean_of_the_dpo_loss_over_flips_of_the_label",
    ),
    "robust with ε on the wrong side": (
        "margin_losses",
        "(e * logsigmoid(-beta * h) - (1 - e) * logsigmoid(beta * h))",
        "((1 - e) * logsigmoid(-beta * h) - e * logsigmoid(beta * h))",
        LOSSES + "the_mean_of_robust_over_flips_of_the_label_is_the_dpo_loss",
    ),
    "robust without 1 − 2ε": (
        "margin_losses",
        "logsigmoid(beta * h)) / (1 - 2 * e)",
        "logsigmoid(beta * h))",
        FORMULA + "[robust]",
    ),
    "robust's slope without 1 − 2ε": (
        "margin_losses",
        "e * sigmoid(beta * h)) / (1 - 2 * e)",
        "e * sigmoid(beta * h))",
        SLOPE + "[robust]",
    ),
    "IPO aims at 1/β": ("margin_losses", "_: (h - 1 / (2 * beta)) ** 2", "_: (h - 1 / beta) ** 2", FORMULA + "[ipo]"),
    "IPO's slope aims at 1/β": (
        "margin_losses",
        "_: 2 * (h - 1 / (2 * beta))",
        "_: 2 * (h - 1 / beta)",
        SLOPE + "[ipo]",
    ),
    "the hinge on the wrong side": ("margin_losses", "(beta * h < 1)", "(beta * h > 1)", SLOPE + "[hinge]"),
    "the hinge at 0": ("margin_losses", "(1 - beta * h).relu()", "(-beta * h).relu()", FORMULA + "[hinge]"),
    "EXO's slope with its odds upside down": (
        "margin_losses",
        "log((1 - e) / e)",
        "log(e / (1 - e))",
        SLOPE + "[exo_pair]",
    ),
    "EXO with ε on the wrong side": (
        "margin_losses",
        "right.exp() * (right - log(1 - e)) + wrong.exp() * (wrong - log(e))",
        "right.exp() * (right - log(e)) + wrong.exp() * (wrong - log(1 - e))",
        FORMULA + "[exo_pair]",
    ),
    "DiscoPOP with another τ": ("margin_losses", "TAU = 0.05", "TAU = 0.5", FORMULA + "[discopop]"),
    "DiscoPOP with m · e^{−x} as a product": (
        "margin_losses",
        "* logsigmoid(x) + (logsigmoid(x / TAU) - x).exp()",
        "* logsigmoid(x) + sigmoid(x / TAU) * (-x).exp()",
        FAR_OUT + "[dtype0-discopop]",
    ),
    "SFT as a mean over rows": (
        "losses",
        "-policy_chosen_logps.sum() / num_tokens",
        "-policy_chosen_logps.mean()",
        LOSSES + "sft_is_the_mean_per_token_and_parts_of_a_step_add_up",
    ),
    # Losses of both log-ratios: what public trainers had wrong, and what is easily wrong
    "APO-down of raw and transformed scores": (
        "ratio_losses",
        "sigmoid(beta * a) - sigmoid(beta * (a - b)),",
        "sigmoid(beta * a) - sigmoid(beta * a - b),",
        RATIOS + "the_value_is_the_papers_formula[apo_down]",
    ),
    "RPO's α on DPO's term": (
        "ratio_losses",
        "-logsigmoid(beta * (a - b)) - alpha * policy_chosen_logps / chosen_lengths",
        "-alpha * logsigmoid(beta * (a - b)) - policy_chosen_logps / chosen_lengths",
        RATIOS + "the_value_is_the_papers_formula[rpo]",
    ),
    "whatever is asked for, DPO": (
        "losses",
        "else LOSSES[name], weight)",
        'else LOSSES["sigmoid"], weight)',
        RATIOS + "a_mix_of_one_row_is_that_row_to_the_bit[nca]",
    ),
    "DPO-Positive's penalty where a is above 0": (
        "ratio_losses",
        "-logsigmoid(beta * (a - b - penalty * (-a).relu())),",
        "-logsigmoid(beta * (a - b - penalty * a.relu())),",
        RATIOS + "the_value_is_the_papers_formula[dpop]",
    ),
    "R-DPO's term with its sign turned": (
        "ratio_losses",
        "-logsigmoid(beta * (a - b) + alpha * (chosen_lengths - rejected_lengths))",
        "-logsigmoid(beta * (a - b) - alpha * (chosen_lengths - rejected_lengths))",
        RATIOS + "the_value_is_the_papers_formula[r-dpo]",
    ),
    "ORPO's odds as probabilities": (
        "ratio_losses",
        "return a - (-expm1(a)).log()",
        "return a",
        RATIOS + "orpos_odds_are_p_over_1_minus_p",
    ),
    "an exponential that overflows": (
        "ratio_losses",
        "return -(expm1(t.clamp(max=STEEPEST)) + exp(STEEPEST) * (t - STEEPEST).relu()) / alpha",
        "return -expm1(t) / alpha",
        RATIOS + "value_and_slopes_are_finite_and_equal_to_float64_far_out[1.0-dtype0-forward_kl]",
    ),
    "the mean of a batch inside a loss": (
        "ratio_losses",
        "beta, shift: -logsigmoid(beta * a - shift)",
        "beta, shift: -logsigmoid(beta * (a - a.mean()) - shift)",
        RATIOS + "no_pair_sees_another[bco]",
    ),
    "WPO's weights trained": (
        "losses",
        "(chosen + rejected).detach().exp()",
        "(chosen + rejected).exp()",
        RATIOS + "wpos_weight_is_the_product_of_both_sides_and_has_no_gradient",
    ),
    # The gradient in closed form
    "the weight of a pair that is right": (
        "gradient",
        "torch.sigmoid(-beta * h)",
        "torch.sigmoid(beta * h)",
        GRADIENT_BY_HAND,
    ),
    "the weight without β": ("gradient", "torch.sigmoid(-beta * h)", "torch.sigmoid(-h)", GRADIENT_BY_HAND),
    "a step uphill": (
        "gradient",
        "slope = -beta * gradient_weight",
        "slope = beta * gradient_weight",
        GRADIENT_BY_HAND,
    ),
    "the gradient without β": (
        "gradient",
        "slope = -beta * gradient_weight",
        "slope = -gradient_weight",
        GRADIENT_BY_HAND,
    ),
    "the gradient with β²": (
        "gradient",
        "slope = -beta * gradient_weight",
        "slope = -(beta**2) * gradient_weight",
        GRADIENT_BY_HAND,
    ),
    "the gradient with chosen and rejected swapped": (
        "gradient",
        "return slope, -slope",
        "return -slope, slope",
        GRADIENT_BY_HAND,
    ),
    # log π(y|x)
    "a mean for the sum": ("logprob", "else total", "else total / scored.sum(dim=-1)", LOOP),
    "the mask off by one": ("logprob", "loss_mask[:, 1:]", "loss_mask[:, :-1]", LOOP),
    "the targets off by one": ("logprob", "tokens[:, 1:, None]", "tokens[:, :-1, None]", LOOP),
    "the logits off by one": ("logprob", "logits[:, :-1]", "logits[:, 1:]", LOOP),
    "logits for log-probabilities": ("logprob", ".log_softmax(dim=-1)", "", LOOP),
    "the padding times zero": (
        "logprob",
        "torch.where(scored, token_logps, 0.0)",
        "(scored * token_logps)",
        LOGPROB + "unscored_logits_and_tokens_have_no_influence",
    ),
    "the sum in bfloat16": (
        "logprob",
        "torch.promote_types(logits.dtype, torch.float32)",
        "logits.dtype",
        LOGPROB + "half_precision_logits_are_summed_in_float32",
    ),
    "the mean over the whole row": (
        "logprob",
        "total / scored.sum(dim=-1)",
        "total / scored.shape[-1]",
        LOGPROB + "the_mean_is_the_sum_over_the_number_of_scored_tokens",
    ),
    # What is scored
    "end-of-text unscored": (
        "data/batch",
        "targets[k].extend(ids)",
        "targets[k].extend(ids[:-1] or ids)",
        PACKED,
    ),
    "the first token unscored": (
        "data/batch",
        "(start - 1, *range(first, end - 1))",
        "(start, *range(first, end - 1))",
        PACKED,
    ),
    "predicted by the token itself": (
        "data/batch",
        "(start - 1, *range(first, end - 1))",
        "(first, *range(first + 1, end))",
        PACKED,
    ),
    "the rejected answer predicted by the chosen one": (
        "data/batch",
        "for place in (start - 1,",
        "for place in (first - 1,",
        PACKED,
    ),
    "places that count the padding": (
        "data/batch",
        "real.flatten().cumsum(0) - 1",
        "torch.arange(real.numel())",
        PACKING + "rows_without_their_padding_have_the_numbers_and_gradients_of_rows_with_it",
    ),
    "the answers see each other": ("data/batch", "(query == key) | (key == PROMPT)", "(query >= key)", PACKED),
    "the prompt unseen": ("data/batch", "(query == key) | (key == PROMPT)", "(query == key)", PACKED),
    "positions that run on": (
        "data/batch",
        "torch.arange(start, start + len(ids))",
        "torch.arange(first, end)",
        PACKED,
    ),
    "the mean over all tokens of the batch": (
        "data/batch",
        "total / lengths",
        "total / lengths.sum()",
        PACKED,
    ),
    "rejected first": ("data/batch", "chain.from_iterable(part)", "chain.from_iterable(part[::-1])", PACKED),
    "the last pairs of an epoch dropped": (
        "data/batch",
        "for step in [*steps, sorted(",
        "for step in [*steps, [] and sorted(",
        PACKING + "each_epoch_takes_each_pair_once_and_ends_with_what_is_left",
    ),
    # The fast form
    "the softmax added": ("logprob", "mul_(-gradient[", "mul_(gradient[", FUSED),
    "the softmax of a slice alone": ("logprob", "z.sub_(log_sum[:, None]).exp_()", "z.softmax(dim=-1)", FUSED),
    "the target in every slice": ("logprob", "(targets >= 0) & (targets < len(part))", "(targets == targets)", FUSED),
    "the last slice alone": ("logprob", "d_hidden += d_z @ part", "d_hidden = d_z @ part", FUSED),
    "the normaliser forgotten": ("logprob", "return z_target - log_sum", "return z_target", FUSED),
    # The stored reference
    "a pair told by its prompt alone": (
        "run/stored_reference",
        "*pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids]",
        "*pair.prompt_ids]",
        REFERENCE + "two_pairs_share_a_number_where_all_their_ids_are_equal",
    ),
    # Everything exactly
    "completions that ended left out": (
        "exact",
        "return ended + list(",
        "return list(",
        EXACT + "the_list_holds_every_completion_once_and_nothing_else",
    ),
    "completions that were cut left out": (
        "exact",
        "return ended + list(product(others, repeat=max_new_tokens))",
        "return ended",
        EXACT + "the_list_holds_every_completion_once_and_nothing_else",
    ),
    "the terms of Z counted without the ends": (
        "exact",
        "sum((vocab_size - 1) ** t for t in range(max_new_tokens + 1))",
        "vocab_size**max_new_tokens",
        EXACT + "the_number_of_terms_of_z_worked_by_hand",
    ),
    "end-of-text unscored in the list": (
        "exact",
        "start + len(completion) for",
        "start + len(completion) - 1 for",
        EXACT + "the_rectangle_scores_the_completion_alone",
    ),
    "entropy negative": (
        "exact",
        "expectation(log_p, -log_p)",
        "expectation(log_p, log_p)",
        EXACT + "entropy_worked_by_hand",
    ),
    # The model, its draws and its figures
    "attention sees the future": (
        "model/attention",
        "is_causal=mask is None",
        "is_causal=False",
        GPT + "attention_is_the_softmax_loop",
    ),
    "the temperature multiplies": (
        "decode/sampling",
        "logits / max(temperature, 1e-30)",
        "logits * max(temperature, 1e-30)",
        SAMPLING + "temperature_divides_the_logits",
    ),
    "a nucleus of one token more": (
        "decode/sampling",
        "(before < p)",
        "(before <= p)",
        SAMPLING + "top_p_of_four_equal_tokens",
    ),
    "the first draw from the padding": (
        "decode/generation",
        "lengths - 1]",
        "-1]",
        GENERATE + "decode_steps_after_a_prefill_are_the_full_forward",
    ),
    "a tie counted 0": (
        "metrics",
        "((ours > theirs).to(ours.dtype) + (ours >= theirs).to(ours.dtype)) / 2",
        "(ours > theirs).to(ours.dtype)",
        METRICS + "a_tie_is_half_a_win",
    ),
    "rewards logged without β": (
        "metrics",
        "implicit_reward(p, r, beta)",
        "implicit_reward(p, r, 1)",
        METRICS + "the_metrics_are_their_definitions",
    ),
    # The step
    "the reference trained too": (
        "train",
        "with torch.no_grad(), lora.adapters_off(self.reference):\n",
        "with torch.enable_grad():\n            self.reference.requires_grad_()\n",
        MOVES,
    ),
    "the policy as its own reference": (
        "train",
        "self.score_ref(batch",
        "self.score(batch",
        MOVES,
    ),
    "the optimiser given the reference": (
        "train",
        "make_optimizer(flags.optimizer, policy",
        "make_optimizer(flags.optimizer, reference or policy",
        MOVES,
    ),
    "micro-batches each divided by their own size": (
        "train",
        "losses.sum() / denominator",
        "losses.mean()",
        MICRO + "[sum]",
    ),
    "the logged loss divided twice": (
        "train",
        '{"loss": loss * denominator}',
        '{"loss": loss}',
        TRAIN + "step_0_has_no_reward_yet_a_gradient[float32]",
    ),
    # Labels
    "a tie taken for a choice": ("run/criterion", "(losses + other) / 2", "losses", BOTH_WAYS),
    "a tie turned round in half of its facts": ("run/criterion", "lengths[::-1], offset", "lengths, offset", BOTH_WAYS),
    "ties not left out": ("data/cache", "pairs[~pairs.ties]", "pairs", TIES + "left_out_or_kept_with_their_mark"),
    "the same side taken for agreement": (
        "labels/agreement",
        'SWAPPED[again["choice"]] == choice',
        'again["choice"] == choice',
        LABELS + "agreement.py::test_what_is_counted_by_a_worked_example",
    ),
    "ε as the rate of disagreement": (
        "labels/agreement",
        "(1 - math.sqrt(max(0.0, 2 * agreement - 1))) / 2",
        "1 - agreement",
        LABELS + "agreement.py::test_the_noise_rate_undoes_the_agreement_of_two_noisy_labels",
    ),
    "a torn line kept": (
        "labels/journal",
        "file.truncate(end - len(last))",
        "file.truncate(end)",
        LABELS + "candidates.py::test_a_file_cut_anywhere_reads_as_the_whole_lines_before_the_cut_and_grows_on",
    ),
    "a refused row left in the file": (
        "labels/journal",
        "os.ftruncate(self.descriptor, end)",
        "os.ftruncate(self.descriptor, end + 3)",
        LABELS + "candidates.py::test_a_row_that_the_disk_does_not_take_leaves_no_trace",
    ),
    # Labels by a scorer
    "the place of an answer counts": (
        "labels/verdicts",
        "shown[i][j] - shown[j][i]",
        "shown[i][j] + shown[j][i] - 1",
        VERDICTS + "what_a_place_is_worth_decides_nothing",
    ),
    "the worse answer is chosen": (
        "labels/verdicts",
        "Verdict(j, i, False) if lead < 0",
        "Verdict(j, i, False) if lead > 0",
        VERDICTS + "of_scores_the_higher_wins_and_the_best_is_set_against_the_worst",
    ),
    "agreement counted as a bias": (
        "labels/verdicts",
        "self.first += taken > 1",
        "self.first += taken >= 1",
        VERDICTS + "position_bias_worked_by_hand",
    ),
}


CHANGES = {name: (stem, old, new, [test]) for name, (stem, old, new, test) in MUTANTS.items()}
NAMED = sorted({test for *_, test in MUTANTS.values()})  # on few examples: on all of them they run under their names
CHANGES[""] = ("margin_losses", "TAU = 0.05", "TAU = 0.05", [mutants.QUICK, *NAMED])
started = []  # the process that tries CHANGES, if conftest.py has begun with it before the first test


def start(changes, workers):
    """The process that tries [file, old, new, tests] of each change."""
    command = [sys.executable, Path(__file__).with_name("mutants.py"), "--json", "--workers", str(workers)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        json.dump(list(changes), file)
        file.seek(0)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
        return subprocess.Popen(command, stdin=file, **pipes)


def start_early(config):
    """Begin with the mutants while other tests run, on the cores that these leave free."""
    started.append(start(CHANGES.values(), max(1, os.cpu_count() - 1)))
    config.add_cleanup(started[0].kill)


def results_of(process):
    """[exit code, output] of each change; null for a change that cannot be made."""
    shown, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(shown)


@pytest.fixture(scope="module")
def results():
    """Name → [exit code, output], and under "" that of all the tests together on a file that is as it was."""
    process = started[0] if started else start(CHANGES.values(), os.cpu_count())
    return dict(zip(CHANGES, results_of(process), strict=True))


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mistake_is_caught_by_the_test_that_it_names(results, name):
    code, output = results[name]
    stem, old, new, test = MUTANTS[name]
    assert code == 1, f"{stem}.py with {new!r} for {old!r}: {test} ended with {code}\n{output[-2000:]}"


def test_a_change_that_changes_nothing_survives_all_of_these_tests(results):
    """Kills: an engine that fails on everything, and a test that fails anyway."""
    code, output = results[""]
    assert code == 0, output[-2000:]


def test_only_the_failure_of_the_named_test_on_the_changed_file_is_a_catch():
    """Kills: a mutant that counts as caught since its text has moved, it is no Python, or its test cannot run."""
    changes = [
        ("margin_losses", "TAU = 0.06", "TAU = 0.5", ["tests/test_losses.py"]),
        ("margin_losses", "logsigmoid", "sigmoid", ["tests/test_losses.py"]),
        ("margin_losses", "TAU = 0.05", "TAU = ", ["tests/test_losses.py"]),
        ("margin_losses", "TAU = 0.05", "TAU = 0.5", ["tests/test_losses.py::test_that_is_not_there"]),
        ("margin_losses", "TAU = 0.05", "TAU = unknown", [FORMULA]),  # the import fails
        (
            "train",
            "flags, finished = job.flags, True",
            "flags, finished = job.flags, unknown",
            [MOVES],
        ),  # a fixture fails
    ]
    (absent, reason), *others = results_of(start(changes, os.cpu_count()))
    assert absent is None
    assert reason == "margin_losses.py: the text to replace must stand there once, found 0 times: TAU = 0.06"
    assert [code for code, _ in others] == [None, None, 4, 4, 2]  # 4: nothing was run; 2: nothing was called
