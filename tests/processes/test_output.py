"""What models print and log is in the server's log, line by line, with the instance and its pid."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, Iterator, List

import pytest
from http_wire import infer, tensor
from model_repository import copy_model, obey
from server_process import ServerProcess, memory_bytes, serving, until


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """For what leaves the model as it was."""
    root = tmp_path_factory.mktemp("output")
    obey(root / "models")
    with serving(root, root / "models", "--log-verbose", "1") as server:
        yield server


@pytest.fixture
def server(repository: Any, serve: Any) -> ServerProcess:
    obey(repository)
    return serve()  # type: ignore[no-any-return]


def run(server: ServerProcess, code: str) -> int:
    """Has the model run that; returns how long the log was before."""
    before = len(server.log)
    with server.wire() as wire:
        assert wire.ask(infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [code])]})).status == 200
    return before


def lines(server: ServerProcess, text: str, count: int = 1, since: int = 0) -> List[str]:
    """The log's lines with that text, once there are so many."""

    def found() -> List[str]:
        return [line for line in server.log[since:].splitlines() if text in line]

    until(lambda: len(found()) >= count, 5, f"{count} lines with {text!r} in the log")
    return found()


@pytest.mark.parametrize(
    "code, letter, where, text",
    [
        ("print('printed')", "I", "stdout", "printed"),
        ("print('déjà 日本')", "I", "stdout", "déjà 日本"),
        ("print('one\\ntwo')", "I", "stdout", "two"),
        ("print('complained', file=sys.stderr)", "W", "stderr", "complained"),
        ("os.write(1, b'written \\xff\\n')", "I", "stdout", "written \ufffd"),
        ("os.system('echo shouted')", "I", "stdout", "shouted"),
        ("import warnings; warnings.warn('mind')", "W", "stderr", "UserWarning: mind"),
        ("logging.warning('warned')", "W", r"<string>:1", "warned"),
        ("logging.error('erred %d', 5)", "E", r"<string>:1", "erred 5"),
        ("logging.getLogger('deep.inside').error('deeply')", "E", r"<string>:1", "deeply"),
        ("pb_utils.Logger.log_info('informed')", "I", r"<string>:1", "informed"),
        ("pb_utils.Logger.log_warn('warned')", "W", r"<string>:1", "warned"),
        ("pb_utils.Logger.log_error('erred')", "E", r"<string>:1", "erred"),
        ("pb_utils.Logger.log_verbose('wordy')", "I", r"<string>:1", "wordy"),
        ("\n\npb_utils.Logger.log('plain', pb_utils.Logger.WARNING)", "W", r"<string>:3", "plain"),
    ],
)
def test_a_line(shared: ServerProcess, code: str, letter: str, where: str, text: str) -> None:
    since = run(shared, code)
    (line,) = lines(shared, text, since=since)
    pid = shared.stubs()["obey_0_0"]
    assert re.match(rf"{letter}\d{{4}} \d\d:\d\d:\d\d\.\d{{6}} {pid} obey_0_0 {where}\] ", line)


def test_lines_keep_their_order(shared: ServerProcess) -> None:
    run(shared, "for i in range(200): print('number', i)")
    found = lines(shared, "] number ", 200)
    assert [int(line.rsplit(" ", 1)[1]) for line in found] == list(range(200))


def test_a_megabyte_without_an_end(shared: ServerProcess) -> None:
    run(shared, "print('m' * (1 << 20))")
    until(lambda: sum(line.count("m") for line in shared.log.splitlines() if "mmmm" in line) == 1 << 20, 5)
    assert max(map(len, shared.log.splitlines())) < 200_000
    run(shared, "print('after it')")
    lines(shared, "] after it")


def test_much_output_does_not_hold_requests_up_for_ever(shared: ServerProcess) -> None:
    run(shared, "for i in range(20_000): print('x' * 100)")
    run(shared, "for i in range(2_000): logging.warning('y' * 100)")
    lines(shared, "y" * 100, 2000)
    lines(shared, "x" * 100, 20_000)


def test_a_line_without_an_end_comes_when_its_pipe_is_closed(server: ServerProcess) -> None:
    run(server, "print('unended', end='', flush=True); os.close(1)")
    lines(server, "obey_0_0 stdout] unended")
    server.stop()


