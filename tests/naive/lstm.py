"""Long short-term memory by loops over single numbers in float64, to compare the library with."""

import math

from tests.naive.rnn import over_steps, row_products, sigmoid


def lstm(
    x, weight_ih, weight_hh, bias_ih=None, bias_hh=None, h0=None, c0=None, *, peephole=None, mask=None, reverse=False
):
    """(out, h, c): c = forget gate times c + input gate times candidate, and h = output gate times tanh(c)."""
    hidden = weight_hh.shape[1]

    def step(vector, states):
        a, u = row_products(weight_ih, vector, bias_ih), row_products(weight_hh, states[0], bias_hh)
        h, c = [], []
        for e in range(hidden):
            i, f, g, o = (a[gate * hidden + e] + u[gate * hidden + e] for gate in range(4))
            pi, pf, po = (0.0 if peephole is None else float(peephole[gate * hidden + e]) for gate in range(3))
            before = states[1][e]
            c.append(sigmoid(f + pf * before) * before + sigmoid(i + pi * before) * math.tanh(g))
            h.append(sigmoid(o + po * c[-1]) * math.tanh(c[-1]))
        return [h, c]

    return over_steps(x, step, hidden, [h0, c0], mask, reverse)
