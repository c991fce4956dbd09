"""Functions and layers on PyTorch's tensors: values, gradients, the checks of autograd, torch.compile, errors."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import tree
from attnarray.cases import CASES, Case

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
bridge = pytest.importorskip("attnarray.bridges.torch")


def tensors(*shape: int, count: int = 3, dtype: Any = torch.float64) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(count)]


def tensors_of(value: Any) -> Any:
    """NumPy's arrays in trees and masks as tensors, floating ones with gradients."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy()).requires_grad_(value.dtype.kind == "f")
    if isinstance(value, aa.Mask):
        copy = object.__new__(type(value))
        for name, part in vars(value).items():
            object.__setattr__(copy, name, tensors_of(part))
        return copy
    if isinstance(value, (dict, tuple, list)):
        return (
            tree.map(tensors_of, value)
            if not isinstance(value, tuple) or hasattr(value, "_fields")
            else tuple(map(tensors_of, value))
        )
    return value


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_case_has_its_values_and_gradients(case: Case) -> None:
    expected, pullback = aa.vjp(case.f, **case.arguments())
    given = {name: tensors_of(value) for name, value in case.arguments().items()}
    for name in {"noise", "rotations"} & given.keys():
        given[name] = given[name].detach()  # samples, which have no gradient
    out = bridge.differentiable(case.f)(**given)
    leaves = [leaf for _, leaf in tree.flatten(out)]
    for tensor, (_, array) in zip(leaves, tree.flatten(expected), strict=True):
        np.testing.assert_array_equal(tensor.detach().numpy(), array)
    rng = np.random.default_rng(0)
    douts = [rng.standard_normal(leaf.shape) for leaf in leaves]
    rest = iter(douts)
    grads = pullback(tree.map(lambda _: next(rest), expected))
    torch.autograd.backward(leaves, [torch.from_numpy(np.asarray(dout)) for dout in douts])
    compared = 0
    for path, grad in tree.flatten(grads):
        tensor = tree.get(given, path)
        np.testing.assert_array_equal(tensor.grad.numpy(), grad)
        compared += 1
    assert compared


def test_attention_is_that_of_pytorch() -> None:
    q, k, v = tensors(2, 4, 5, 8)
    dout = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    ours = bridge.scaled_dot_product_attention(q, k, v, is_causal=True)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(*(torch.autograd.grad(out, (q, k, v), dout) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other)


def test_no_memory_is_copied() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert bridge.to_array(x.mT).ctypes.data == x.data_ptr()
    array = np.ones((2, 3), np.float32)
    assert bridge.to_tensor(array).data_ptr() == array.ctypes.data


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype: Any) -> None:
    q, k, v = tensors(1, 2, 3, 4, dtype=dtype)
    out = bridge.scaled_dot_product_attention(q, k, v)
    out.sum().backward()
    assert out.dtype is dtype
    assert q.grad.dtype is dtype
    wide = bridge.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), wide, atol=2e-2, rtol=2e-2)


def test_a_change_in_place_of_what_the_backward_needs_is_found() -> None:
    q, k, v = tensors(1, 2, 3, 4)
    out = bridge.scaled_dot_product_attention(q, k, v)
    with torch.no_grad():
        k.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_change_in_place_of_what_it_does_not_need_is_fine() -> None:
    (x,) = tensors(2, 3, count=1)
    y = x * 1
    out = bridge.relu(y)
    y.mul_(2)
    out.sum().backward()
    torch.testing.assert_close(x.grad, (x > 0).double())


@pytest.mark.parametrize("constant", [False, True])
def test_gradients_of_gradients_are_refused(constant: bool) -> None:
    """Also where only what the context holds leads back to x: a gradient that lacks a term would be wrong."""
    (x,) = tensors(2, 3, count=1)
    y = bridge.softmax(x)
    dout = torch.rand(2, 3, dtype=torch.float64) if constant else 2 * y
    (grad,) = torch.autograd.grad(y, x, dout, create_graph=True)
    with pytest.raises(NotImplementedError, match="The backward of softmax has no derivative"):
        (grad.square().sum() + x.sum()).backward()


