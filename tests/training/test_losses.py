"""Loss and gradients against the plain computation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import TokenSet, pack
from edgeft.training.losses import ChunkedCrossEntropy, chunk_rows, next_token_loss_sum


@pytest.mark.parametrize("n", [1, 1023, 1024, 2500])
@pytest.mark.parametrize("with_bias", [False, True])
def test_chunked_cross_entropy_equals_float64(n: int, with_bias: bool) -> None:
    """Oracle: torch's cross-entropy over whole logits in float64."""
    torch.manual_seed(n)
    hidden = torch.randn(n, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(50, dtype=torch.float64, requires_grad=True) if with_bias else None
    labels = torch.randint(0, 50, (n,))
    inputs = [t for t in (hidden, weight, bias) if t is not None]
    expected = F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum")
    wanted = torch.autograd.grad(expected / 7, inputs)

    single = [t.detach().float().requires_grad_() for t in inputs]
    loss = ChunkedCrossEntropy.apply(single[0], single[1], single[2] if with_bias else None, labels)
    got = torch.autograd.grad(loss / 7, single)

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for g, w in zip(got, wanted, strict=True):
        assert torch.linalg.norm(g.double() - w) <= 1e-5 * torch.linalg.norm(w)


@pytest.mark.parametrize(
    ("vocabulary", "head_trains", "rows"),
    [(4_096, False, 1024), (49_152, False, 170), (151_936, False, 64), (151_936, True, 256), (100, True, 1024)],
)
def test_chunks_hold_a_bounded_number_of_logits(vocabulary: int, head_trains: bool, rows: int) -> None:
    assert chunk_rows(vocabulary, head_trains=head_trains) == rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_head_gets_no_gradient_and_hidden_the_same(dtype: torch.dtype) -> None:
    """Oracle: torch's cross-entropy in float64 on the rounded inputs; bfloat16 within its rounding."""
    torch.manual_seed(0)
    hidden = torch.randn(300, 16).to(dtype).requires_grad_()
    weight, labels = torch.randn(50, 16).to(dtype), torch.randint(0, 50, (300,))
    exact = hidden.detach().double().requires_grad_()
    wanted = F.cross_entropy(exact @ weight.double().t(), labels, reduction="sum")
    wanted.backward()
    loss = ChunkedCrossEntropy.apply(hidden, weight, None, labels)
    loss.backward()
    within = 1e-5 if dtype == torch.float32 else 0.02
    assert loss.item() == pytest.approx(wanted.item(), rel=within / 10)
    assert weight.grad is None
    assert torch.linalg.norm(hidden.grad.double() - exact.grad) <= within * torch.linalg.norm(exact.grad)


def _tiny(**kwargs: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, **kwargs,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("tied", [True, False])
def test_packed_loss_and_gradients_equal_transformers_one_by_one(tied: bool) -> None:
    """Oracle: transformers' own loss (`labels=`, -100 where nothing is learned), one example at a time."""
    rng = np.random.default_rng(1)
    examples = []
    for length in (3, 40, 17, 16, 5, 29):
        mask = rng.random(length) < 0.5
        mask[-1] = True
        examples.append((rng.integers(0, 97, length).tolist(), mask.tolist()))
    plain, packed = _tiny(tie_word_embeddings=tied), _tiny(tie_word_embeddings=tied)

    total, count = torch.zeros(()), 0
    for ids, mask in examples:
        labels = [i if m else -100 for i, m in zip(ids, mask, strict=True)]
        n = sum(mask[1:])
        loss = plain(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
        total, count = total + loss * n, count + n
    (total / count).backward()

    use_packed_attention(packed)
    batch = pack(TokenSet.build(examples), np.arange(len(examples)))
    assert batch.loss_count == count
    loss = next_token_loss_sum(packed, batch)
    (loss / count).backward()

    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    for (name, a), b in zip(packed.named_parameters(), plain.parameters(), strict=True):
        assert torch.linalg.norm(a.grad - b.grad) <= 1e-5 * torch.linalg.norm(b.grad), name
