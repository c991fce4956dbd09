// What a reader chooses: the sentence, the mechanism, masks, heads, the loss, what is left out, and changed numbers.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const SIZES = { E: 4, D: 3, Dv: 2, A: 2 }; // features of words, of queries and keys, of values, of the position network
  const MOST_WORDS = 8;
  const MECHANISMS = ["softmax", "additive", "sparsemax", "local"];

  const DEFAULTS = {
    sentence: "the cat chased a mouse",
    mechanism: "softmax",
    heads: 1,
    keyHeads: 1,
    causal: false,
    window: null, // keys on either side, or null
    padding: 0, // words at the end that do not exist as keys
    scale: null, // null: the mechanism's own
    temperature: 1,
    around: 2, // the window of local attention, in keys on either side
    sigma: 1, // of its Gaussian
    lossRow: 1, // a word, or null for all
    lossColumn: null, // a feature of the output, or null for all
    lossKind: "sum", // or "squares"
    leaveOut: "",
    numbers: {}, // changed ones, as {"X/the": [...], "WQ": [...]}
  };

  const whole = (x, least, most, otherwise) =>
    Number.isFinite(Number(x)) && x !== null && x !== "" ? Math.min(most, Math.max(least, Math.round(Number(x))))
      : otherwise;
  const real = (x, least, most, otherwise) =>
    Number.isFinite(Number(x)) && x !== null && x !== "" ? Math.min(most, Math.max(least, Number(x))) : otherwise;
  const divisors = (n) => [1, 2, 3, 4].filter((d) => n % d === 0);

  /** Complete settings within their ranges, with words, defaults that depend on others, and all inputs as numbers. */
  function settle(chosen) {
    const s = { ...DEFAULTS, ...chosen };
    s.words = String(s.sentence).trim().split(/\s+/u).filter(Boolean).slice(0, MOST_WORDS);
    if (s.words.length === 0) s.words = ["word"];
    const n = s.words.length;
    if (!MECHANISMS.includes(s.mechanism)) s.mechanism = DEFAULTS.mechanism;
    s.heads = whole(s.heads, 1, 4, 1);
    s.keyHeads = divisors(s.heads).filter((d) => d <= whole(s.keyHeads, 1, 4, 1)).at(-1);
    s.causal = Boolean(s.causal);
    s.window = whole(s.window, 0, MOST_WORDS, null);
    s.padding = whole(s.padding, 0, n - 1, 0);
    s.scale = real(s.scale, -100, 100, null);
    s.temperature = real(s.temperature, 0.05, 20, 1);
    s.around = whole(s.around, 1, MOST_WORDS, 2);
    s.sigma = real(s.sigma, 0.1, 20, s.around / 2);
    s.lossRow = whole(s.lossRow, 0, n - 1, null);
    s.lossColumn = whole(s.lossColumn, 0, SIZES.Dv - 1, null);
    if (s.lossKind !== "squares") s.lossKind = "sum";
    s.length = n - s.padding;
    const dot = s.mechanism === "softmax" || s.mechanism === "sparsemax";
    s.ownScale = dot ? 1 / Math.sqrt(SIZES.D) : 1; // as the library's functions
    s.factor = (s.scale ?? s.ownScale) / s.temperature;
    s.group = s.heads / s.keyHeads;
    s.inputs = inputs(s);
    return s;
  }

  /** The inputs, each flat: heads, rows, columns. */
  function inputs(s) {
    const { E, D, Dv, A } = SIZES;
    const given = (name, count, size) => {
      const changed = s.numbers[name];
      return Array.isArray(changed) && changed.length === count && changed.every(Number.isFinite)
        ? changed : Flow.numbers(name, count, size);
    };
    // Each head's matrix has a seed of its own, so that another head does not change those that are there.
    const matrices = (name, heads, rows, columns) =>
      Array.from({ length: heads }, (_, h) => given(`${name}/${h + 1}`, rows * columns, 1)).flat();
    return {
      X: s.words.flatMap((word) => given(`X/${word.toLowerCase()}`, E, 1.6)),
      WQ: matrices("WQ", s.heads, E, D),
      WK: matrices("WK", s.keyHeads, E, D),
      WV: matrices("WV", s.keyHeads, E, Dv),
      w: given("w", D, 1.6),
      Wp: given("Wp", A * D, 1.2),
      vp: given("vp", A, 1.6),
    };
  }

  /** The settings that differ from the defaults, for an address: "#mechanism=local&heads=2". */
  function toHash(s) {
    const pairs = Object.keys(DEFAULTS).filter((key) => JSON.stringify(s[key]) !== JSON.stringify(DEFAULTS[key]));
    const text = (x) => (x !== null && typeof x === "object" ? JSON.stringify(x) : String(x));
    return new URLSearchParams(pairs.map((key) => [key, text(s[key])])).toString();
  }

  function fromHash(text) {
    const chosen = {};
    for (const [key, given] of new URLSearchParams(text.replace(/^#/, ""))) {
      if (!(key in DEFAULTS)) continue;
      try {
        chosen[key] = ["sentence", "mechanism", "lossKind", "leaveOut"].includes(key) ? given : JSON.parse(given);
      } catch {
        // what cannot be read keeps its default
      }
    }
    if (chosen.numbers !== undefined && (chosen.numbers === null || typeof chosen.numbers !== "object")) delete chosen.numbers;
    return chosen;
  }

  /** Why a key is masked for a query, or "". */
  function hidden(s, i, j) {
    if (j >= s.length) return `“${s.words[j]}” is padding`;
    if (s.causal && j > i) return `causal: key ${j + 1} comes after query ${i + 1}`;
    if (s.window !== null && Math.abs(i - j) > s.window) return `outside the window: ${Math.abs(i - j)} positions apart`;
    return "";
  }

  /** Whether the loss depends on an output. */
  const counts = (s, i, c) =>
    (s.lossRow === null ? i < s.length : i === s.lossRow) && (s.lossColumn === null || c === s.lossColumn);

  const keyHead = (s, h) => Math.floor(h / s.group);

  Object.assign(Flow, { SIZES, MOST_WORDS, MECHANISMS, DEFAULTS, divisors, settle, toHash, fromHash, hidden, counts, keyHead });
})(Flow);
