"""Chromium without a window, which notes what a page logs and asks for."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service


FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-device-scale-factor=1",
)


def program(name: str) -> str:
    path = shutil.which(name)
    assert path, f"no {name}: the report is tested in it; on Debian, `apt-get install chromium chromium-driver`"
    return path


@contextmanager
def chromium(profile: Path, width: int = 1440, height: int = 900, dark: bool = False) -> Iterator[Chrome]:
    """A browser with a profile of its own, whose page has this size."""
    options = ChromeOptions()
    options.binary_location = program("chromium")
    for flag in (*FLAGS, f"--user-data-dir={profile}", "about:blank"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options, Service(program("chromedriver")))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get("about:blank")  # in the place of the page that a new tab has
        requests(browser)
        yield browser
    finally:
        browser.quit()


def requests(browser: Chrome) -> list[str]:
    """The addresses the browser was asked for, since this was last called."""
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]


def wait_for_mark(browser: Chrome, name: str, seconds: float = 60) -> float:
    """When the page noted something, in seconds since it was asked for."""
    from selenium.webdriver.support.ui import WebDriverWait

    look = f"return performance.getEntriesByName('{name}').map(mark => mark.startTime)[0]"
    return WebDriverWait(browser, seconds, 0.05).until(lambda driver: driver.execute_script(look)) / 1000
