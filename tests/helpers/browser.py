"""Opens pages in Chromium without a window, and records their log and their requests."""

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
    """Returns the path of an installed program."""
    path = shutil.which(name)
    assert path, f"no {name}: the report is tested in it; on Debian, `apt-get install chromium chromium-driver`"
    return path


@contextmanager
def chromium(profile: Path, width: int = 1440, height: int = 900, dark: bool = False) -> Iterator[Chrome]:
    """Opens a browser with its own profile and a page of this size, and closes it at the end."""
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
        browser.get("about:blank")  # instead of the page of a new tab
        requests(browser)
        yield browser
    finally:
        browser.quit()


def requests(browser: Chrome) -> list[str]:
    """Returns the addresses that were requested since the last call."""
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [entry["params"]["request"]["url"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]


def wait_for_mark(browser: Chrome, name: str, seconds: float = 60) -> float:
    """Waits for a performance mark of the page; returns its time in seconds since the navigation started."""
    from selenium.webdriver.support.ui import WebDriverWait

    script = f"return performance.getEntriesByName('{name}').map(mark => mark.startTime)[0]"
    return WebDriverWait(browser, seconds, 0.05).until(lambda driver: driver.execute_script(script)) / 1000
