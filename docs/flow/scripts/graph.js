// All grids of some settings, computed in order, and numbers as text.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  /** Compute all grids: `grids` in order, `by` identifier, and `at(grid, h, i, j)` for any cell. */
  function compute(chosen) {
    const s = Flow.settle(chosen);
    if (!Flow.omissions(s).some(([id]) => id === s.leaveOut)) s.leaveOut = "";
    const grids = [...Flow.forward(s), ...Flow.backward(s)];
    const by = Object.fromEntries(grids.map((grid) => [grid.id, grid]));
    const at = (id, h, i, j) => by[id].data[(h * by[id].rows + i) * by[id].columns + j];
    for (const grid of grids) {
      grid.data = new Float64Array(grid.heads * grid.rows * grid.columns);
      let place = 0;
      for (let h = 0; h < grid.heads; h++) for (let i = 0; i < grid.rows; i++) for (let j = 0; j < grid.columns; j++) {
        grid.data[place++] = Flow.value(grid.cell(h, i, j, at), at);
      }
    }
    return { settings: s, grids, by, at };
  }

  /** The numbers of all grids as nested lists, null for minus infinity. */
  function numbersOf(graph) {
    const nested = (grid) => Flow.range(grid.heads).map((h) => Flow.range(grid.rows).map((i) =>
      Flow.range(grid.columns).map((j) => graph.at(grid.id, h, i, j)).map((x) => (Number.isFinite(x) ? x : null))));
    return Object.fromEntries(graph.grids.map((grid) => [grid.id, nested(grid)]));
  }

  /** A number as text: two decimals, "0" only if it is exactly 0. */
  function shown(x, decimals = 2) {
    if (Number.isNaN(x)) return "undefined";
    if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
    if (x === 0) return "0";
    const size = Math.abs(x);
    const text = size >= 1e4 ? size.toExponential(0).replace("+", "") : size.toFixed(size >= 100 ? 0 : decimals);
    return (x < 0 && Number(text) !== 0 ? "−" : "") + text;
  }

  Object.assign(Flow, { compute, numbersOf, shown });
})(Flow);
