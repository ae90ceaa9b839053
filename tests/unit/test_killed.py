"""A run killed at any moment and resumed ends with the file of an uninterrupted one, bit for bit."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX's")
def test_killed_at_any_moment_and_resumed_the_file_is_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.builders.killed", str(tmp_path)], capture_output=True, text=True, timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    digests = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert len(digests) == 11, digests
    assert set(digests.values()) == {digests["uninterrupted"]}, digests
