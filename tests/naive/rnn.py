"""A simple recurrent network by loops over single numbers in float64, to compare the library with."""

import math

import numpy as np


def rnn(x, weight_ih, weight_hh, bias_ih=None, bias_hh=None, h0=None, *, mask=None, reverse=False, nonlinearity="tanh"):
    """(out, h): each new state is phi of the products with the input and with the state before."""

    def step(vector, states):
        a, u = row_products(weight_ih, vector, bias_ih), row_products(weight_hh, states[0], bias_hh)
        return [[squash(a[e] + u[e]) for e in range(len(a))]]

    def squash(number):
        return math.tanh(number) if nonlinearity == "tanh" else max(number, 0.0)

    return over_steps(x, step, weight_hh.shape[1], [h0], mask, reverse)


def row_products(weight, vector, bias=None):
    """weight times vector, plus the bias if there is one."""
    rows, columns = weight.shape
    return [
        sum(float(weight[e, j]) * float(vector[j]) for j in range(columns)) + (0.0 if bias is None else float(bias[e]))
        for e in range(rows)
    ]


def sigmoid(number):
    return 1 / (1 + math.exp(-number))


def over_steps(x, step, hidden, initial, mask, reverse):
    """(out, *last states): `step` takes a vector and the list of states, whose first is the output."""
    *batch, steps, _ = x.shape
    out = np.zeros((*batch, steps, hidden))
    last = [np.zeros((*batch, hidden)) for _ in initial]
    for row in np.ndindex(*batch):
        states = [[0.0] * hidden if state is None else state[row].tolist() for state in initial]
        for t in reversed(range(steps)) if reverse else range(steps):
            if mask is None or mask[(*row, t)]:
                states = step(x[(*row, t)], states)
                out[(*row, t)] = states[0]
        for whole, state in zip(last, states, strict=True):
            whole[row] = state
    return out, *last
