"""A headless Chromium for pages that the project writes: without a network, and with all that it complains of."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (on Debian and Ubuntu the package chromium)"
)


@contextmanager
def opened(file: Path, width: int = 1400, scheme: Any = "light") -> Iterator[tuple[Any, list[str]]]:
    """The page of a file, and what the browser said of it: errors, dialogs, and what it asked the network for."""
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with sync_playwright() as playwright:
        # Its sandbox needs a user who is not root; the pages are our own, and have no network.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request", lambda request: said.append(f"request: {request.url}") if request.url[:5] == "http" else None
        )
        page.goto(file.as_uri())
        yield page, said
        browser.close()
