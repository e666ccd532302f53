"""Why a stub ended: every way to die is a row."""

from __future__ import annotations

import signal
from typing import List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent.supervision.cause import CLIENT_CHARACTERS, CLIENT_LINES, Cause, Death, Kind, bounded, cause_of, without_tracebacks

KILLED = -signal.SIGKILL
VERDICT = Cause(Kind.HUNG, "it was hung")


@pytest.mark.parametrize(
    "status, verdict, oom, stderr, kind, text",
    [
        (0, None, None, [], Kind.EXITED, "it ended with exit code 0"),
        (3, None, None, [], Kind.EXITED, "it ended with exit code 3"),
        (-signal.SIGSEGV, None, None, [], Kind.SIGNALLED, "it ended with SIGSEGV"),
        (-signal.SIGABRT, None, None, ["assertion failed"], Kind.SIGNALLED, "it ended with SIGABRT"),
        (-63, None, None, [], Kind.SIGNALLED, "it ended with signal 63"),
        (KILLED, None, None, [], Kind.SIGNALLED, "it ended with SIGKILL"),
        (KILLED, None, "", [], Kind.OUT_OF_MEMORY, "it ran out of memory: the kernel ended it (SIGKILL)"),
        (KILLED, None, "5 MiB", [], Kind.OUT_OF_MEMORY, "it ran out of memory: the kernel ended it (SIGKILL; 5 MiB)"),
        (-signal.SIGTERM, None, "5 MiB", [], Kind.SIGNALLED, "it ended with SIGTERM"),
        (
            -signal.SIGABRT,
            None,
            None,
            ["terminate called after throwing an instance of 'std::bad_alloc'", "  what():  std::bad_alloc"],
            Kind.OUT_OF_MEMORY,
            "it ran out of memory: it ended itself (SIGABRT)",
        ),
        (KILLED, VERDICT, None, [], *VERDICT),
        (KILLED, VERDICT, "5 MiB", [], *VERDICT),
        (-signal.SIGSEGV, VERDICT, None, [], *VERDICT),
        (None, None, None, [], Kind.UNKNOWN, "it ended with an unknown status"),
    ],
)
def test_a_cause_has_a_name(
    status: Optional[int], verdict: Optional[Cause], oom: Optional[str], stderr: List[str], kind: Kind, text: str
) -> None:
    assert cause_of(status, verdict, oom, stderr) == (kind, text)


TRACEBACK = """\
loading /srv/secret/models/m/1/model.py
Traceback (most recent call last):
  File "/srv/secret/models/m/1/model.py", line 3, in inner
    raise KeyError("a")
    ~~~~~^^^^^
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/srv/secret/models/m/1/model.py", line 5, in outer
    open("/srv/secret/weights.bin")
  [Previous line repeated 3 more times]
FileNotFoundError: [Errno 2] No such file or directory: '/srv/secret/weights.bin'
see https://example.org/help/memory for 3/4 of it
""".splitlines()

DEATH = Death(812, Cause(Kind.SIGNALLED, "it ended with SIGSEGV"), TRACEBACK, "Fatal Python error: Segmentation fault")


def test_a_client_reads_no_traceback_and_no_path() -> None:
    assert without_tracebacks(TRACEBACK) == [
        "loading model.py",
        "KeyError: 'a'",
        "FileNotFoundError: [Errno 2] No such file or directory: 'weights.bin'",
        "see https://example.org/help/memory for 3/4 of it",
    ]


def test_who_is_told_what() -> None:
    summary = DEATH.summary("m_0_0", "serving", "m")
    assert summary == "Stub process 'm_0_0' is not healthy: it ended with SIGSEGV while serving (pid 812, model 'm')"
    told = DEATH.for_client(summary, expose=False)
    assert told.startswith(f"{summary}; last lines of its stderr:\nloading model.py\nKeyError: 'a'\n")
    assert "secret" not in told and "Traceback" not in told and "Fatal" not in told
    exposed = DEATH.for_client(summary, expose=True)
    assert exposed == f"{DEATH.for_log(summary)}\nFatal Python error: Segmentation fault"
    assert "\n".join(TRACEBACK) in exposed
    quiet = DEATH._replace(stderr=[], stack="")
    assert summary == quiet.for_log(summary) == quiet.for_client(summary, expose=False) == quiet.for_client(summary, expose=True)


@given(st.lists(st.text(max_size=300)))
def test_what_a_client_gets_is_bounded(lines: List[str]) -> None:
    kept = bounded(lines, CLIENT_LINES, CLIENT_CHARACTERS)
    assert kept == lines[len(lines) - len(kept) :]
    assert len(kept) <= CLIENT_LINES and sum(len(line) + 1 for line in kept) <= CLIENT_CHARACTERS


@given(st.lists(st.text()))
def test_any_lines_will_do(lines: List[str]) -> None:
    assert len(without_tracebacks(lines)) <= len(lines)