def test_torch_func() -> None:
    (x,) = tensors(2, 3, count=1)
    bridged = torch.func.grad(lambda x: bridge.softmax(x).square().sum())(x)
    torch.testing.assert_close(bridged, torch.func.grad(lambda x: torch.softmax(x, -1).square().sum())(x))
    with pytest.raises(NotImplementedError, match=r"not mapped by torch\.vmap"):
        torch.vmap(bridge.softmax)(x)


def test_gradcheck_of_pytorch() -> None:
    x, weight, bias = tensors(3, 4, count=1) + tensors(4, count=2)
    assert torch.autograd.gradcheck(lambda *given: bridge.layer_norm(*given), (x, weight, bias))


def test_several_results() -> None:
    x, weight_ih, weight_hh = tensors(2, 3, 4, count=1) + tensors(20, 4, count=1) + tensors(20, 5, count=1)
    result = bridge.lstm(x, weight_ih, weight_hh)
    assert isinstance(result, aa.LSTMResult)
    result[0].sum().backward()
    assert x.grad.shape == x.shape
    assert weight_hh.grad.shape == weight_hh.shape


def test_masks_with_tensors() -> None:
    q, k, v = tensors(2, 2, 3, 4)
    mask = aa.Causal() & aa.Padding(torch.tensor([2, 3]))
    out = bridge.scaled_dot_product_attention(q, k, v, mask)
    same = bridge.scaled_dot_product_attention(q, k, v, is_causal=True, kv_lengths=torch.tensor([2, 3]))
    torch.testing.assert_close(out, same)


