"""LinearAttention beside the layer of transformers that has the same formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from tests.support.libraries import assert_close

DIM, HEADS, DK, DV, WIDTH = 12, 2, 4, 6, 4


@pytest.mark.peers
def test_gated_delta_net_of_qwen3_next(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=DIM, linear_num_key_heads=HEADS, linear_num_value_heads=HEADS, linear_key_head_dim=DK,
        linear_value_head_dim=DV, linear_conv_kernel_dim=WIDTH, rms_norm_eps=1e-6, num_hidden_layers=1,
        layer_types=["linear_attention"],
    )  # fmt: skip
    theirs, generator = Qwen3NextGatedDeltaNet(config, 0).double(), torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    # They compute decays, the rule and the norm in float32, which is too short to compare.
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    layer = aa.layers.LinearAttention.gated_delta_net(DIM, HEADS, key_dim=DK, value_dim=DV)
    params = parameters({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    x = np.random.default_rng(0).standard_normal((2, 70, DIM))
    given = torch.from_numpy(x).requires_grad_()
    expected = theirs(given)
    y, ctx = layer.fwd(params, x)
    assert_close(y, expected.detach().numpy(), 1e-10)
    dout = np.random.default_rng(1).standard_normal(y.shape)
    expected.backward(torch.from_numpy(dout))
    grads = layer.bwd(dout, ctx)
    assert_close(grads.x, given.grad.numpy(), 1e-10)
    stored = parameters({name: p.grad.numpy() for name, p in theirs.named_parameters()})
    for (path, found), (_, other) in zip(aa.tree.flatten(grads.params), aa.tree.flatten(
        {name: stored[name] for name in grads.params}), strict=True):  # fmt: skip
        assert_close(found, other, 1e-10, aa.tree.format_path(path))


def parameters(stored: dict[str, Any]) -> dict[str, Any]:
    """Our parameters, or gradients: theirs have the rows of each head beside each other, and one convolution."""
    parts = np.split(stored["in_proj_qkvz.weight"].reshape(HEADS, 2 * DK + 2 * DV, DIM), [DK, 2 * DK, 2 * DK + DV], 1)
    names = ("query", "key", "value", "gate")
    found: dict[str, Any] = {n: {"weight": w.reshape(-1, DIM)} for n, w in zip(names, parts, strict=True)}
    beta, decay = np.split(stored["in_proj_ba.weight"].reshape(HEADS, 2, DIM), 2, 1)
    found |= {"beta": {"weight": beta[:, 0]}, "decay": {"weight": decay[:, 0], "bias": stored["dt_bias"]}}
    convs = np.split(stored["conv1d.weight"][:, 0], [HEADS * DK, 2 * HEADS * DK])
    found |= {f"{n}_conv": weight for n, weight in zip(names, convs, strict=False)}
    found |= {"norm": {"weight": stored["norm.weight"]}, "out": {"weight": stored["out_proj.weight"]}}
    return {**found, "decay_rate": stored["A_log"]}
