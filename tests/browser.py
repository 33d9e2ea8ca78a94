"""A headless Chromium for tests of pages: opens a file, reports its console and its requests, runs scripts in it.

It is spoken to by the DevTools protocol over a pipe, so that nothing but the browser has to be installed.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
# Puts the two pipes where the browser wants them, wherever they are now, and becomes the browser.
START = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for place, pipe in enumerate(pipes, start=3):
    os.dup2(pipe, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


def chromium() -> str:
    """The browser's path; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found or pytest.skip("no Chromium here: apt-get install chromium")


class Browser:
    """One page. `errors`: what the console complained of; `requests`: every URL that was asked for."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        there, self.sink = os.pipe()
        self.source, back = os.pipe()
        command = [chromium(), *FLAGS, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(there), str(back), *command],
            pass_fds=(there, back), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(there)
        os.close(back)
        self.unread, self.number, self.session = b"", 0, None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.sink)
        os.close(self.source)

    def read(self) -> dict:
        while b"\0" not in self.unread:
            part = os.read(self.source, 1 << 16)
            assert part, "the browser ended"
            self.unread += part
        text, _, self.unread = self.unread.partition(b"\0")
        message = json.loads(text)
        self.note(message.get("method"), message.get("params", {}))
        return message

    def note(self, method: str | None, about: dict) -> None:
        if method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(str(about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"][:200])
        elif method == "Page.loadEventFired":
            self.loaded = True

    def call(self, method: str, **parameters: object) -> dict:
        """The result of a DevTools command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.sink, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, page: Path) -> None:
        """Open a file and wait until it is loaded."""
        self.loaded, self.errors, self.requests = False, [], []
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not self.loaded:
            self.read()

    def run(self, script: str) -> object:
        """The value of a JavaScript expression; a promise is waited for."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        phone = width < 500
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def look(self, scheme: str = "light", medium: str = "") -> None:
        """scheme: light or dark; medium: "" for the screen, or print."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=medium, features=features)

    def picture(self, path: Path, whole: bool = False) -> None:
        """A screenshot of what is in view, or of the whole page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def paper(self, path: Path) -> None:
        """The page as a PDF, as it is printed."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"]))