def test_autocast() -> None:
    q, k, v = tensors(1, 2, 3, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert bridge.scaled_dot_product_attention(q, k.bfloat16(), v).dtype is torch.bfloat16
        assert bridge.softmax(q).dtype is torch.float32
    assert bridge.scaled_dot_product_attention(q, k, v).dtype is torch.float32


def test_the_mask_that_is_added_to_the_scores_has_a_gradient() -> None:
    (q, k, v), (mask,) = tensors(2, 4, 5, 8), tensors(5, 5, count=1)
    found = [
        torch.autograd.grad(attention(q, k, v, attn_mask=mask).square().sum(), mask)[0]
        for attention in (bridge.scaled_dot_product_attention, torch.nn.functional.scaled_dot_product_attention)
    ]
    torch.testing.assert_close(*found)


def test_a_tensor_without_a_gradient_must_not_require_one() -> None:
    layer = aa.layers.RelativeAttention(8, 2)
    module, (x, memory) = bridge.Module(layer).double(), tensors(2, 3, 8, count=2)
    with pytest.raises(TypeError, match=r"`memory` has a tensor that requires a gradient.* memory.detach\(\)"):
        module(x, memory).sum().backward()
    module(x, memory.detach()).sum().backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch, in forward mode
def test_transformations_that_there_are_not() -> None:
    (x,) = tensors(2, 3, count=1)
    for transformed in (torch.func.jacrev(bridge.softmax), torch.vmap(bridge.softmax)):
        with pytest.raises(NotImplementedError, match=r"softmax is not mapped by torch.vmap"):
            transformed(x.detach())
    with pytest.raises(NotImplementedError, match="softmax has no derivative in forward mode"):
        torch.func.jvp(bridge.softmax, (x.detach(),), (x.detach(),))


def test_autocast_in_a_graph() -> None:
    def both(x: Any) -> Any:
        return bridge.scaled_dot_product_attention(x, x, x), bridge.softmax(x)

    with torch.autocast("cpu", torch.bfloat16):
        found = torch.compile(both, fullgraph=True, backend="aot_eager")(torch.ones(1, 2, 3, 4))
    assert [one.dtype for one in found] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("name", ["expanded", "flipped", "sliced"])
def test_tensors_of_any_strides(name: str) -> None:
    q, k, v = tensors(2, 4, 5, 8)
    change: Any = {
        "expanded": lambda x: x[:, :1].expand(2, 4, 5, 8),
        "flipped": lambda x: x.flip(2),
        "sliced": lambda x: x[..., ::2],
    }[name]
    found = []
    for attention in (bridge.scaled_dot_product_attention, torch.nn.functional.scaled_dot_product_attention):
        out = attention(change(q), change(k), v)
        found.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    (x,) = tensors(2, 3, count=1)
    checkpoint(bridge.softmax, x, use_reentrant=False).square().sum().backward()
    grad, x.grad = x.grad, None
    torch.softmax(x, -1).square().sum().backward()
    torch.testing.assert_close(grad, x.grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compile_keeps_a_call_whole() -> None:
    def loss(q: Any, k: Any, v: Any) -> Any:
        return bridge.scaled_dot_product_attention(q * 2, k, v, is_causal=True, window=(2, 0)).square().sum()

    given = tensors(1, 2, 5, 4)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for one, other in zip(*(torch.autograd.grad(f(*given), given) for f in (loss, compiled)), strict=True):
        torch.testing.assert_close(one, other)
    lengths = torch.tensor([4])
    padded = torch.compile(
        lambda q, k, v: bridge.scaled_dot_product_attention(q, k, v, kv_lengths=lengths).sum(), fullgraph=True,
        backend="aot_eager",
    )  # fmt: skip
    expected = bridge.scaled_dot_product_attention(*given, kv_lengths=lengths).sum()
    for one, other in zip(*(torch.autograd.grad(x, given) for x in (padded(*given), expected)), strict=True):
        torch.testing.assert_close(one, other)
    masked = torch.compile(lambda x: bridge.scaled_dot_product_attention(x, x, x, aa.Causal()), backend="aot_eager")
    causal = bridge.scaled_dot_product_attention(*given[:1] * 3, is_causal=True)
    torch.testing.assert_close(masked(given[0]), causal)
    several = torch.compile(lambda x: bridge.linear_attention(x, x, x).out.sum(), backend="aot_eager")
    torch.testing.assert_close(several(given[0]), bridge.linear_attention(*given[:1] * 3).out.sum())


def test_replace_sdpa() -> None:
    functional = torch.nn.functional
    q, k, v = tensors(1, 2, 3, 4)
    before, plain = functional.scaled_dot_product_attention, functional.scaled_dot_product_attention(q, k, v)
    with bridge.replace_sdpa():
        assert functional.scaled_dot_product_attention is not before
        torch.testing.assert_close(functional.scaled_dot_product_attention(q, k, v), plain)
        torch.manual_seed(0)
        one = functional.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
        torch.manual_seed(0)
        torch.testing.assert_close(one, functional.scaled_dot_product_attention(q, k, v, dropout_p=0.5))
    assert functional.scaled_dot_product_attention is before


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: bridge.softmax(torch.randn(3, dtype=torch.complex64)), TypeError, "complex64, expected a dense"),
        (lambda: bridge.softmax(torch.eye(3).to_sparse()), TypeError, "is a torch.sparse_coo tensor"),
        (
            lambda: bridge.softmax(torch.empty(3, device="meta")),
            TypeError,
            "on a device 'meta', expected 'cpu' or 'cuda'",
        ),
        (lambda: bridge.softmax(torch.arange(3)), TypeError, "`x` has dtype int64, expected"),
        (lambda: bridge.softmaxx, AttributeError, "has no attribute 'softmaxx'"),
        (lambda: bridge.differentiable(np.sin), TypeError, "has no backward"),
    ],
    ids=["complex", "sparse", "meta", "integers", "name", "no backward"],
)
def test_bad_input(call: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def test_a_module_trains() -> None:
    module = bridge.Module(aa.layers.MultiHeadAttention(dim=8, num_heads=2))
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = module(x, is_causal=True).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_a_module_is_pickled() -> None:
    module = bridge.Module(aa.layers.MultiHeadAttention(8, 2))
    again, x = pickle.loads(pickle.dumps(module)), torch.ones(1, 3, 8)
    torch.testing.assert_close(again(x), module(x))


def test_the_state_of_a_module_goes_both_ways() -> None:
    layer = aa.layers.BahdanauAttention(query_dim=4, key_dim=6, hidden_dim=5)
    one, other = bridge.Module(layer, 0), bridge.Module(layer, 1)
    other.load_state_dict(one.state_dict())
    for path, expected in tree.flatten(layer.init(aa.Philox(0))):
        found = other.state_dict()[".".join(map(str, path))]
        np.testing.assert_array_equal(found.numpy(), expected)


def test_multi_head_attention_of_pytorch() -> None:
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    ours = bridge.Module.from_torch(theirs)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])
    with pytest.raises(ValueError, match="no counterpart"):
        bridge.Module.from_torch(torch.nn.MultiheadAttention(8, 2, kdim=4, vdim=4))
