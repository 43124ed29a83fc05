"""The report in a real browser: it is drawn, accessible by WCAG 2 AA, and small.

Skipped where no Chromium or Chrome is installed, or the packages `playwright` and
`axe-playwright-python` are not.
"""

import os
import shutil

import pytest

from weightloom.apps import experiment
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.gan.app import Gan
from weightloom.apps.gan.config import GanConfig
from weightloom.apps.rl.app import RL
from weightloom.apps.rl.config import RLConfig
from weightloom.apps.transfer.app import Transfer
from weightloom.apps.transfer.config import TransferConfig

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SHORT = {"steps": 2, "tasks": 2, "evaluate_every": 1, "comparators": ()}
RUNS = {
    "cameras": (FewShot(), FewShotConfig(data="cameras", test_tasks=2, **SHORT)),
    "digits": (FewShot(), FewShotConfig(data="digits", test_tasks=2, **SHORT)),
    "transfer": (
        Transfer(),
        TransferConfig(
            data="tests.own_targets:Lines",
            comparators=("source", "shared"),
            steps=2,
            evaluate_every=1,
        ),
    ),
    "gan": (
        Gan(),
        GanConfig(data="digits", comparators=(), steps=4, samples=64, evaluate_every=2),
    ),
    "lqr": (RL(), RLConfig(env="lqr", steps=30, warm_up=10, test_contexts=2, comparators=())),
}
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
SIZES = {"desktop": (1100, 900), "phone": (390, 844)}
LARGEST = 2_000_000
"""Bytes of a page."""


@pytest.fixture(
    scope="module",
    params=[
        "digits",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("cameras", "lqr", "transfer", "gan")
        ),
    ],
)
def page_file(request, tmp_path_factory):
    app, config = RUNS[request.param]
    folder = tmp_path_factory.mktemp("browser") / request.param
    experiment.run(app, config, folder, quiet=True)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium or Chrome is installed")
    with api.sync_playwright() as playwright:
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # its sandbox does not run as root
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox"] if root else []
        )
        yield browser
        browser.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_drawn_and_accessible(page_file, browser, scheme, size):
    from axe_playwright_python.sync_playwright import Axe

    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: said.append(request.url))
    page.goto(page_file.as_uri())
    links = page.locator("nav a")
    assert links.count() == page.locator("section").count() > 4
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == links.first.text_content()
    plots = page.locator("svg[role=img]")
    assert plots.count() > 2
    drawn = plots.evaluate_all(
        "all => all.map(svg => [svg.getBoundingClientRect().width, svg.querySelectorAll("
        "'path, rect, image').length])"
    )
    assert all(across > 90 and marks > 1 for across, marks in drawn), drawn
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert [one for one in said if not one.startswith(("data:", "file:"))] == []
    found = Axe().run(page, options={"runOnly": list(RULES)}).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
    page.close()


def test_a_page_is_at_most_two_megabytes_and_reads_without_a_script(page_file):
    text = page_file.read_text(encoding="utf-8")
    assert page_file.stat().st_size <= LARGEST
    assert "<script" not in text and text.count("<svg role") > 2
