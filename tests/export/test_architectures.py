"""Every architecture in GGUF. Oracle: transformers' logits, embeddings and class scores of tiny random models."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import ModelError
from tests.tiny_models import DECODERS, ENCODERS, make_model

N_SCORED, N_PROMPT, N_GENERATED = 96, 12, 24


def random_ids(n_tokens: int) -> list[int]:
    ids: list[int] = np.random.default_rng(0).integers(3, 259, n_tokens).tolist()
    return ids


def reference(folder: Path, kind: str) -> Any:
    """The model as transformers loads it; only its eager attention computes soft-caps."""
    import transformers

    model_class = getattr(transformers, (DECODERS | ENCODERS)[kind][0])
    model = model_class.from_pretrained(folder, attn_implementation="eager").eval()
    if model.can_generate():
        model.generation_config.eos_token_id = None
    return model


def run(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids]))


def compared(folder: Path, kind: str, file: Path, ids: list[int], n_ctx: int = 256) -> tuple[float, float]:
    """Mean KL in nats to transformers' logits, and the share of equal most likely tokens."""
    from edgeft.parity.numbers import kl_divergence, top1_agrees
    from tests.llama_outputs import ExactLlama

    theirs = run(reference(folder, kind), ids).logits[0].numpy()
    with ExactLlama(file, n_ctx=n_ctx) as model:
        ours = model.score(ids)
    return float(kl_divergence(theirs, ours).mean()), float(top1_agrees(theirs, ours).mean())


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_give_transformers_logits_and_tokens(kind: str, tmp_path: Path, write: Any) -> None:
    """llama.cpp's GELU is a table of half-precision numbers; everything else agrees to float32."""
    import torch

    from tests.llama_outputs import ExactLlama

    folder, prompt = make_model(tmp_path / "model", kind), random_ids(N_PROMPT)
    exact = write(folder, tmp_path / "f32.gguf")
    kl, agreement = compared(folder, kind, exact, random_ids(N_SCORED))
    assert kl < (5e-6 if kind.startswith(("gemma", "gpt2")) else 1e-9)
    assert agreement == 1.0
    kl, agreement = compared(folder, kind, write(folder, tmp_path / "f16.gguf", "F16"), random_ids(N_SCORED))
    assert kl < 1e-4
    assert agreement == 1.0
    with torch.inference_mode():
        expected = reference(folder, kind).generate(torch.tensor([prompt]), max_new_tokens=N_GENERATED, do_sample=False)
    with ExactLlama(exact, n_ctx=256) as model:
        ours = list(model.stream(prompt, max_new_tokens=N_GENERATED, ignore_eos=True, temperature=0.0))
    assert ours == expected[0, N_PROMPT:].tolist()


def test_long_contexts_take_the_long_factors(tmp_path: Path, write: Any) -> None:
    folder = make_model(tmp_path / "model", "phi4-mini")
    file = write(folder, tmp_path / "model.gguf")
    assert compared(folder, "phi4-mini", file, random_ids(300), n_ctx=512)[0] < 1e-9


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_give_transformers_vectors(kind: str, tmp_path: Path, write: Any) -> None:
    """Class scores where there is a head, else the vector of each token."""
    from tests.llama_outputs import LlamaEncoder

    folder, ids = make_model(tmp_path / "model", kind), random_ids(60)
    output = run(reference(folder, kind), ids)
    theirs = (output.logits if "logits" in output else output.last_hidden_state)[0].numpy()
    for ftype, bound in (("F32", 1e-3), ("F16", 3e-3)):
        with LlamaEncoder(write(folder, tmp_path / f"{ftype}.gguf", ftype), n_ctx=256) as model:
            ours = model.embed(ids)
        assert np.linalg.norm(ours - theirs) < bound * np.linalg.norm(theirs), ftype


