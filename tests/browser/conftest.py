"""Open pages in headless Chromium without a network, and fail on any error or request that a page causes."""

import re
import shutil
from collections.abc import Sequence
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Request, sync_playwright

HERE = ("", "127.0.0.1", "localhost")  # file:, data: and blob: addresses have no host
# no name but these resolves, so that nothing leaves the machine even where it has a network
ARGUMENTS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
]


@pytest.fixture(scope="module")
def browser():
    """Start Playwright's Browser per module: its event loop conflicts with others in the process."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("no chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def complaints():
    """Collect logged errors, exceptions, failed loads and requests to other machines; any of them fails the test."""
    found = []
    yield found
    assert not found, "\n".join(found)


@pytest.fixture
def open_page(browser, complaints):
    """Return open_page(url, allow=(), **options of Browser.new_context) -> Page, e.g. viewport={"width": 400, "height": 800}.

    `allow`: regular expressions of complaints that are no defect of ours.
    """
    contexts = []

    def open_page(url: str, allow: Sequence[str] = (), **options: object) -> Page:
        def complain(text: str) -> None:
            if not any(re.search(pattern, text) for pattern in allow):
                complaints.append(text)

        def ask(request: Request) -> None:
            if (urlsplit(request.url).hostname or "") not in HERE:
                complain(f"outside: {request.url}")

        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complain(f"console: {message.text}") if message.type == "error" else None)
        page.on("pageerror", lambda error: complain(f"thrown: {error}"))
        page.on("requestfailed", lambda request: complain(f"failed: {request.url[:200]} ({request.failure})"))
        page.on("request", ask)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def accessibility():
    """Return accessibility(page) -> serious and critical findings of axe-core, a line each."""

    def findings(page: Page) -> list[str]:
        violations = Axe().run(page).response["violations"]
        return [
            f"{violation['id']} ({violation['impact']}): {violation['help']}; {node['target']}"
            for violation in violations
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]

    return findings
