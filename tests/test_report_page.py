"""The page in a real browser: nothing fetched, nothing said to the console, readable at every width and scheme."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgeft.cli import main
from edgeft.console import silent_log
from edgeft.data.check.engine import Job, check
from edgeft.data.check.html import html_report
from edgeft.report.build import build_report
from edgeft.report.html import to_html
from tests.report_parts import measured, parts

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (360, 500, 1280)
# Looks at the page in frames of every width; the contrast is that of WCAG 2.2, section 1.4.3 and 1.4.11.
PROBE = """
const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
function behind(element) {
  for (; element; element = element.parentElement) {
    const color = numbers(getComputedStyle(element).backgroundColor);
    if (color.length === 3 || color[3] > 0) return color;
  }
  return [255, 255, 255];
}
function contrast(element, property) {
  const under = property === "backgroundColor" ? element.parentElement : element;
  const [a, b] = [numbers(getComputedStyle(element)[property]), behind(under)].map(luminance);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
function worst(elements, property) {
  return elements.map(e => [contrast(e, property(e)), e.outerHTML.slice(0, 120)]).sort((a, b) => a[0] - b[0])[0];
}
function crossed(texts) {
  const over = (a, b, low, high) => Math.min(a[high], b[high]) - Math.max(a[low], b[low]);
  const boxes = texts.map(t => t.getBoundingClientRect());
  return boxes.flatMap((a, i) => texts.slice(i + 1).filter((_, j) => {
    const b = boxes[i + 1 + j];
    return over(a, b, "left", "right") > 1 && over(a, b, "top", "bottom") > 3;
  }).map(t => texts[i].textContent + " / " + t.textContent));
}
window.onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const all = [...page.body.querySelectorAll("*")];
    const texts = all.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
    const svg = e => e instanceof frame.contentWindow.SVGElement;
    return {
      width: frame.contentWindow.innerWidth,
      visible: root.clientWidth,
      content: root.scrollWidth,
      dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
      fetched: frame.contentWindow.performance.getEntriesByType("resource").map(r => r.name),
      text: worst(texts, e => svg(e) ? "fill" : "color"),
      marks: worst([...page.querySelectorAll(".dot, .bar, .meter")], e => svg(e) ? "fill" : "backgroundColor"),
      lines: worst([...page.querySelectorAll("polyline.line, .whisker")], () => "stroke"),
      charts: page.querySelectorAll("svg.chart").length,
      crossed: [...page.querySelectorAll("svg.chart")].flatMap(s => crossed([...s.querySelectorAll("text")])),
      tables: page.querySelectorAll("table").length,
      smallest: Math.min(...[...page.querySelectorAll("svg.chart")].map(s => s.getBoundingClientRect().width)),
      letters: Math.min(...[...page.querySelectorAll("svg.chart text")].map(t =>
        parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b))),
      sideways: [...page.querySelectorAll(".scroll")].filter(s => s.scrollWidth > s.clientWidth + 1)
        .map(s => s.getAttribute("aria-label")),
      cut: [...page.querySelectorAll("td")].filter(t => t.offsetWidth && t.scrollWidth > t.offsetWidth + 1)
        .map(t => t.outerHTML.slice(0, 120)),
      empty: [...page.querySelectorAll("table")].filter(t => !t.querySelector("td")).length,
    };
  });
  document.body.innerHTML = "<pre>" + btoa(JSON.stringify(found)) + "</pre>";
};
"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser to look with: none of {', '.join(BROWSERS)} is installed")
    return found


