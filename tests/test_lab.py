"""`make lab`: JupyterLab on the introduction, with MyST rendered."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = "/lab/api/settings/@jupyterlab/docmanager-extension:plugin"


@pytest.fixture
def ask(tmp_path):
    """The server that `make lab` starts, asked for a path: its answer's address and text."""
    command = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = shlex.split(command.splitlines()[-1])
    assert words[0].endswith("/bin/jupyter"), words
    words = [sys.executable, "-m", "jupyter", *words[1:], "--no-browser", "--port=0", "--IdentityProvider.token=secret"]
    folders = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    server = subprocess.Popen([*words, "--allow-root"], cwd=ROOT, env=os.environ | folders, stderr=subprocess.PIPE)
    try:
        for _ in range(600):
            records = list((tmp_path / "RUNTIME").glob("jpserver-*.json"))
            if records and records[0].stat().st_size:
                break
            assert server.poll() is None, server.stderr.read().decode()
            time.sleep(0.2)
        address = json.loads(records[0].read_text())["url"].rstrip("/")

        def asked(path):
            with urlopen(Request(address + path, headers={"Authorization": "token secret"}), timeout=60) as answer:
                return answer.url.removeprefix(address), answer.read().decode()

        yield asked
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_lab_opens_the_introduction_rendered(ask):
    address, page = ask("/")
    assert address == "/lab/tree/book/intro.md"
    assert '"jupyterlab-myst"' in page, "the extension that renders MyST"
    settings = json.loads(ask(MARKDOWN)[1])
    assert settings["schema"]["properties"]["defaultViewers"]["default"] == {"markdown": "Markdown Preview"}
