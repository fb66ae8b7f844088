"""LoRA against its equation: where it begins, what it leaves alone, what it can reach, and what is trained."""

import pytest
import torch
import torch.nn as nn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.decode.packed_weights import decoding_weights
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.model.llama import Llama, LlamaConfig
from dpo_min.model.lora import (
    LoRALinear,
    adapted,
    adapters_off,
    add_lora,
    linear_layers,
    merged,
    narrow_frozen,
)
from dpo_min.model.weights import load_model, save_model

C, L, V = 8, 2, 11
LLAMA = LlamaConfig(V, 16, L, n_head=4, n_embd=C, n_inner=12, n_kv_head=2, head_size=4, tied=False, model_type="qwen2")
# The layers of a block, from how many features to how many, and what they hang on.
GPT_LAYERS = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
LLAMA_LAYERS = {f"self_attn.{name}_proj": shape for name, shape in {"q": (C, 16), "k": (C, C), "v": (C, C)}.items()}
LLAMA_LAYERS |= {
    "self_attn.o_proj": (16, C),
    "mlp.gate_proj": (C, 12),
    "mlp.up_proj": (C, 12),
    "mlp.down_proj": (12, C),
}
LAYERS = {
    "gpt": {f"h.{i}.{name}": shape for i in range(L) for name, shape in GPT_LAYERS.items()},
    "llama": {f"layers.{i}.{name}": shape for i in range(L) for name, shape in LLAMA_LAYERS.items()},
}
GPT_TARGETS = (), ("c_attn",), ("c_proj",), ("attn.c_proj", "c_fc"), ("h.1.mlp.c_proj",)
LLAMA_TARGETS = (), ("q_proj", "v_proj"), ("mlp.down_proj", "layers.0.self_attn.o_proj")
KINDS = [("gpt", names) for names in GPT_TARGETS] + [("llama", names) for names in LLAMA_TARGETS]
ranks, seeds, kinds = st.integers(1, 2 * C), st.integers(0, 2**63 - 1), st.sampled_from(KINDS)