@pytest.mark.parametrize(
    ("pooling", "pick"),
    [
        ({"pooling_mode_mean_tokens": True}, lambda tokens: tokens.mean(0)),
        ({"pooling_mode": "cls"}, lambda tokens: tokens[0]),
        ({"pooling_mode_lasttoken": True}, lambda tokens: tokens[-1]),
    ],
)
def test_sentence_transformers_pooling(pooling: Any, pick: Any, tmp_path: Path, write: Any) -> None:
    from tests.llama_outputs import LlamaEncoder

    folder, ids = make_model(tmp_path / "model", "bert"), random_ids(40)
    write_pooling(folder, pooling)
    theirs = pick(run(reference(folder, "bert"), ids).last_hidden_state[0].numpy())
    with LlamaEncoder(write(folder, tmp_path / "model.gguf"), n_ctx=256) as model:
        ours = model.embed(ids)
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


def write_pooling(folder: Path, pooling: dict[str, Any], kind: str = "Pooling") -> None:
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules.append({"path": "1_Pooling", "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("kind", "key", "wrong"),
    [
        ("smollm3", "rope.freq_base", 1e4),
        ("qwen3", "attention.layer_norm_rms_epsilon", 1e-2),
        ("qwen3_moe", "expert_used_count", 1),
        ("gemma2", "attention.sliding_window", 48),
        ("gemma2", "attn_logit_softcapping", 50.0),
        ("gemma2", "final_logit_softcapping", 30.0),
        ("gemma3", "rope.freq_base_swa", 1e4),
        ("gemma3", "rope.scaling.factor", 1.0),
        ("gemma3", "attention.sliding_window_pattern", [True] * 7),
        ("phi4-mini", "rope.scaling.attn_factor", 2.0),
        ("qwen2, rope scaled by YaRN", "rope.scaling.attn_factor", 1.0),
        ("granite", "residual_scale", 1.0),
        ("granite", "attention.scale", 0.25),
    ],
)
def test_the_models_would_show_a_mistake(kind: str, key: str, wrong: Any, tmp_path: Path, write: Any) -> None:
    """A wrong key moves the logits far beyond the bound of the comparison above."""
    from edgeft.export.gguf.architectures import architecture_of

    folder = make_model(tmp_path / "model", kind)
    right = architecture_of(json.loads((folder / "config.json").read_text()), folder)
    planted = dataclasses.replace(right, hyperparameters=lambda config: right.hyperparameters(config) | {key: wrong})
    file = write(folder, tmp_path / "model.gguf", architecture=planted)
    assert compared(folder, kind, file, random_ids(N_SCORED))[0] > 1e-3


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def rename_tensors(folder: Path, rename: Callable[[str], str]) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


def as_part_of_a_larger_model(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text, "eos_token_id": 2}))
    rename_tensors(folder, lambda name: "language_model." + name)


