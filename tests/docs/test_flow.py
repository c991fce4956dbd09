"""The page that shows gradients flow, docs/flow: its numbers are the library's, keys and screen readers reach all.

The page's own scripts run in Chromium and, for the numbers alone, in Node; without either the tests are skipped.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.chromium import Browser, program
from tests.support.flow import MECHANISMS, arrays, library, random_settings
from tests.support.paths import ROOT

FOLDER = ROOT / "docs" / "flow"
ADDRESS = (FOLDER / "index.html").as_uri()
SCRIPTS = re.findall(r'<script src="(.*?)">', (FOLDER / "index.html").read_text(encoding="utf-8"))
COMPUTING = SCRIPTS[: SCRIPTS.index("scripts/explain.js") + 1]  # need no document
SETTINGS = [random_settings(seed) for seed in range(50)]


def assert_the_same(found: list[dict[str, Any]]) -> None:
    for chosen, page in zip(SETTINGS, map(arrays, found), strict=True):
        for name, expected in library(chosen, page).items():
            # The 1e-6; both compute in float64.
            np.testing.assert_allclose(page[name], expected, rtol=1e-6, atol=1e-9, err_msg=f"{name} of {chosen}")


def node(expression: str, given: Any) -> Any:
    """The value of an expression in Node, with the page's scripts and `given`."""
    path = shutil.which("node")
    if not path:
        pytest.skip("needs Node, which is not installed")
    loading = "const vm = require('vm'), fs = require('fs');" + "".join(
        f"vm.runInThisContext(fs.readFileSync({json.dumps(str(FOLDER / name))}, 'utf8'), {json.dumps(name)});"
        for name in COMPUTING
    )
    ending = f"const given = JSON.parse(fs.readFileSync(0, 'utf8')); console.log(JSON.stringify({expression}))"
    ran = subprocess.run([path, "-e", loading + ending], input=json.dumps(given), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if os.name == "nt" or not program():
        pytest.skip("needs Chromium or Chrome; the variable CHROMIUM says where it is")
    with Browser(program()) as found:
        yield found


def test_numbers_are_the_librarys_in_node() -> None:
    assert_the_same(node("given.map((chosen) => Flow.numbersOf(Flow.compute(chosen)))", SETTINGS))


def test_numbers_are_the_librarys_in_chromium(browser: Browser) -> None:
    browser.open(ADDRESS)
    assert_the_same(browser.run(f"{json.dumps(SETTINGS)}.map((chosen) => Flow.numbersOf(Flow.compute(chosen)))"))


CHECKS = """given.map((chosen) => {
  const graph = Flow.compute(chosen);
  return {wrong: Flow.check(graph).filter(({right}) => !right).map(({id}) => id),
          loss: [graph.at("L", 0, 0, 0), Flow.loss(graph.settings, graph.settings.inputs)],
          omissions: Flow.omissions(graph.settings).map(([id]) => id)};
})"""
GENERIC = {"sentence": "the cat chased a mouse", "heads": 4, "keyHeads": 2, "lossRow": None, "lossKind": "squares"}
OMISSIONS = {
    "delta": {"dQ", "dK", "dX"}, "weight": {"dQ", "dK", "dX"}, "support": {"dQ", "dK", "dX"},
    "scale": {"dQ", "dK", "dX"}, "slope": {"dQ", "dK", "dX"}, "vector": {"dQ", "dK", "dX"}, "transpose": {"dK", "dX"},
    "gaussian": {"dQ", "dK", "dvp", "dWp", "dX"}, "center": {"dQ", "dX"}, "heads": {"dV", "dK", "dX"},
    "query": {"dX"}, "key": {"dX"}, "value": {"dX"},
}  # fmt: skip


def test_gradients_are_central_differences() -> None:
    """Those of the page's own loops, which share nothing with its explained sums."""
    for chosen, found in zip(SETTINGS, node(CHECKS, SETTINGS), strict=True):
        assert found["wrong"] == [], chosen
        assert found["loss"][0] == pytest.approx(found["loss"][1], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_left_out_is_found_wrong(mechanism: str) -> None:
    chosen = {**GENERIC, "mechanism": mechanism, "temperature": 0.7}
    names = node(CHECKS, [chosen])[0]["omissions"]
    assert len(names) >= 7
    for name, found in zip(names, node(CHECKS, [{**chosen, "leaveOut": name} for name in names]), strict=True):
        also = {"dw"} if mechanism == "additive" and name in ("delta", "weight", "scale") else set()
        assert set(found["wrong"]) == OMISSIONS[name] | also, name


def test_every_formula_is_well_formed() -> None:
    """For every grid, with and without something left out."""
    formulas = node(
        """given.flatMap((chosen) => ["", ...Flow.omissions(Flow.settle(chosen)).map(([id]) => id)].flatMap((name) => {
          const {settings, grids} = Flow.compute({...chosen, leaveOut: name});
          return grids.map(({id}) => Flow.described(settings, id)).flatMap(({title, element, matrix, says}) =>
            [`<p>${title} ${says}</p>`, ...[element, matrix].filter(Boolean).map(Flow.mathml)]);
        }))""",
        [{**GENERIC, "mechanism": mechanism} for mechanism in MECHANISMS] + SETTINGS[:8],
    )
    children = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "munder": 2, "munderover": 3}
    assert len(formulas) > 500
    for formula in formulas:
        assert "undefined" not in formula
        for element in ET.fromstring(formula).iter():
            assert len(element) == children.get(element.tag, len(element)), formula


def terms(browser: Browser, cell: str) -> tuple[float, float, list[float]]:
    """The value of a cell's explanation, the sum below its terms, and its terms; numbers as they are shown."""
    text = """(() => {
      document.querySelector('[data-cell="%s"]').focus();
      const all = (where) => [...document.querySelectorAll(`#explanation ${where}`)].map((x) => x.textContent);
      return [all(".value"), all(".total b"), all(".product span")];
    })()"""
    value, total, products = ([number(x) for x in part] for part in browser.run(text % cell))
    return value[0], total[0], products


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("∞", "inf"))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_shown_numbers_and_terms(browser: Browser, mechanism: str) -> None:
    """What is seen is what the library computes; the terms of a cell add up to it."""
    browser.open(f"{ADDRESS}#mechanism={mechanism}&lossRow=null&lossKind=squares&causal=true&scale=1&step=dX")
    chosen = browser.run("Flow.page.graph.settings")
    expected = library(chosen, arrays(browser.run("Flow.numbersOf(Flow.page.graph)")))
    cells = "[...document.querySelectorAll('[data-cell]')].map((cell) => [cell.dataset.cell, cell.textContent])"
    compared = set()
    for key, text in browser.run(cells):
        name, *place = key.split("/")
        if name in expected and not np.isnan(expected[name][tuple(map(int, place))]):
            assert number(text) == pytest.approx(expected[name][tuple(map(int, place))], abs=0.005001), key
            compared.add(name)
    assert {"Q", "K", "V", "O", "L", "dO", "dV", "dS", "dQ", "dK", "dX"} <= compared
    for name in ("dV", "dK", "dX"):
        value, total, products = terms(browser, f"{name}/0/2/1")
        assert value == pytest.approx(expected[name][0, 2, 1], abs=5.1e-5)  # four decimals
        assert sum(products) == pytest.approx(total, abs=0.0051 * (len(products) + 1))  # each rounded to two
        assert total == pytest.approx(value, abs=0.0051)  # the scale is 1
    assert browser.errors == []


