"""Invalid calls of attention: the changes of a valid call, and the error message."""

from __future__ import annotations

import array_api_strict
import numpy as np

import attnarray as aa

RNG = np.random.default_rng(0)
QUERY = RNG.standard_normal((2, 6, 5, 4))  # B 2, H 6, T 5, D 4
KEY = RNG.standard_normal((2, 3, 7, 4))  # Hkv 3, S 7
VALUE = RNG.standard_normal((2, 3, 7, 8))  # Dv 8
GIVEN = {"query": QUERY, "key": KEY, "value": VALUE}

SCORES = "does not broadcast to (*batch, H, T, S) = (2, 6, 5, 7)"
HUGE = 2**70

WRONG_SHAPES = {
    "head dim": ({"key": KEY[..., :3]}, "`key` has head dim 3 but `query` has 4; they must match. Shapes: query"),
    "positions": ({"value": VALUE[:, :, :6]}, "`value` has 6 positions but `key` has 7; there must be one value per"),
    "batch of key": ({"key": KEY[:1]}, "`key` has batch (1,) but `query` has (2,); they must be equal"),
    "batch of value": ({"value": VALUE[:1]}, "`value` has batch (1,) but `query` has (2,)"),
    "heads": ({"query": QUERY[:, :4]}, "`query` has 4 heads, `key` 3 and `value` 3; key and value must have equally"),
    "layout": ({"query": QUERY[:, :4]}, "In layout 'BHTD' arrays are (*batch, heads, positions, dim); "
               "give layout='BTHD' for the other order. Shapes: query"),
    "heads of value": ({"value": VALUE[:, :2]}, "`query` has 6 heads, `key` 3 and `value` 2"),
    "no key heads": ({"key": KEY[:, :0], "value": VALUE[:, :0]}, "`query` has 6 heads, `key` 0 and `value` 0"),
    "axes": ({"query": QUERY[0]}, "`query`, `key` and `value` have 3, 4 and 4 axes; they must have equally many"),
    "one axis": ({"query": QUERY[0, 0, 0], "key": KEY[0, 0, 0], "value": VALUE[0, 0, 0]}, "at least 2 for layout"),
    "two axes": ({"query": QUERY[0, 0], "key": KEY[0, 0], "value": VALUE[0, 0], "layout": "BTHD"}, "at least 3 for"),
    "a number": ({"query": np.float64(1.0)}, "have 0, 4 and 4 axes"),
    "mask": ({"attn_mask": np.ones((7, 5), bool)}, f"`attn_mask` has shape (7, 5), which {SCORES}"),
    "mask axes": ({"attn_mask": np.ones((1, 1, 1, 5, 7), bool)}, "`attn_mask` has shape (1, 1, 1, 5, 7), which does"),
    "mask of keys": ({"attn_mask": np.ones((2, 7), bool)}, "equal. Give (B, S) as attn_mask[:, None, None, :]."),
    "float mask": ({"attn_mask": np.zeros((7, 5))}, f"`attn_mask` has shape (7, 5), which {SCORES}. Each size"),
    "Dense": ({"attn_mask": aa.Dense(np.ones((7, 5), bool))}, f"`attn_mask` has shape (7, 5), which {SCORES}"),
    "Documents": ({"attn_mask": aa.Documents(np.arange(7), np.arange(5))}, "`Documents.ids_q` has shape (7,), which"),
    "Documents, keys": ({"attn_mask": aa.Documents(np.arange(5), np.arange(5))}, "broadcast to (*batch, S) = (2, 7)"),
    "bias": ({"bias": np.zeros((2, 3, 5, 7))}, f"`bias` has shape (2, 3, 5, 7), which {SCORES}"),
    "dropout mask": ({"dropout_p": 0.1, "dropout_mask": np.ones((5, 6), bool)}, "`dropout_mask` has shape (5, 6),"),
    "sinks": ({"sinks": np.zeros(3)}, "`sinks` has shape (3,), expected (6,): one sink for each of the 6 query heads"),
    "kv_lengths": ({"kv_lengths": [1, 2, 3]}, "`kv_lengths` has shape (3,), expected (2,): one integer for all, or"),
    "q_offset": ({"q_offset": np.zeros((2, 1), int)}, "`q_offset` has shape (2, 1), expected (2,)"),
    "Padding": ({"attn_mask": aa.Padding([1, 2, 3])}, "`Padding.lengths` has shape (3,), expected (2,)"),
}  # fmt: skip

