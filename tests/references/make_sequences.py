"""Make sequences.npz: outputs and gradients of convolution and recurrence, from PyTorch's autograd in float64.

Run with PyTorch 2.13 (CPU) and NumPy 2: `python tests/references/make_sequences.py`.

Recurrence is `torch.nn.RNN`, `LSTM` and `GRU`; where there are lengths, on packed sequences. Weights, biases and states
have an axis of directions in front, of size 2 for bidirectional modules; so have h and c. `out` holds the directions
side by side, as PyTorch gives it. x is NaN behind the end of a sequence. Convolution is `torch.nn.functional.conv1d`
on transposed axes.

The form of the file is that of sdpa.npz. `function` stands among the keyword arguments; cotangents are called `dout`,
`dh` and `dc`, expected arrays `out`, `h`, `c` and `grad_<input>`.
"""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from make_sdpa import largest_difference, packed
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

MODULES = {"rnn": (torch.nn.RNN, 1), "lstm": (torch.nn.LSTM, 4), "gru": (torch.nn.GRU, 3)}
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
SINGLE_PRECISION = 1e-5  # tolerance of the tests for float32; checked here for PyTorch's own float32


class Recurrent(NamedTuple):
    """Sequences of T steps with I features; H numbers in a state."""

    function: str
    batch: tuple = (3,)
    sizes: tuple = (5, 7, 4)  # T, I, H
    directions: int = 1
    biases: bool = True
    states: bool = True
    lengths: tuple = ()
    options: dict = {}  # noqa: RUF012 - never changed

    def arrays(self, rng):
        T, features, H = self.sizes
        D, rows = self.directions, MODULES[self.function][1] * H
        shapes = {"x": (*self.batch, T, features), "weight_ih": (D, rows, features), "weight_hh": (D, rows, H)}
        if self.biases:
            shapes |= {"bias_ih": (D, rows), "bias_hh": (D, rows)}
        state = (D, *self.batch, H)
        names = ("h", "c") if self.function == "lstm" else ("h",)
        if self.states:
            shapes |= {f"{name}0": state for name in names}
        shapes |= {"dout": (*self.batch, T, D * H), **{f"d{name}": state for name in names}}
        arrays = {name: drawn(rng, shape) for name, shape in shapes.items()}
        return {**arrays, "lengths": np.array(self.lengths)} if self.lengths else arrays

    def outputs(self, given):
        module = MODULES[self.function][0](
            *self.sizes[1:], batch_first=True, bias=self.biases, bidirectional=self.directions == 2, **self.options
        ).to(given["x"].dtype)
        parameters = {
            f"{name}_l0{suffix}": given[name][d]
            for d, suffix in enumerate(["", "_reverse"][: self.directions])
            for name in PARAMETERS
            if name in given
        }
        states = tuple(given[name] for name in ("h0", "c0") if name in given)
        x = given["x"]
        if self.lengths:
            x = pack_padded_sequence(x, given["lengths"], batch_first=True, enforce_sorted=False)
        arguments = [x, *([states if len(states) > 1 else states[0]] if states else [])]
        out, last = torch.func.functional_call(module, parameters, tuple(arguments))
        if self.lengths:
            out, _ = pad_packed_sequence(out, batch_first=True, total_length=self.sizes[0])
        return {"out": out, **dict(zip("hc", last if isinstance(last, tuple) else (last,), strict=False))}


