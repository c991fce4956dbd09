// The grids of the backward pass in the order of their computation. What `leaveOut` names is left out, to see what goes wrong.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const { ref, num, sum, mul, sub, div, fn, fixed, omit, SIZES, counts, keyHead, range, features, grid, hiddenUnit } = Flow;

  /** The terms that can be left out of a gradient, for some settings: an identifier and a name. */
  function omissions(s) {
    const sparse = s.mechanism === "sparsemax", additive = s.mechanism === "additive", local = s.mechanism === "local";
    return [
      sparse ? ["delta", "the mean over the support, in dS"] : ["delta", "δ, the row’s weighted mean, in dS"],
      sparse ? ["support", "the limit to the support, in dS"] : ["weight", "the weight P, in dS"],
      ...(s.factor === 1 ? [] : [["scale", additive ? "the scale, in dQ, dK and dw" : "the scale, in dQ and dK"]]),
      ...(additive ? [["slope", "the slope 1 − tanh², in dQ and dK"], ["vector", "the score vector w, in dQ and dK"]] : []),
      ...(additive ? [] : [["transpose", "the transpose of dS, in dK"]]),
      ...(local ? [["gaussian", "the Gaussian G, in dP"], ["center", "the path through the position c, in dQ"]] : []),
      ...(s.group > 1 ? [["heads", "the sum over heads that share a key head"]] : []),
      ["query", "the path through the queries, in dX"],
      ["key", "the path through the keys, in dX"],
      ["value", "the path through the values, in dX"],
    ];
  }

  /** Mark an expression as left out if `name` is. */
  const unless = (s, name, e) => (s.leaveOut === name ? omit(e) : e);
  const scale = (s) => unless(s, "scale", num(s.factor, "scale"));

  /** Terms for each query, and for each query head of the group that shares key head g. */
  function overQueries(s, g, term) {
    const pairs = range(s.group).flatMap((r) => s.words.map((_, i) => [g * s.group + r, i]));
    const labels = pairs.map(([h, i]) => (s.group > 1 ? `${s.words[i]}, head ${h + 1}` : s.words[i]));
    return sum(labels, pairs.map(([h, i]) => (h === g * s.group ? term(h, i) : unless(s, "heads", term(h, i)))));
  }

  const overKeys = (s, term) => sum(s.words, s.words.map((_, j) => term(j)));

  function outputs(s) {
    return grid("dO", "backward", s.heads, s.words, features(SIZES.Dv), (h, i, c) => {
      if (!counts(s, i, c)) return fixed(0, "The loss does not depend on this output.");
      return s.lossKind === "squares" ? ref("O", h, i, c) : fixed(1, "The loss is a sum that has this output once.");
    });
  }

  function values(s) {
    const used = s.mechanism === "local" ? "A" : "P";
    return grid("dV", "backward", s.keyHeads, s.words, features(SIZES.Dv), (g, j, c) =>
      overQueries(s, g, (h, i) => mul(ref(used, h, i, j), ref("dO", h, i, c))));
  }

  /** The gradient of what multiplies the values. */
  function weights(s, id) {
    const labels = features(SIZES.Dv).map((c) => `feature ${c}`);
    return grid(id, "backward", s.heads, s.words, s.words, (h, i, j) =>
      sum(labels, range(SIZES.Dv).map((c) => mul(ref("dO", h, i, c), ref("V", keyHead(s, h), j, c)))));
  }

  const support = (s, h, i, at) => range(s.words.length).filter((j) => at("P", h, i, j) > 0);

  function delta(s) {
    return grid("delta", "backward", s.heads, s.words, ["δ"], (h, i, _, at) => {
      if (s.mechanism !== "sparsemax") return overKeys(s, (j) => mul(ref("P", h, i, j), ref("dP", h, i, j)));
      const keys = support(s, h, i, at);
      if (keys.length === 0) return fixed(0, "Fully masked: no key is left.");
      return div(sum(keys.map((j) => s.words[j]), keys.map((j) => ref("dP", h, i, j))), num(keys.length, "keys"));
    });
  }

  function scores(s) {
    return grid("dS", "backward", s.heads, s.words, s.words, (h, i, j, at) => {
      const rest = sub(ref("dP", h, i, j), unless(s, "delta", ref("delta", h, i, 0)));
      if (at("S", h, i, j) === -Infinity) return fixed(0, "Masked: the loss does not depend on this score.");
      if (s.mechanism !== "sparsemax") return mul(unless(s, "weight", ref("P", h, i, j)), rest);
      if (at("P", h, i, j) > 0 || s.leaveOut === "support") return rest;
      return fixed(0, "Outside the support: the weight is 0, and a small change of the score leaves it 0.");
    });
  }

  /** One term of dQ or dK in additive attention. */
  function additiveTerm(s, h, i, j, a) {
    const slope = fn("slope", hiddenUnit(s, h, i, j, a));
    return mul(ref("dS", h, i, j), unless(s, "vector", ref("w", 0, 0, a)), unless(s, "slope", slope));
  }

  function additive(s) {
    const { D } = SIZES;
    return [
      grid("dQ", "backward", s.heads, s.words, features(D), (h, i, a) =>
        mul(scale(s), overKeys(s, (j) => additiveTerm(s, h, i, j, a)))),
      grid("dK", "backward", s.keyHeads, s.words, features(D), (g, j, a) =>
        mul(scale(s), overQueries(s, g, (h, i) => additiveTerm(s, h, i, j, a)))),
      grid("dw", "backward", 1, ["w"], features(D), (_, __, a) => {
        const pairs = range(s.heads).flatMap((h) => range(s.words.length).flatMap((i) => s.words.map((___, j) =>
          [h, i, j])));
        const labels = pairs.map(([h, i, j]) => `${s.heads > 1 ? `head ${h + 1}, ` : ""}${s.words[i]}, ${s.words[j]}`);
        const terms = pairs.map(([h, i, j]) => mul(ref("dS", h, i, j), fn("tanh", hiddenUnit(s, h, i, j, a))));
        return mul(scale(s), sum(labels, terms));
      }),
    ];
  }

  function dotProducts(s) {
    const { D, A } = SIZES;
    const local = s.mechanism === "local";
    const turned = s.leaveOut === "transpose";
    return [
      grid("dQ", "backward", s.heads, s.words, features(D), (h, i, d) => {
        const product = mul(scale(s), overKeys(s, (j) => mul(ref("dS", h, i, j), ref("K", keyHead(s, h), j, d))));
        if (!local) return product;
        const path = sum(range(A).map((a) => `unit ${a + 1}`), range(A).map((a) => mul(ref("Wp", 0, a, d), ref("dz",
          h, i, a))));
        return Flow.add(product, unless(s, "center", path));
      }),
      grid("dK", "backward", s.keyHeads, s.words, features(D), (g, j, d) =>
        mul(scale(s), overQueries(s, g, (h, i) => mul(turned ? ref("dS", h, j, i) : ref("dS", h, i, j), ref("Q",
          h, i, d))))),
    ];
  }

  /** The gradients of the predicted positions and of the network that predicts them. */
  function positions(s) {
    const { D, A } = SIZES;
    const all = range(s.heads).flatMap((h) => s.words.map((_, i) => [h, i]));
    const labels = all.map(([h, i]) => `${s.heads > 1 ? `head ${h + 1}, ` : ""}${s.words[i]}`);
    const share = (h, i) => div(ref("c", h, i, 0), num(s.length, "keys"));
    // The slope of L sigmoid(u), from c = L sigmoid(u).
    const slope = (h, i) => mul(ref("c", h, i, 0), sub(num(1), share(h, i)));
    return [
      grid("dc", "backward", s.heads, s.words, ["dc"], (h, i) => overKeys(s, (j) =>
        mul(ref("P", h, i, j), ref("dP", h, i, j), div(sub(num(j, "position"), ref("c", h, i, 0)),
          num(s.sigma ** 2, "σ²"))))),
      grid("dz", "backward", s.heads, s.words, features(A), (h, i, a) =>
        mul(ref("dc", h, i, 0), slope(h, i), ref("vp", 0, 0, a), sub(num(1), mul(ref("Z", h, i, a), ref("Z", h, i, a))))),
      grid("dvp", "backward", 1, ["v"], features(A), (_, __, a) =>
        sum(labels, all.map(([h, i]) => mul(ref("dc", h, i, 0), slope(h, i), ref("Z", h, i, a))))),
      grid("dWp", "backward", 1, features(A), features(D), (_, a, d) =>
        sum(labels, all.map(([h, i]) => mul(ref("dz", h, i, a), ref("Q", h, i, d))))),
    ];
  }

  function words(s) {
    const { E, D, Dv } = SIZES;
    return grid("dX", "backward", 1, s.words, features(E), (_, i, e) => {
      const through = [
        ["query", "dQ", "WQ", s.heads, D], ["key", "dK", "WK", s.keyHeads, D], ["value", "dV", "WV", s.keyHeads, Dv],
      ];
      const labels = [], terms = [];
      for (const [name, gradient, matrix, heads, columns] of through) {
        for (const h of range(heads)) for (const d of range(columns)) {
          labels.push(`as ${name}, ${heads > 1 ? `head ${h + 1}, ` : ""}feature ${d + 1}`);
          terms.push(unless(s, name, mul(ref(gradient, h, i, d), ref(matrix, h, e, d))));
        }
      }
      return sum(labels, terms);
    });
  }

  /** All grids of the backward pass. */
  function backward(s) {
    const local = s.mechanism === "local";
    const throughGaussian = grid("dP", "backward", s.heads, s.words, s.words, (h, i, j) =>
      mul(unless(s, "gaussian", ref("G", h, i, j)), ref("dA", h, i, j)));
    return [
      outputs(s), values(s), ...(local ? [weights(s, "dA"), throughGaussian] : [weights(s, "dP")]), delta(s), scores(s),
      ...(local ? positions(s) : []),
      ...(s.mechanism === "additive" ? additive(s) : dotProducts(s)), words(s),
    ];
  }

  Object.assign(Flow, { omissions, backward });
})(Flow);