WRONG_VALUES = {
    "layout": ({"layout": "BSHD"}, "`layout` is 'BSHD', expected one of 'BHTD', 'BTHD'"),
    "layout, an array": ({"layout": QUERY}, "`layout` is an array of shape (2, 6, 5, 4) and dtype float64, expected"),
    "scale 0": ({"scale": 0}, "`scale` is 0, expected a finite number other than 0; leave it out for the default, "),
    "scale NaN": ({"scale": float("nan")}, "`scale` is nan, expected a finite number"),
    "scale infinite": ({"scale": 10**400}, "expected a finite number other than 0"),
    "scale True": ({"scale": True}, "`scale` is True, expected a finite number"),
    "softcap 0": ({"softcap": 0}, "`softcap` is 0, expected a finite number above 0"),
    "softcap negative": ({"softcap": -2.0}, "`softcap` is -2.0, expected a finite number above 0"),
    "softcap, text": ({"softcap": "2"}, "`softcap` is '2', expected a finite number above 0"),
    "window, a number": ({"window": 2}, "`window` is 2, expected (left, right), each an integer >= 0 or None ="),
    "window of three": ({"window": (0, 1, 2)}, "`window` is (0, 1, 2), expected (left, right)"),
    "window negative": ({"window": (-1, 0)}, "`window.left` is -1, expected an integer >= 0: the number of keys to"),
    "window fraction": ({"window": (0, 1.5)}, "`window.right` is 1.5, expected an integer >= 0: the number of keys to"),
    "window True": ({"window": (True, 0)}, "`window.left` is True, expected an integer"),
    "lengths beyond S": ({"kv_lengths": np.array([1, 8])}, "`kv_lengths` goes from 1 to 8, expected 0 to S = 7: the"),
    "length beyond S": ({"kv_lengths": 8}, "`kv_lengths` is 8, expected 0 to S = 7: the number of keys that exist"),
    "length negative": ({"kv_lengths": -1}, "`kv_lengths` is -1, expected 0 to S = 7"),
    "length enormous": ({"kv_lengths": HUGE}, f"`kv_lengths` is {HUGE}, expected 0 to S = 7"),
    "Padding beyond S": ({"attn_mask": aa.Padding([0, 8])}, "`Padding.lengths` goes from 0 to 8, expected 0 to S = 7"),
    "q_offset enormous": ({"q_offset": HUGE}, f"`q_offset` is {HUGE}, expected an integer from -1073741824 to"),
    "dropout negative": ({"dropout_p": -0.1}, "`dropout_p` is -0.1, expected a probability from 0 to 1"),
    "dropout above 1": ({"dropout_p": 1.1}, "`dropout_p` is 1.1, expected a probability from 0 to 1"),
    "dropout NaN": ({"dropout_p": float("nan")}, "`dropout_p` is nan, expected a probability"),
    "dropout None": ({"dropout_p": None}, "`dropout_p` is None, expected a probability"),
    "causal in its place": ({"dropout_p": True}, "`dropout_p` is True, expected a probability"),
    "dropout alone": ({"dropout_p": 0.1}, "but neither `rng` nor `dropout_mask` is given. Pass"),
    "rng, text": ({"dropout_p": 0.1, "rng": "abc"}, "`rng` is 'abc', expected attnarray.Philox(seed) or a seed from 0"),
    "rng negative": ({"dropout_p": 0.1, "rng": -1}, "`rng` is -1, expected attnarray.Philox(seed) or a seed from 0 to"),
    "rng of NumPy": ({"dropout_p": 0.1, "rng": RNG}, "`rng` is Generator(PCG64) at"),
    "two biases": ({"attn_mask": np.zeros((5, 7)), "bias": np.zeros((5, 7))}, "`bias` is given too; add them first"),
}  # fmt: skip

