// Changing the numbers of the words and of the matrices.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  /** The settings' `numbers` with one cell of an input changed. Equal words share their vector. */
  function changed(graph, { id, h, i, j }, x) {
    const { settings, by } = graph, grid = by[id];
    const size = id === "X" ? grid.columns : grid.rows * grid.columns;
    const start = id === "X" ? i * grid.columns : h * size;
    const seed = grid.seeds[id === "X" ? i : h];
    const own = settings.inputs[id].slice(start, start + size);
    own[id === "X" ? j : i * grid.columns + j] = x;
    return { ...settings.numbers, [seed]: own };
  }

  /** A number from text, with a comma or a typographic minus, or NaN. */
  const parsed = (text) => {
    const plain = text.trim().replace(",", ".").replace("−", "-");
    return /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(plain) ? Number(plain) : NaN;
  };

  /** Put a text field into a cell; `first` is a character typed to begin. */
  function edit(page, cell, first = "") {
    const spot = Flow.cellOf(cell.dataset.cell);
    const field = document.createElement("input");
    field.type = "text";
    field.inputMode = "decimal";
    field.setAttribute("aria-label", `New number for ${cell.getAttribute("aria-label")}`);
    field.value = first || cell.textContent.replace("−", "-");
    cell.replaceChildren(field);
    field.focus();
    if (!first) field.select();
    let done = false;
    /** Take the number or not; what is wrong with it, or "". */
    const finish = (take) => {
      if (done) return "";
      done = true;
      const x = parsed(field.value), fits = Number.isFinite(x) && Math.abs(x) <= 1000;
      if (take && fits) page.change({ numbers: changed(page.graph, spot, x) }); else page.refresh();
      return take && !fits ? `${field.value || "Nothing"} is not a number between −1000 and 1000. The old one stays.` : "";
    };
    field.addEventListener("blur", () => page.say(finish(true)));
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault();
      const wrong = finish(event.key === "Enter");
      page.focusCell(spot);
      if (wrong) page.say(wrong); // after what the focus says
    });
  }

  /** Change a cell by a step of 0.1. */
  function nudge(page, cell, by) {
    const spot = Flow.cellOf(cell.dataset.cell);
    const x = Math.round((page.graph.at(spot.id, spot.h, spot.i, spot.j) + by) * 100) / 100;
    page.change({ numbers: changed(page.graph, spot, x) });
    page.focusCell(spot);
  }

  Object.assign(Flow, { edit, nudge, changed, parsed });
})(Flow);
