"""The page of recorded starts in a real browser: its numbers, its layout, and what it loads."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, cast

import pytest

from tests.report.browser import Browser, chromium
from tests.report.recorded import HOSTILE, RECORDS, measured
from torpor.report import Recorded, starts_of
from torpor.report.page import page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

WIDTHS = (400, 1600)
SCHEMES = ("light", "dark")
NUMBERS = """[...document.querySelectorAll('data')].map(e => [e.dataset.of, e.value, e.textContent])"""
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    const cut = !e.closest('.mark') && e.clientWidth > 0 && e.scrollWidth > e.clientWidth;
    return cut || box.left < -0.5 || box.right > innerWidth + 0.5;
}).map(e => e.outerHTML.slice(0, 120))"""
CUT_TEXT = """[...document.querySelectorAll('.rows li')].filter(li => {
    const boxes = [...li.children].map(e => e.getBoundingClientRect());
    return boxes.some((box, i) => i && box.left < boxes[i - 1].right - 0.5);
}).map(li => li.textContent)"""
CONTRASTS = """(() => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const light = colour => {
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = e => { while (getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement; return e; };
    const ratio = (one, other) => {
        const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05);
    };
    const texts = [...document.querySelectorAll('body *')].filter(e => [...e.childNodes]
        .some(n => n.nodeType === 3 && n.textContent.trim())).map(e => [e.tagName + ' ' + e.className,
        ratio(getComputedStyle(e).color, getComputedStyle(behind(e)).backgroundColor)]);
    const bars = [...document.querySelectorAll('.track i[class]')].map(e => [e.className,
        ratio(getComputedStyle(e).backgroundColor, getComputedStyle(behind(e.parentElement)).backgroundColor)]);
    return {texts, bars, paper: getComputedStyle(document.body).backgroundColor};
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this file."""
    with chromium(tmp_path_factory.mktemp("browser") / "profile") as one:
        yield one


def written(folder: Path, text: str) -> Path:
    """A page on disk."""
    file = folder / "page.html"
    file.write_text(text, encoding="utf-8")
    return file


def everything() -> str:
    """A page with both backends, a file of records with a failure, and names that break careless HTML."""
    recorded = Recorded(name=HOSTILE, starts=starts_of(RECORDS))
    return page([measured(name=HOSTILE), measured(pairs=1, backend="standby"), recorded])


def at(content: object, path: str) -> object:
    """The value at a path like `starts.0.spans.2.seconds` of a JSON value."""
    for word in path.split("."):
        content = content[int(word)] if isinstance(content, list) else cast("dict[str, object]", content)[word]
    return content