def test_read_cells_are_marked(browser: Browser) -> None:
    browser.open(f"{ADDRESS}#step=dV")
    browser.run("""document.querySelector('[data-cell="dV/0/3/1"]').focus()""")
    marked = browser.run("[...document.querySelectorAll('.read')].map((cell) => cell.dataset.cell)")
    assert set(marked) == {f"P/0/{i}/3" for i in range(5)} | {f"dO/0/{i}/1" for i in range(5)}
    assert browser.run("document.querySelectorAll('svg.curves path').length") == 1  # of the one word in the loss


FOCUSED = "document.activeElement.dataset.cell ?? document.activeElement.id"
STEP = "Flow.page.steps[Flow.page.step]"
LIVE = "document.getElementById('live').textContent"


def test_tab_reaches_everything(browser: Browser) -> None:
    """All controls and each grid once, and then the end: the focus is not caught."""
    browser.open(ADDRESS)
    browser.run("document.getElementById('parameters').open = true")
    seen: list[str] = []
    for _ in range(100):
        browser.press("Tab")
        where = browser.run(f"document.activeElement === document.body ? null : ({FOCUSED}) || 'without a name'")
        if where is None:
            break
        seen.append(where)
    assert where is None
    grids = browser.run("[...document.querySelectorAll('[data-grid]')].map((figure) => figure.dataset.grid)")
    assert sorted(cell.split("/")[0] for cell in seen if "/" in cell) == sorted(grids)
    controls = "[...document.querySelectorAll('input, select, button')].filter((x) => x.id && !x.disabled)"
    assert set(browser.run(f"{controls}.filter((x) => x.checkVisibility()).map((x) => x.id)")) <= set(seen)


