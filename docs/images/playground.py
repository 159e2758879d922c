"""A picture of the playground: `python docs/images/playground.py docs/images/playground.webp`.

Needs the extras `serve`, `view` and `browser`, and Chromium (`CHROMIUM` names another one than /usr/bin/chromium).
"""

from __future__ import annotations

import argparse
import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from PIL import Image
from playwright.sync_api import expect, sync_playwright


@contextmanager
def served() -> Iterator[str]:
    """The address of a server with the shipped model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "hdlm", "serve", "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while not _is_ready(address):
            assert process.poll() is None
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def _is_ready(address: str) -> bool:
    try:
        with urlopen(f"{address}/ready"):
            return True
    except URLError:
        return False


def picture(tab: Any, address: str, preset: str, position: int | None) -> bytes:
    """The page after a generation, in PNG; the player shows a position from the beginning or the end."""
    tab.goto(address)
    tab.get_by_role("button", name=preset, exact=True).click()
    tab.get_by_role("button", name="Generate").click()
    expect(tab.locator("#status")).to_contain_text(re.compile("Finished"), timeout=300_000)
    if position is not None:
        tab.get_by_role("slider").fill(str(position))
        tab.locator(".text .token.corrected, .text .token.written").first.hover()
    shot: bytes = tab.screenshot(full_page=True)
    return shot


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="the file; .webp or .png")
    parser.add_argument("--preset", default="All at once")
    parser.add_argument("--position", type=int, default=17, help="place of the slider; negative for the end")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with served() as address, sync_playwright() as session:
        browser = session.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        size = {"width": options.width, "height": 800}
        tab = browser.new_page(viewport=size, color_scheme="dark" if options.dark else "light")
        position = None if options.position < 0 else options.position
        shot = picture(tab, address, options.preset, position)
        browser.close()
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    image.save(options.output, quality=80, method=6)


if __name__ == "__main__":
    main()