def look(browser: str, folder: Path, page: str, *, dark: bool) -> tuple[list[dict[str, Any]], str]:
    """What the probe found at every width, and what the browser said."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for width in WIDTHS
    )
    (folder / "probe.html").write_text(f"<!doctype html><script>{PROBE}</script><body>{frames}", encoding="utf-8")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    words += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", "--window-size=1400,1000"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run([*words, (folder / "probe.html").as_uri()], capture_output=True, text=True, timeout=120)
    match = re.search(r"<pre>([\w+/=]+)</pre>", done.stdout)
    assert match, done.stderr
    return json.loads(base64.b64decode(match[1])), done.stderr


def check_page(folder: Path) -> str:
    """The page of a check that found something in two files, one name too long for a phone."""
    rows = [{"messages": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": f"a{i % 3}"}]}
            for i in range(60)]  # fmt: skip
    lines = [json.dumps(row) + "\n" for row in rows]
    paths = [folder / "train.jsonl", folder / f"{'long-name-' * 12}.jsonl"]
    for path in paths:
        path.write_text("".join([*lines, "{broken\n", lines[0]]), encoding="utf-8")
    return html_report(check(Job(paths), silent_log()), folder, "../report/report.html")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["report", "check"])
def test_the_page_in_a_browser(browser: str, tmp_path: Path, dark: bool, name: str) -> None:
    page = to_html(build_report(parts()), "..") if name == "report" else check_page(tmp_path)
    frames, said = look(browser, tmp_path, page, dark=dark)
    assert [line for line in said.splitlines() if "CONSOLE" in line] == []
    assert [frame["width"] for frame in frames] == list(WIDTHS)
    for frame in frames:
        assert frame["dark"] is dark
        assert frame["fetched"] == []
        assert frame["content"] == frame["visible"]
        assert frame["text"][0] >= 4.5, frame["text"]
        assert frame["marks"][0] >= 3, frame["marks"]
        if name == "report":
            assert frame["lines"][0] >= 3, frame["lines"]
            assert frame["charts"] == page.count('class="chart"') >= 12
            assert frame["smallest"] > 300
            assert frame["letters"] >= 10, "text of a chart is too small to read"
        assert frame["sideways"] == [], "a table needs scrolling"
        assert frame["cut"] == []
        assert frame["empty"] == 0
        assert frame["crossed"] == []


@pytest.mark.slow
def test_names_of_many_files_keep_clear_of_each_other(browser: str, tmp_path: Path) -> None:
    given = parts()
    names = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "IQ4_XS", "Q4_0", "Q3_K_M", "Q2_K", "onnx-int4", "a-long-name-of-a-file")
    given["others"] = [
        measured(f"{name}.gguf", 20 - i % 5, 13_000_000 - i * 1_000_000, 4.0 - i / 4) for i, name in enumerate(names)
    ]
    given["files"] = [{"file": f"{name}.gguf", "ftype": name, "bytes": 1} for name in names]
    (narrow, _, wide), _ = look(browser, tmp_path, to_html(build_report(given)), dark=False)
    assert narrow["crossed"] == wide["crossed"] == []
    assert narrow["content"] == narrow["visible"]


@pytest.mark.slow
def test_the_probe_sees_what_it_looks_for(browser: str, tmp_path: Path) -> None:
    page = to_html(build_report(parts())).replace("default-src 'none';", "default-src *;")
    page = page.replace(
        "<main>", '<main><p style="color:#888;width:500px">pale</p><img src="https://example.org/x.png">'
    )
    frames, _ = look(browser, tmp_path, page, dark=False)
    assert frames[0]["content"] > frames[0]["visible"]
    assert frames[0]["fetched"] == ["https://example.org/x.png"]
    assert frames[0]["text"][0] < 4.5
    assert "pale" in frames[0]["text"][1]


@pytest.mark.slow
def test_it_prints(browser: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(to_html(build_report(parts())), encoding="utf-8")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words += [f"--print-to-pdf={tmp_path / 'report.pdf'}", (tmp_path / "report.html").as_uri()]
    subprocess.run(words, capture_output=True, check=True, timeout=120)
    pages = len(re.findall(rb"/Type /Page\b(?!s)", (tmp_path / "report.pdf").read_bytes()))
    assert 3 <= pages <= 15


@pytest.mark.parametrize("missing", [*parts(), "everything"])
def test_a_part_may_be_missing(missing: str) -> None:
    some = {} if missing == "everything" else {name: part for name, part in parts().items() if name != missing}
    page = to_html(build_report(some))
    assert page.startswith("<!doctype html>")
    assert ("FAIL: 2 of 4 budgets" in page) is (missing not in ("verdict", "everything"))


def test_text_from_outside_stays_text() -> None:
    given = parts()
    hostile = '<script>alert(1)</script>"&'
    given["recipe"] |= {"name": hostile, "ship": hostile}
    given["parity"]["rows"][1]["form"] = hostile
    given["bench"]["accuracy"]["slices"][0]["rows"][0]["value"] = hostile
    given["bench"]["accuracy"]["slices"][0]["field"] = hostile
    given["settings"] = {hostile: hostile}
    given["files"][0]["ftype"] = hostile
    page = to_html(build_report(given))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&amp;") > 8


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    (tmp_path / "demo" / "bench").mkdir(parents=True)
    (tmp_path / "demo" / "bench" / "bench.json").write_text(json.dumps(parts()["bench"]))
    (tmp_path / "demo" / "bench" / "manifest.json").write_text('{"key": "k", "files": {}}')
    with pytest.raises(SystemExit) as ended:
        main(("report", str(tmp_path / "demo"), "--html", str(tmp_path / "page.html")))
    assert ended.value.code in (0, None)
    assert "<h1>demo</h1>" in (tmp_path / "page.html").read_text()


def test_links_lead_to_the_files_of_the_run(tmp_path: Path) -> None:
    page = to_html(build_report(parts()), "../runs/my run")
    assert [html.unescape(href) for href in re.findall(r'href="(\.\.[^"]*)"', page)] == [
        "../runs/my%20run/data/test.jsonl", "../runs/my%20run/bench/predictions.jsonl",
        "../runs/my%20run/data/check.html",
    ]  # fmt: skip
    assert 'href=".."' not in to_html(build_report(parts()))


def test_the_matrix_is_shaded_where_it_counts() -> None:
    """10 `off`, of which 9 right; 9 `on`, of which 2 were taken for `off`; a label never taken for another."""
    page = to_html(build_report(parts()))
    matrix = page[page.index('id="confusion-matrix"') :]
    assert re.findall(r'<td class="n (\w+) (heat\d)"[^>]*>(\d)<', matrix) == [
        ("right", "heat3", "1"), ("right", "heat3", "9"), ("wrong", "heat1", "1"),
        ("wrong", "heat2", "2"), ("right", "heat3", "7"),
    ]  # fmt: skip