WRONG_TYPES = {
    "list": ({"query": QUERY.tolist()}, "`query` has type list, expected an array. attnarray.asarray makes one from"),
    "None": ({"key": None}, "`key` is None, expected an array."),
    "text": ({"value": "abc"}, "`value` has type str, expected an array."),
    "number": ({"query": 1.0}, "`query` has type float, expected an array."),
    "masked array": ({"key": np.ma.masked_array(KEY)}, "`key` has type MaskedArray, which overrides arithmetic"),
    "integers": ({"query": QUERY.astype(int)}, "`query` has dtype int64, expected one of float16, bfloat16, float32,"),
    "complex": ({"key": KEY + 0j}, "`key` has dtype complex128, expected one of"),
    "objects": ({"value": VALUE.astype(object)}, "`value` has dtype object, expected one of"),
    "mixed": ({"key": KEY.astype("f4")}, "different dtypes: query float64, key float32, value float64. Bring them to"),
    "mixed bias": ({"bias": np.zeros((5, 7), "f4")}, "value float64, bias float32"),
    "mixed float mask": ({"attn_mask": np.zeros((5, 7), "f2")}, "value float64, attn_mask float16"),
    "mixed sinks": ({"sinks": np.zeros(6, "f4")}, "value float64, sinks float32"),
    "libraries": ({"key": array_api_strict.asarray(KEY)}, "libraries: `query` numpy, `key` array_api_strict, `value`"),
    "library of mask": ({"attn_mask": array_api_strict.ones((5, 7)) > 0}, "`value` numpy, `attn_mask`"),
    "library of Dense": ({"attn_mask": aa.Dense(array_api_strict.ones(7) > 0)}, "`query` numpy, `attn_mask`"),
    "library of lengths": ({"kv_lengths": array_api_strict.asarray([1, 2])}, "`query` numpy, `kv_lengths`"),
    "mask of integers": ({"attn_mask": np.ones((5, 7), int)}, "`attn_mask` has dtype int64, expected bool (True ="),
    "mask, a list": ({"attn_mask": [[True] * 7] * 5}, "`attn_mask` has type list, expected a boolean array (True ="),
    "mask, a class": ({"attn_mask": aa.Causal}, "`attn_mask` is the class Causal, expected a boolean array (True ="),
    "mask of its own": ({"attn_mask": aa.Mask()}, "expected Causal, Window, Padding, Documents, Dense, another mask"),
    "bias, a mask": ({"bias": aa.Causal()}, "`bias` has type Causal, expected an array"),
    "bias, booleans": ({"bias": np.ones((5, 7), bool)}, "float64. Give a boolean mask as `attn_mask`."),
    "sinks, a list": ({"sinks": [0.0] * 6}, "`sinks` has type list, expected an array"),
    "sinks, integers": ({"sinks": np.zeros(6, int)}, "`sinks` has dtype int64, expected one of"),
    "dropout mask": ({"dropout_p": 0.1, "dropout_mask": np.ones((5, 7))}, "`dropout_mask` has dtype float64, expected"),
    "lengths, floats": ({"kv_lengths": np.array([1.0, 2.0])}, "`kv_lengths` has dtype float64, expected an integer"),
    "lengths, a list": ({"kv_lengths": [3.0, 4]}, "`kv_lengths` is [3.0, 4], expected an integer or an array of"),
    "lengths, ragged": ({"kv_lengths": [[1], [2, 3]]}, "`kv_lengths` is [[1], [2, 3]], expected an integer or an"),
    "lengths, text": ({"kv_lengths": "abc"}, "`kv_lengths` is 'abc', expected an integer or an array of integers"),
    "lengths, booleans": ({"kv_lengths": np.array([True, False])}, "`kv_lengths` has dtype bool, expected an integer"),
    "offset, a float": ({"q_offset": 1.0}, "`q_offset` is 1.0, expected an integer or an array of integers"),
    "offset, None": ({"q_offset": None}, "`q_offset` is None, expected an integer or an array of integers"),
    "causal, text": ({"is_causal": "no"}, "`is_causal` is 'no', expected True or False"),
    "causal, an array": ({"is_causal": np.ones(2)}, "`is_causal` is an array of shape (2,) and dtype float64,"),
}  # fmt: skip

BAD_CALLS = [
    (name, changes, error, expected)
    for table, error in ((WRONG_SHAPES, ValueError), (WRONG_VALUES, ValueError), (WRONG_TYPES, TypeError))
    for name, (changes, expected) in table.items()
]

