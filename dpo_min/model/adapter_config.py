"""The ecosystem's adapter_config.json: what of it is understood, and what would compute something else. No PyTorch."""

import json
import math
from pathlib import Path

from dpo_min.system.files import read_json, write_text

NAME = "adapter_config.json"
# Settings and their values that mean what lora.py computes. Some of the ways to begin that `init_lora_weights` names
# alter the base as well: an adapter of theirs fits no other base.
SUPPORTED = {
    "peft_type": ["LORA"],
    "bias": ["none"],
    "use_rslora": [False, True, None],
    "init_lora_weights": [True, False, None, "gaussian", "orthogonal", "eva"],
}
# What the numbers do not depend on: the tensors of the file say what is adapted, and there is no dropout here.
WITHOUT_EFFECT = """auto_mapping base_model_name_or_path ensure_weight_tying eva_config exclude_modules fan_in_fan_out
    inference_mode layers_pattern layers_to_transform lora_alpha lora_dropout megatron_core peft_version
    qalora_group_size r revision runtime_config target_modules task_type""".split()


def adapter_settings(directory):
    """(rank r, α of Eq. 3) of the adapter in a directory.

    Raises:
        ValueError: there is none, or it is not LoRA as lora.py computes it; the message names the setting.
    """
    path = Path(directory) / NAME
    if not path.exists():
        raise ValueError(f"{directory}: holds no {NAME}: not an adapter")
    config = read_json(path)
    for key, value in ({"peft_type": None} | config).items():
        fits = value in SUPPORTED[key] if key in SUPPORTED else key in WITHOUT_EFFECT or not value
        if not fits:
            words = ", ".join(map(json.dumps, SUPPORTED.get(key, [None])))
            raise ValueError(f"{path}: {key} is {json.dumps(value)[:80]}; supported: {words}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        raise ValueError(f"{path}: r is {rank!r}, not a whole number from 1 up")
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise ValueError(f"{path}: lora_alpha is {alpha!r}, not a number above 0")
    return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def write_settings(directory, rank, alpha, targets, transposed, base):
    """Write adapter_config.json.

    Args: targets, names of layers; transposed, whether the base stores their weights input × output; base, its
        directory.
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "target_modules": targets,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    write_text(Path(directory) / NAME, json.dumps(config, indent=2) + "\n")