def leaves(content: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every value of a JSON value with its path."""
    if isinstance(content, dict | list):
        for name, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(value, f"{path}.{name}" if path else str(name))
    else:
        yield path, content


def shown(text: str) -> tuple[float, float]:
    """A number as a reader sees it, in base units, with the error that rounding may have added."""
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?(?: (GB|MB|kB|bytes|s|ms|times))?(?:/s)?", text)
    assert match, text
    scale = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "ms": 1e-3}.get(match[3] or "", 1.0)
    whole, digits = match[1], match[2] or ""
    return float(f"{whole}.{digits or 0}") * scale, scale * 0.5000001 * 10 ** -len(digits)


@pytest.mark.parametrize("backend", ["criu", "standby"])
def test_the_numbers_on_the_page_equal_the_json(browser: Browser, tmp_path: Path, backend: str) -> None:
    """The page has every figure of the JSON: rounded as text, exact in an attribute."""
    bench = measured(backend=backend)
    content = json.loads(json.dumps(bench.as_json()))
    browser.show(written(tmp_path, page([bench])), width=1600)
    numbers = cast("list[list[str]]", browser.ask(NUMBERS))
    for path, value, text in numbers:
        assert json.loads(value) == at(content, path), path
        read, rounded = shown(text)
        assert abs(read - json.loads(value)) <= rounded, (path, value, text)
    wanted = {
        path
        for path, value in leaves(content)
        if re.match(r"(spread|floor|machine)\.|ratio|starts\..*(_s|\.seconds)$", path)
        and isinstance(value, int | float)
        and not path.endswith("start_s")
    }
    assert wanted == {path for path, _, _ in numbers}
    assert len(wanted) > 40


def test_bars_lie_where_their_times_are(browser: Browser, tmp_path: Path) -> None:
    """In every waterfall, begin and length match their share of the track to a pixel."""
    bench = measured(pairs=1)
    browser.show(written(tmp_path, page([bench])), width=1600)
    places = browser.ask("""[...document.querySelectorAll('article')].map(a =>
        [...a.querySelectorAll('.rows:not(.marks) .track')].map(t => {
            const [track, bar] = [t.getBoundingClientRect(), t.firstChild.getBoundingClientRect()];
            return [bar.left - track.left, bar.width, track.width]; }))""")
    assert isinstance(places, list)
    assert len(places) == len(bench.starts)
    for start, rows in zip(bench.starts, places, strict=True):
        assert len(rows) == len(start.spans)
        for span, (left, width, track) in zip(start.spans, rows, strict=True):
            assert left == pytest.approx(track * span.start_s / start.drawn_s, abs=1.0)
            assert width == pytest.approx(max(2.0, track * span.seconds / start.drawn_s), abs=1.0)


def test_the_numbers_of_a_file_of_records_are_on_its_page(browser: Browser, tmp_path: Path) -> None:
    """The page has the seconds of every record, in the order of the file."""
    browser.show(written(tmp_path, page([Recorded(name="r.jsonl", starts=starts_of(RECORDS))])), width=1600)
    numbers = cast("list[list[str]]", browser.ask(NUMBERS))
    assert [json.loads(value) for _, value, _ in numbers] == [one.seconds for one in RECORDS]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_logs_no_error(browser: Browser, tmp_path: Path, width: int, scheme: str) -> None:
    """On a phone and on a wide screen: nothing wider than the window, nothing cut or overlapping, no console message."""
    browser.show(written(tmp_path, everything()), width=width, scheme=scheme)
    assert browser.ask("innerWidth") == width
    assert cast("int", browser.ask("document.scrollingElement.scrollWidth")) <= width
    assert browser.ask(TOO_WIDE) == []
    assert browser.ask(CUT_TEXT) == []
    assert browser.complaints == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_and_bars_have_enough_contrast(browser: Browser, tmp_path: Path, scheme: str) -> None:
    """WCAG 2.2: 4.5 to 1 for text (1.4.3), 3 to 1 for bars (1.4.11), in the light and the dark scheme."""
    browser.show(written(tmp_path, everything()), width=1600, scheme=scheme)
    seen = cast("dict[str, list[tuple[str, float]]]", browser.ask(CONTRASTS))
    assert len(seen["texts"]) > 100
    assert [one for one in seen["texts"] if one[1] < 4.5] == []
    assert len({name for name, _ in seen["bars"]}) == 7  # every colour there is
    assert [one for one in seen["bars"] if one[1] < 3.0] == []
    assert str(seen["paper"]) == {"light": "rgb(250, 249, 247)", "dark": "rgb(20, 23, 27)"}[scheme]


def test_the_page_loads_nothing_else(browser: Browser, tmp_path: Path) -> None:
    """The browser fetches one file. The page has no script, whatever a name contains, and its policy forbids loading."""
    file = written(tmp_path, everything())
    browser.show(file, width=1600)
    assert browser.requests == [file.as_uri()]
    assert browser.ask("document.scripts.length") == 0
    assert HOSTILE in str(browser.ask("document.body.innerText"))
    assert HOSTILE in str(browser.ask("document.title"))


def test_the_browser_of_these_tests_notices_faults(browser: Browser, tmp_path: Path) -> None:
    """It finds a console error, a picture from elsewhere and a row that is too wide."""
    text = page([measured(pairs=1)])
    bad = '<img src="http://127.0.0.1:9/none.png" alt=""><p style="width:3000px">wide</p><script>console.error(1)</script>'
    browser.show(written(tmp_path, text.replace("</main>", f"{bad}</main>")), width=400)
    assert len(browser.complaints) >= 2  # the page's own policy refuses both
    assert any("Content Security Policy" in one for one in browser.complaints)
    assert cast("int", browser.ask("document.scrollingElement.scrollWidth")) > 400
    assert browser.ask(TOO_WIDE) != []
