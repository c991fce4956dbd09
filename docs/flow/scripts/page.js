// The page: its state, and what happens when something is chosen.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const element = (id) => document.getElementById(id);
  const ALWAYS = ["WQ", "WK", "WV", "w", "Wp", "vp"]; // inputs that are no step

  const page = {
    graph: null,
    steps: [], // identifiers of the grids, in order
    step: 0,
    filled: Infinity, // cells of the current step that are computed
    head: 0,
    hovered: null,
    pinned: null, // the cell that was clicked or has the focus
    checks: {},

    cellsOf: (id) => page.graph.by[id].rows * page.graph.by[id].columns,
    complete: () => page.filled >= page.cellsOf(page.steps[page.step]),

    /** Whether a cell is computed by now. */
    reached({ id, i, j }) {
      const n = page.steps.indexOf(id);
      if (n < 0) return ALWAYS.includes(id);
      return n < page.step || (n === page.step && i * page.graph.by[id].columns + j < page.filled);
    },

    expected({ id, h, i, j }) {
      const grid = page.graph.by[id];
      return page.checks[id]?.expected[(h * grid.rows + i) * grid.columns + j];
    },

    isWrong(spot) {
      const expected = page.expected(spot);
      if (expected === undefined) return false;
      const largest = Math.max(...page.checks[spot.id].expected.map(Math.abs), 1e-3);
      return Math.abs(page.graph.at(spot.id, spot.h, spot.i, spot.j) - expected) > 1e-6 * largest;
    },

    /** The cell that is explained: under the pointer, chosen, or the largest of the step. */
    chosen() {
      const exists = (spot) => spot && page.graph.by[spot.id]
        && document.querySelector(`[data-cell="${Flow.cellKey(spot)}"]`);
      for (const spot of [page.hovered, page.pinned]) if (exists(spot) && page.reached(spot)) return spot;
      const id = page.steps[page.step], grid = page.graph.by[id], h = Flow.headShown(page.graph, id, page.head);
      let best = null, size = -1;
      for (let i = 0; i < grid.rows; i++) for (let j = 0; j < grid.columns; j++) {
        const spot = { id, h, i, j }, x = Math.abs(page.graph.at(id, h, i, j));
        if (page.reached(spot) && Number.isFinite(x) && x > size) [best, size] = [spot, x];
      }
      return best;
    },

    /** Change settings: everything is computed again, and the place on the page kept. */
    change(chosen) {
      const id = page.steps[page.step];
      page.load({ ...page.graph.settings, ...chosen });
      const same = page.steps.indexOf(id);
      page.step = same >= 0 ? same : Math.min(page.step, page.steps.length - 1);
      page.filled = Infinity;
      page.refresh();
      clearTimeout(page.addressing);
      page.addressing = setTimeout(page.address, 300);
    },

    load(settings) {
      page.graph = Flow.compute(settings);
      page.head = Math.min(page.head, page.graph.settings.heads - 1);
      page.steps = page.graph.grids.map(({ id }) => id).filter((name) => !ALWAYS.includes(name));
      page.checks = Object.fromEntries(Flow.check(page.graph).map((check) => [check.id, check]));
    },

    reset() {
      page.pinned = null;
      page.load({});
      page.go(page.steps.indexOf("L"), Infinity, true);
      page.address();
    },

    /** Keep the settings in the address, so that it can be sent to others. */
    address() {
      try {
        history.replaceState(null, "", `#${Flow.toHash(page.graph.settings)}`);
      } catch {
        // some embeddings forbid it; the page works without
      }
    },

    /** Build all tables again. */
    refresh() {
      Flow.build(page);
      Flow.player.timeline(page);
      Flow.controls.show(page);
      proof();
      page.repaint();
    },

    /** Write numbers and marks again. */
    repaint() {
      Flow.paint(page);
      Flow.player.mark(page);
      narrate();
      page.explain();
    },

    explain() {
      const spot = page.chosen();
      Flow.highlight(page, spot);
      Flow.draw(page, spot);
      element("explanation").innerHTML = spot ? Flow.explanation(page.graph, spot, page.expected(spot)) : "";
    },

    /** Go to a step, with all its cells or with `filled` of them. */
    go(step, filled = Infinity, rebuild = false) {
      page.step = step;
      page.filled = filled;
      page.pinned = null;
      if (rebuild) page.refresh(); else page.repaint();
      reveal(page.steps[step]);
      const { title, says } = Flow.described(page.graph.settings, page.steps[step]);
      page.say(`Step ${step + 1} of ${page.steps.length}, ${Flow.symbol(page.steps[step])}: ${title}. ${says}`);
    },

    showHead(head) {
      page.head = head;
      page.pinned = null;
      page.refresh();
    },

    say(text) { element("live").textContent = text; },

    focusCell(spot) { document.querySelector(`[data-cell="${Flow.cellKey(spot)}"]`)?.focus(); },
  };

  /** Scroll a grid into view if it is outside. */
  function reveal(id) {
    const figure = document.querySelector(`[data-grid="${id}"]`);
    if (!figure || !page.ready) return;
    const box = figure.getBoundingClientRect(), dock = document.querySelector(".dock").getBoundingClientRect();
    const bottom = dock.top > 80 ? Math.min(dock.top, innerHeight) : innerHeight; // the dock may lie at the bottom
    if (box.top >= 0 && box.bottom <= bottom) return;
    const target = scrollY + box.top - Math.max(8, (bottom - box.height) / 2);
    scrollTo({ top: target, behavior: Flow.player.calm.matches ? "auto" : "smooth" });
  }

  function narrate() {
    const s = page.graph.settings, id = page.steps[page.step];
    const { title, element: formula, matrix, says } = Flow.described(s, id);
    const pass = page.graph.by[id].pass === "backward" ? "backward" : "forward";
    element("stepCount").textContent = `Step ${page.step + 1} of ${page.steps.length}, ${pass}`;
    element("stepTitle").innerHTML = `<span class="symbol">${Flow.symbolHTML(id)}</span> ${title}`;
    element("stepFormula").innerHTML = [formula, matrix].filter(Boolean).map(Flow.mathml).join("");
    const box = element("stepFormula");
    for (const line of box.children) { // as small as the width needs
      const size = parseFloat(getComputedStyle(line).fontSize), width = line.getBoundingClientRect().width;
      if (width > box.clientWidth) line.style.fontSize = `${Math.floor(size * box.clientWidth / width)}px`;
    }
    element("stepSays").textContent = says;
    if (`${formula}${matrix}`.includes("\\out") || (s.leaveOut === "transpose" && id === "dK")) {
      const name = Flow.omissions(s).find(([one]) => one === s.leaveOut)[1];
      element("stepSays").insertAdjacentHTML("beforeend",
        ` <span class="warning">Here it is wrong, without ${name}.</span>`);
    }
  }

  function proof() {
    const checks = Object.values(page.checks), s = page.graph.settings;
    element("proof").tBodies[0].innerHTML = checks.map(({ id, relative, cosine, right }) => {
      const error = relative < 1e-6 ? "none" : `${Math.round(100 * relative)} %`;
      return `<tr class="${right ? "right" : "wrong"}"><th scope="row">${Flow.symbolHTML(id)}</th><td>${error}</td>`
        + `<td>${Flow.shown(cosine)}</td><td>${right ? "✓ right" : "✗ wrong"}</td></tr>`;
    }).join("");
    const wrong = checks.filter(({ right }) => !right).map(({ id }) => Flow.symbol(id));
    element("proofSays").textContent = !s.leaveOut
      ? "Nothing is left out: each gradient agrees with (L(x + h) − L(x − h)) / 2h, with h = 0.00001, for every number x."
      : wrong.length === 0
        ? "It makes no difference with these settings. Try others: more words in the loss, another scale, another mask."
        : `Wrong: ${wrong.join(", ")}. Their wrong numbers have a corner. An error of 100 % is as large as the largest number; `
          + "a cosine of 1 would be the right direction.";
  }

  function listen() {
    const spotOf = (event) => {
      const cell = event.target.closest?.("[data-cell]");
      return cell ? Flow.cellOf(cell.dataset.cell) : null;
    };
    const main = document.querySelector("main");
    main.addEventListener("pointerover", (event) => {
      if (event.pointerType === "touch") return;
      page.hovered = spotOf(event);
      page.explain();
    });
    main.addEventListener("pointerleave", () => { page.hovered = null; page.explain(); });
    main.addEventListener("focusin", (event) => {
      const spot = spotOf(event);
      if (!spot || event.target.matches("input")) return;
      page.pinned = spot;
      Flow.reachable(event.target);
      page.explain();
      if (page.reached(spot)) page.say(Flow.spoken(page.graph, spot));
    });
    main.addEventListener("click", (event) => {
      const cell = event.target.closest?.("[data-cell]");
      if (!cell || event.target.matches("input")) return;
      const again = cell.classList.contains("input") && page.last === cell.dataset.cell;
      page.last = cell.dataset.cell;
      if (again) Flow.edit(page, cell); else cell.focus();
    });
    main.addEventListener("keydown", keys);
    addEventListener("resize", () => page.explain());
    element("parameters").addEventListener("toggle", () => page.explain());
  }

  function keys(event) {
    const cell = event.target.closest?.("[data-cell]");
    if (!cell || event.target.matches("input") || event.altKey || event.metaKey) return;
    const editable = cell.classList.contains("input");
    const next = Flow.neighbor(cell, event.key, event.ctrlKey);
    if (next) next.focus();
    else if (event.key === "PageDown") Flow.player.jump(page, page.step + 1);
    else if (event.key === "PageUp") Flow.player.jump(page, page.step - 1);
    else if (event.key === " ") Flow.player.toggle(page);
    else if (event.key === "Escape") { page.pinned = null; page.explain(); }
    else if (editable && (event.key === "Enter" || event.key === "F2")) Flow.edit(page, cell);
    else if (editable && ["+", "="].includes(event.key)) Flow.nudge(page, cell, 0.1);
    else if (editable && ["-", "−"].includes(event.key)) Flow.nudge(page, cell, -0.1);
    else if (editable && /^[0-9.]$/.test(event.key)) Flow.edit(page, cell, event.key);
    else if (event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End") event.preventDefault();
    else return;
    event.preventDefault();
  }

  function start() {
    const chosen = Flow.fromHash(location.hash), at = new URLSearchParams(location.hash.slice(1)).get("step");
    if (matchMedia("(max-width: 1399px)").matches) element("settings").open = false;
    page.load(chosen);
    page.go(Math.max(0, page.steps.indexOf(page.steps.includes(at) ? at : "L")), Infinity, true);
    page.ready = true;
    Flow.controls.listen(page);
    Flow.player.listen(page);
    listen();
    addEventListener("hashchange", () => { page.load(Flow.fromHash(location.hash)); page.refresh(); });
  }

  /** Within a page that lets its readers choose light or dark, do as it does. */
  function follow() {
    try {
      const outer = parent.document.documentElement;
      const take = () => { if (parent !== window) document.documentElement.dataset.theme = outer.dataset.theme ?? ""; };
      new MutationObserver(take).observe(outer, { attributeFilter: ["data-theme"] });
      take();
    } catch {
      // a page of another origin: the system's colors stay
    }
  }

  Flow.page = page;
  follow();
  start();
})(Flow);