def test_keys_move_in_a_grid(browser: Browser) -> None:
    browser.open(ADDRESS)
    browser.run("""document.querySelector('[data-cell="S/0/0/0"]').focus()""")
    for key, where in (
        ("ArrowRight", "S/0/0/1"), ("ArrowDown", "S/0/1/1"), ("End", "S/0/1/4"), ("ArrowRight", "S/0/1/4"),
        ("Home", "S/0/1/0"), ("ArrowUp", "S/0/0/0"), ("ArrowUp", "S/0/0/0"), ("ArrowLeft", "S/0/0/0"),
    ):  # fmt: skip
        browser.press(key)
        assert browser.run(FOCUSED) == where
    browser.press("End", control=True)
    assert browser.run(FOCUSED) == "S/0/4/4"
    spoken = "S, query mouse, key mouse: −0.58. It is scale times the sum. The sum has 3 terms."
    assert browser.run(LIVE).startswith(spoken)
    assert browser.run("document.querySelectorAll('table[role=grid] [tabindex=\"0\"]').length") == browser.run(
        "document.querySelectorAll('table[role=grid]').length"
    )


def test_keys_step_and_play(browser: Browser) -> None:
    browser.open(f"{ADDRESS}#step=dO")
    browser.run("""document.querySelector('[data-cell="X/0/0/0"]').focus()""")
    browser.press("PageDown")
    assert browser.run(STEP) == "dV"
    assert browser.run(LIVE).startswith("Step 11 of 17, dV: Gradient of the values. A value is part of")
    browser.press("PageUp", times=2)
    assert browser.run(STEP) == "L"
    label = """document.querySelector('[data-cell="dO/0/0/0"]').getAttribute('aria-label')"""
    assert browser.run(label) == "dO, the, feature 1: not computed yet"
    pressed = "document.getElementById('play').getAttribute('aria-pressed')"
    browser.press(" ")
    assert browser.run(pressed) == "true"
    moved = browser.run(f"""new Promise((done) => {{
      const look = () => {{ if ({STEP} === "dO") done(true); }};
      new MutationObserver(look).observe(document.getElementById("stepCount"), {{childList: true}});
      look();
    }})""")
    browser.press(" ")
    assert moved
    assert browser.run(pressed) == "false"
    browser.run("document.querySelector('#timeline [tabindex=\"0\"]').focus()")
    for key, step in (("ArrowRight", "dV"), ("End", "dX"), ("ArrowLeft", "dK"), ("Home", "X")):
        browser.press(key)
        assert browser.run(STEP) == step
        assert browser.run("document.activeElement.getAttribute('aria-current')") == "step"
    for button, step in (("next", "Q"), ("last", "dX"), ("back", "dK"), ("first", "X")):
        browser.run(f"document.getElementById({button!r}).focus()")
        browser.press("Enter")
        assert browser.run(STEP) == step


def test_keys_change_numbers(browser: Browser) -> None:
    browser.open(ADDRESS)
    cell = """document.querySelector('[data-cell="X/0/1/2"]')"""
    text = f"{cell}.textContent"
    browser.run(f"{cell}.focus()")
    before = browser.run("Flow.page.graph.at('L', 0, 0, 0)")
    browser.press("Enter")
    browser.type("-2,5")
    browser.press("Enter")
    assert browser.run(text) == "−2.50"
    assert browser.run(FOCUSED) == "X/0/1/2"
    assert browser.run("Flow.page.graph.at('L', 0, 0, 0)") != before
    browser.press("+")
    assert browser.run(text) == "−2.40"
    browser.press("-", times=2)
    assert browser.run(text) == "−2.60"
    browser.type("7")  # a digit begins
    browser.press("Escape")
    assert browser.run(text) == "−2.60"
    browser.press("Enter")
    browser.type("nonsense")
    browser.press("Enter")
    assert browser.run(text) == "−2.60"
    assert "is not a number" in browser.run(LIVE)
    for element in ("Q/0/1/2", "dX/0/0/0"):  # computed ones cannot be changed
        browser.run(f"""document.querySelector('[data-cell="{element}"]').focus()""")
        browser.press("Enter")
        assert browser.run("document.querySelectorAll('[data-cell] input').length") == 0
    browser.run("document.getElementById('reset').focus()")
    browser.press("Enter")
    assert browser.run("Flow.page.graph.at('L', 0, 0, 0)") == before


