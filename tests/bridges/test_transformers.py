"""Models of transformers with `attn_implementation="attnarray"`: logits, gradients, generation, weights."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
bridge = pytest.importorskip("attnarray.bridges.transformers")

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 100,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
MODELS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", "sdpa", {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 100}),
    "bert": ("BertConfig", "BertForMaskedLM", "sdpa", SIZES),
    "llama": ("LlamaConfig", "LlamaForCausalLM", "sdpa", GROUPED),
    "windows and softcap": ("Gemma2Config", "Gemma2ForCausalLM", "eager", {**GROUPED, "sliding_window": 4}),
    "sinks": ("GptOssConfig", "GptOssForCausalLM", "eager", {**GROUPED, "sliding_window": 4, **EXPERTS}),
}


def pair(name: str) -> tuple[Any, Any]:
    """The same model with the attention of transformers and with ours."""
    config, kind, peer, sizes = MODELS[name]
    torch.manual_seed(0)
    made = [
        getattr(transformers, kind)(getattr(transformers, config)(**sizes, attn_implementation=attention)).eval()
        for attention in (peer, "attnarray")
    ]
    made[1].load_state_dict(made[0].state_dict())
    return made[0], made[1]


def batch(name: str) -> tuple[Any, Any]:
    ids = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if name == "bert":
        mask[1, 9:] = 0
    else:
        mask[0, :4] = 0
    return ids, mask


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients(name: str, padded: bool) -> None:
    theirs, ours = pair(name)
    ids, mask = batch(name)
    mask = mask if padded else torch.ones_like(ids)
    before = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)  # whose logits predict the label
    labels = torch.where((mask if name == "bert" else mask * before).bool(), ids, -100)
    outs = [model(ids, attention_mask=mask, labels=labels) for model in (theirs, ours)]
    kept = mask.bool()
    torch.testing.assert_close(outs[1].logits[kept], outs[0].logits[kept], atol=1e-5, rtol=0)
    for out in outs:
        out.loss.backward()
    for (key, one), other in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", ["gpt2", "llama", "windows and softcap"])
def test_generation(name: str) -> None:
    theirs, ours = pair(name)
    ids, mask = batch(name)
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))


def test_weights_of_chosen_rows() -> None:
    eager = MODELS["gpt2"]
    torch.manual_seed(0)
    config = getattr(transformers, eager[0])(**eager[3], attn_implementation="eager")
    theirs = getattr(transformers, eager[1])(config).eval()
    ours = pair("gpt2")[1]
    ours.load_state_dict(theirs.state_dict())
    ids, mask = batch("gpt2")
    expected = theirs(ids, attention_mask=mask, output_attentions=True).attentions
    with bridge.record_weights(rows=[5, -1]) as weights:
        ours(ids, attention_mask=mask)
    assert len(weights) == len(expected) == 2
    for one, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(one, other[:, :, [5, -1]], atol=1e-6, rtol=0)
    ours(ids)
    assert len(weights) == 2
