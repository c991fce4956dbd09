// The grids on the page: tables whose cells can be reached by keys. Below each value is its gradient, of the same shape.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const { shown, symbol, symbolHTML, escape, described, place } = Flow;

  /** The sections of the board: in each, units of a value and its gradient, with the thin columns beside them. */
  function sections(s) {
    const local = s.mechanism === "local", additive = s.mechanism === "additive", sparse = s.mechanism === "sparsemax";
    return [
      ["From words to queries, keys and values", [[["X"], ["dX"]], [["Q"], ["dQ"]], [["K"], ["dK"]], [["V"], ["dV"]]]],
      ...(local ? [["Predicted positions", [[["Z", "c"], ["dz", "dc"]], [["G"], []]]]] : []),
      ...(additive ? [["The vector of the scores", [[["w", "dw"], []]]]] : []),
      ["From scores to outputs", [
        [["S", sparse ? "tau" : "lse"], ["dS"]], [["P"], ["dP", "delta"]], ...(local ? [[["A"], ["dA"]]] : []),
        [["O", "L"], ["dO"]],
      ]],
    ];
  }

  const matrices = (s) => [[["WQ"], []], [["WK"], []], [["WV"], []], ...(s.mechanism === "local" ? [[["Wp"], ["dWp"]],
    [["vp"], ["dvp"]]] : [])];

  // Titles beside the symbols; a gradient has its value above it.
  const SHORT = {
    Z: "hidden layer", A: "P · G", WQ: "of the queries", WK: "of the keys", WV: "of the values", Wp: "first layer", vp: "second",
  };

  const key = ({ id, h, i, j }) => `${id}/${h}/${i}/${j}`;
  const unkey = (text) => { const [id, h, i, j] = text.split("/"); return { id, h: +h, i: +i, j: +j }; };

  /** The head of a grid that is shown when query head `head` is. */
  function headShown(graph, id, head) {
    const { heads } = graph.by[id], s = graph.settings;
    if (heads === 1) return 0;
    return heads === s.heads && !["K", "V", "WK", "WV", "dK", "dV"].includes(id) ? head : Flow.keyHead(s, head);
  }

  const label = (name) => `<span title="${escape(name)}">${escape(name)}</span>`;

  function table(graph, id, head) {
    const grid = graph.by[id], s = graph.settings, h = headShown(graph, id, head);
    const { title } = described(s, id);
    const shortTitle = SHORT[id] ?? (grid.pass === "backward" ? "gradient" : title.toLowerCase());
    const kind = grid.columnNames === s.words ? (grid.columns > 6 ? "square wide" : "square")
      : grid.columns === 1 ? "thin" : grid.columns < 4 ? "narrow" : "";
    const heads = grid.heads > 1 ? `, head ${h + 1} of ${grid.heads}` : "";
    const columns = grid.columnNames.map((name) =>
      `<th scope="col">${label(grid.columns === 1 ? "" : name)}</th>`).join("");
    const rows = grid.rowNames.map((name, i) => {
      const cells = grid.columnNames.map((_, j) =>
        `<td role="gridcell" tabindex="-1" data-cell="${key({ id, h, i, j })}"></td>`).join("");
      return `<tr role="row"><th scope="row">${label(grid.rows === 1 ? "" : name)}</th>${cells}</tr>`;
    }).join("");
    const badge = grid.heads > 1 ? `<small>${grid.heads === s.heads ? "head" : "key head"} ${h + 1}</small>` : "";
    return `<figure class="grid ${kind} ${grid.pass}" data-grid="${id}" style="--columns:${grid.columns}">
      <figcaption><span class="symbol">${symbolHTML(id)}</span><span class="title">${shortTitle}</span>${badge}
        <em class="tag"></em></figcaption>
      <table role="grid" aria-label="${escape(`${symbol(id)}, ${title.toLowerCase()}${heads}`)}">
        <thead><tr role="row"><td></td>${columns}</tr></thead><tbody>${rows}</tbody></table></figure>`;
  }

  const unit = (graph, head) => ([values, gradients]) => `<div class="unit">
    <div class="row">${values.map((id) => table(graph, id, head)).join("")}</div>
    ${gradients.length ? `<div class="row">${gradients.map((id) => table(graph, id, head)).join("")}</div>` : ""}</div>`;

  /** Make the tables of the board and of the matrices. */
  function build(page) {
    const { graph, head } = page, s = graph.settings;
    document.getElementById("board").innerHTML = sections(s).map(([title, units]) =>
      `<section class="band"><h2>${title}</h2>
        <div class="units">${units.map(unit(graph, head)).join("")}</div></section>`).join("")
      + '<svg class="curves" aria-hidden="true"></svg>';
    document.getElementById("matrices").innerHTML = matrices(s).map(unit(graph, head)).join("");
    for (const grid of document.querySelectorAll("table[role=grid]")) grid.querySelector("[data-cell]").tabIndex = 0;
  }

  /** Write the numbers that are computed by now, and mark what is current, read, wrong. */
  function paint(page) {
    const { graph, head } = page, current = page.steps[page.step];
    const largest = {};
    for (const grid of graph.grids) {
      const sizes = Array.from(grid.data).filter(Number.isFinite).map(Math.abs);
      largest[grid.id] = Math.max(...sizes, ["P", "A", "G"].includes(grid.id) ? 1 : 0) || 1;
    }
    for (const cell of document.querySelectorAll("[data-cell]")) {
      const spot = unkey(cell.dataset.cell), { id, h, i, j } = spot;
      if (!page.reached(spot)) {
        cell.textContent = "";
        cell.className = "empty";
        cell.style.removeProperty("--v");
        cell.setAttribute("aria-label", `${symbol(id)}, ${place(graph, spot)}: not computed yet`);
        continue;
      }
      const x = graph.at(id, h, i, j), share = Number.isFinite(x) ? Math.abs(x) / largest[id] : 0;
      const wrong = page.isWrong(spot);
      cell.textContent = shown(x);
      cell.style.setProperty("--v", share.toFixed(3));
      cell.className = [
        x < 0 ? "minus" : "plus", x === 0 || !Number.isFinite(x) ? "none" : "", Number.isFinite(x) ? "" : "masked",
        share > 0.62 ? "strong" : "", wrong ? "wrong" : "", graph.by[id].pass === "input" ? "input" : "",
      ].filter(Boolean).join(" ");
      cell.setAttribute("aria-label", `${symbol(id)}, ${place(graph, spot)}: ${shown(x)}${wrong ? ", wrong" : ""}`);
    }
    for (const figure of document.querySelectorAll("[data-grid]")) {
      const { grid } = figure.dataset;
      figure.classList.toggle("current", grid === current);
      figure.classList.toggle("waiting", !page.reached({ id: grid, h: headShown(graph, grid, head), i: 0, j: 0 }));
    }
  }

  /** Show one cell as chosen, and the cells that it reads. */
  function highlight(page, chosen) {
    for (const cell of document.querySelectorAll(".chosen, .read")) cell.classList.remove("chosen", "read");
    for (const figure of document.querySelectorAll("[data-grid]")) {
      figure.classList.remove("reads");
      figure.querySelector(".tag").textContent = figure.classList.contains("current") ? "now" : "";
    }
    if (!chosen) return;
    const at = (spot) => document.querySelector(`[data-cell="${key(spot)}"]`);
    at(chosen)?.classList.add("chosen");
    const e = page.graph.by[chosen.id].cell(chosen.h, chosen.i, chosen.j, page.graph.at);
    for (const { grid, h, i, j } of Flow.reads(e)) {
      const cell = at({ id: grid, h, i, j });
      if (!cell) continue;
      cell.classList.add("read");
      const figure = cell.closest("[data-grid]");
      figure.classList.add("reads");
      if (!figure.classList.contains("current")) figure.querySelector(".tag").textContent = "read";
    }
  }

  /** The cell to which a key moves, or null. */
  function neighbor(cell, name, whole) {
    const row = cell.parentElement, cells = [...row.querySelectorAll("[data-cell]")], j = cells.indexOf(cell);
    const rows = [...row.parentElement.children], i = rows.indexOf(row);
    const of = (r, c) => rows[r]?.querySelectorAll("[data-cell]")[c] ?? null;
    switch (name) {
      case "ArrowLeft": return of(i, j - 1);
      case "ArrowRight": return of(i, j + 1);
      case "ArrowUp": return of(i - 1, j);
      case "ArrowDown": return of(i + 1, j);
      case "Home": return whole ? of(0, 0) : of(i, 0);
      case "End": return whole ? of(rows.length - 1, cells.length - 1) : of(i, cells.length - 1);
      default: return null;
    }
  }

  /** Make a cell the one of its grid that Tab reaches. */
  function reachable(cell) {
    for (const other of cell.closest("table").querySelectorAll('[data-cell][tabindex="0"]')) other.tabIndex = -1;
    cell.tabIndex = 0;
  }

  Object.assign(Flow, { build, paint, highlight, neighbor, reachable, headShown, cellKey: key, cellOf: unkey });
})(Flow);
