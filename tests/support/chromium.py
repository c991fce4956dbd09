"""Chromium without a window, driven through a pipe by its own protocol: nothing but the program is needed.

`Browser(program())` starts it; `open` loads a page, `run` evaluates JavaScript, `press` and `type` send keys.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {
    " ": ("Space", 32), "Enter": ("Enter", 13), "Escape": ("Escape", 27), "Tab": ("Tab", 9), "PageUp": ("PageUp", 33),
    "PageDown": ("PageDown", 34), "End": ("End", 35), "Home": ("Home", 36), "ArrowLeft": ("ArrowLeft", 37),
    "ArrowUp": ("ArrowUp", 38), "ArrowRight": ("ArrowRight", 39), "ArrowDown": ("ArrowDown", 40),
}  # fmt: skip
PATIENCE = 300  # seconds until a hanging browser is an error
TEXT = {" ": " ", "Enter": "\r"}
# The program reads file descriptor 3 and writes 4: a launcher puts the pipes there.
LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def program() -> str:
    """The path of Chromium or Chrome, or "" if there is none; the variable CHROMIUM says which."""
    names = [os.environ["CHROMIUM"]] if os.environ.get("CHROMIUM") else PROGRAMS
    return next((found for name in names if (found := shutil.which(name))), "")


class Browser:
    """A browser with one page; leaving the context ends it."""

    def __init__(self, path: str) -> None:
        import fcntl

        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        pipes = [*os.pipe(), *os.pipe()]
        theirs_in, ours_out, ours_in, theirs_out = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in pipes)
        for fd in pipes:
            os.close(fd)
        options = [
            "--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", "--hide-scrollbars", f"--user-data-dir={self._profile.name}",
            "--disable-dev-shm-usage", "--no-sandbox", "about:blank",  # for containers; only our own pages load
        ]  # fmt: skip
        launch = [sys.executable, "-c", LAUNCHER, str(theirs_in), str(theirs_out), path, *options]
        quiet = subprocess.DEVNULL
        theirs = theirs_in, theirs_out
        self._process = subprocess.Popen(launch, pass_fds=theirs, stdin=quiet, stdout=quiet, stderr=quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        self._out, self._in, self._read = ours_out, ours_in, b""
        self._count, self._events, self.errors = 0, [], []
        self._session = ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        for fd in (self._out, self._in):
            os.close(fd)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()
        self._process.wait()
        self._profile.cleanup()

    def send(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            reply = self._receive()
            if reply.get("id") == self._count:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                return reply["result"]

    def open(self, address: str, width: int = 1440, height: int = 900, dark: bool = False, calm: bool = True) -> None:
        """Load a page and wait until it is there. `calm` asks it for less motion."""
        self.errors.clear()
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        motion = "reduce" if calm else "no-preference"
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": motion}
        self.send("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in features.items()])
        for place in ("about:blank", address):  # an address that differs in its # alone would load nothing
            self._events.clear()
            self.send("Page.navigate", url=place)
            while "Page.loadEventFired" not in self._events:
                self._receive()

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; what it promises is awaited."""
        given = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        reply = self.send("Runtime.evaluate", **given)
        if "exceptionDetails" in reply:
            raise RuntimeError(reply["exceptionDetails"].get("exception", {}).get("description", "an error"))
        return reply["result"].get("value")

    def press(self, key: str, times: int = 1, *, shift: bool = False, control: bool = False) -> None:
        """Press and release a key."""
        code, number = KEYS.get(key, ("", ord(key.upper()) if len(key) == 1 else 0))
        text = TEXT.get(key, key if len(key) == 1 else "")
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 * shift + 2 * control}
        for _ in range(times):
            down = {"type": "keyDown", "text": text} if text and not control else {"type": "rawKeyDown"}
            self.send("Input.dispatchKeyEvent", **common, **down)
            self.send("Input.dispatchKeyEvent", **common, type="keyUp")

    def type(self, text: str) -> None:
        for character in text:
            self.press(character)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write a PNG of what is seen, or of the whole page."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], PATIENCE)
            part = os.read(self._in, 1 << 16) if ready else b""
            if not part:
                raise RuntimeError("Chromium ended." if ready else f"Chromium said nothing for {PATIENCE} seconds.")
            self._read += part
        line, _, self._read = self._read.partition(b"\0")
        reply: dict[str, Any] = json.loads(line)
        if "method" in reply:
            self._events.append(reply["method"])
            if reply["method"] == "Runtime.exceptionThrown":
                self.errors.append(reply["params"]["exceptionDetails"]["exception"].get("description", "an error"))
        return reply
