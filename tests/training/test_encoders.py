"""Encoder classifiers against transformers' own forward pass, and label sets against their definition."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from edgeft.console import silent_log
from edgeft.data.chat import Example
from edgeft.errors import DataError, ModelError
from edgeft.sections import Lora
from edgeft.training.batches import plan_epochs
from edgeft.training.encoders import (
    attach_classifier_lora,
    check_fits,
    classification_loss_sum,
    classify,
    load_classifier,
    save_classifier,
)
from edgeft.training.labels import UNKNOWN, LabelSet, collect_labels, encode_examples, unknown_answers
from edgeft.training.loop import LoopConfig, train_loop
from tests.tiny import make_tiny_llama
from tests.tiny_encoder import KINDS, make_tiny_encoder, word_tokenizer

LABELS = ["light", "music", "stop"]
QUESTIONS = [
    ("turn on the light", "light"),
    ("light", "light"),
    ("turn off the lamp in the kitchen please now", "light"),
    ("play some music", "music"),
    ("please play a song in the bedroom now please now please now", "music"),
    ("stop", "stop"),
    ("stop the music please", "stop"),
    ("stop now", "stop"),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random encoder of each kind, as a base model is: without a classification head."""
    return {kind: make_tiny_encoder(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def _examples(pairs: list[tuple[str, str]]) -> list[Example]:
    roles = ("system", "user", "assistant")
    return [
        Example([{"role": r, "content": c} for r, c in zip(roles, ("Be brief.", *p), strict=True)], Path("x"), at, {})
        for at, p in enumerate(pairs, 1)
    ]


def _label_set(pairs: list[tuple[str, str]] = QUESTIONS) -> LabelSet:
    return encode_examples(_examples(pairs), LABELS, word_tokenizer(), max_length=32, on_too_long="error")[1]


ALL = np.arange(len(QUESTIONS))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_transformers_own(bases: dict[str, Path], kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bases[kind])
    model = load_classifier(bases[kind], LABELS)
    theirs = 0.0
    for question, answer in QUESTIONS:  # one by one: no padding at all
        encoded = tokenizer(question, return_tensors="pt", return_token_type_ids=False)
        loss = model(**encoded, labels=torch.tensor([LABELS.index(answer)])).loss
        loss.backward()
        theirs += loss.item()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    batch = _label_set().pack(ALL)
    assert len(batch.groups) > 1
    assert batch.loss_count == len(QUESTIONS)
    loss = classification_loss_sum(model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(theirs, rel=1e-5)
    got = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        assert (gradient - expected[name]).norm() <= 1e-5 * max(1.0, float(expected[name].norm())), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_predicts_the_same_in_transformers(bases: dict[str, Path], kind: str, tmp_path: Path) -> None:
    model = load_classifier(bases[kind], LABELS, seed=3)
    ours = classify(model, _label_set(), batch_tokens=24)
    save_classifier(model, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert theirs.config.id2label == dict(enumerate(LABELS))
    encoded = word_tokenizer()(
        [q for q, _ in QUESTIONS], return_tensors="pt", padding=True, return_token_type_ids=False
    )
    with torch.no_grad():
        assert theirs(**encoded).logits.argmax(-1).tolist() == ours.tolist()


def test_the_head_is_drawn_from_the_seed_and_kept_for_the_same_labels(bases: dict[str, Path], tmp_path: Path) -> None:
    heads = [load_classifier(bases["bert"], LABELS, seed=seed).classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    first = load_classifier(bases["bert"], LABELS, seed=1)
    save_classifier(first, tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert torch.equal(load_classifier(tmp_path, LABELS, seed=2).classifier.weight, heads[0])
    assert not torch.equal(load_classifier(tmp_path, ["a", "b", "c"], seed=2).classifier.weight, heads[0])
    assert load_classifier(tmp_path, ["a", "b"]).classifier.weight.shape == (2, 32)
    assert torch.equal(load_classifier(tmp_path, ["a", "b"]).bert.pooler.dense.weight, first.bert.pooler.dense.weight)


def test_training_through_the_loop_learns(bases: dict[str, Path], tmp_path: Path) -> None:
    model, examples = load_classifier(bases["bert"], LABELS), _label_set()
    plan = plan_epochs(examples.lengths, batch_tokens=24, epochs=12, seed=0)
    config = LoopConfig(3e-3, "linear", 0.1, 1.0, micro_batch_tokens=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    result = train_loop(
        model, optimizer, examples, plan, classification_loss_sum, config, out=tmp_path, log=silent_log(),
        validation=examples,
    )  # fmt: skip
    assert classify(model, examples).tolist() == examples.label_ids.tolist()
    assert result.eval_loss is not None
    assert result.eval_loss < 0.3 < result.first_loss
    assert result.tokens == 12 * len(examples.input_ids)


def test_lora_trains_adapters_and_head_and_folds_into_a_plain_classifier(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    for kind in ("bert", "distilbert"):
        examples = _label_set()
        model = attach_classifier_lora(load_classifier(bases[kind], LABELS), Lora(r=4))
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert all("lora_" in name or "classifier" in name for name in trained), trained
        assert any("classifier" in name for name in trained)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        ours = classify(model, examples)
        loss = classification_loss_sum(model.eval(), examples.pack(ALL)).item()
        save_classifier(model, tmp_path / kind)
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / kind).eval()
        assert classify(plain, examples).tolist() == ours.tolist()
        assert classification_loss_sum(plain, examples.pack(ALL)).item() == pytest.approx(loss, rel=1e-5)


def test_modernbert_pools_the_mean_on_request(bases: dict[str, Path]) -> None:
    examples = _label_set()
    first, mean = (load_classifier(bases["modernbert"], LABELS, pooling=pooling) for pooling in ("cls", "mean"))
    assert mean.config.classifier_pooling == "mean"
    losses = [classification_loss_sum(model.eval(), examples.pack(ALL)).item() for model in (first, mean)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    with pytest.raises(ModelError, match="not distilbert"):
        load_classifier(bases["distilbert"], LABELS, pooling="mean")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_mean_layer_hands_the_mean_to_the_head(bases: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """Oracle: layer norm of first + 8 · mean, twice (once for a feed-forward of zero), then tanh of its half."""
    folder = tmp_path / "base"
    shutil.copytree(bases[kind], folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    model = load_classifier(folder, LABELS, seed=1).eval()
    encoded = word_tokenizer()(
        [q for q, _ in QUESTIONS], return_tensors="pt", padding=True, return_token_type_ids=False
    )
    plain = AutoModel.from_pretrained(bases[kind]).eval()
    with torch.no_grad():
        hidden = plain(**encoded).last_hidden_state
        weight = encoded["attention_mask"][..., None]
        mean = (hidden * weight).sum(1) / weight.sum(1)
        mixed = F.layer_norm(hidden[:, 0] + 8 * mean, (32,), eps=model.config.layer_norm_eps)
        mixed = F.layer_norm(mixed, (32,), eps=model.config.layer_norm_eps)
        head = model.classifier if kind == "bert" else model.classifier.out_proj
        expected = head(torch.tanh(0.5 * mixed))
        torch.testing.assert_close(model(**encoded).logits, expected, rtol=1e-4, atol=1e-5)
    ours = classify(model, _label_set())
    save_classifier(model, tmp_path / "saved")
    word_tokenizer().save_pretrained(tmp_path / "saved")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert theirs(**encoded).logits.argmax(-1).tolist() == ours.tolist()
    assert load_classifier(tmp_path / "saved", LABELS, pooling="mean").config.num_hidden_layers == 3
    assert load_classifier(folder, LABELS, pooling="cls").config.num_hidden_layers == 2


def test_groups_hold_every_example_once_with_little_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(0.08, size=400) + 2, 200)
    examples = LabelSet.build([rng.integers(5, 99, n).tolist() for n in lengths], rng.integers(0, 9, 400).tolist(), 7)
    index = rng.permutation(400)[:300]
    batch = examples.pack(index)
    assert sorted(np.concatenate([g.rows for g in batch.groups])) == list(range(300))
    for group in batch.groups:
        for row, ids, mask, label in zip(group.rows, group.input_ids, group.attention_mask, group.labels, strict=True):
            at = index[row]
            begin, end = examples.offsets[at], examples.offsets[at + 1]
            assert ids[mask.bool()].tolist() == examples.input_ids[begin:end].tolist()
            assert set(ids[~mask.bool()].tolist()) <= {7}
            assert label == examples.label_ids[at]
    padded = sum(g.input_ids.numel() for g in batch.groups)
    assert batch.n_tokens == examples.lengths[index].sum()
    assert padded < 1.2 * batch.n_tokens


def test_a_label_training_never_saw_is_wrong_and_carries_no_loss(bases: dict[str, Path], tmp_path: Path) -> None:
    pairs = [*QUESTIONS, ("turn", "alarm")]
    examples = _label_set(pairs)
    assert examples.label_ids[-1] == UNKNOWN
    assert unknown_answers(_examples(pairs), LABELS) == ["alarm"]
    model = load_classifier(bases["bert"], LABELS).eval()
    batch = examples.pack(np.arange(len(pairs)))
    assert batch.loss_count == len(QUESTIONS)
    assert classification_loss_sum(model, batch).item() == pytest.approx(
        classification_loss_sum(model, _label_set().pack(ALL)).item(), rel=1e-6
    )
    assert (classify(model, examples) == examples.label_ids)[-1] == False  # noqa: E712 - numpy
    examples.save(tmp_path / "a.npz")
    loaded = LabelSet.load(tmp_path / "a.npz")
    assert loaded.label_ids.tolist() == examples.label_ids.tolist()
    assert loaded.pack(ALL).groups[0].input_ids.equal(examples.pack(ALL).groups[0].input_ids)


def test_texts_too_long_are_dropped_cut_or_refused() -> None:
    pairs = [("turn on the light now please", "light"), ("stop", "stop")]
    tokenizer = word_tokenizer()

    def encode(how: Any) -> tuple[list[Example], LabelSet, dict[str, int]]:
        return encode_examples(_examples(pairs), LABELS, tokenizer, max_length=5, on_too_long=how)

    kept, examples, counts = encode("drop")
    assert (len(kept), counts["dropped"], counts["longest"]) == (1, 1, 8)
    kept, examples, counts = encode("truncate")
    assert (len(kept), counts["truncated"], examples.lengths.tolist()) == (2, 1, [5, 3])
    assert tokenizer.convert_ids_to_tokens(examples.input_ids[:5].tolist()) == ["[CLS]", "turn", "on", "the", "[SEP]"]
    with pytest.raises(DataError, match="x:1: 8 tokens, more than 5"):
        encode("error")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "x"), ("b", "x")], "nothing to tell apart"),
        ([(str(n), f"answer {n}") for n in range(9)], "9 different answers in 9"),
        ([(str(n), f"answer {n // 3}") for n in range(3300)], "1100 different answers"),
        ([("a", "x"), ("b", "two\nlines")], "x:2: the answer is no label but a text"),
        ([("a", "x"), ("b", "long " * 30)], "x:2: the answer is no label but a text"),
        ([("a", "x"), ("b", "")], "x:2: the answer is empty or a tool call"),
    ],
)
def test_answers_that_are_no_labels_are_refused(pairs: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        collect_labels(_examples(pairs))


def test_labels_are_the_sorted_answers() -> None:
    assert collect_labels(_examples([*QUESTIONS, ("play", " music ")])) == LABELS


def test_an_example_without_user_turn_is_refused() -> None:
    lonely = Example([{"role": "assistant", "content": "stop"}], Path("x"), 4, {})
    with pytest.raises(DataError, match="x:4: no user turn"):
        encode_examples([lonely], LABELS, word_tokenizer(), max_length=9, on_too_long="drop")


def test_folders_that_are_no_encoder_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="llama is no encoder"):
        load_classifier(make_tiny_llama(tmp_path / "llama"), LABELS)
    weights = load_file(bases["bert"] / "model.safetensors")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in bases["bert"].iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    lost = next(name for name in weights if "layer.0" in name)
    save_file({n: w for n, w in weights.items() if n != lost}, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 weights of the encoder are missing"):
        load_classifier(broken, LABELS)


def test_tokens_and_texts_beyond_the_model_are_refused(bases: dict[str, Path]) -> None:
    strange = LabelSet.build([[2, 500, 3]], [0])
    with pytest.raises(ModelError, match="token id 500"):
        check_fits(load_classifier(bases["bert"], LABELS), strange, bases["bert"])
    long = LabelSet.build([[5] * 40], [0])
    with pytest.raises(ModelError, match="40 tokens, the model takes 39"):  # RoBERTa starts behind the padding id
        check_fits(load_classifier(bases["roberta"], LABELS), long, bases["roberta"])