def test_the_form_changes_everything(browser: Browser) -> None:
    browser.open(ADDRESS)
    browser.run("document.getElementById('sentence').focus(); document.getElementById('sentence').select()")
    browser.type("<b>x</b> a b c d e f g h i")
    assert browser.run("Flow.page.graph.settings.words") == ["<b>x</b>", *"abcdefg"]  # eight at most
    assert browser.run("document.querySelectorAll('.board b').length") == 0  # words are text, not HTML
    chosen = {"mechanism": "local", "heads": "4", "keyHeads": "2", "padding": "3", "leaveOut": "center"}
    for name, value in chosen.items():
        browser.run(f"""(() => {{ const field = document.getElementById({name!r}); field.value = {value!r};
          field.dispatchEvent(new Event("change", {{bubbles: true}})); }})()""")
    settings = browser.run("Flow.page.graph.settings")
    assert [settings[name] for name in ("mechanism", "heads", "keyHeads", "padding")] == ["local", 4, 2, 3]
    assert browser.run("document.getElementById('proofSays').textContent").startswith("Wrong: dQ, dX.")
    assert browser.run("Flow.fromHash(Flow.toHash(Flow.page.graph.settings)).leaveOut") == "center"
    assert browser.errors == []


NAMED = ("button", "textbox", "combobox", "checkbox", "spinbutton", "gridcell", "grid", "region", "toolbar")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_everything_has_a_name_for_screen_readers(browser: Browser, mechanism: str) -> None:
    browser.open(f"{ADDRESS}#mechanism={mechanism}&heads=2&keyHeads=1&step=dX")
    browser.run("document.getElementById('parameters').open = true")
    roles: dict[str, list[str]] = {}
    for item in browser.send("Accessibility.getFullAXTree")["nodes"]:
        if not item["ignored"]:
            roles.setdefault(item["role"]["value"], []).append(item.get("name", {}).get("value", ""))
    assert {"button", "textbox", "combobox", "checkbox", "gridcell", "grid", "toolbar"} <= set(roles)
    for role in NAMED:
        named = [name for name in roles.get(role, []) if name.strip()]
        # The corner of a table is an empty cell, which is no number.
        corners = browser.run("document.querySelectorAll('.grid thead td').length") if role == "gridcell" else 0
        assert len(roles.get(role, [])) - len(named) <= corners, role
    assert "dK, gradient of the keys" in roles["grid"]
    assert "S, scores, head 1 of 2" in roles["grid"]
    assert any(name.startswith("P, head 1, query cat, key a: 0.") for name in roles["gridcell"])


@pytest.mark.parametrize("width", [360, 390, 620, 1024, 1100, 1440])
@pytest.mark.parametrize("mechanism", ["softmax", "local"])
def test_nothing_is_wider_than_the_page(browser: Browser, width: int, mechanism: str) -> None:
    browser.open(f"{ADDRESS}#mechanism={mechanism}&heads=2&sentence=eight+words+are+the+most+that+are+taken", width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    parts = "[...document.querySelectorAll('figure, .unit, .dock, .proof, form *')]"
    assert browser.run(f"{parts}.filter((x) => x.getBoundingClientRect().right > innerWidth).length") == 0


def test_colors_and_motion_follow_the_system(browser: Browser) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    motion = "getComputedStyle(document.querySelector('svg.curves path')).animationName"
    browser.open(f"{ADDRESS}#step=dV")
    light = browser.run(background)
    assert browser.run(motion) == "none"
    browser.open(f"{ADDRESS}#step=dV", dark=True, calm=False)
    assert browser.run(background) != light
    assert browser.run(motion) == "flow"
    browser.run("document.documentElement.dataset.theme = 'light'")
    assert browser.run(background) == light


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


def test_works_over_http_within_the_page_of_the_docs(browser: Browser) -> None:
    page = (ROOT / "docs" / "gradients.md").read_text(encoding="utf-8")
    frame = re.search(r"<iframe .*?</iframe>", page, re.DOTALL)
    assert frame
    source = re.search(r'src="(flow/index\.html)[#"]', frame[0])
    assert source
    assert (ROOT / "docs" / source[1]).exists()
    handler = functools.partial(Quiet, directory=str(ROOT / "docs"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            place = f"http://127.0.0.1:{server.server_port}"
            browser.open(f"{place}/gradients.md")  # any page of the same origin
            title = browser.run(f"""new Promise((done) => {{
              const frame = document.createElement("iframe");
              frame.src = "{place}/{source[1]}";
              frame.onload = () => done(frame.contentDocument.getElementById("stepTitle").textContent);
              document.body.append(frame);
            }})""")
            browser.open("about:blank")  # ends the connections
        finally:
            server.shutdown()
            thread.join()
    assert title == "L Loss"


def test_no_script_is_a_module_or_comes_from_elsewhere() -> None:
    """Modules do not load from file: addresses, and the page is to work without a network."""
    for path in sorted(FOLDER.rglob("*.*")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|export)\s", text, re.MULTILINE), path
        outside = re.findall(r"""(?:src|href|url\()\s*=?\s*["']?(https?:[^"')\s]+)""", text)
        assert outside in ([], ["https://github.com/attnarray/attnarray"]), path
    assert {Path(name).name for name in SCRIPTS} == {path.name for path in (FOLDER / "scripts").iterdir()}