def as_older_rope(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    full, sliding = rope["full_attention"], rope["sliding_attention"]
    config |= {"rope_theta": full["rope_theta"], "rope_local_base_freq": sliding["rope_theta"]}
    config["rope_scaling"] = {"rope_type": full["rope_type"], "factor": full["factor"]}
    del config["layer_types"]
    (folder / "config.json").write_text(json.dumps(config))


def as_code_of_its_own(folder: Path) -> None:
    from edgeft.export.gguf.architectures.nomic_bert import OLDER_NAMES, OLDER_SETTINGS

    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    for usual, older in OLDER_NAMES.items():
        config[older] = config.pop(usual)
    del config["hidden_act"]
    (folder / "config.json").write_text(json.dumps(config | OLDER_SETTINGS))


@pytest.mark.parametrize(
    ("kind", "respell"),
    [
        ("gpt2", lambda folder: rename_tensors(folder, lambda name: name.removeprefix("transformer."))),
        ("bert", lambda folder: rename_tensors(folder, lambda n: "bert." + n.replace("Norm.weight", "Norm.gamma"))),
        ("gemma3", as_part_of_a_larger_model),
        ("gemma3", as_older_rope),
        ("nomic_bert", as_code_of_its_own),
    ],
)
def test_other_spellings_of_the_same_model(kind: str, respell: Any, tmp_path: Path, write: Any) -> None:
    folder = make_model(tmp_path / "model", kind)
    usual = write(folder, tmp_path / "usual.gguf")
    respell(folder)
    assert write(folder, tmp_path / "other.gguf").read_bytes() == usual.read_bytes()


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "llama",
        {"partial_rotary_factor": 0.5, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        "partial_rotary_factor 0.5.* whole heads",
    ),
    (
        "llama, rope scaled by YaRN",
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16}},
        "has only 32",
    ),
    ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 1]}, r"no_rope_layers \[1, 0, 1, 1, 1\]: .* divides by 4"),
    ("smollm3", {"use_sliding_window": True}, "use_sliding_window True: llama.cpp's graph for smollm3 has only False"),
    ("qwen3", {"attention_bias": True}, "attention_bias True"),
    ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob False"),
    ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers: .* experts in every layer"),
    ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar 100: .* has only 24"),
    ("gemma2", {"attn_logit_softcapping": None}, "no attn_logit_softcapping"),
    ("gemma2", {"layer_types": ["full_attention"] * 2}, "always slides"),
    ("phi3", {"head_dim": 8}, "head_dim 8"),
    ("gpt2", {"activation_function": "relu"}, "activation_function 'relu'"),
    ("olmo2", {"head_dim": 8}, "head_dim 8"),
    ("granite", {"residual_multiplier": 0.0}, "residual_multiplier 0.0"),
    ("bert", {"hidden_act": "relu"}, "hidden_act 'relu'"),
    (
        "distilbert",
        {"architectures": ["DistilBertForSequenceClassification"]},
        "this one ReLU; export the model to ONNX",
    ),
    ("nomic_bert", {"moe_every_n_layers": 2}, "with experts cannot be exported"),
    ("modernbert", {"norm_bias": True}, "norm_bias True"),
    ("llama", {"model_type": "base"}, "'base' .* cannot be exported to GGUF; supported: bert, .* xlm_roberta; docs/"),
    ("llama", {"model_type": "_rope"}, "'_rope' .* cannot be exported"),
]


@pytest.mark.parametrize(("kind", "changes", "said"), REFUSED)
def test_settings_llama_cpp_does_not_have_are_refused(
    kind: str, changes: dict[str, Any], said: str, tmp_path: Path, write: Any
) -> None:
    folder = make_model(tmp_path / "model", kind)
    edit_config(folder, **changes)
    with pytest.raises(ModelError, match=said):
        write(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("pooling", "kind", "said"),
    [
        ({"pooling_mode": "max"}, "Pooling", "pooling max: llama.cpp has mean, cls, lasttoken"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "Pooling", "pooling mean [+] cls"),
        ({}, "Dense", "a Dense step cannot be exported"),
    ],
)
def test_other_poolings_are_refused(pooling: dict[str, Any], kind: str, said: str, tmp_path: Path, write: Any) -> None:
    folder = make_model(tmp_path / "model", "bert")
    write_pooling(folder, pooling, kind)
    with pytest.raises(ModelError, match=said):
        write(folder, tmp_path / "model.gguf")


def test_windows_llama_cpp_does_not_have_end_the_context(tmp_path: Path) -> None:
    from edgeft.export.gguf.architectures import architecture_of

    for kind, window in (("mistral", 200), ("phi3", 200), ("qwen2", None)):
        folder = make_model(tmp_path / kind, kind)
        config = json.loads((folder / "config.json").read_text())
        architecture = architecture_of(config, folder)
        metadata = architecture.hyperparameters({**architecture.defaults, **config})
        assert metadata["context_length"] == (window or 256)


def test_defaults_are_those_of_transformers() -> None:
    """What a config.json may leave out means what transformers' own configuration class says."""
    from transformers import CONFIG_MAPPING

    from edgeft.export.gguf.architectures import architecture_of, supported_model_types

    names = {"gemma3": "gemma3_text", "xlm_roberta": "xlm-roberta"}
    for model_type in supported_model_types():
        defaults = architecture_of({"model_type": names.get(model_type, model_type)}, Path()).defaults
        config_class = CONFIG_MAPPING[names.get(model_type, model_type)]
        for key, value in defaults.items():
            assert getattr(config_class, key, value) == value, (model_type, key)
