// The form: what is chosen goes into the settings, and what the settings are is shown in the form.
"use strict";

globalThis.Flow ??= {};

(function (Flow) {
  const element = (id) => document.getElementById(id);
  const FIELDS = ["sentence", "mechanism", "heads", "keyHeads", "scale", "temperature", "around", "sigma", "causal",
    "window",
    "padding", "lossRow", "lossColumn", "lossKind", "leaveOut"];

  function options(select, pairs, chosen) {
    select.innerHTML = pairs.map(([value, text]) => `<option value="${value}">${Flow.escape(text)}</option>`).join("");
    select.value = chosen;
  }

  /** Show settings in the form; the field that has the focus keeps its text. */
  function show(page) {
    const s = page.graph.settings, count = s.words.length;
    options(element("keyHeads"), Flow.divisors(s.heads).map((n) => [n, `${n}`]), s.keyHeads);
    options(element("padding"), Flow.range(count).map((n) => [n, n === 0 ? "none" : n === 1 ? "1 word" : `${n} words`]),
      s.padding);
    options(element("lossRow"), [["", "all words"], ...s.words.map((word, i) => [i, `${word} (${i + 1})`])],
      s.lossRow ?? "");
    options(element("leaveOut"), [["", "nothing"], ...Flow.omissions(s)], s.leaveOut);
    const values = { ...s, scale: s.scale ?? "", window: s.window ?? "", lossRow: s.lossRow ?? "",
      lossColumn: s.lossColumn ?? "" };
    for (const id of FIELDS) {
      const field = element(id);
      if (field === document.activeElement && field.matches("input:not([type=checkbox])")) continue;
      if (field.type === "checkbox") field.checked = s[id]; else field.value = values[id];
    }
    element("scale").placeholder = s.ownScale === 1 ? "1" : `1/√${Flow.SIZES.D}`;
    element("controls").classList.toggle("is-local", s.mechanism === "local");
    element("call").textContent = call(s);
    tabs(page);
  }

  /** The library's call with the same options. */
  function call(s) {
    const mechanism = { softmax: "scaled_dot_product", additive: "additive", sparsemax: "sparsemax",
      local: "local" }[s.mechanism];
    const given = [
      s.mechanism === "additive" ? "w" : "", s.mechanism === "local" ? "position_weight, position_vector" : "",
      s.causal ? "is_causal=True" : "",
        s.window !== null ? `${s.mechanism === "local" ? "attn_mask=Window" : "window="}(${s.window}, ${s.window})` : "",
      s.padding ? `kv_lengths=${s.length}` : "", s.factor === s.ownScale ? "" : `scale=${Number(s.factor.toFixed(4))}`,
      s.mechanism === "local" ? `alignment="predictive", window=${s.around}, sigma=${s.sigma}` : "",
    ].filter(Boolean);
    return `${mechanism}_attention(${["query, key, value", ...given].join(", ")})`;
  }

  function tabs(page) {
    const { heads } = page.graph.settings, box = element("headTabs");
    box.hidden = heads === 1;
    box.innerHTML = heads === 1 ? "" : `<span>Head</span>${Flow.range(heads).map((h) =>
      `<button type="button" data-head="${h}" aria-label="Head ${h + 1}"
        aria-pressed="${h === page.head}">${h + 1}</button>`).join("")}`;
  }

  function read(field) {
    if (field.type === "checkbox") return field.checked;
    if (["sentence", "mechanism", "lossKind", "leaveOut"].includes(field.id)) return field.value;
    const x = field.id === "scale" ? Flow.parsed(field.value) : Number(field.value);
    return field.value.trim() === "" || !Number.isFinite(x) ? null : x;
  }

  function listen(page) {
    for (const id of FIELDS) {
      const field = element(id);
      field.addEventListener(field.tagName === "SELECT" || field.type === "checkbox" ? "change" : "input", () => {
        const chosen = { [id]: read(field) };
        // Sigma is half the window unless it is chosen, as in the library.
        if (id === "around") chosen.sigma = null;
        if (id === "heads") chosen.keyHeads = chosen.heads;
        page.change(chosen);
      });
      if (field.matches("input[type=text], input[type=number]")) field.addEventListener("blur", () => show(page));
    }
    element("controls").addEventListener("submit", (event) => event.preventDefault());
    element("reset").addEventListener("click", () => page.reset());
    element("headTabs").addEventListener("click", (event) => {
      const button = event.target.closest("[data-head]");
      if (!button) return;
      page.showHead(Number(button.dataset.head));
      element("headTabs").querySelector('[aria-pressed="true"]').focus();
    });
    element("theme").addEventListener("change", () => { document.documentElement.dataset.theme = element("theme").value; });
  }

  Object.assign(Flow, { controls: { show, listen } });
})(Flow);
