"""A worker ends with the process that it works for, and that one does not end itself."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

SELF = "import os, time; from ganbert.workers import end_with; end_with(os.getpid()); time.sleep(1)"
PARENT = """
import os, subprocess, sys
child = "import sys, time; from ganbert.workers import end_with; "
child += "end_with(int(sys.argv[1])); print('ready', flush=True); time.sleep(600)"
process = subprocess.Popen([sys.executable, "-c", child, str(os.getpid())], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid)
"""


def test_the_process_itself_does_not_end() -> None:
    assert subprocess.run([sys.executable, "-c", SELF], check=False).returncode == 0


def test_a_child_ends_when_its_parent_has() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PARENT], capture_output=True, text=True, check=True, timeout=120
    )
    command, deadline = Path("/proc") / result.stdout.strip() / "cmdline", time.monotonic() + 60
    # One that nobody waits for stays in the table of processes, without a command.
    with contextlib.suppress(OSError):
        while command.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
