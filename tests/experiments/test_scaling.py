"""docs/scaling.md says what its program prints, and the program's formulas are this code's."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from dpo_min.model.gpt import GPT, GPTConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
PROGRAM = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]


def test_the_tables_are_what_the_program_prints():
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(PROGRAM, names)
    tables = printed.getvalue().strip().split("\n\n")
    assert len(tables) == 2 and all(f"\n\n{table}\n\n" in PAGE for table in tables)
    for sizes in names["models"].values():
        with torch.device("meta"):
            model = GPT(GPTConfig(n_layer=sizes[0], n_head=sizes[1] // 64, n_embd=sizes[1]))
        assert names["size"](*sizes) == sum(parameter.numel() for parameter in model.parameters())


def test_a_layer_keeps_36_bytes_a_token_and_channel_and_2_a_weight_until_its_backward():
    C, T = 256, 64

    def kept(layers):
        """Bytes saved for the backward under autocast, parameters aside; a storage counts once."""
        model, storages = GPT(GPTConfig(50, T, layers, 4, C)), {}
        parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def save(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = storage
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            model(torch.zeros(2, T, dtype=torch.long))
        return sum(storage.nbytes() for storage in storages.values())

    layer = kept(3) - kept(2)
    assert layer == pytest.approx(36 * C * 2 * T + 2 * 12 * C * C, rel=0.01)