# Functions of sequences: valid arguments; then the function, the changes, and the error message.
STEPS = RNG.standard_normal((2, 5, 3))  # B 2, T 5, I 3
SEQUENCES = {
    "conv2d": {"x": STEPS, "weight": np.ones((2, 3, 3, 1))},
    "max_over_time": {"x": STEPS},
    "conv1d": {"x": STEPS, "weight": RNG.standard_normal((6, 3, 7)), "bias": np.zeros(6)},
    **{
        f: {
            "x": STEPS,
            "weight_ih": RNG.standard_normal((rows, 3)),
            "weight_hh": RNG.standard_normal((rows, 4)),
            "bias_ih": np.zeros(rows),
            "bias_hh": np.zeros(rows),
        }
        for f, rows in (("rnn", 4), ("lstm", 16), ("gru", 12))
    },
}
TAPS = "expected 'same', 'causal', 'valid' or an integer >= 0: the zeros on both sides"

WRONG_SEQUENCES = {
    "channels": ("conv1d", {"x": STEPS[..., :2]}, "`x` has 2 channels but `weight` takes 3; they must match"),
    "channels first": ("conv1d", {"x": np.moveaxis(STEPS, 1, 2)}, "`x` is (*batch, T, C_in), channels last"),
    "conv axes": ("conv1d", {"x": STEPS[0, 0]}, "`x` and `weight` have 1 and 3 axes, expected (*batch, T,"),
    "weight axes": ("conv1d", {"weight": np.ones((6, 3))}, "have 3 and 2 axes, expected (*batch, T, C_in), channels"),
    "no taps": ("conv1d", {"weight": np.ones((6, 3, 0))}, "`weight` has no taps, expected (C_out, C_in,"),
    "conv bias": ("conv1d", {"bias": np.zeros(3)}, "`bias` has shape (3,), expected (6,): one number per"),
    "even width": ("conv1d", {"weight": np.ones((6, 3, 4))}, "`weight` of even width (4) has no center. Use"),
    "padding": ("conv1d", {"padding": "full"}, f"`padding` is 'full', {TAPS}"),
    "padding None": ("conv1d", {"padding": None}, f"`padding` is None, {TAPS}"),
    "padding True": ("conv1d", {"padding": True}, f"`padding` is True, {TAPS}"),
    "padding, array": ("conv1d", {"padding": STEPS}, "`padding` is an array of shape (2, 5, 3) and dtype"),
    "padding negative": ("conv1d", {"padding": -1}, "`padding` is -1, expected an integer >= 0: the zeros"),
    "dilation": ("conv1d", {"dilation": 0}, "`dilation` is 0, expected an integer >= 1: the distance between the"),
    "dilation, fraction": ("conv1d", {"dilation": 1.5}, "`dilation` is 1.5, expected an integer >= 1: the"),
    "stride": ("conv1d", {"stride": 0}, "`stride` is 0, expected an integer >= 1: the distance between the windows"),
    "groups": ("conv1d", {"groups": 3}, "`x` has 3 channels but `weight` takes 9; they must match"),
    "groups of outputs": ("conv1d", {"groups": 3, "weight": np.ones((4, 1, 3))}, "`groups` (3) must divide the 4"),
    "groups None": ("conv1d", {"groups": None}, "`groups` is None, expected an integer >= 1"),
    "image axes": ("conv2d", {"x": STEPS[0]}, "`x` and `weight` have 2 and 4 axes, expected (*batch, H, W, C_in)"),
    "three strides": ("conv2d", {"stride": (1, 1, 1)}, "`stride` is (1, 1, 1), expected one value, or two"),
    "small image": ("conv2d", {"padding": "valid"}, "`x` has 2 rows and 0 zeros around them, but the windows of"),
    "lengths": ("max_over_time", {"lengths": np.array([1, 6])}, "`lengths` goes from 1 to 6, expected integers"),
    "lengths, one more": ("max_over_time", {"lengths": np.ones(3, int)}, "`lengths` has shape (3,), expected (2,)"),
    "steps": ("max_over_time", {"x": STEPS[0, 0]}, "`x` has 1 axes, expected (*batch, T, C)"),
    "peephole": ("lstm", {"peephole": np.ones(16)}, "`peephole` has shape (16,), expected (12,): H = 4 numbers for"),
    "too short": ("conv1d", {"padding": "valid"}, "`x` has 5 steps and 0 zeros around them, but the windows of"),
    "too short by one": ("conv1d", {"weight": np.ones((6, 3, 6)), "padding": "valid"}, "have 6 steps ((width - 1)"),
    "too short by zeros": ("conv1d", {"padding": 1, "dilation": 2}, "have 13 steps ((width - 1)"),
    "features": ("lstm", {"x": STEPS[..., :2]}, "`x` has 2 features but `weight_ih` has 3 columns; they must"),
    "transposed": ("lstm", {"weight_ih": np.ones((3, 16))}, "`weight_ih` has 3 rows, which 4 does not divide"),
    "transposed rnn": ("rnn", {"weight_ih": np.ones((3, 4))}, "stored as (I, H) is passed as weight_ih.T"),
    "no multiple": ("gru", {"weight_ih": np.ones((13, 3))}, "expected (3H, I), H rows for each of r, z, n."),
    "weight_hh": ("lstm", {"weight_hh": np.ones((4, 16))}, "(4, 16), expected (16, 4): (4H, H) with H = 4"),
    "of a GRU": ("gru", {"weight_hh": np.ones((16, 4))}, "(16, 4), expected (12, 4): (3H, H) with H = 4"),
    "weight_hh rnn": ("rnn", {"weight_hh": np.ones((4, 5))}, "(4, 5), expected (4, 4): (H, H) with H = 4"),
    "x axes": ("gru", {"x": STEPS[0, 0]}, "have 1, 2 and 2 axes, expected (*batch, T, I), (3H, I) and"),
    "weight of three": ("rnn", {"weight_hh": np.ones((4, 4, 1))}, "have 3, 2 and 3 axes, expected (*batch, T,"),
    "bias_ih": ("lstm", {"bias_ih": np.ones(4)}, "`bias_ih` has shape (4,), expected (16,): one number per row"),
    "bias_hh": ("gru", {"bias_hh": np.ones(3)}, "`bias_hh` has shape (3,), expected (12,): one number per row"),
    "h0": ("rnn", {"h0": np.ones((1, 2, 4))}, "`h0` has shape (1, 2, 4), expected (2, 4): H = 4 numbers for"),
    "h0, one for all": ("gru", {"h0": np.ones(4)}, "`h0` has shape (4,), expected (2, 4): H = 4 numbers for"),
    "c0": ("lstm", {"c0": np.ones((2, 3))}, "`c0` has shape (2, 3), expected (2, 4): H = 4 numbers for each"),
    "mask": ("lstm", {"mask": np.ones((2, 4), bool)}, "`mask` has shape (2, 4), expected (2, 5): (*batch, T) of"),
    "mask of steps": ("gru", {"mask": np.ones(5, bool)}, "`mask` has shape (5,), expected (2, 5): (*batch, T)"),
    "nonlinearity": ("rnn", {"nonlinearity": "gelu"}, "`nonlinearity` is 'gelu', expected one of 'tanh', 'relu'"),
}  # fmt: skip

