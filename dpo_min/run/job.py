"""What a command line of train.py asks for: flags, tokenizer and pairs, each checked, without PyTorch."""

from typing import NamedTuple

from dpo_min.data.cache import read_pairs
from dpo_min.data.chat_template import describe, use_template
from dpo_min.data.judgements import read_judgements
from dpo_min.data.tokenizer import Tokenizer
from dpo_min.run.calendar import count_steps
from dpo_min.run.directory import claim
from dpo_min.run.lengths import resolve_lengths
from dpo_min.run.resume import check_flags
from dpo_min.run.train_flags import TrainFlags, read_flags
from dpo_min.system.flags import refuse
from dpo_min.system.launcher import print_once
from dpo_min.system.program import mistakes


class Job(NamedTuple):
    """A run that can begin."""

    flags: TrainFlags
    tokenizer: Tokenizer
    pairs: list  # `TokenizedPair`s to train on
    held_out: list
    sft_pairs: list  # for the first fit


def prepare(argv):
    """The `Job` of a command line; a mistake in flags or rows ends the program with one line and exit code 2."""
    print_once()
    with mistakes():
        flags, given = read_flags(argv)
        tokenizer = resolve_lengths(flags)
        template = use_template(tokenizer, flags.template, flags.system)
        flags.template = "auto" if template.bare else template.name  # as config.json keeps them
        flags.system = template.system or None
        if flags.resume:
            check_flags(flags, tokenizer)
        if flags.device not in ("auto", "cpu"):  # not after minutes of data; PyTorch is loaded for this one answer
            from dpo_min.system.devices import choose_device

            choose_device(flags.device, flags.dtype)
        if about := describe(template, tokenizer):
            print(about)
        read = read_pairs if flags.rows == "pairs" else read_judgements
        job = Job(flags, tokenizer, *read(flags, tokenizer, template))
        if not job.held_out:
            refuse(given, ["eval_every", "max_kl"], "without held-out rows, and none fell to --eval-fraction")
        if not flags.init and flags.loss_type != "sft":
            flags.sft_steps = flags.sft_steps or count_steps(flags, job.pairs)[0]
        return job


def begin(argv):
    """`prepare`; the run directory is there when it returns."""
    job = prepare(argv)
    claim(job.flags.out)
    return job
