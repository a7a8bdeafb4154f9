"""Encoder classifiers: BERT, DistilBERT, MiniLM, RoBERTa, ModernBERT and their kin with a classification head.

They are transformers' own classes for sequence classification, so that what is saved loads anywhere.

Shapes: n examples, B examples of a group, T the longest of them, C labels.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from edgeft.errors import ModelError
from edgeft.sections import Lora
from edgeft.training.adapters import lora_config
from edgeft.training.labels import UNKNOWN, LabelBatch, LabelSet
from edgeft.training.models import DTYPES, check_model_folder

Pooling = Literal["cls", "mean"]
MEAN_LAYER = "edgeft_mean_layer"  # the config of a classifier says so that its last layer is the mean
MEAN_SCALE = 8.0
POOLER_SCALE = 0.5


def load_classifier(
    folder: Path, labels: list[str], dtype: str = "float32", *, seed: int = 0, pooling: Pooling | None = None
) -> PreTrainedModel:
    """The folder's encoder in `dtype` with a head for `labels` (C ≥ 2), on the GPU if there is one.

    The head is fresh, drawn from `seed` alone, unless the folder is a classifier of just these labels already.
    `pooling` chooses what the head reads, the first token or the mean of all; None does as the folder was trained:
    the mean where a sentence encoder says so (1_Pooling/config.json) and it can be had, else what the config has.
    ModernBERT has a switch for it. BERT and RoBERTa read the first token only; there the mean is one more layer
    whose first token attends to all alike (`_add_mean_layer`), which then trains like the others.

    Raises ModelError when the folder holds no encoder, its weights do not fit, or the pooling is not to be had.
    """
    check_model_folder(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: transformers cannot read its config: {error}") from error
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"{folder}: {config.model_type} is no encoder with a classification head; objective: classification takes "
            "models like BERT, DistilBERT, MiniLM, RoBERTa and ModernBERT, and sft is for decoders"
        )
    wanted = pooling or _trained_pooling(folder)
    if wanted is not None and hasattr(config, "classifier_pooling"):
        config.classifier_pooling = wanted
    had = [config.id2label[at] for at in sorted(config.id2label)]
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: at for at, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _read(folder, config, dtype)
        if had != labels:
            _draw_head(model)
        if wanted == "mean" and not hasattr(config, "classifier_pooling"):
            if _takes_mean_layer(model):
                _add_mean_layer(model)
            elif pooling == "mean":
                raise ModelError(
                    f"{folder}: pooling: mean is for models built like BERT, RoBERTa and ModernBERT, not "
                    f"{config.model_type}; leave it out"
                )
    if torch.cuda.is_available():
        torch.nn.Module.cuda(model)
    return model


def attach_classifier_lora(model: PreTrainedModel, lora: Lora) -> PeftModel:
    """The classifier with fresh adapters in float32 and its head trained whole; the encoder is frozen.

    Raises ModelError when `target_modules` names nothing in the model.
    """
    saved = sorted({*_head_modules(model), *lora.modules_to_save})
    config = lora_config(lora, modules_to_save=saved, task_type="SEQ_CLS")
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(
            f"train.lora.target_modules: {lora.target_modules} fits nothing in this encoder ({error})"
        ) from error


def save_classifier(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Write a folder that AutoModelForSequenceClassification reads, adapters folded in; `model` is used up."""
    whole = model.merge_and_unload() if isinstance(model, PeftModel) else model
    whole.save_pretrained(str(folder), safe_serialization=True)


def classification_loss_sum(model: Any, batch: LabelBatch) -> torch.Tensor:
    """Cross-entropy in nats, summed over the examples with a known label; a scalar in float32."""
    device = model.get_input_embeddings().weight.device
    total = torch.zeros((), dtype=torch.float32, device=device)
    for group, logits in zip(batch.groups, _logits(model, batch), strict=True):
        total = total + F.cross_entropy(logits, group.labels.to(device), reduction="sum", ignore_index=UNKNOWN)
    return total


@torch.no_grad()
def classify(
    model: Any, examples: LabelSet, *, batch_tokens: int = 8192, autocast: torch.dtype | None = None
) -> np.ndarray:
    """The most likely label id of each example, (n,) int64.

    Examples of like length share a batch of at most `batch_tokens` padded tokens; `autocast` is the compute
    type, None the one of the weights.
    """
    was_training = model.training
    model.eval()
    device = model.get_input_embeddings().weight.device
    found = np.full(len(examples), UNKNOWN, dtype=np.int64)
    for index in _by_length(examples.lengths, batch_tokens):
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            batch = examples.pack(index)
            for group, logits in zip(batch.groups, _logits(model, batch), strict=True):
                found[index[group.rows]] = logits.argmax(dim=-1).cpu().numpy()
    model.train(was_training)
    return found


def check_fits(model: PreTrainedModel, examples: LabelSet, folder: Path) -> None:
    """Raise ModelError when a token of `examples` is not in the model's vocabulary, or a text too long for it."""
    largest, longest = int(examples.input_ids.max(initial=0)), int(examples.lengths.max(initial=0))
    table: Any = model.get_input_embeddings()
    rows = table.num_embeddings
    if largest >= rows:
        raise ModelError(
            f"{folder}: the tokenizer makes token id {largest}, but the model knows only {rows} tokens; "
            "tokenizer and weights do not belong together"
        )
    places = _positions(model)
    if places is not None and longest > places:
        raise ModelError(f"{folder}: a text has {longest} tokens, the model takes {places}; lower data.max_length")


