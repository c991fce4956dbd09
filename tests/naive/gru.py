"""A gated recurrent unit by loops over single numbers in float64, to compare the library with."""

import math

from tests.naive.rnn import over_steps, row_products, sigmoid


def gru(x, weight_ih, weight_hh, bias_ih=None, bias_hh=None, h0=None, *, mask=None, reverse=False):
    """(out, h): each new state is a mean of the old one and a candidate, weighted by the update gate."""
    hidden = weight_hh.shape[1]

    def step(vector, states):
        a, u = row_products(weight_ih, vector, bias_ih), row_products(weight_hh, states[0], bias_hh)
        h = []
        for e in range(hidden):
            r, z = (sigmoid(a[gate * hidden + e] + u[gate * hidden + e]) for gate in range(2))
            n = math.tanh(a[2 * hidden + e] + r * u[2 * hidden + e])
            h.append((1 - z) * n + z * states[0][e])
        return [h]

    return over_steps(x, step, hidden, [h0], mask, reverse)
