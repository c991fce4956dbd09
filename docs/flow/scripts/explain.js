// The explanation of one number: its expression with numbers, and a line for each term of its sums.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const { value, sums, shown, symbolHTML, symbol, escape } = Flow;
  const SIGMAS = ["Σ", "Σ′", "Σ″"];

  /** An expression as HTML: with numbers, or (`names`) with the names of what they are. Sums are named by `sigma`. */
  function written(e, at, names, sigma = () => "Σ") {
    const go = (part) => written(part, at, names, sigma);
    const inner = (part) => (["add", "sub"].includes(part.op) && !part.labels ? `(${go(part)})` : go(part));
    switch (e.op) {
      case "ref": return names ? symbolHTML(e.grid) : bracketed(at(e.grid, e.h, e.i, e.j));
      case "num": return names && e.name ? e.name.replace("_", " ")
        : bracketed(e.value, e.name === "keys" || e.name === "position");
      case "fixed": return shown(e.value);
      case "omit": return `<s>${go(e.of)}</s>`;
      case "add": return e.labels ? sigma(e) : leading(e.terms.map(go).join(" + "));
      case "mul": return e.factors.map(inner).join(" · ");
      case "sub": return leading(`${go(e.left)} − ${inner(e.right)}`);
      case "div": return `${inner(e.left)} / ${inner(e.right)}`;
      case "fn": return called(e, go, inner, sigma);
      default: return "";
    }
  }

  /** A negative number in brackets, so that no two signs meet. */
  const bracketed = (x, whole = false) => {
    const text = whole ? String(x) : shown(x);
    return text.startsWith("−") && text !== "−∞" ? `(${text})` : text;
  };

  /** Without brackets around a negative number at the beginning. */
  const leading = (text) => text.replace(/^\((−[\d.e−]+)\)/, "$1");

  function called(e, go, inner) {
    const argument = leading(go(e.of));
    switch (e.name) {
      case "exp": return `exp(${argument})`;
      case "slope": return `(1 − tanh²(${argument}))`;
      case "relu": return `max(0, ${argument})`;
      case "bell": return `exp(−½ (${argument})²)`;
      case "half": return `½ ${inner(e.of)}`;
      default: return `${e.name}(${argument})`;
    }
  }

  /** Where a cell is, in words: "chased, feature 2". */
  function place(graph, { id, h, i, j }) {
    const grid = graph.by[id], words = graph.settings.words;
    const row = grid.rowNames[i], column = grid.columnNames[j];
    const head = grid.heads > 1 ? `${grid.heads < graph.settings.heads ? "key head" : "head"} ${h + 1}, ` : "";
    if (grid.rows === 1) return `${head}${grid.columns === 1 ? "one number" : `feature ${column}`}`;
    if (grid.columns === 1) return `${head}${row}`;
    const rowName = grid.rowNames === words ? row : `row ${row}`;
    return `${head}${grid.columnNames === words ? `query ${row}, key ${column}` : `${rowName}, feature ${column}`}`;
  }

  function terms(graph, total) {
    const at = graph.at;
    const values = total.terms.map((term) => value(term.op === "omit" ? term.of : term, at));
    const largest = Math.max(...values.map(Math.abs)) || 1;
    let header = "";
    const lines = total.terms.map((term, n) => {
      const names = written(term.op === "omit" ? term.of : term, at, true);
      const title = names === header ? "" : `<tr class="names"><th></th><td>${names}</td><td></td></tr>`;
      header = names;
      const left = term.op === "omit" || total.left;
      const width = Math.round((100 * Math.abs(values[n])) / largest);
      const bar = `<i class="${values[n] < 0 ? "minus" : "plus"}" style="--w:${width}%"></i>`;
      const numbers = written(term, at, false);
      return `${title}<tr${left ? ' class="out"' : ""}><th scope="row">${escape(total.labels[n])}</th><td>${numbers}</td>`
        + `<td class="product">${bar}<span>${shown(values[n])}</span></td></tr>`;
    });
    return lines.join("");
  }

  /** The explanation of a cell as HTML; `expected` is its central difference, if there is one. */
  function explanation(graph, cell, expected) {
    const { id, h, i, j } = cell, at = graph.at, grid = graph.by[id];
    const e = grid.cell(h, i, j, at), result = at(id, h, i, j);
    const found = sums(e);
    const sigma = (of) => (found.length > 1 ? SIGMAS[found.findIndex((one) => one.of === of)] : "Σ");
    const name = `<span class="symbol">${symbolHTML(id)}</span> ${escape(place(graph, cell))}`;
    const head = `<h3>${name}<b class="value">${shown(result, 4)}</b></h3>`;
    if (e.op === "fixed") return `${head}<p>${escape(e.reason)}</p>${proved(result, expected)}`;
    if (grid.pass === "input") return `${head}<p>An input: it is not computed.</p>`;
    const plainSum = found.length === 1 && e === found[0].of;
    const line = plainSum ? "" : `<p class="line">${written(e, at, true, sigma)}<br>= ${written(e, at, false, sigma)}</p>`;
    const tables = found.map((total) => {
      const last = value(total.of, at);
      const label = plainSum ? symbolHTML(id) : sigma(total.of);
      return `<div class="scroll"><table class="terms"><tbody>${terms(graph, total)}</tbody></table></div>`
        + `<div class="total${total.left ? " out" : ""}"><i>${label}</i><b>${shown(last)}</b></div>`;
    });
    return head + line + tables.join("") + proved(result, expected);
  }

  function proved(result, expected) {
    if (expected === undefined) return "";
    const right = Math.abs(result - expected) <= 1e-6 * Math.max(1e-3, Math.abs(expected), Math.abs(result));
    return `<p class="${right ? "right" : "wrong"}">${right ? "✓ The central difference is the same."
      : `✗ Wrong: the central difference is ${shown(expected, 4)}.`}</p>`;
  }

  /** The explanation as a sentence, for a screen reader. */
  function spoken(graph, cell) {
    const { id, h, i, j } = cell, at = graph.at, e = graph.by[id].cell(h, i, j, at);
    const start = `${symbol(id)}, ${place(graph, cell)}: ${shown(at(id, h, i, j))}.`;
    if (e.op === "fixed") return `${start} ${e.reason}`;
    if (graph.by[id].pass === "input") return `${start} Press Enter to change it.`;
    const plain = (html) => html.replace(/<sup>(.)<\/sup>/g, "$1").replace(/<s>.*?<\/s>/g, "left out").replaceAll("·",
      "times");
    const [total] = sums(e);
    if (!total) return `${start} ${plain(written(e, at, true))}, that is ${plain(written(e, at, false))}.`;
    const listed = total.terms.slice(0, 8).map((term, n) => `${total.labels[n]}: ${plain(written(term, at, false))}`);
    const more = total.terms.length > 8 ? `; and ${total.terms.length - 8} more` : "";
    const outer = e === total.of ? "" : ` It is ${plain(written(e, at, true, () => "the sum"))}.`;
    return `${start}${outer} The sum has ${total.terms.length} terms. ${listed.join("; ")}${more}.`;
  }

  Object.assign(Flow, { explanation, spoken, place });
})(Flow);
