"""A gated recurrent unit by loops over single numbers in float64, to compare the library with."""

import math

from tests.naive.rnn import over_steps, row_products, sigmoid


def gru(x, weight_ih, weight_hh, bias_ih=None, bias_hh=None, h0=None, *, mask=None, reverse=False, reset_after=True):
    """(out, h): each new state is a mean of the old one and a candidate, weighted by the update gate."""
    hidden = weight_hh.shape[1]

    def step(vector, states):
        a, u = row_products(weight_ih, vector, bias_ih), row_products(weight_hh, states[0], bias_hh)
        r, z = ([sigmoid(a[g * hidden + e] + u[g * hidden + e]) for e in range(hidden)] for g in range(2))
        if reset_after:
            new = [r[e] * u[2 * hidden + e] for e in range(hidden)]
        else:
            new = row_products(weight_hh, [r[e] * states[0][e] for e in range(hidden)], bias_hh)[2 * hidden :]
        n = [math.tanh(a[2 * hidden + e] + new[e]) for e in range(hidden)]
        return [[(1 - z[e]) * n[e] + z[e] * states[0][e] for e in range(hidden)]]

    return over_steps(x, step, hidden, [h0], mask, reverse)
