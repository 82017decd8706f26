"""Bars where someone can see them, and one line at scanpy's default verbosity."""

import io
import os
import subprocess
import sys
import time

import pytest
import scanpy as sc

from gdml._progress import bar, tell

NESTED = """
from gdml._progress import bar, tell
with bar(2, desc="folds", unit="fold", mininterval=0) as outer:
    for _ in range(2):
        with bar(3, desc="epochs", unit="epoch", mininterval=0) as inner:
            for _ in range(3):
                inner.update()
        outer.update()
"""


def test_bars_are_silent_without_a_terminal():
    done = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == done.stdout == ""


def on_terminal(code, width=80):
    """Run code with a terminal as its standard error; return what it wrote there."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    reading, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, width))
    done = subprocess.Popen([sys.executable, "-c", code], stderr=terminal, env={**os.environ, "TERM": "xterm"})
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(reading, 4096):
            shown += part
    except OSError:  # end of file of a closed terminal
        pass
    os.close(reading)
    assert done.wait(timeout=60) == 0
    return shown.decode()


def test_bars_show_on_a_terminal_and_verbosity_0_silences_them():
    shown = on_terminal(NESTED)
    assert "folds: 100%" in shown and "2/2" in shown and "epochs:" in shown
    assert on_terminal("import scanpy; scanpy.settings.verbosity = 0\n" + NESTED) == ""


def test_bars_show_on_a_terminal_that_gives_no_width():
    assert "folds: 100%" in on_terminal(NESTED, width=0)


@pytest.fixture(scope="module")
def kernel():
    pytest.importorskip("ipykernel")
    manager = pytest.importorskip("jupyter_client.manager")
    running, client = manager.start_new_kernel(kernel_name="python3", startup_timeout=60)
    yield client
    client.stop_channels()
    running.shutdown_kernel(now=True)


def in_kernel(client, code):
    """Run code in the kernel; return the types of its messages, and the text of both streams."""
    kinds, streams = set(), {"stdout": "", "stderr": ""}

    def collect(message):
        kinds.add(message["header"]["msg_type"])
        if message["header"]["msg_type"] == "stream":
            streams[message["content"]["name"]] += message["content"]["text"]

    reply = client.execute_interactive(code, output_hook=collect, timeout=60)
    assert reply["content"]["status"] == "ok", reply["content"]
    return kinds, streams


def test_bars_show_in_a_notebook_on_one_line_without_widgets(kernel):
    kinds, streams = in_kernel(kernel, "import sys; sys.modules['ipywidgets'] = None\n" + NESTED)
    shown = streams["stderr"]
    assert "display_data" not in kinds
    assert shown.startswith("\rfolds:") and shown.endswith("\n") and shown.count("\n") == 1
    assert "\x1b[A" not in shown  # notebooks cannot move the cursor up
    assert "epochs 3/3" in shown and "epochs" not in shown.rsplit("\r", 1)[1]
    assert "2/2" in shown.rsplit("\r", 1)[1]


def test_a_line_between_bars_stays_whole_in_a_notebook(kernel):
    code = NESTED.replace("        outer.update()", "        tell('one fold is done')\n        outer.update()")
    _, streams = in_kernel(kernel, code)
    assert streams["stdout"].splitlines().count("one fold is done") == 2


@pytest.mark.parametrize(("verbosity", "written"), [(0, ""), (1, "tile: 3 slides\n"), (3, "tile: 3 slides\n")])
def test_one_line_at_the_default_verbosity(verbosity, written):
    log, before = io.StringIO(), (sc.settings.logfile, sc.settings.verbosity)
    sc.settings.logfile, sc.settings.verbosity = log, verbosity
    try:
        tell("tile: 3 slides")
    finally:
        sc.settings.logfile, sc.settings.verbosity = before
    assert log.getvalue() == written


def test_the_default_verbosity_shows_the_line():
    code = "import scanpy; from gdml._progress import tell; tell('a line')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout + done.stderr).splitlines().count("a line") == 1


def test_a_disabled_bar_can_be_used():
    start = time.perf_counter()
    with bar(3, desc="slides", unit="slide") as progress:
        for _ in range(3):
            progress.update()
        progress.set_postfix(loss=0.5)
    assert progress.disable and time.perf_counter() - start < 1


def test_one_process_of_several_tells_for_all(monkeypatch):
    log, before = io.StringIO(), sc.settings.logfile
    sc.settings.logfile = log
    try:
        for rank in ("1", "0"):
            monkeypatch.setenv("LOCAL_RANK", rank)
            tell(f"rank {rank}")
    finally:
        sc.settings.logfile = before
    assert log.getvalue() == "rank 0\n"