def test_output_while_it_loads_and_ends(repository: Any, serve: Any) -> None:
    obey(repository, initialize="print('begins')", finalize="print('ends')")
    server = serve()
    lines(server, "obey_0_0 stdout] begins")
    server.stop()
    lines(server, "obey_0_0 stdout] ends")


def test_last_words_are_not_lost(repository: Any, serve: Any) -> None:
    obey(repository)
    server = serve()
    with server.wire() as wire:
        code = "print('farewell'); print('world', file=sys.stderr); os._exit(3)"
        assert wire.ask(infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [code])]})).status == 503
    lines(server, "obey_0_0 stdout] farewell")
    lines(server, "obey_0_0 stderr] world")
    server.stop()


def test_a_model_may_close_its_output(server: ServerProcess) -> None:
    run(server, "os.close(1); os.close(2)")
    run(server, "pass")
    run(server, "logging.error('still here')")
    lines(server, "still here")
    server.stop()


def test_a_program_left_behind_holds_nobody_up(repository: Any, serve: Any) -> None:
    """It inherits the model's stdout, so that the pipe does not end with the model."""
    obey(repository)
    server = serve()
    run(server, "import subprocess; model.child = subprocess.Popen(['sleep', '20'])")
    server.signal(15)
    assert server.wait(5) == 0


@pytest.mark.parametrize("level, absent", [("info", "I"), ("warning", "W"), ("error", "E")])
def test_levels_can_be_switched_off(repository: Any, serve: Any, level: str, absent: str) -> None:
    obey(repository)
    server = serve(f"--log-{level}=false")
    run(server, "for name in ('info', 'warn', 'error'): getattr(pb_utils.Logger, 'log_' + name)('said ' + name)")
    run(server, "pass")
    server.stop()
    letters = {line[0] for line in server.log.splitlines() if "] said " in line}
    assert letters == {"I", "W", "E"} - {absent}


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A model that may say anything, and one that wants to be served meanwhile."""
    root = tmp_path_factory.mktemp("flooded")
    obey(root / "models")
    copy_model(root / "models", "add_sub")
    with serving(root, root / "models") as server:
        yield server


FLOODS = {
    "lines": "for _ in range(64): os.write(1, (b'x' * 127 + b'\\n') * 8192)",
    "no lines": "for _ in range(1024): os.write(2, b'y' * (1 << 20))",
    "empty lines": "for _ in range(64): os.write(1, b'\\n' * (1 << 20))",
    "logged": "for _ in range(20_000): pb_utils.Logger.log_info('z' * 10_000)",
}


@pytest.mark.parametrize("code", FLOODS.values(), ids=FLOODS)
def test_a_flood(flooded: ServerProcess, code: str) -> None:
    """Up to a gigabyte: it fills neither disk nor memory, and others are served meanwhile; how much was left out is said."""
    before, memory, length = len(flooded.log), memory_bytes(flooded.pid), 0
    four = [1.0, 2.0, 3.0, 4.0]
    other = infer("add_sub", {"inputs": [tensor(name, "FP32", [4], four) for name in ("INPUT0", "INPUT1")]})
    with flooded.wire() as flooding, flooded.wire() as wire:
        flooding.send(infer("obey", {"inputs": [tensor("CODE", "BYTES", [1], [code])]}))
        flooding.socket.setblocking(False)
        served = 0
        while not length:
            with suppress(BlockingIOError):
                length = len(flooding.socket.recv(1 << 16))
            assert wire.ask(other).status == 200
            served += 1
    assert served > 10
    left_out = until(lambda: re.findall(r"\] (\d+) lines of (\d+) bytes were left out of the log", flooded.log[before:]), what="the notice")
    assert sum(int(nbytes) for _, nbytes in left_out) > 1 << 20
    assert len(flooded.log) - before < 80 << 20
    assert memory_bytes(flooded.pid) < memory + (64 << 20)

    def heard() -> bool:
        run(flooded, "print('after the flood', flush=True)")
        return "] after the flood" in flooded.log[before:]

    until(heard, what="a line after the flood")
