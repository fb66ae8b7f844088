"""The lengths and sizes of a run, checked against its models and this machine before anything is loaded."""

import os
import sys

from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.model.adapter_config import adapter_settings
from dpo_min.model.config import GPTConfig
from dpo_min.model.config_json import load_config


def resolve_lengths(flags):
    """Fill in the lengths that are not given; returns the tokenizer. The models themselves need PyTorch, and wait.

    Raises:
        ValueError: the tokenizer, the lengths and the models' config.json do not go together, or --adapter is none.
    """
    configs = {}  # of the models
    if flags.init:
        configs["policy"] = load_config(flags.init)
        if flags.adapter:
            adapter_settings(flags.adapter)
        if flags.has_reference:
            configs["reference"] = load_config(flags.reference or flags.init)
        tokenizer = load_tokenizer(flags.tokenizer or flags.init)
    else:
        tokenizer = load_tokenizer(flags.tokenizer or "bytes")
        flags.block_size = flags.block_size or flags.max_length or 512
        sizes = tokenizer.vocab_size, flags.block_size, flags.n_layer, flags.n_head, flags.n_embd
        configs["policy"] = GPTConfig(*sizes)
    flags.max_length = flags.max_length or min(512, configs["policy"].block_size)
    flags.max_prompt_length = flags.max_prompt_length or flags.max_length // 2
    if flags.max_prompt_length >= flags.max_length:
        raise ValueError(f"--max-prompt-length must stay below --max-length, which is {flags.max_length}")
    if not flags.init:
        check_memory(flags, configs["policy"].parameters())
    for name, config in configs.items():
        known, positions = config.vocab_size, config.block_size
        if tokenizer.vocab_size > known:
            raise ValueError(f"--tokenizer makes {tokenizer.vocab_size} token ids, the {name} knows only {known}")
        if flags.max_length > positions:
            raise ValueError(f"--max-length {flags.max_length}: the {name} has only {positions} positions")
    return tokenizer


def check_memory(flags, parameters):
    """ValueError where the GPT to be fitted, its gradient and AdamW's two moments are larger than the memory."""
    accelerator = sys.platform != "linux" or any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")))
    here = flags.device == "cpu" or not accelerator  # else the weights alone pass through this memory
    needed = 4 * parameters * (4 if here else 1)
    if hasattr(os, "sysconf") and needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise ValueError(
            f"--n-layer {flags.n_layer} --n-embd {flags.n_embd}: a GPT of {parameters:.2g} parameters takes "
            f"{needed / 2**30:.0f} GiB, more than this machine's memory"
        )