class Convolution(NamedTuple):
    """Sequences of T steps with C_in channels; `width` taps to each of C_out channels."""

    batch: tuple = (3,)
    sizes: tuple = (7, 4, 5, 3)  # T, C_in, C_out, width
    bias: bool = True
    options: dict = {}  # noqa: RUF012 - never changed
    function: str = "conv1d"

    @property
    def zeros(self):
        """The zeros before and after the sequence."""
        padding = self.options.get("padding", "same")
        reach = (self.sizes[-1] - 1) * self.options.get("dilation", 1)
        named = {"same": (reach // 2, reach // 2), "causal": (reach, 0), "valid": (0, 0)}
        return named.get(padding, (padding, padding))

    def arrays(self, rng):
        T, C_in, C_out, width = self.sizes
        room = T + sum(self.zeros) - (width - 1) * self.options.get("dilation", 1)
        steps, inputs = (room - 1) // self.options.get("stride", 1) + 1, C_in // self.options.get("groups", 1)
        shapes = {"x": (*self.batch, T, C_in), "weight": (C_out, inputs, width), "dout": (*self.batch, steps, C_out)}
        shapes |= {"bias": (C_out,)} if self.bias else {}
        return {name: drawn(rng, shape) for name, shape in shapes.items()}

    def outputs(self, given):
        padded = torch.nn.functional.pad(given["x"].mT, self.zeros)  # (*batch, C_in, T + zeros)
        options = {name: value for name, value in self.options.items() if name != "padding"}
        return {"out": torch.nn.functional.conv1d(padded, given["weight"], given.get("bias"), **options).mT}


class Images(NamedTuple):
    """Images of H rows and W columns; the weight has C_out, C_in / groups, height and width."""

    sizes: tuple = (5, 7, 4)  # H, W, C_in
    weight: tuple = (6, 4, 3, 2)
    options: dict = {}  # noqa: RUF012 - never changed
    function: str = "conv2d"

    def arrays(self, rng):
        arrays = {
            "x": drawn(rng, (3, *self.sizes)),
            "weight": drawn(rng, self.weight),
            "bias": drawn(rng, self.weight[:1]),
        }
        shape = self.outputs({name: torch.from_numpy(array) for name, array in arrays.items()})["out"].shape
        return {**arrays, "dout": drawn(rng, shape)}

    def outputs(self, given):
        x = given["x"].permute(0, 3, 1, 2)
        out = torch.nn.functional.conv2d(x, given["weight"], given["bias"], **self.options)
        return {"out": out.permute(0, 2, 3, 1)}


CASES = {
    "rnn": Recurrent("rnn"),
    "rnn-relu": Recurrent("rnn", options={"nonlinearity": "relu"}),
    "rnn-bidirectional-lengths": Recurrent("rnn", directions=2, lengths=(5, 1, 3)),
    "rnn-no-batch": Recurrent("rnn", batch=(), sizes=(6, 3, 5)),
    "lstm": Recurrent("lstm"),
    "lstm-no-biases-no-states": Recurrent("lstm", biases=False, states=False),
    "lstm-bidirectional": Recurrent("lstm", directions=2),
    "lstm-lengths": Recurrent("lstm", lengths=(2, 5, 4)),
    "lstm-bidirectional-lengths": Recurrent("lstm", sizes=(6, 3, 5), directions=2, lengths=(3, 6, 1), states=False),
    "lstm-one-step": Recurrent("lstm", batch=(2,), sizes=(1, 3, 5)),
    "lstm-63-steps": Recurrent("lstm", batch=(2,), sizes=(63, 3, 5)),
    "lstm-no-batch": Recurrent("lstm", batch=(), sizes=(6, 3, 5), biases=False),
    "lstm-of-one": Recurrent("lstm", batch=(1,), sizes=(4, 1, 1)),
    "gru": Recurrent("gru"),
    "gru-no-biases-no-state": Recurrent("gru", biases=False, states=False),
    "gru-bidirectional": Recurrent("gru", directions=2),
    "gru-bidirectional-lengths": Recurrent("gru", sizes=(6, 3, 5), directions=2, lengths=(6, 2, 5)),
    "gru-63-steps": Recurrent("gru", batch=(2,), sizes=(63, 3, 5)),
    "gru-no-batch": Recurrent("gru", batch=(), sizes=(6, 3, 5)),
    "conv1d": Convolution(),
    "conv1d-width-1": Convolution(sizes=(7, 4, 5, 1), bias=False),
    "conv1d-no-batch-wide": Convolution(batch=(), sizes=(3, 4, 2, 9)),
    "conv1d-dilated": Convolution(options={"dilation": 2}),
    "conv1d-causal": Convolution(sizes=(7, 4, 5, 2), options={"padding": "causal"}),
    "conv1d-causal-dilated": Convolution(sizes=(9, 4, 5, 3), options={"padding": "causal", "dilation": 3}),
    "conv1d-valid": Convolution(sizes=(7, 4, 5, 2), bias=False, options={"padding": "valid"}),
    "conv1d-valid-whole": Convolution(sizes=(6, 2, 3, 6), options={"padding": "valid"}),
    "conv1d-stride": Convolution(options={"stride": 2, "padding": 1}),
    "conv1d-groups": Convolution(sizes=(9, 4, 6, 3), options={"stride": 3, "padding": 2, "dilation": 2, "groups": 2}),
    "conv2d-patches": Images((6, 4, 3), (5, 3, 2, 2), {"stride": 2, "padding": 0}),
    "conv2d-groups": Images(
        weight=(6, 2, 3, 2), options={"stride": (2, 3), "padding": (2, 1), "dilation": (1, 2), "groups": 2}
    ),
    "conv1d-zeros": Convolution(sizes=(4, 2, 3, 6), options={"padding": 7, "dilation": 2}),
}


def drawn(rng, shape):
    """Multiples of 1/64 with deviation 1/2, which float32 holds exactly: gates do not saturate, and differ."""
    return np.round(32 * rng.standard_normal(shape)) / 64


def results(case, arrays, dtype):
    """Outputs and gradients, as float64 NumPy arrays."""
    given = {n: torch.from_numpy(a).to(dtype if a.dtype == np.float64 else None) for n, a in arrays.items()}
    constants = ("dout", "dh", "dc", "lengths")
    inputs = {n: x.requires_grad_() for n, x in given.items() if n not in constants}
    outputs = case.outputs(given)
    loss = sum((out * given[f"d{name}"]).sum() for name, out in outputs.items())
    grads = torch.autograd.grad(loss, list(inputs.values()))
    found = {**outputs, **{f"grad_{n}": g for n, g in zip(inputs, grads, strict=True)}}
    return {n: x.detach().double().numpy() for n, x in found.items()}


def main():
    """Write the file, and print the error of PyTorch's own float32."""
    stored, single = {}, 0.0
    for name, case in CASES.items():
        arrays = case.arrays(np.random.default_rng(zlib.crc32(name.encode())))
        expected = results(case, arrays, torch.float64)
        difference = largest_difference(results(case, arrays, torch.float32), expected)
        assert difference < SINGLE_PRECISION, (name, difference)
        single = max(single, difference)
        if "lengths" in arrays:
            arrays["x"][np.arange(case.sizes[0]) >= arrays["lengths"][:, None]] = np.nan
        stored |= packed(name, {"function": case.function, **case.options}, {**arrays, **expected})
    path = Path(__file__).with_name("sequences.npz")
    np.savez_compressed(path, **stored)
    print(f"{path.name}: {len(CASES)} configurations, {path.stat().st_size} bytes")
    print(f"torch {torch.__version__}, numpy {np.__version__}; float32 in torch is off by up to {single:.1e}")


if __name__ == "__main__":
    main()
