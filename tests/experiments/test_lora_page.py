"""docs/lora.md says what its program calculates, and the program's bytes are those of a real fit."""

import pytest
import torch

import train
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.llama import Llama, LlamaConfig
from dpo_min.model.lora import add_lora, linear_layers
from dpo_min.run.checkpoint import tensors_of
from dpo_min.run.log import Totals
from dpo_min.run.train_flags import TrainFlags
from experiments import lora

PAIRS = [TokenizedPair([i, 3], [i % 7, 1], [2, i % 3, 5]) for i in range(4)]


def test_the_table_is_what_the_program_calculates():
    assert f"<!-- calculated -->\n{lora.memory_table()}\n<!-- end -->" in lora.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "parameters"), [
    ("GPT-2, 124M", 124_439_808), ("Qwen2.5-0.5B", 494_032_768),
    ("Llama-3.2-1B", 1_235_814_400), ("Mistral-7B", 7_248_023_552),
])  # fmt: skip
def test_the_shapes_are_those_of_the_published_models(name, parameters):
    """The numbers that the models' makers give. Kills: a size that was mistyped."""
    kind, sizes, _ = lora.MODELS[name]
    with torch.device("meta"):
        model = kind(sizes)
        assert sizes.parameters() == parameters == sum(p.numel() for p in model.parameters())
        add_lora(model, 8, 16)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == lora.held(kind, sizes, 4, 8)["trained"]


@pytest.mark.parametrize("published", [4, 2])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(("kind", "sizes"), [
    (GPT, GPTConfig(11, 16, 2, 2, 8)),
    (Llama, LlamaConfig(11, 16, 2, 4, 8, 12, 2, tied=False, model_type="qwen2")),
])  # fmt: skip
def test_the_bytes_are_those_of_a_fit(tmp_path, kind, sizes, rank, published):
    """Kills: a base held in float32, a gradient or a moment of what is frozen, copies that are counted twice."""
    policy = kind(sizes, torch.Generator().manual_seed(0))
    for parameter in policy.parameters() if published == 2 else ():
        parameter.data = parameter.to(torch.bfloat16).float()
    if rank:
        add_lora(policy, rank, 4)
    flags = TrainFlags(data=[], max_steps=1, learning_rate=0.1, loss_type="sft", device="cpu", dtype="bfloat16")
    stage = train.Stage(flags, policy, None, tmp_path)
    matrices = {n: layer.weight for n, layer in linear_layers(policy).items() if layer.weight.dtype == torch.float32}
    factors = {name: parameter for name, parameter in policy.named_parameters() if "lora_" in name}
    copies, kept = {name: p.detach().bfloat16() for name, p in (matrices | factors).items()}, []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        stage.step(PAIRS, stage.packed(PAIRS), Totals())
    kept = [tensor for tensor in kept if tensor.dim() == 2]
    lost = {n for n, x in copies.items() if not any(torch.equal(y, x) or torch.equal(y, x.t()) for y in kept)}
    # Each is kept for the backward, but where the input has no gradient: what reads the embeddings that are frozen.
    first = [f"{block}.0.{layer}" for block, layer in (("h", "attn.c_attn"), ("layers", "self_attn"))] if rank else []
    assert all(name.startswith(tuple(first)) for name in lost), lost
    weights = sum(p.nbytes for p in policy.parameters())
    gradients = sum(p.grad.nbytes for p in policy.parameters() if p.grad is not None)
    moments = [x for state in stage.optimizer.state.values() for x in state.values() if x.dim()]
    expected = lora.held(kind, sizes, published, rank)
    assert expected["weights"] == weights
    assert expected["gradients"] == gradients
    assert expected["AdamW"] == sum(x.nbytes for x in moments)
    assert expected["bfloat16 copies"] == sum(copy.nbytes for copy in copies.values())
    assert expected["checkpoint"] == sum(x.nbytes for x in tensors_of(stage.parts).values() if x.dim())
