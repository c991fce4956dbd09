// The grids of the forward pass in the order of their computation: for each, how a cell is computed.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const { ref, num, add, sum, mul, sub, div, fn, fixed, SIZES, hidden, counts, keyHead } = Flow;
  const range = (n) => Array.from({ length: n }, (_, i) => i);
  const features = (n) => range(n).map((c) => `${c + 1}`);

  /** A grid: `heads` of rows x columns; `cell(h, i, j, at)` is the expression of one. */
  function grid(id, pass, heads, rowNames, columnNames, cell) {
    return { id, pass, heads, rowNames, columnNames, rows: rowNames.length, columns: columnNames.length, cell };
  }

  function input(s, id, heads, rowNames, columnNames, seeds) {
    const size = rowNames.length * columnNames.length;
    const made = grid(id, "input", heads, rowNames, columnNames, (h, i, j) =>
      num(s.inputs[id][h * size + i * columnNames.length + j], id));
    return { ...made, seeds };
  }

  const scale = (s) => num(s.factor, "scale");

  /** The product of X with a matrix of a head. */
  function projection(s, id, weights, heads, columns) {
    const labels = features(SIZES.E).map((e) => `feature ${e}`);
    return grid(id, "forward", heads, s.words, features(columns), (h, i, d) =>
      sum(labels, range(SIZES.E).map((e) => mul(ref("X", 0, i, e), ref(weights, h, e, d)))));
  }

  function dotProduct(s, h, i, j) {
    const labels = features(SIZES.D).map((d) => `feature ${d}`);
    const terms = range(SIZES.D).map((d) => mul(ref("Q", h, i, d), ref("K", keyHead(s, h), j, d)));
    return mul(scale(s), sum(labels, terms));
  }

  /** The input of tanh in additive attention. */
  const hiddenUnit = (s, h, i, j, a) => add(ref("Q", h, i, a), ref("K", keyHead(s, h), j, a));

  function additive(s, h, i, j) {
    const labels = features(SIZES.D).map((a) => `unit ${a}`);
    const terms = range(SIZES.D).map((a) => mul(ref("w", 0, 0, a), fn("tanh", hiddenUnit(s, h, i, j, a))));
    return mul(scale(s), sum(labels, terms));
  }

  /** Why a pair has no score, or "": masks, and in local attention the window around the predicted position. */
  function masked(s, h, i, j, at) {
    const reason = hidden(s, i, j);
    if (reason || s.mechanism !== "local") return reason;
    const center = at("c", h, i, 0);
    return Math.abs(j - center) > s.around
      ? `more than ${s.around} keys from the predicted position ${Flow.shown(center)}` : "";
  }

  function scores(s) {
    return grid("S", "forward", s.heads, s.words, s.words, (h, i, j, at) => {
      const reason = masked(s, h, i, j, at);
      if (reason) return fixed(-Infinity, `Masked, ${reason}.`);
      return s.mechanism === "additive" ? additive(s, h, i, j) : dotProduct(s, h, i, j);
    });
  }

  /** The keys of a row that have a score. */
  const seen = (s, h, i, at) => range(s.words.length).filter((j) => at("S", h, i, j) !== -Infinity);

  function logSumExp(s) {
    return grid("lse", "forward", s.heads, s.words, ["lse"], (h, i, _, at) => {
      const keys = seen(s, h, i, at);
      if (keys.length === 0) return fixed(-Infinity, "Fully masked: no key is left.");
      const largest = num(Math.max(...keys.map((j) => at("S", h, i, j))), "row_max");
      return add(largest, fn("log", sum(keys.map((j) => s.words[j]), keys.map((j) =>
        fn("exp", sub(ref("S", h, i, j), largest))))));
    });
  }

  /** The keys whose scores are above sparsemax's threshold: those that sorting finds. */
  function support(s, h, i, at) {
    const sorted = seen(s, h, i, at).sort((a, b) => at("S", h, i, b) - at("S", h, i, a));
    let total = 0, count = 0;
    sorted.forEach((j, k) => {
      total += at("S", h, i, j);
      if (1 + (k + 1) * at("S", h, i, j) > total) count = k + 1;
    });
    return sorted.slice(0, count).sort((a, b) => a - b);
  }

  function threshold(s) {
    return grid("tau", "forward", s.heads, s.words, ["τ"], (h, i, _, at) => {
      const keys = support(s, h, i, at);
      if (keys.length === 0) return fixed(-Infinity, "Fully masked: no key is left.");
      const total = sum(keys.map((j) => s.words[j]), keys.map((j) => ref("S", h, i, j)));
      return div(sub(total, num(1)), num(keys.length, "keys"));
    });
  }

  function weights(s) {
    return grid("P", "forward", s.heads, s.words, s.words, (h, i, j, at) => {
      if (at("S", h, i, j) === -Infinity) return fixed(0, "Masked: the weight is exactly 0.");
      const score = ref("S", h, i, j);
      return s.mechanism === "sparsemax"
        ? fn("relu", sub(score, ref("tau", h, i, 0))) : fn("exp", sub(score, ref("lse", h, i, 0)));
    });
  }

  /** Luong's predicted positions: a small network on each query, and a Gaussian around what it says. */
  function positions(s) {
    const units = features(SIZES.A), queryFeatures = features(SIZES.D).map((d) => `feature ${d}`);
    return [
      grid("Z", "forward", s.heads, s.words, units, (h, i, a) =>
        fn("tanh", sum(queryFeatures, range(SIZES.D).map((d) => mul(ref("Wp", 0, a, d), ref("Q", h, i, d)))))),
      grid("c", "forward", s.heads, s.words, ["c"], (h, i) =>
        mul(num(s.length, "keys"), fn("sigmoid", sum(units.map((a) => `unit ${a}`), range(SIZES.A).map((a) =>
          mul(ref("vp", 0, 0, a), ref("Z", h, i, a))))))),
      grid("G", "forward", s.heads, s.words, s.words, (h, i, j) =>
        fn("bell", div(sub(num(j, "position"), ref("c", h, i, 0)), num(s.sigma, "σ")))),
    ];
  }

  function outputs(s) {
    const used = s.mechanism === "local" ? "A" : "P";
    return grid("O", "forward", s.heads, s.words, features(SIZES.Dv), (h, i, c) =>
      sum(s.words, s.words.map((_, j) => mul(ref(used, h, i, j), ref("V", keyHead(s, h), j, c)))));
  }

  function loss(s) {
    return grid("L", "forward", 1, ["loss"], ["L"], () => {
      const cells = range(s.heads).flatMap((h) => range(s.words.length).flatMap((i) =>
        range(SIZES.Dv).filter((c) => counts(s, i, c)).map((c) => [h, i, c])));
      const labels = cells.map(([h, i, c]) => `${s.heads > 1 ? `head ${h + 1}, ` : ""}${s.words[i]}, feature ${c + 1}`);
      const squares = s.lossKind === "squares";
      const total = sum(labels, cells.map(([h, i, c]) =>
        squares ? mul(ref("O", h, i, c), ref("O", h, i, c)) : ref("O", h, i, c)));
      return squares ? fn("half", total) : total;
    });
  }

  /** All grids of the forward pass. */
  function forward(s) {
    const { E, D, Dv, A } = SIZES;
    const local = s.mechanism === "local";
    const heads = (name, n) => range(n).map((h) => `${name}/${h + 1}`);
    const found = [
      input(s, "X", 1, s.words, features(E), s.words.map((word) => `X/${word.toLowerCase()}`)),
      input(s, "WQ", s.heads, features(E), features(D), heads("WQ", s.heads)),
      input(s, "WK", s.keyHeads, features(E), features(D), heads("WK", s.keyHeads)),
      input(s, "WV", s.keyHeads, features(E), features(Dv), heads("WV", s.keyHeads)),
    ];
    if (s.mechanism === "additive") found.push(input(s, "w", 1, ["w"], features(D), ["w"]));
    if (local) found.push(input(s, "Wp", 1, features(A), features(D), ["Wp"]), input(s, "vp", 1, ["v"], features(A),
      ["vp"]));
    found.push(
      projection(s, "Q", "WQ", s.heads, D), projection(s, "K", "WK", s.keyHeads, D), projection(s, "V", "WV",
        s.keyHeads, Dv),
    );
    if (local) found.push(...positions(s));
    found.push(scores(s), s.mechanism === "sparsemax" ? threshold(s) : logSumExp(s), weights(s));
    if (local) {
      found.push(grid("A", "forward", s.heads, s.words, s.words, (h, i, j) => mul(ref("P", h, i, j), ref("G", h, i, j))));
    }
    return [...found, outputs(s), loss(s)];
  }

  Object.assign(Flow, { range, features, grid, hiddenUnit, forward });
})(Flow);
