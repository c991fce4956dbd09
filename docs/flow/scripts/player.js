// Play, step, back: the buttons, the timeline and the clock.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  // Milliseconds: all cells of a step, one cell at most, a pause after each step.
  const FILLING = 1400, CELL = 160, READING = 2600;
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const element = (id) => document.getElementById(id);
  let clock = null;

  /** The steps in two rows: the forward pass to the right, and below it the backward pass to the left. */
  function timeline(page) {
    const rows = ["forward", "backward"].map((pass) => {
      const list = page.steps.map((id, n) => ({ id, n })).filter(({ id }) => (page.graph.by[id].pass === "backward")
        === (pass === "backward"));
      if (pass === "backward") list.reverse();
      const chips = list.map(({ id, n }) =>
        `<button type="button" tabindex="-1" data-step="${n}" aria-label="Step ${n + 1}, ${Flow.symbol(id)}">`
        + `${Flow.symbolHTML(id)}</button>`);
      return `<div class="${pass}"><span aria-hidden="true">${pass === "forward" ? "→" : "←"}</span>${chips.join("")}</div>`;
    });
    element("timeline").innerHTML = rows.join("");
  }

  function mark(page) {
    for (const chip of element("timeline").querySelectorAll("[data-step]")) {
      const n = Number(chip.dataset.step);
      chip.classList.toggle("done", n < page.step);
      chip.tabIndex = n === page.step ? 0 : -1;
      if (n === page.step) chip.setAttribute("aria-current", "step"); else chip.removeAttribute("aria-current");
    }
    element("first").disabled = element("back").disabled = page.step === 0;
    element("next").disabled = element("last").disabled = page.step === page.steps.length - 1 && page.complete();
  }

  function tick(page) {
    const total = page.cellsOf(page.steps[page.step]);
    if (page.filled < total) {
      const many = calm.matches ? total : Math.max(1, Math.round((total * CELL) / FILLING));
      page.filled = Math.min(total, page.filled + many);
      page.repaint();
    } else if (page.step < page.steps.length - 1) {
      page.go(page.step + 1, 0);
    } else {
      return pause(page);
    }
    const finished = page.filled >= page.cellsOf(page.steps[page.step]);
    clock = setTimeout(() => tick(page), (finished ? READING : CELL) * Number(element("speed").value));
  }

  function play(page) {
    if (page.step === page.steps.length - 1 && page.complete()) page.go(0);
    element("play").setAttribute("aria-pressed", "true");
    element("play").querySelector("span").textContent = "Pause";
    clearTimeout(clock);
    clock = setTimeout(() => tick(page), 0);
  }

  function pause(page) {
    clearTimeout(clock);
    clock = null;
    element("play").setAttribute("aria-pressed", "false");
    element("play").querySelector("span").textContent = "Play";
    if (!page.complete()) page.go(page.step);
  }

  const toggle = (page) => (clock === null ? play(page) : pause(page));

  /** Go to a step by hand: what plays stops. */
  function jump(page, step) {
    if (clock !== null) pause(page);
    page.go(Math.min(page.steps.length - 1, Math.max(0, step)));
  }

  function listen(page) {
    element("play").addEventListener("click", () => toggle(page));
    element("first").addEventListener("click", () => jump(page, 0));
    element("back").addEventListener("click", () => jump(page, page.step - 1));
    element("next").addEventListener("click", () => jump(page, page.step + 1));
    element("last").addEventListener("click", () => jump(page, page.steps.length - 1));
    element("timeline").addEventListener("click", (event) => {
      const chip = event.target.closest("[data-step]");
      if (chip) jump(page, Number(chip.dataset.step));
    });
    element("timeline").addEventListener("keydown", (event) => {
      const moves = { ArrowRight: page.step + 1, ArrowLeft: page.step - 1, Home: 0, End: page.steps.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      jump(page, moves[event.key]);
      element("timeline").querySelector('[tabindex="0"]').focus();
    });
  }

  Object.assign(Flow, { player: { timeline, mark, listen, toggle, jump, calm } });
})(Flow);
