// What each grid is: its symbol, a title, its formula for one element and as matrices, and a sentence that says what happens.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const SYMBOLS = { delta: "δ", tau: "τ", WQ: "W^Q", WK: "W^K", WV: "W^V", Wp: "W^p", vp: "v^p",
    dWp: "dW^p", dvp: "dv^p" };
  /** The symbol of a grid as plain text. */
  const symbol = (id) => (SYMBOLS[id] ?? id).replace("^", "");
  const symbolHTML = (id) => (SYMBOLS[id] ?? id).replace(/\^(.)/, "<sup>$1</sup>");

  const out = (s, name, tex) => (s.leaveOut === name ? `\\out{${tex}}` : tex);

  function inputs(s) {
    const own = "Press Enter on a number to change it.";
    return {
      X: ["Words", "x_i = \\text{the vector of word }i", "",
        `Each word is a vector of four numbers; the same word always has the same one. ${own}`],
      WQ: ["Matrices of the queries", "", "Q = X W^Q", `One matrix for each head. ${own}`],
      WK: ["Matrices of the keys", "", "K = X W^K", `One matrix for each key head. ${own}`],
      WV: ["Matrices of the values", "", "V = X W^V", `One matrix for each key head. ${own}`],
      w: ["Score vector", "", "", `The weights of the hidden units of additive attention. ${own}`],
      Wp: ["Position matrix", "", "", `The first layer of the network that predicts positions. ${own}`],
      vp: ["Position vector", "", "", `The second layer of the network that predicts positions. ${own}`],
    };
  }

  function forward(s) {
    const additive = s.mechanism === "additive", local = s.mechanism === "local", sparse = s.mechanism === "sparsemax";
    const shared = s.group > 1 ? ` ${s.group} query heads share each key head.` : "";
    const masks = s.causal || s.window !== null || s.padding > 0
      ? " A masked pair has the score −∞, so that its weight will be 0." : "";
    const used = local ? "a" : "p";
    return {
      Q: ["Queries", "q_{id} = \\sum_e x_{ie} W^Q_{ed}", "Q = X W^Q",
        "The query of a word is its vector times the matrix of the head."],
      K: ["Keys", "k_{jd} = \\sum_e x_{je} W^K_{ed}", "K = X W^K",
        `The key of a word is its vector times another matrix.${shared}`],
      V: ["Values", "v_{jc} = \\sum_e x_{je} W^V_{ec}", "V = X W^V",
        "The value of a word is what will be summed, with weights."],
      Z: ["Hidden layer of the positions", "z_{ia} = \\tanh (\\sum_d W^p_{ad} q_{id})", "Z = \\tanh(Q {W^p}^\\top)",
        "A small network predicts from each query the position where to attend. This is its hidden layer."],
      c: ["Predicted positions", "c_i = N \\, \\sigma(\\sum_a v^p_a z_{ia})", "",
        `The position of each query, between 0 and the number of keys N = ${s.length}: σ is the sigmoid here.`],
      G: ["Gaussian", "g_{ij} = e^{-(j - c_i)^2 / 2 \\sigma^2}", "",
        `Keys count less, the farther they are from the predicted position; the standard deviation σ is ${Flow.shown(s.sigma)}.`],
      S: additive
        ? ["Scores", "s_{ij} = \\text{scale} \\sum_a w_a \\tanh(q_{ia} + k_{ja})", "",
          `A network with one hidden layer scores each pair of query and key.${masks}`]
        : ["Scores", "s_{ij} = \\text{scale} \\sum_d q_{id} k_{jd}", "S = \\text{scale} \\, Q K^\\top",
          `The score of a query and a key is their dot product, scaled.${masks}${
            local ? ` Keys more than ${s.around} from the predicted position are masked.` : ""}`],
      lse: ["Log-sum-exp", "\\ell_i = \\log \\sum_j e^{s_{ij}}", "",
        "One number for each row, computed from the maximum on so that nothing overflows. It is all that a backward pass "
        + "needs to compute the weights again from the scores."],
      tau: ["Threshold", "\\tau_i = \\frac{1}{|\\Omega_i|} (\\sum_{j \\in \\Omega_i} s_{ij} - 1)", "",
        "The threshold at which the weights sum to 1. Ω is the support: the keys whose scores are above it."],
      P: sparse
        ? ["Weights", "p_{ij} = \\max(0, s_{ij} - \\tau_i)", "P = \\text{sparsemax}(S)",
          "What a score has above the threshold is its weight. All other weights are exactly 0."]
        : ["Weights", "p_{ij} = e^{s_{ij} - \\ell_i} = \\frac{e^{s_{ij}}}{\\sum_l e^{s_{il}}}", "P = \\text{softmax}(S)",
          "Softmax makes positive weights of the scores; each row sums to 1."],
      A: ["Weights times Gaussian", "a_{ij} = p_{ij} \\, g_{ij}", "A = P \\odot G",
        "The Gaussian comes after the softmax and nothing is normalized again: these rows sum to less than 1."],
      O: ["Outputs", `o_{ic} = \\sum_j ${used}_{ij} v_{jc}`, `O = ${used.toUpperCase()} V`,
        "Each output is the weighted sum of the values."],
      L: s.lossKind === "squares"
        ? ["Loss", "L = \\frac{1}{2} \\sum_{i,c} o_{ic}^2", "",
          "Half the sum of the squares of the chosen outputs. Each gradient says how much L grows "
          + "when one number grows a little."]
        : ["Loss", "L = \\sum_{i,c} o_{ic}", "",
          "The sum of the chosen outputs. Each gradient says how much L grows when one number grows a little."],
    };
  }

  function backward(s) {
    const local = s.mechanism === "local", sparse = s.mechanism === "sparsemax";
    const used = local ? "a" : "p", grouped = s.group > 1;
    const queries = grouped ? `${out(s, "heads", "\\sum_{h}")} \\sum_i` : "\\sum_i";
    const heads = grouped ? `${out(s, "heads", "\\sum_h")} ` : "";
    const shared = grouped ? ` ${s.group} query heads share the key head: their gradients add up.` : "";
    return {
      dO: ["Gradient of the outputs",
        `do_{ic} = \\frac{\\partial L}{\\partial o_{ic}} = ${s.lossKind === "squares" ? "o_{ic}" : "1"}`, "",
        s.lossKind === "squares"
          ? "The derivative of half a square is the output itself; outputs that were not chosen have 0."
          : "Chosen outputs are in the sum once, so their gradient is 1; all others have 0."],
      dV: ["Gradient of the values", `dv_{jc} = ${queries} ${used}_{ij} \\, do_{ic}`, 
        `dV = ${heads}${used.toUpperCase()}^\\top dO`,
        "A value is part of the output of every query, so its gradient sums over the queries: the weights are transposed."
        + shared],
      dA: ["Gradient of the products", "da_{ij} = \\sum_c do_{ic} v_{jc}", "dA = dO \\, V^\\top",
        "What multiplies a value in a sum has that value as its factor: dot products of dO with the values."],
      dP: local
        ? ["Gradient of the weights", `dp_{ij} = ${out(s, "gaussian", "g_{ij}")} \\, da_{ij}`,
          `dP = ${out(s, "gaussian", "G \\odot")} dA`,
          "The weight was multiplied with the Gaussian, so its gradient is, too."]
        : ["Gradient of the weights", "dp_{ij} = \\sum_c do_{ic} v_{jc}", "dP = dO \\, V^\\top",
          "A weight multiplies a value, so its gradient is the dot product of dO with that value."],
      delta: sparse
        ? ["Mean over the support", "\\delta_i = \\frac{1}{|\\Omega_i|} \\sum_{j \\in \\Omega_i} dp_{ij}", "",
          "The weights of a row sum to 1, so they cannot all grow: the mean over the support has no effect."]
        : ["Weighted mean of each row", "\\delta_i = \\sum_j p_{ij} \\, dp_{ij} = \\sum_c do_{ic} \\, o_{ic}",
          "\\delta = \\rowsum(dO \\odot O)",
          "The weights of a row sum to 1: if one grows, the others shrink. δ is the part of dP that they share. It equals do · o, "
          + "so that it needs no weights."],
      dS: sparse
        ? ["Gradient of the scores",
          `ds_{ij} = dp_{ij} ${out(s, "delta", "- \\delta_i")} \\quad ${out(s, "support", "j \\in \\Omega_i")}`, "",
          "Within the support, the difference from the mean; elsewhere 0, as a small change leaves a weight of 0 as it is."]
        : ["Gradient of the scores", `ds_{ij} = ${out(s, "weight", "p_{ij}")} (dp_{ij} ${out(s, "delta", "- \\delta_i")})`,
          `dS = ${out(s, "weight", "P \\odot")} (dP ${out(s, "delta", "- \\delta")})`,
          "A score matters as far as its dP differs from the row’s mean, and as much as its weight. Each row sums to 0: "
          + "softmax does not see a number that is added to all scores."],
      dc: ["Gradient of the positions", "dc_i = \\sum_j p_{ij} \\, dp_{ij} \\, \\frac{j - c_i}{\\sigma^2}", "",
        "The position moves the Gaussian: toward keys whose weight should grow."],
      dz: ["Gradient before the tanh", "dz_{ia} = dc_i \\, c_i (1 - \\frac{c_i}{N}) \\, v^p_a \\, (1 - z_{ia}^2)", "",
        "Back through the sigmoid, the position vector and the tanh."],
      dvp: ["Gradient of the position vector", "dv^p_a = \\sum_i dc_i \\, c_i (1 - \\frac{c_i}{N}) z_{ia}", "",
        "One vector serves all queries: a sum over them."],
      dWp: ["Gradient of the position matrix", "dW^p_{ad} = \\sum_i dz_{ia} q_{id}", "",
        "One matrix serves all queries: a sum over them."],
      ...products(s, queries, shared),
      dX: ["Gradient of the words",
        `dx_i = ${out(s, "query", "W^Q dq_i")} + ${out(s, "key", "W^K dk_i")} + ${out(s, "value", "W^V dv_i")}`,
        `dX = ${out(s, "query", "dQ {W^Q}^\\top")} + ${out(s, "key", "dK {W^K}^\\top")} + ${out(s, "value", "dV {W^V}^\\top")}`,
        `A word is used three times, as query, as key and as value: the three gradients add up${
          s.heads > 1 ? ", over all heads" : ""}.`],
    };
  }

  /** dQ, dK and dw. */
  function products(s, queries, shared) {
    const scale = out(s, "scale", "\\text{scale}");
    if (s.mechanism === "additive") {
      const rest = (unit) => `ds_{ij} \\, ${out(s, "vector", "w_a")} ${out(s, "slope", `(1 - \\tanh^2(${unit}))`)}`;
      return {
        dQ: ["Gradient of the queries", `dq_{ia} = ${scale} \\sum_j ${rest("q_{ia} + k_{ja}")}`, "",
          "A query is in the scores of all keys: a sum over the keys. The slope of tanh is 1 − tanh²."],
        dK: ["Gradient of the keys", `dk_{ja} = ${scale} ${queries} ${rest("q_{ia} + k_{ja}")}`, "",
          `The same terms as for the queries, but summed over the queries.${shared}`],
        dw: ["Gradient of the score vector", `dw_a = ${scale} \\sum_{i,j} ds_{ij} \\tanh(q_{ia} + k_{ja})`, "",
          "One vector serves all pairs: a sum over all of them."],
      };
    }
    const local = s.mechanism === "local";
    const path = local ? out(s, "center", "+ \\sum_a W^p_{ad} dz_{ia}") : "";
    const ds = s.leaveOut === "transpose" ? "ds_{ji}" : "ds_{ij}";
    const dS = s.leaveOut === "transpose" ? "dS^{\\out{\\top}}" : "dS^\\top";
    return {
      dQ: ["Gradient of the queries", `dq_{id} = ${scale} \\sum_j ds_{ij} k_{jd} ${path}`,
        `dQ = ${scale} \\, dS \\, K ${local ? out(s, "center", "+ dZ \\, W^p") : ""}`,
        `A query is in the scores of all keys: a sum over the keys.${local ? " It also predicts the position: a second path." : ""}`],
      dK: ["Gradient of the keys", `dk_{jd} = ${scale} ${queries} ${ds} q_{id}`,
        `dK = ${scale} \\, ${shared ? `${out(s, "heads", "\\sum_h")} ` : ""}${dS} Q`,
        `A key is in the scores of all queries: a sum over the queries, so dS is transposed.${shared}`],
    };
  }

  /** What a grid is. `element` and `matrix` are formulas for `mathml`, "" where there is none. */
  function described(s, id) {
    const [title, element, matrix, says] = { ...inputs(s), ...forward(s), ...backward(s) }[id];
    return { title, element, matrix, says };
  }

  Object.assign(Flow, { symbol, symbolHTML, described });
})(Flow);
