"""The fixture that every test gets is itself put to the test: each kind of leak is seen, and named."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import Callable, Tuple

import pytest
from leaks import Holdings, assert_nothing_left
from stublet.shm.segment import Segment

Left = Tuple[str, Callable[[], object]]
"""How the leak is named, and what ends it."""


def leave_file() -> Left:
    fd = os.open("/etc/hostname", os.O_RDONLY)
    return "file descriptor of .*/hostname", lambda: os.close(fd)


def leave_mapping() -> Left:
    held = [Segment.create(0, 4096)]
    held[0].close()
    return r"file descriptor of /(memfd:stublet|dev/shm/stublet-\w+) \(deleted\)", held.clear


def leave_thread() -> Left:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="left-over")
    thread.start()
    return "thread left-over", lambda: (done.set(), thread.join())


def leave_child() -> Left:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    return rf"child process {process.pid} \(cat\); file descriptor of pipe", process.communicate


def leave_dead_child() -> Left:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return rf"child process {process.pid} \(true\)", process.wait


def leave_name() -> Left:
    name = f"/dev/shm/stublet-{'0' * 31}{os.getpid()}"
    os.close(os.open(name, os.O_CREAT))
    return f"name in {os.path.dirname(name)} {os.path.basename(name)}", lambda: os.unlink(name)


@pytest.mark.parametrize("leave", [leave_file, leave_mapping, leave_thread, leave_child, leave_dead_child, leave_name])
def test_what_is_left_is_named(leave: Callable[[], Left]) -> None:
    before = Holdings.now()
    name, end = leave()
    try:
        with pytest.raises(AssertionError, match=f"^left behind: {name}"):
            assert_nothing_left(before, seconds=0.02)
    finally:
        end()
    assert_nothing_left(before)
