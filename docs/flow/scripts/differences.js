// Central differences: what the gradients must be. The forward pass here is plain loops that share nothing with the trees
// of the page, so that a mistake in one of them shows.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const { SIZES, range, hidden, counts, keyHead } = Flow;
  const STEP = 1e-5;

  /** heads x rows x columns times heads x columns x width; `x` has one head for all. */
  function project(x, matrix, n, width) {
    const { E } = SIZES, heads = matrix.length / (E * width), out = [];
    for (let h = 0; h < heads; h++) for (let i = 0; i < n; i++) for (let d = 0; d < width; d++) {
      let total = 0;
      for (let e = 0; e < E; e++) total += x[i * E + e] * matrix[(h * E + e) * width + d];
      out.push(total);
    }
    return out;
  }

  function softmax(scores) {
    const top = Math.max(...scores);
    if (top === -Infinity) return scores.map(() => 0);
    const exps = scores.map((x) => Math.exp(x - top)), total = exps.reduce((a, b) => a + b, 0);
    return exps.map((x) => x / total);
  }

  /** By bisection: the threshold at which the weights sum to 1. */
  function sparsemax(scores) {
    const top = Math.max(...scores);
    if (top === -Infinity) return scores.map(() => 0);
    let low = top - 1, high = top;
    for (let k = 0; k < 80; k++) {
      const middle = (low + high) / 2;
      const total = scores.reduce((sum, x) => sum + Math.max(0, x - middle), 0);
      if (total > 1) low = middle; else high = middle;
    }
    return scores.map((x) => Math.max(0, x - low));
  }

  /** The loss, from queries, keys and values, each flat: heads, words, features. */
  function lossFrom(s, { Q, K, V, w, Wp, vp }) {
    const { D, Dv, A } = SIZES, n = s.words.length;
    let loss = 0;
    for (let h = 0; h < s.heads; h++) for (let i = 0; i < n; i++) {
      const q = Q.slice((h * n + i) * D, (h * n + i + 1) * D), g = keyHead(s, h);
      let center = 0;
      if (s.mechanism === "local") {
        let u = 0;
        for (let a = 0; a < A; a++) u += vp[a] * Math.tanh(q.reduce((t, x, d) => t + x * Wp[a * D + d], 0));
        center = s.length / (1 + Math.exp(-u));
      }
      const scores = range(n).map((j) => {
        if (hidden(s, i, j) || (s.mechanism === "local" && Math.abs(j - center) > s.around)) return -Infinity;
        const k = K.slice((g * n + j) * D, (g * n + j + 1) * D);
        const score = s.mechanism === "additive"
          ? q.reduce((t, x, a) => t + w[a] * Math.tanh(x + k[a]), 0) : q.reduce((t, x, d) => t + x * k[d], 0);
        return score * s.factor;
      });
      let weights = s.mechanism === "sparsemax" ? sparsemax(scores) : softmax(scores);
      if (s.mechanism === "local") weights = weights.map((p, j) => p * Math.exp(-((j - center) ** 2) / (2 * s.sigma ** 2)));
      for (let c = 0; c < Dv; c++) {
        if (!counts(s, i, c)) continue;
        const out = weights.reduce((t, p, j) => t + p * V[(g * n + j) * Dv + c], 0);
        loss += s.lossKind === "squares" ? (out * out) / 2 : out;
      }
    }
    return loss;
  }

  /** The loss, from the inputs. */
  function loss(s, { X, WQ, WK, WV, ...others }) {
    const { D, Dv } = SIZES, n = s.words.length;
    return lossFrom(s, { Q: project(X, WQ, n, D), K: project(X, WK, n, D), V: project(X, WV, n, Dv), ...others });
  }

  function slopes(f, given, name) {
    return given[name].map((x, place) => {
      const moved = (by) => f({ ...given, [name]: given[name].with(place, x + by) });
      return (moved(STEP) - moved(-STEP)) / (2 * STEP);
    });
  }

  /** For each gradient that ends at an input: the central differences, the largest error, and the cosine. */
  function check(graph) {
    const s = graph.settings, { w, Wp, vp, X } = s.inputs;
    const inner = { w, Wp, vp, ...Object.fromEntries(["Q", "K", "V"].map((id) => [id, Array.from(graph.by[id].data)])) };
    const names = ["V", "Q", "K", ...(s.mechanism === "additive" ? ["w"] : []), ...(s.mechanism === "local" ? ["vp",
      "Wp"] : [])];
    const found = names.map((name) => [name, slopes((given) => lossFrom(s, given), inner, name)]);
    found.push(["X", slopes((given) => loss(s, given), { ...s.inputs, X }, "X")]);
    return found.map(([name, expected]) => compare(`d${name}`, Array.from(graph.by[`d${name}`].data), expected));
  }

  function compare(id, gradient, expected) {
    const size = (x) => Math.sqrt(x.reduce((total, y) => total + y * y, 0));
    const largest = Math.max(...expected.map(Math.abs), ...gradient.map(Math.abs));
    const error = Math.max(...expected.map((x, n) => Math.abs(x - gradient[n])));
    const lengths = size(gradient) * size(expected);
    const product = gradient.reduce((total, x, n) => total + x * expected[n], 0);
    // Below the rounding of the differences, both are 0.
    const relative = largest < 1e-9 ? 0 : error / largest;
    return { id, expected, relative, right: relative < 1e-6, cosine: lengths < 1e-12 ? (relative ? 0 : 1)
      : product / lengths };
  }

  Object.assign(Flow, { loss, check });
})(Flow);
