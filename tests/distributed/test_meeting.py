"""What a rank says when it cannot meet the others."""

import os
import socket
import subprocess
import sys

PROGRAM = """
from ganbert.engines import init_world
from ganbert.errors import one_line_errors
with one_line_errors():
    init_world()
"""


def test_a_master_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **place}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("ganbert: ")]
    assert f"127.0.0.1:{port}: expected a free port there" in line
    assert "found a port that is taken; give the launcher another --master_port" in line
    assert "Traceback" not in done.stderr
