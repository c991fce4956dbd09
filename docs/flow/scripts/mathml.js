// Formulas as MathML, from the part of TeX that this page needs: scripts, \frac, \sum, Greek letters, names of functions.
// \out{...} strikes out what is left out.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const LETTERS = { delta: "δ", tau: "τ", sigma: "σ", Omega: "Ω", ell: "ℓ", partial: "∂", infty: "∞", top: "⊤" };
  const OPERATORS = { cdot: "·", odot: "⊙", in: "∈", ge: "≥", le: "≤" };
  const NAMES = ["tanh", "exp", "log", "max", "sigmoid", "rowsum"];
  const SPACES = { ",": "0.17em", quad: "1em" };

  const escape = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

  function tokens(tex) {
    return tex.match(/\\[a-zA-Z]+|\\,|[0-9.]+|[^\s]|\s+/gu).filter((token) => token.trim() || false);
  }

  /** One formula as a string of MathML, set on a line of its own. */
  function mathml(tex) {
    const list = tokens(tex.replace(/\\text\{([^}]*)\}/g, (_, text) => `\\text{${text.replaceAll(" ", "\u00a0")}}`));
    let place = 0;

    function row(until) {
      const found = [];
      while (place < list.length && list[place] !== until) found.push(scripted());
      place++;
      return found.length === 1 ? found[0] : `<mrow>${found.join("")}</mrow>`;
    }

    function group() {
      if (list[place] !== "{") return atom();
      place++;
      return row("}");
    }

    function plain() {
      place++; // {
      let text = "";
      while (list[place] !== "}") text += list[place++];
      place++;
      return text;
    }

    function scripted() {
      const large = list[place] === "\\sum";
      const base = atom();
      let below = null, above = null;
      while (list[place] === "_" || list[place] === "^") {
        const mark = list[place++];
        if (mark === "_") below = group(); else above = group();
      }
      const [under, over, both] = large ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
      if (below && above) return `<${both}>${base}${below}${above}</${both}>`;
      if (below) return `<${under}>${base}${below}</${under}>`;
      return above ? `<${over}>${base}${above}</${over}>` : base;
    }

    function atom() {
      const token = list[place++];
      if (token === "{") return row("}");
      if (token.startsWith("\\")) {
        const name = token.slice(1);
        if (name === "frac") return `<mfrac>${group()}${group()}</mfrac>`;
        if (name === "text") return `<mtext>${escape(plain())}</mtext>`;
        if (name === "out") return `<mrow class="out">${group()}</mrow>`;
        if (SPACES[name]) return `<mspace width="${SPACES[name]}"/>`;
        if (NAMES.includes(name)) return `<mi>${name}</mi>`;
        if (LETTERS[name]) return `<mi>${LETTERS[name]}</mi>`;
        if (name === "sum") return '<mo largeop="true" movablelimits="false">∑</mo>';
        if (OPERATORS[name]) return `<mo>${OPERATORS[name]}</mo>`;
        throw new Error(`unknown command ${token} in ${tex}`);
      }
      if (/^[0-9.]+$/.test(token)) return `<mn>${token}</mn>`;
      if (/^\p{L}$/u.test(token)) return `<mi>${token}</mi>`;
      return `<mo stretchy="false">${escape(token === "-" ? "−" : token)}</mo>`;
    }

    return `<math display="block">${row(null)}</math>`;
  }

  Object.assign(Flow, { mathml, escape });
})(Flow);