WRONG_TYPES_OF_SEQUENCES = {
    "conv integers": ("conv1d", {"weight": np.ones((6, 3, 7), int)}, "`weight` has dtype int64, expected one of"),
    "conv list": ("conv1d", {"x": [[1.0]]}, "`x` has type list, expected an array"),
    "conv None": ("conv1d", {"weight": None}, "`weight` is None, expected an array"),
    "mask, integers": ("rnn", {"mask": np.ones((2, 5), int)}, "`mask` has dtype int64, expected bool (True ="),
    "mask, floats": ("lstm", {"mask": np.ones((2, 5))}, "`mask` has dtype float64, expected bool (True ="),
    "mask, a list": ("gru", {"mask": [[True] * 5] * 2}, "`mask` has type list, expected an array"),
    "reset_after": ("gru", {"reset_after": "no"}, "`reset_after` is 'no', expected True or False"),
    "reverse": ("gru", {"reverse": "yes"}, "`reverse` is 'yes', expected True or False"),
    "x None": ("lstm", {"x": None}, "`x` is None, expected an array"),
    "weight None": ("gru", {"weight_hh": None}, "`weight_hh` is None, expected an array"),
    "library of mask": ("rnn", {"mask": array_api_strict.ones((2, 5)) > 0}, "`mask` array_api_strict. Bring"),
    "mixed h0": ("lstm", {"h0": np.zeros((2, 4), "f4")}, "bias_hh float64, h0 float32. Bring them to one"),
    "integers": ("gru", {"x": np.ones((2, 5, 3), int)}, "`x` has dtype int64, expected one of float16,"),
}  # fmt: skip

BAD_SEQUENCES = [
    (name, function, changes, error, expected)
    for table, error in ((WRONG_SEQUENCES, ValueError), (WRONG_TYPES_OF_SEQUENCES, TypeError))
    for name, (function, changes, expected) in table.items()
]
