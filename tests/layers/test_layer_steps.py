"""Invalid caches, states and heads of layers and models that run step by step: one clear error each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attnarray as aa
from attnarray import layers, models
from attnarray.cases import CASES
from attnarray.triples import find_triple
from tests.support.messages import says

X = np.ones((2, 3, 8), np.float32)
TOKENS = np.zeros((2, 3), np.int64)
RNG = aa.Philox(0)
HEADS = layers.MultiHeadAttention(8, 2)
HEADS_PARAMS, CACHE = HEADS.init(RNG), HEADS.cache(2, 5)
DECODER = models.Decoder(8, 2, 2)
DECODER_PARAMS = DECODER.init(RNG)
DECODER_CACHE = DECODER.cache(DECODER_PARAMS, X, 4)
SMALL_GPT, SMALL_BERT = models.GPT(11, 8, 8, 2, 2), models.BERT(11, 8, 8, 1, 2)
GPT_PARAMS, BERT_PARAMS = SMALL_GPT.init(RNG), SMALL_BERT.init(RNG)
RESULT, OF_BERT = SMALL_BERT.fwd(BERT_PARAMS, TOKENS)
LOGITS, OF_LOGITS = SMALL_BERT.mask_logits_fwd(BERT_PARAMS, X)
SEQ2SEQ = models.Seq2Seq(11, 9, 4, 6, layers.BahdanauAttention(6, 6, 5))
SEQ2SEQ_PARAMS = SEQ2SEQ.init(RNG)
STATE = SEQ2SEQ.start(SEQ2SEQ_PARAMS, TOKENS)
IMAGES = models.PatchClassifier(4, 2, 3, dim=8, num_layers=1, num_heads=2)
TRANSFORMER = models.Transformer(11, 9, 8, 8, 1, 2, dropout=0.0)
TRANSFORMER_PARAMS = TRANSFORMER.init(RNG)
XL = models.TransformerXL(11, 3, 8, 1, 2, dropout=0.0)

WRONG: dict[str, tuple[type[Exception], str, Any]] = {
    "cache, None": (TypeError, "`cache` is None, expected a KVCache", lambda: HEADS.step(HEADS_PARAMS, X, None)),
    "cache before x": (TypeError, "`x` has type KVCache, expected an", lambda: HEADS.step(HEADS_PARAMS, CACHE, X)),
    "sequences": (ValueError, "next T positions of the 2 sequences", lambda: HEADS.step(HEADS_PARAMS, X[:1], CACHE)),
    "axes": (ValueError, "`x` has shape (3, 8), expected (B, T, E)", lambda: HEADS.step(HEADS_PARAMS, X[0], CACHE)),
    "width": (ValueError, "`x` has 4 features, but MultiHead", lambda: HEADS.step(HEADS_PARAMS, X[..., :4], CACHE)),
    "dtype of a cache": (ValueError, "`dtype` is 'int32', expected one of", lambda: HEADS.cache(2, 5, "int32")),
    "no key": (ValueError, "`key` is None, but the layer has `key_input_dim` 6: give",
               lambda: (m := layers.MultiHeadAttention(8, 2, key_input_dim=6))(m.init(RNG), X)),
    "no value": (ValueError, "`value` is None, but the layer has `value_input_dim` 6: give",
                 lambda: (m := layers.MultiHeadAttention(8, 2, value_input_dim=6))(m.init(RNG), X)),
    "no cache": (TypeError, "`cache` is None, expected the cache", lambda: DECODER.step(DECODER_PARAMS, X, None)),
    "decoder, one block": (TypeError, "`cache` is (", lambda: DECODER.step(DECODER_PARAMS, X, DECODER_CACHE[:1])),
    "decoder, swapped": (TypeError, "`x` has type tuple", lambda: DECODER.step(DECODER_PARAMS, DECODER_CACHE, X)),
    "memory": (ValueError, "`memory` has 5 features", lambda: DECODER.cache(DECODER_PARAMS, X[..., :5], 4)),
    "memory option": (ValueError, "`memory_bias` is given, but the block was made with cross=False",
                      lambda: (m := layers.TransformerBlock(8, 2))(m.init(RNG), X, memory_bias=X)),
    "layers of a cache": (ValueError, "`cache` has 3 layers, but the model has 2",
                          lambda: SMALL_GPT.step(GPT_PARAMS, TOKENS, models.GPT(11, 8, 8, 3, 2).cache(2))),
    "model": (TypeError, "`model` is", lambda: models.generate(None, GPT_PARAMS, TOKENS, 2)),
    "no parameters": (ValueError, "`params` lacks 'token'", lambda: models.generate(SMALL_GPT, {}, TOKENS, 2)),
    "parameters, None": (TypeError, "`params` is None, expected a dict",
                         lambda: models.generate(SMALL_GPT, None, TOKENS, 2)),
    "states": (ValueError, "`states` has 4 features, but BERT",
               lambda: SMALL_BERT.mask_logits(BERT_PARAMS, X[..., :4])),
    "types": (TypeError, "`types` has dtype float64", lambda: SMALL_BERT(BERT_PARAMS, TOKENS, TOKENS.astype(float))),
    "mask, a list": (TypeError, "`attn_mask` has type list", lambda: SMALL_BERT(BERT_PARAMS, TOKENS, attn_mask=[[1]])),
    "mask, floats": (TypeError, "a floating mask is a bias, which this model",
                     lambda: SMALL_BERT(BERT_PARAMS, TOKENS, attn_mask=np.zeros((2, 1, 3, 3)))),
    "head": (TypeError, "`head` is 3, expected the `params` that mask_log", lambda: SMALL_BERT.bwd(RESULT, OF_BERT, 3)),
    "head, empty": (TypeError, "`head` is a dict with nothing, expected", lambda: SMALL_BERT.bwd(RESULT, OF_BERT, {})),
    "head, all": (TypeError, "`head` is a dict with token, pos", lambda: SMALL_BERT.bwd(RESULT, OF_BERT, BERT_PARAMS)),
    "dout.states": (ValueError, "`dout.states` has shape (1, 3, 8), expected (2, 3, 8)",
                    lambda: SMALL_BERT.bwd(models.BERTResult(X[:1], None), OF_BERT)),
    "dout.pooled": (ValueError, "`dout.pooled` has shape (2, 3, 8), expected (2, 8)",
                    lambda: SMALL_BERT.bwd(models.BERTResult(None, X), OF_BERT)),
    "masked logits": (ValueError, "`dlogits` has shape (1, 3",
                      lambda: SMALL_BERT.mask_logits_bwd(LOGITS[:1], OF_LOGITS)),
    "masked, swapped": (TypeError, "The order is bwd(dout, ctx).",
                        lambda: SMALL_BERT.mask_logits_bwd(OF_LOGITS, LOGITS)),
    "start": (ValueError, "`start` is 50, expected an integer from 0 to 8",
              lambda: TRANSFORMER.greedy(TRANSFORMER_PARAMS, TOKENS, 50, 2)),
    "end": (ValueError, "`end` is 99, expected an integer from 0 to 8",
            lambda: TRANSFORMER.greedy(TRANSFORMER_PARAMS, TOKENS, 1, 2, end=99)),
    "end, text": (ValueError, "`end` is 'b', expected an integer",
                  lambda: SEQ2SEQ.greedy(SEQ2SEQ_PARAMS, TOKENS, 1, 2, end="b")),
    "tokens of a step": (ValueError, "`tokens` has shape (2, 3), expected (2, 1)",
                         lambda: SEQ2SEQ.step(SEQ2SEQ_PARAMS, TOKENS, STATE)),
    "alignments": (TypeError, "`ctx` is None, expected the Seq2SeqContext", lambda: SEQ2SEQ.alignments(None)),
    "images, None": (TypeError, "`images` is None, expected an array.", lambda: IMAGES(IMAGES.init(RNG), None)),
    "images": (TypeError, "images float64, params float32", lambda: IMAGES(IMAGES.init(RNG), np.ones((2, 4, 4)))),
    "memory of a segment": (ValueError, "`memory` has shape (1, 3, 8), expected (2, 3, 8)",
                            lambda: XL(XL.init(RNG), TOKENS, (X[:1],))),
    "remembered": (TypeError, "`x` is None, expected an array.", lambda: models.remembered(None, None, 3)),
    "no layer": (TypeError, "`layer` is None, expected a layer", lambda: layers.check_params(HEADS_PARAMS, None)),
    "check_params, swapped": (TypeError, "`layer` is {", lambda: layers.check_params(HEADS, {})),
}  # fmt: skip


@pytest.mark.parametrize(("error", "expected", "call"), WRONG.values(), ids=list(WRONG))
def test_it_is_reported_where_it_occurs(error: type[Exception], expected: str, call: Any) -> None:
    says(error, expected, call)


@pytest.mark.parametrize("function", aa.TRIPLES)
def test_a_backward_is_given_the_context_of_its_forward(function: str) -> None:

    case = next(case for case in CASES if case.function == function)
    _, fwd, bwd = find_triple(case.f)
    out, ctx = fwd(**case.arguments())
    for dout, wrong in ((out, None), (out, ()), (out, "abc"), (ctx, out)):
        with pytest.raises(TypeError, match=r"`(ctx|dout)` (is|has type)"):
            bwd(dout, wrong)