def _logits(model: Any, batch: LabelBatch) -> Iterator[torch.Tensor]:
    """(B, C) in float32 of each group.

    Tokens are embedded once for the whole batch: the gradient of an embedding table is as large as the table,
    and one for every group would cost more than a small encoder itself. Where nothing is padded no mask is
    given, and attention is faster.
    """
    table = model.get_input_embeddings()
    device = table.weight.device
    shapes = [group.input_ids.shape for group in batch.groups]
    embedded = table(torch.cat([group.input_ids.flatten() for group in batch.groups]).to(device))
    for group, part in zip(batch.groups, embedded.split([b * t for b, t in shapes]), strict=True):
        mask = None if bool(group.attention_mask.all()) else group.attention_mask.to(device)
        yield model(inputs_embeds=part.unflatten(0, group.input_ids.shape), attention_mask=mask).logits.float()


def _by_length(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Indexes in rising length, cut where padded batches would pass `batch_tokens`."""
    order = np.argsort(lengths, kind="stable")
    cuts, start = [], 0
    for at in range(len(order)):
        if at > start and (at + 1 - start) * lengths[order[at]] > batch_tokens:
            cuts.append(at)
            start = at
    return [part for part in np.split(order, cuts) if len(part)]


def _read(folder: Path, config: Any, dtype: str) -> PreTrainedModel:
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=DTYPES[dtype],
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # a head for other labels; anything else is refused below
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder}: transformers cannot load this encoder: {error}") from error
    head = (*_head_modules(model), f"{model.base_model_prefix}.pooler")
    absent = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    wrong = sorted(name for name in absent if not name.startswith(tuple(f"{module}." for module in head)))
    if wrong:
        raise ModelError(
            f"{folder}: {len(wrong)} weights of the encoder are missing or of another shape than config.json says, "
            f"for one {wrong[0]}; copy the folder again"
        )
    return model


def _head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules that stand on the encoder: `classifier`, and `pre_classifier` or `head` where there is."""
    return [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]


def _draw_head(model: PreTrainedModel) -> None:
    """Draw the last layer anew: what the folder has there belongs to other labels."""
    head: Any = model.classifier
    outputs = [m for m in head.modules() if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        outputs[-1].weight.normal_(std=getattr(model.config, "initializer_range", 0.02))
        outputs[-1].bias.zero_()


def _trained_pooling(folder: Path) -> Pooling | None:
    """What sentence-transformers wrote beside the model, if it did."""
    try:
        content = json.loads((folder / "1_Pooling" / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return "mean" if content.get("pooling_mode_mean_tokens") else "cls"


def _takes_mean_layer(model: PreTrainedModel) -> bool:
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", None)
    return layers is not None and hasattr(layers[-1], "intermediate") and hasattr(_pooler(model), "dense")


def _pooler(model: PreTrainedModel) -> Any:
    """What reads the first token: BERT's pooler, or the head of RoBERTa, which does a pooler's work."""
    return getattr(model.base_model, "pooler", None) or getattr(model, "classifier", None)


def _add_mean_layer(model: PreTrainedModel) -> None:
    """Put a layer on a BERT or RoBERTa that hands the mean of all tokens to the first, where the head reads.

    Scores of zero make attention uniform over the real tokens; values and output are the identity times
    MEAN_SCALE, so that LayerNorm(first + MEAN_SCALE · mean) is nearly the mean alone; a feed-forward that adds
    nothing leaves it so. The pooler starts as a multiple of the identity that tanh hardly bends. A folder that
    is a classifier with such a layer keeps the one it has.
    """
    if getattr(model.config, MEAN_LAYER, False):
        return
    encoder: Any = model.base_model.encoder
    layers, pooler = encoder.layer, _pooler(model)
    layer = copy.deepcopy(layers[-1])
    attention, output = layer.attention.self, layer.attention.output
    with torch.no_grad():
        for linear in (attention.query, attention.key, attention.value, output.dense, layer.output.dense, pooler.dense):
            linear.weight.zero_()
            linear.bias.zero_()
        attention.value.weight.fill_diagonal_(1.0)
        output.dense.weight.fill_diagonal_(MEAN_SCALE)
        pooler.dense.weight.fill_diagonal_(POOLER_SCALE)
        layer.intermediate.dense.weight.normal_(std=model.config.initializer_range)
        layer.intermediate.dense.bias.zero_()
        for norm in (output.LayerNorm, layer.output.LayerNorm):
            norm.weight.fill_(1.0)
            norm.bias.zero_()
    layers.append(layer)
    model.config.num_hidden_layers += 1
    setattr(model.config, MEAN_LAYER, True)


def _positions(model: PreTrainedModel) -> int | None:
    """How many tokens a text may have. RoBERTa and its kin count positions from behind the padding id."""
    table = next((m for n, m in model.named_modules() if n.endswith("position_embeddings")), None)
    if not isinstance(table, torch.nn.Embedding):
        return getattr(model.config, "max_position_embeddings", None)
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
