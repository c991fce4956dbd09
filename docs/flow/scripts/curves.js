// Curves from the cells that a number reads to the number: as wide as their terms are large.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const { value, reads, sums } = Flow;

  /** For each term the cell from which its curve starts: in the backward pass a gradient, otherwise not a weight. */
  function carriers(graph, cell) {
    const e = graph.by[cell.id].cell(cell.h, cell.i, cell.j, graph.at);
    const found = sums(e).filter((total) => !total.left);
    const list = found.length ? found.flatMap((total) => total.terms).filter((term) => term.op !== "omit") : reads(e);
    return list.flatMap((term) => {
      const cells = reads(term);
      const from = cells.find(({ grid }) => graph.by[grid].pass === "backward")
        ?? cells.findLast(({ grid }) => graph.by[grid].pass === "forward") ?? cells.find(({ grid }) => grid === "X");
      return from ? [{ from, size: value(term, graph.at) }] : [];
    });
  }

  /** From the side of one cell to that of another, so that no number is covered. */
  function curve(from, to) {
    const dx = to.x - from.x, dy = to.y - from.y, right = Math.sign(dx), down = Math.sign(dy);
    if (Math.abs(dx) > Math.abs(dy)) {
      const [x0, x1] = [from.x + right * from.w, to.x - right * to.w], bend = (x1 - x0) / 2;
      return `M${x0} ${from.y}C${x0 + bend} ${from.y} ${x1 - bend} ${to.y} ${x1} ${to.y}`;
    }
    const [y0, y1] = [from.y + down * from.h, to.y - down * to.h], bend = (y1 - y0) / 2;
    return `M${from.x} ${y0}C${from.x} ${y0 + bend} ${to.x} ${y1 - bend} ${to.x} ${y1}`;
  }

  /** Draw the curves of a cell, or none. */
  function draw(page, cell) {
    const svg = document.querySelector("svg.curves");
    if (!svg) return;
    svg.replaceChildren();
    const target = cell && page.reached(cell) && document.querySelector(`#board [data-cell="${Flow.cellKey(cell)}"]`);
    if (!target) return;
    const board = svg.parentElement.getBoundingClientRect();
    svg.setAttribute("viewBox", `0 0 ${board.width} ${board.height}`);
    const boxOf = (element) => {
      const box = element.getBoundingClientRect();
      const [w, h] = [box.width / 2, box.height / 2];
      return { x: box.left + w - board.left, y: box.top + h - board.top, w, h };
    };
    const end = boxOf(target);
    const starts = carriers(page.graph, cell);
    const largest = Math.max(...starts.map(({ size }) => (Number.isFinite(size) ? Math.abs(size) : 0))) || 1;
    for (const { from, size } of starts) {
      const source = document.querySelector(`#board [data-cell="${Flow.cellKey({ id: from.grid, ...from })}"]`);
      if (!source || source === target || !Number.isFinite(size) || size === 0) continue;
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", curve(boxOf(source), end));
      path.setAttribute("class", size < 0 ? "minus" : "plus");
      path.setAttribute("stroke-width", (1 + (4 * Math.abs(size)) / largest).toFixed(1));
      svg.append(path);
    }
  }

  Object.assign(Flow, { draw });
})(Flow);