def make(seed=0, dtype=torch.float64, kind="gpt"):
    """A model whose weights, biases and norms are all far from where training begins."""
    generator = torch.Generator().manual_seed(seed)
    model = (GPT(GPTConfig(V, 16, L, 2, C), generator) if kind == "gpt" else Llama(LLAMA, generator)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return model


def with_adapter(seed=0, rank=3, alpha=5.0, targets=(), dtype=torch.float64, kind="gpt"):
    """(the model, a copy of what it was): its adapter is as far from zero as its weights."""
    model, generator = make(seed, dtype, kind), torch.Generator().manual_seed(seed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_lora(model, rank, alpha, targets, generator)
    for layer in adapted(model).values():
        layer.lora_B.data.normal_(0, 0.4, generator=generator)
    return model, before


def draw_tokens(seed=0, shape=(2, 9)):
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def logits(model, tokens):
    return model.logits(model(tokens))


def draw_pairs(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def ids(most):
        return draw_tokens(int(torch.randint(99, (), generator=generator)), (most,)).tolist()

    return [TokenizedPair(ids(3), ids(2 + i), ids(5 - i)) for i in range(n)]


def plain(model):
    """The model without adapters that computes the same."""
    found = type(model)(model.config).double()
    found.load_state_dict(dict(merged(model)))
    return found


# ---- where it begins ----


@given(ranks, seeds, kinds, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
@example(1, 0, ("gpt", ()), torch.bfloat16)
@example(1, 0, ("llama", ()), torch.bfloat16)
def test_at_step_0_the_policy_is_its_reference_to_the_bit_and_has_a_gradient(rank, seed, kind, dtype):
    """Kills: B begun at random; A begun at zero too, which nothing would ever move; a factor on W x; dropout."""
    model = make(dtype=torch.float32 if dtype == torch.bfloat16 else dtype, kind=kind[0])
    batch = pack(draw_pairs())
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        before = batch_logps(model, batch)
        add_lora(model, rank, 16, kind[1], torch.Generator().manual_seed(seed))
        after = batch_logps(model, batch)
        with adapters_off(model):
            assert torch.equal(batch_logps(model, batch), before)
    assert torch.equal(after, before)
    after.sum().backward()
    assert all((layer.lora_B.grad != 0).any() for layer in adapted(model).values())
    assert all((layer.lora_A.grad == 0).all() for layer in adapted(model).values())  # its factor B is zero


def test_a_is_small_random_and_of_its_generator_alone():
    """Kills: draws from PyTorch's global generator; a spread that grows with the rank."""
    state = torch.get_rng_state()
    found = []
    for rank in (4, 400):
        layer = nn.Linear(300, 200)
        state = torch.get_rng_state()
        found.append(LoRALinear(layer, rank, 1.0, torch.Generator().manual_seed(1)).lora_A)
        again = LoRALinear(layer, rank, 1.0, torch.Generator().manual_seed(1)).lora_A
        other = LoRALinear(layer, rank, 1.0, torch.Generator().manual_seed(2)).lora_A
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(found[-1], again) and not torch.equal(again, other)
    for A in found:  # 1,200 and 120,000 numbers: their spread is known to 2 % and better
        assert A.std().item() == pytest.approx((3 * 300) ** -0.5, rel=0.1)
        assert abs(A.mean().item()) < 0.004


# ---- the equation ----


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 8), st.floats(0.01, 100), seeds, st.booleans())
@example(1, 1, 1, 1.0, 0, True)
def test_value_and_gradients_are_those_of_the_product_written_out(C, D, rank, alpha, seed, bias):
    """h = W x + (α/r) B A x, and its derivatives by A, B and x. Kills: α for α/r, A and B exchanged, a lost bias."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    base = nn.Linear(C, D, bias=bias).double()
    layer = LoRALinear(base, rank, alpha / rank, generator)
    layer.lora_B.data = draw(D, rank)
    x, direction = draw(2, 3, C).requires_grad_(), draw(2, 3, D)
    ours = layer(x)
    found = torch.autograd.grad((ours * direction).sum(), (layer.lora_A, layer.lora_B, x))
    A, B = (factor.detach().clone().requires_grad_() for factor in (layer.lora_A, layer.lora_B))
    W, b = base.weight.detach(), base.bias.detach() if bias else 0
    written_out = torch.einsum("dc,btc->btd", W, x) + b + alpha / rank * torch.einsum("dr,rc,btc->btd", B, A, x)
    expected = torch.autograd.grad((written_out * direction).sum(), (A, B, x))
    torch.testing.assert_close(ours, written_out, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_a_layer_worked_by_hand():
    base = nn.Linear(2, 2)
    base.weight.data, base.bias.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 20.0])
    layer = LoRALinear(base, 1, 0.5)
    layer.lora_A.data, layer.lora_B.data = torch.tensor([[1.0, -1.0]]), torch.tensor([[4.0], [6.0]])
    # W x + b = [1·5 + 2·3 + 10, 3·5 + 4·3 + 20] = [21, 47]; A x = 5 − 3 = 2; 0.5 · 2 · B = [4, 6]
    assert layer(torch.tensor([5.0, 3.0])).tolist() == [25.0, 53.0]
    layer.on = False
    assert layer(torch.tensor([5.0, 3.0])).tolist() == [21.0, 47.0]


# ---- what is trained ----


@given(ranks, kinds)
def test_what_is_trained_is_counted_exactly(rank, kind):
    """Σ r (C + D). Kills: biases, norms or a head left to be trained; a target that takes more than it names."""
    (name, targets), layers = kind, LAYERS[kind[0]]
    model = make(kind=name)
    add_lora(model, rank, 1, targets)
    chosen = [n for n in layers if not targets or any(f".{n}".endswith(f".{target}") for target in targets)]
    expected = sum(rank * sum(layers[name]) for name in chosen)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == expected
    assert trained.keys() == {f"{name}.{factor}" for name in chosen for factor in ("lora_A", "lora_B")}
    assert [*adapted(model)] == chosen


def test_a_layer_of_gpt2_small_at_rank_8_trains_98304_numbers():
    """Worked by hand: 8 × (768 + 2304 + 768 + 768 + 768 + 3072 + 3072 + 768)."""
    with torch.device("meta"):
        model = GPT(GPTConfig(vocab_size=1, block_size=1, n_layer=1))
        add_lora(model, 8, 16)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 98_304


def test_a_head_of_its_own_is_no_layer_of_the_blocks():
    assert hasattr(make(kind="llama"), "lm_head")
    with pytest.raises(ValueError, match="no linear layer 'lm_head', but q_proj, k_proj"):
        linear_layers(make(kind="llama"), ["lm_head"])


@pytest.mark.parametrize("target", ["attn", "c_at", "wte", "h", "", "tn.c_attn", "c_attn.", "C_ATTN"])
def test_a_target_that_names_no_layer_is_refused_with_those_that_there_are(target):
    """Kills: a target matched by a part of a word, which would adapt what nobody named."""
    with pytest.raises(ValueError, match=r"but c_attn, c_proj, c_fc\Z"):
        linear_layers(make(), ["c_fc", target])


# ---- what is left alone ----


@settings(max_examples=25)
@given(st.integers(0, 5), seeds, kinds, st.sampled_from(["adamw", "sgd"]), st.booleans())
@example(5, 0, ("gpt", ()), "adamw", True)
@example(5, 0, ("llama", ()), "adamw", True)
def test_off_is_the_base_bit_for_bit_after_any_number_of_steps(steps, seed, kind, optimizer, checkpointed):
    """Kills: an update merged into W, W given to the optimiser, a switch that only scales, or that stays off."""
    model, batch = make(seed, kind=kind[0]), pack(draw_pairs())
    before, logps = {k: v.clone() for k, v in model.state_dict().items()}, batch_logps(model, batch)
    add_lora(model, 3, 7, kind[1], torch.Generator().manual_seed(seed))
    model.checkpoint_activations = checkpointed
    make_optimizer = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    taken = make_optimizer(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        taken.zero_grad()
        batch_logps(model, batch).sum().backward()
        with adapters_off(model), torch.no_grad():
            assert torch.equal(batch_logps(model, batch), logps)
        taken.step()
    with adapters_off(model):
        assert torch.equal(batch_logps(model, batch), logps)
    assert torch.equal(batch_logps(model, batch), logps) == (steps == 0)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_the_adapter_is_on_again_after_an_error_and_after_a_with_inside_a_with():
    """Kills: a switch that is not put back, or put back by the inner `with` while the outer one lasts."""
    model, _ = with_adapter()
    tokens = draw_tokens()
    on = logits(model, tokens)
    with adapters_off(model):
        off = logits(model, tokens)
        with adapters_off(model):
            assert torch.equal(logits(model, tokens), off)
        assert torch.equal(logits(model, tokens), off)
    assert torch.equal(logits(model, tokens), on) and not torch.equal(on, off)
    with pytest.raises(KeyError), adapters_off(model):
        raise KeyError
    assert torch.equal(logits(model, tokens), on)


def test_a_model_without_an_adapter_is_its_own_reference():
    model, tokens = make(), draw_tokens()
    before = logits(model, tokens)
    with adapters_off(model) as same:
        assert same is model and torch.equal(logits(model, tokens), before)


def test_blocks_computed_again_have_the_same_gradients():
    """Kills: a second forward of a block under another switch than the first."""
    found = []
    for checkpointed in (False, True):
        model, _ = with_adapter()
        model.checkpoint_activations = checkpointed
        logps = batch_logps(model, pack(draw_pairs()))
        with adapters_off(model), torch.no_grad():
            batch_logps(model, pack(draw_pairs()))
        logps.sum().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(map(torch.equal, *found))


# ---- merged ----


@settings(max_examples=40)
@given(ranks, st.floats(0.1, 50), seeds, kinds)
@example(2 * C, 50.0, 0, ("gpt", ()))
@example(2 * C, 50.0, 0, ("llama", ()))
def test_merged_is_unmerged_in_every_logit(rank, alpha, seed, kind):
    """Kills: B A without α/r, A B transposed, a layer forgotten, an adapter merged into all layers of one kind."""
    model, before = with_adapter(seed, rank, alpha, kind[1], kind=kind[0])
    tokens = draw_tokens(seed)
    ours, theirs = logits(model, tokens), logits(plain(model), tokens)
    assert (ours - theirs).abs().max() <= 1e-12 * max(1, ours.abs().max())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())  # W stays as it was


@settings(max_examples=25)
@given(st.sampled_from([(kind, name) for kind in LAYERS for name in LAYERS[kind]]), seeds, st.floats(0.1, 50))
def test_full_rank_reaches_any_update_and_one_less_does_not(layer, seed, alpha):
    """Kills: a rank that is halved on the way, a factor that is shared, B or A of the wrong extent."""
    (kind, layer), generator = layer, torch.Generator().manual_seed(seed)
    features, D = LAYERS[kind][layer]
    wanted = torch.randn(D, features, generator=generator, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(wanted, full_matrices=False)
    for rank in (C, C - 1):  # C is the least extent of every layer here
        model = make(kind=kind)
        W = model.get_submodule(layer).weight.detach().clone()
        add_lora(model, rank, alpha, (layer,))
        model.get_submodule(layer).lora_A.data.copy_(Vh[:rank])
        model.get_submodule(layer).lora_B.data.copy_(U[:, :rank] * S[:rank] * rank / alpha)
        update = dict(merged(model))[f"{layer}.weight"] - W
        assert torch.linalg.matrix_norm(update - wanted) == pytest.approx(0 if rank == C else S[-1].item(), abs=1e-10)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_model_is_saved_and_decoded_with_merged(tmp_path, kind):
    """Kills: weights written, or made ready to decode, without the adapter, or with its factors as tensors."""
    model, before = with_adapter(dtype=torch.float32, kind=kind)
    tokens = draw_tokens()
    expected = logits(model, tokens)
    save_model(model, tmp_path)
    torch.testing.assert_close(logits(load_model(tmp_path), tokens), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(decoding_weights(model, torch.float32), tokens), expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


# ---- held in bfloat16 ----


@pytest.mark.parametrize(("kind", "targets"), [("gpt", ("c_attn",)), ("llama", ("q_proj",))])
def test_a_base_published_in_bfloat16_is_held_in_it_and_computes_the_same_bits(kind, targets):
    """Kills: weights that lose bits, norms and biases narrowed too, an adapter in bfloat16."""
    rounded, full = (make(dtype=torch.float32, kind=kind) for _ in range(2))
    for parameter in rounded.parameters():
        parameter.data = parameter.to(torch.bfloat16).float()
    results, batch = [], pack(draw_pairs())
    for narrow in (False, True):
        model = type(rounded)(rounded.config)
        model.load_state_dict(rounded.state_dict())
        add_lora(model, 3, 5, targets, torch.Generator().manual_seed(0))
        for layer in adapted(model).values():
            layer.lora_B.data.normal_(generator=torch.Generator().manual_seed(1))
        if narrow:
            narrow_frozen(model, torch.bfloat16)
            held = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
            assert held == {f"{name}.weight" for name in LAYERS[kind]}
        with torch.autocast("cpu", torch.bfloat16):
            logps = batch_logps(model, batch)
        logps.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        results.append([logps, *gradients, *dict(merged(model)).values()])
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*results, strict=True))
    add_lora(full, 3, 5)
    narrow_frozen(full, torch.bfloat16)
    assert {p.dtype for p in full.parameters()} == {torch.float32}


def test_what_is_trained_is_not_narrowed():
    model = make(dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.to(torch.bfloat16).float()
    narrow_frozen(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


class Made(TorchDispatchMode):
    """Notes the shape of every tensor that is made, views of what there was aside."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if torch.is_tensor(made) and not made._is_view():
            self.shapes.add(tuple(made.shape))
        return made


def test_the_head_that_is_not_trained_gets_no_gradient():
    """Kills: a gradient of the whole vocabulary, made to be thrown away: the head is the largest matrix of many."""
    for model, trained in ((with_adapter()[0], False), (make(), True)):
        logps = batch_logps(model, pack(draw_pairs())).sum()
        with Made() as made:
            logps.backward()
        assert ((V, C) in made.shapes) == trained
