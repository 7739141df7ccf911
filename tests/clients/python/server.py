"""Starts and stops the release binary for the tests of this folder.

Nothing here knows a client. Every wait has a deadline and names what it waited for.
"""

import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = os.environ.get("LANES_BINARY", str(ROOT / "target" / "release" / "fanfare"))
HOST = "127.0.0.1"
DEADLINE_S = 30
PAUSE_S = 0.01


def until(what, fact, deadline=DEADLINE_S):
    """Returns the first truthy answer of `fact`."""
    end = time.monotonic() + deadline
    while True:
        answer = fact()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline} s in vain: {what}")
        time.sleep(PAUSE_S)


def free_port():
    """A port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Server:
    """One running server: where it is, its app's credentials, and how to end it."""

    app_id, key, secret = "3102", "tests-key", "tests-secret"

    def __init__(self, app="", settings='shutdown_grace = "1s"'):
        """`app` are further lines of the app's table, `settings` those of the server's."""
        self.app, self.settings = app, settings
        # Another process may take the free port before the server does: then try the next one.
        for attempt in range(3):
            self._spawn(free_port())
            until(f"{self.origin}/up answers", lambda: self._up() or self.child.poll() is not None)
            if self.child.poll() is None:
                return
            said = self.said()
            self._discard()
            if "in use" not in said.lower():
                break
        raise AssertionError(f"the server did not start:\n{said}")

    def _spawn(self, port):
        self.host, self.port, self.origin = HOST, port, f"http://{HOST}:{port}"
        self.folder = tempfile.TemporaryDirectory(prefix="fanfare-python-")
        folder = pathlib.Path(self.folder.name)
        (folder / "fanfare.toml").write_text(
            f'[server]\nhost = "{HOST}"\nport = {port}\n{self.settings}\n\n'
            f"[metrics]\nport = 0\n\n"
            f'[[apps]]\nid = "{self.app_id}"\nkey = "{self.key}"\nsecret = "{self.secret}"\n'
            f"{self.app}\n"
        )
        self.log = open(folder / "log", "w+", encoding="utf-8")
        self.child = subprocess.Popen(
            [BINARY, "--config", str(folder / "fanfare.toml")],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "RUST_BACKTRACE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def _up(self):
        try:
            with urllib.request.urlopen(f"{self.origin}/up", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def _discard(self):
        self.log.close()
        self.folder.cleanup()

    def stop(self):
        """Asks the server to leave, as an init system does, and holds it to a clean end."""
        self.child.send_signal(signal.SIGTERM)
        try:
            code = self.child.wait(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            code = self.child.wait()
        said = self.said()
        self._discard()
        assert code == 0, f"the server ended with {code}:\n{said}"
        assert "panicked" not in said, said
