// How one number of a grid is computed, as a tree: its value, its explanation and the cells that it reads all come from it,
// so that an explanation cannot say anything else than what was computed.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const ref = (grid, h, i, j) => ({ op: "ref", grid, h, i, j });
  const num = (value, name = "") => ({ op: "num", value, name });
  const add = (...terms) => ({ op: "add", terms });
  /** A sum over an index: `labels` say which term is which. */
  const sum = (labels, terms) => ({ op: "add", terms, labels });
  const mul = (...factors) => ({ op: "mul", factors });
  const sub = (left, right) => ({ op: "sub", left, right });
  const div = (left, right) => ({ op: "div", left, right });
  const fn = (name, of) => ({ op: "fn", name, of });
  /** A number that needs no computation, and why: a masked score, a zero. */
  const fixed = (value, reason) => ({ op: "fixed", value, reason });
  /** What a correct gradient has, and this one does not: 0 in a sum, 1 in a product. */
  const omit = (of) => ({ op: "omit", of });

  const FUNCTIONS = {
    exp: Math.exp,
    log: Math.log,
    tanh: Math.tanh,
    slope: (x) => 1 - Math.tanh(x) ** 2, // of tanh
    sigmoid: (x) => 1 / (1 + Math.exp(-x)),
    bell: (x) => Math.exp((-x * x) / 2),
    relu: (x) => Math.max(0, x),
    half: (x) => x / 2,
  };

  /** The value of an expression; `at(grid, h, i, j)` is that of a cell. */
  function value(e, at) {
    const kept = (list) => list.filter((part) => part.op !== "omit");
    switch (e.op) {
      case "ref": return at(e.grid, e.h, e.i, e.j);
      case "num": case "fixed": return e.value;
      case "add": return kept(e.terms).reduce((total, term) => total + value(term, at), 0);
      case "mul": return kept(e.factors).reduce((product, factor) => product * value(factor, at), 1);
      case "sub": return value(e.left, at) - (e.right.op === "omit" ? 0 : value(e.right, at));
      case "div": return value(e.left, at) / value(e.right, at);
      case "fn": return FUNCTIONS[e.name](value(e.of, at));
      case "omit": return value(e.of, at);
      default: throw new Error(`unknown operation ${e.op}`);
    }
  }

  const parts = (e) => e.terms ?? e.factors ?? [e.left, e.right, e.of].filter(Boolean);

  /** The cells that an expression reads, those left out not among them. */
  function reads(e) {
    if (e.op === "ref") return [e];
    return e.op === "omit" ? [] : parts(e).flatMap(reads);
  }

  /** The sums over an index within an expression, outermost first, each with whether it is left out. */
  function sums(e, left = false) {
    if (e.op === "omit") return sums(e.of, true);
    return e.op === "add" && e.labels ? [{ labels: e.labels, terms: e.terms, left, of: e }] : parts(e).flatMap((part) =>
      sums(part, left));
  }

  Object.assign(Flow, { ref, num, add, sum, mul, sub, div, fn, fixed, omit, value, reads, sums });
})(Flow);
