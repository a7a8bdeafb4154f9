"""Students cut from their teacher. Oracle: the teacher itself with what is cut set to zero, run by transformers."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from edgeft.errors import ModelError
from edgeft.training.batches import TokenSet
from edgeft.training.student import Shape, make_student, measure_importance

V, D, M, H, K, LAYERS = 61, 36, 48, 6, 3, 4
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def _teacher(family: str = "llama", **fields: Any) -> Any:
    torch.manual_seed(3)
    config, model = FAMILIES[family]
    own = {} if family == "qwen2" else {"head_dim": 8}
    return model(
        config(
            **({
                "vocab_size": V, "hidden_size": D, "intermediate_size": M, "num_hidden_layers": LAYERS,
                "initializer_range": 0.3, "rms_norm_eps": 0.0, "tie_word_embeddings": True,
                "num_attention_heads": H, "num_key_value_heads": K,
            } | own | fields)
        )
    ).eval()  # fmt: skip


def _calibration() -> TokenSet:
    rng = np.random.default_rng(5)
    return TokenSet.build([(rng.integers(0, V, n).tolist(), [True] * n) for n in (9, 21, 14, 30)])


def _logits(model: Any) -> torch.Tensor:
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits


def _student(teacher: Any, strategy: Any = "even", **shape: int) -> Any:
    return make_student(teacher, Shape(**shape), strategy, _calibration(), 64).eval()


def _importance(teacher: Any) -> Any:
    return measure_importance(copy.deepcopy(teacher), _calibration(), 64)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_the_teachers_shape_is_the_teacher(family: str) -> None:
    teacher = _teacher(family)
    assert torch.equal(_logits(_student(copy.deepcopy(teacher))), _logits(teacher))


def test_neurons_are_the_most_active() -> None:
    """Activations are recomputed here from transformers' hidden states."""
    teacher = _teacher()
    student = _student(copy.deepcopy(teacher), intermediate_size=20)
    seen = [torch.zeros(M) for _ in range(LAYERS)]
    plain = copy.deepcopy(teacher)
    for number, layer in enumerate(plain.model.layers):

        def hook(mlp: Any, inputs: Any, number: int = number) -> None:
            active = mlp.act_fn(mlp.gate_proj(inputs[0])) * mlp.up_proj(inputs[0])
            seen[number] += active.detach().square().sum((0, 1))

        layer.mlp.register_forward_pre_hook(hook)
    tokens = _calibration()
    for at in range(len(tokens)):
        plain(torch.from_numpy(tokens.input_ids[tokens.offsets[at] : tokens.offsets[at + 1]]).long()[None])
    for layer, active in zip(teacher.model.layers, seen, strict=True):
        dropped = active.topk(M - 20, largest=False).indices
        layer.mlp.down_proj.weight.data[:, dropped] = 0.0
    assert torch.allclose(_logits(student), _logits(teacher), atol=1e-5)


def test_heads_go_with_what_they_put_out() -> None:
    teacher = _teacher()
    student = _student(copy.deepcopy(teacher), num_attention_heads=2, num_key_value_heads=2)
    importance = _importance(teacher)
    for layer, active in zip(teacher.model.layers, importance.head, strict=True):
        groups = active.view(K, H // K)
        kept_groups = groups.sqrt().sum(1).topk(2).indices
        kept = [int(g) * (H // K) + int(groups[g].argmax()) for g in kept_groups]
        dropped = [head for head in range(H) if head not in kept]
        weight = layer.self_attn.o_proj.weight.data.view(D, H, 8)
        weight[:, dropped] = 0.0
    assert torch.allclose(_logits(student), _logits(teacher), atol=1e-5)


def test_head_activity_is_the_norm_of_its_output() -> None:
    """Oracle: transformers' eager attention, one sequence at a time."""
    teacher = _teacher()
    seen = torch.zeros(H)
    layer = teacher.model.layers[0].self_attn

    def hook(_: Any, inputs: Any) -> None:
        seen.add_(inputs[0].view(-1, H, 8).square().sum((0, 2)))

    handle = layer.o_proj.register_forward_pre_hook(hook)
    tokens = _calibration()
    teacher.set_attn_implementation("eager")
    with torch.no_grad():
        for at in range(len(tokens)):
            teacher(torch.from_numpy(tokens.input_ids[tokens.offsets[at] : tokens.offsets[at + 1]]).long()[None])
    handle.remove()
    assert torch.allclose(_importance(teacher).head[0], seen, rtol=1e-4)


def test_hidden_channels_are_cut_everywhere() -> None:
    """With eps 0 a model whose other channels are zero differs from the narrow one by the norms' mean alone, which
    is over D in one and over D' in the other: their weights make up for that."""
    teacher, narrow = _teacher(), 24
    student = _student(copy.deepcopy(teacher), hidden_size=narrow)
    dropped = _importance(teacher).hidden.topk(D - narrow, largest=False).indices
    teacher.model.embed_tokens.weight.data[:, dropped] = 0.0
    for layer in teacher.model.layers:
        layer.self_attn.o_proj.weight.data[dropped] = 0.0
        layer.mlp.down_proj.weight.data[dropped] = 0.0
    for name, parameter in teacher.named_parameters():
        if "norm" in name:
            parameter.data *= (narrow / D) ** 0.5
    assert torch.allclose(_logits(student), _logits(teacher), atol=1e-4)
    assert student.config.head_dim == 8


@pytest.mark.parametrize(("count", "kept"), [(1, [3]), (2, [0, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3])])
def test_layers_are_evenly_spaced(count: int, kept: list[int]) -> None:
    teacher = _teacher()
    student = _student(copy.deepcopy(teacher), num_hidden_layers=count)
    teacher.model.layers = torch.nn.ModuleList([teacher.model.layers[i] for i in kept])
    assert torch.equal(_logits(student), _logits(teacher))


def test_layers_that_change_little_are_dropped() -> None:
    teacher = _teacher()
    for projection in (teacher.model.layers[2].self_attn.o_proj, teacher.model.layers[2].mlp.down_proj):
        projection.weight.data *= 1e-3
    student = _student(copy.deepcopy(teacher), "block_influence", num_hidden_layers=3)
    teacher.model.layers = torch.nn.ModuleList([teacher.model.layers[i] for i in (0, 1, 3)])
    assert torch.equal(_logits(student), _logits(teacher))


def test_everything_at_once_trains() -> None:
    shape = {
        "num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 24, "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }  # fmt: skip
    student = _student(_teacher("qwen3"), **shape)
    assert {name: getattr(student.config, name) for name in shape} == shape
    assert len(student.config.layer_types) == 2
    student(torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ({"hidden_size": 64}, r"hidden_size: 64 is more than the teacher's 36"),
        ({"num_attention_heads": 5}, "5 heads over 3 key/value heads; the teacher shares one among 2"),
        ({"num_attention_heads": 6, "num_key_value_heads": 2}, "and 2 times it at most"),
    ],
)
def test_shapes_that_cannot_be_cut(shape: dict[str, int], expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        _student(_teacher(), **shape)


def test_another_family_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(ModelError, match=r"give another one as distill\.student\.base"):
        make_student(model, Shape(), "even", _calibration(), 64)
