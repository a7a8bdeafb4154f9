"""Packed attention against softmax(q kᵀ) v written out in float64, sequence by sequence."""

import pytest
import torch

from edgeft.errors import ModelError
from edgeft.training import plain_attention
from edgeft.training.attention import Group, attend, check_window, choose_kernel, group_sequences

LENGTHS = [3, 40, 17, 1, 16, 150, 5, 29, 130]
WIDTH = 16


def _row(heads: int, kv_heads: int, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(heads)
    n = sum(LENGTHS)
    shapes = ((n, heads, WIDTH), (n, kv_heads, WIDTH), (n, kv_heads, WIDTH), (n, heads, WIDTH))
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def _oracle(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    share = q.shape[1] // k.shape[1]
    parts, at = [], 0
    for length in LENGTHS:
        part = slice(at, at + length)
        keys, values = (x[part].repeat_interleave(share, dim=1) for x in (k, v))
        scores = torch.einsum("thd,shd->hts", q[part], keys) * scale
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        parts.append(torch.einsum("hts,shd->thd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values))
        at += length
    return torch.cat(parts)


def _error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.norm(got.detach().double() - wanted.detach()) / torch.linalg.norm(wanted.detach()))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("kernel", ["plain", "sdpa"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_output_and_gradients_equal_the_definition(
    heads: int, kv_heads: int, kernel: str, dtype: torch.dtype, within: float
) -> None:
    *inputs, weight = _row(heads, kv_heads, dtype)
    exact = [x.double().requires_grad_() for x in inputs]
    wanted = _oracle(*exact, scale=0.3)
    wanted_grads = torch.autograd.grad((wanted * weight.double()).sum(), exact)

    given = [x.requires_grad_() for x in inputs]
    got = attend(*given, group_sequences(LENGTHS), scale=0.3, kernel=kernel)
    grads = torch.autograd.grad((got * weight).sum(), given)

    assert _error(got, wanted) <= within
    for grad, expected in zip(grads, wanted_grads, strict=True):
        assert _error(grad, expected) <= within


@pytest.mark.parametrize("block", [1, 7, 64, 4096])
def test_the_block_size_does_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    *inputs, _ = _row(4, 2, torch.float64)
    wanted = _oracle(*inputs, scale=0.25)
    monkeypatch.setattr(plain_attention, "BLOCK", block)
    assert _error(attend(*inputs, group_sequences(LENGTHS), scale=0.25), wanted) <= 1e-12


def test_a_plain_list_of_groups_will_do() -> None:
    *inputs, _ = _row(4, 2, torch.float64)
    groups: list[Group] = list(group_sequences(LENGTHS))
    assert _error(attend(*inputs, groups, scale=0.25), _oracle(*inputs, scale=0.25)) <= 1e-12


def test_groups_hold_every_token_once_and_little_padding() -> None:
    groups = group_sequences([300, 290, 40, 30, 301, 5])
    tokens = torch.cat([g.gather[g.real] for g in groups]).sort().values
    assert tokens.tolist() == list(range(966))
    assert sum(g.real.numel() for g in groups) <= 1.1 * 966


@pytest.mark.parametrize(
    ("device", "dtype", "dropout", "kernel"),
    [
        ("cpu", torch.float32, 0.0, "plain"),
        ("cpu", torch.bfloat16, 0.1, "sdpa"),
        ("cuda", torch.bfloat16, 0.0, "varlen"),
        ("cuda", torch.float32, 0.0, "sdpa"),
        ("mps", torch.float16, 0.0, "sdpa"),
    ],
)
def test_kernel_by_device_type_and_dropout(device: str, dtype: torch.dtype, dropout: float, kernel: str) -> None:
    assert choose_kernel(device, dtype, dropout) == kernel


def test_a_sequence_longer_than_the_sliding_window_is_refused() -> None:
    check_window(group_sequences([8, 4]), 8)
    with pytest.raises(ModelError, match=r"9 tokens is longer than the model's sliding window of 8.*max_length"):
        check_window(group_sequences([9, 4]), 8)
