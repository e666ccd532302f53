"""The response cache by itself: what it keeps, how much of it, and which requests it takes for the same (spec 5.5)."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stublet.parent import model_config
from stublet.parent.cache.config import check_response_cache
from stublet.parent.cache.response_cache import ENTRY_BYTES, CachedResponses, Kept, ResponseCache
from stublet.parent.errors import InternalError
from stublet.parent.model_config import TensorSpec
from stublet.parent.request import OutputPlan, Request, Response
from stublet.parent.statistics import ModelStatistics
from stublet.shm.arena import Arena
from stublet.shm.dtype import BY_CONFIG_NAME
from stublet.shm.errors import OutOfSharedMemory
from stublet.shm.segment import Segment

FP32 = BY_CONFIG_NAME["TYPE_FP32"]
KEEP_NOTHING: Any = None


def kept(data: bytes, size: int = 0) -> Kept:
    return Kept(KEEP_NOTHING, data, "", size or len(data))


@given(
    limit=st.integers(1, 100),
    doings=st.lists(st.tuples(st.sampled_from(["put", "get", "forget"]), st.integers(0, 2), st.integers(0, 5), st.integers(1, 120))),
)
def test_the_limit_is_never_exceeded_and_what_is_found_is_what_was_kept(limit: int, doings: List[Tuple[str, int, int, int]]) -> None:
    cache = ResponseCache(limit)
    last: Dict[Tuple[int, int], bytes] = {}
    for what, owner, name, size in doings:
        key = (owner, name)
        if what == "put":
            cache.put(key, kept(bytes(size)))
            if size <= limit:
                last[key] = bytes(size)
                assert cache.get(key) == kept(bytes(size))  # the newest is never the one that leaves
        elif what == "get":
            found = cache.get(key)
            assert found is None or found.data == last[key]
        else:
            cache.forget(owner)
            assert not any(cache.get((owner, other)) for other in range(6))
        assert cache.used <= limit


def test_what_was_not_used_for_the_longest_time_leaves_first() -> None:
    cache = ResponseCache(30)
    for name in "abc":
        cache.put((0, name), kept(bytes(10)))
    cache.get((0, "a"))
    cache.put((0, "d"), kept(bytes(10)))
    assert [bool(cache.get((0, name))) for name in "abcd"] == [True, False, True, True]


def test_many_threads() -> None:
    cache = ResponseCache(1000)

    def work(owner: int) -> None:
        for number in range(500):
            cache.put((owner, number % 7), kept(bytes([owner]) * 50))
            found = cache.get((owner, number % 5))
            assert found is None or found.data == bytes([owner]) * 50
            if number % 50 == 0:
                cache.forget(owner)

    threads = [threading.Thread(target=work, args=(owner,)) for owner in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.used <= 1000


class Asker:
    """A model without instances, and requests to it; ``respond`` collects what they are told."""

    def __init__(self, nbytes: int = 1 << 20) -> None:
        self.cache = ResponseCache(nbytes)
        segment = Segment.create(1, 1 << 20)
        self.arena = Arena(lambda _: Segment.create(2, 1 << 20), 1 << 20)
        self.arena.add(segment)
        self.memo: Dict[Any, Any] = {}
        self.statistics = ModelStatistics()
        self.lock = threading.Lock()
        self.outputs = [TensorSpec("OUTPUT0", FP32, (-1,), False)]
        self.told: List[Tuple[Any, bool]] = []
        self.cached = self.another()

    def another(self) -> CachedResponses:
        return CachedResponses(self, self.cache)  # type: ignore[arg-type]

    def remember(self, key: Any, value: Any) -> None:
        self.memo[key] = value

    def request(self, data: bytes = b"1234", extras: Tuple[Any, ...] = (), offset: int = 0, shape: Tuple[int, ...] = (1,)) -> Request:
        block = self.arena.allocate(offset + len(data))
        block.write(offset, data, len(data))
        inputs = ((0, FP32.code, shape, 0, offset, len(data)),)
        return Request([(block, offset + len(data))], inputs, extras, self._respond)

    def _respond(self, outcome: Any, final: bool) -> None:
        self.told.append((outcome, final))

    def response(self, data: bytes, offset: int = 0) -> Response:
        block = self.arena.allocate(offset + len(data))
        block.write(offset, data, len(data))
        plan = OutputPlan(self.outputs, [(0, FP32.code, (len(data) // 4,), 0, offset, len(data))], 1)
        return Response(plan, [(block.segment, block.offset)], [(self.arena.dropped.append, block)], '{"a":1}')

    def ask(self, request: Request, answer: bytes = b"") -> Any:
        """The bytes that are found for a request; None if there are none, in which case the model answers ``answer``, if that is anything."""
        found = self.cached.find(request)
        if found is None:
            if answer:
                request.respond(self.response(answer, 64), True)
            return None
        (output,) = found.plan.outputs
        assert (output.name, output.shape, found.parameters) == ("OUTPUT0", (len(found.copy(output)) // 4,), '{"a":1}')
        return found.copy(output)


ID, PARAMETERS = ("7", None, "{}", 0, 0, 0), ("", None, '{"x":1}', 0, 0, 0)


def test_the_same_question_has_the_same_answer() -> None:
    asker = Asker()
    first, again = asker.request(), asker.request(offset=128)
    assert asker.ask(first, b"answer__") is None
    ((outcome, final),) = asker.told
    assert isinstance(outcome, Response) and final
    outcome.release()
    assert asker.ask(again) == b"answer__"
    assert again.cached_ns > 0 and again.begun_ns > 0 and not first.cached_ns
    assert asker.ask(asker.request(extras=ID)) == b"answer__"  # an id and deadlines change no answer


@pytest.mark.parametrize(
    "other",
    [
        {"data": b"1235"},
        {"data": b"12345678", "shape": (2,)},
        {"shape": (1, 1)},
        {"extras": PARAMETERS},
        {"extras": ("", (0,), "{}", 0, 0, 0)},
    ],
)
def test_another_question_has_not(other: Dict[str, Any]) -> None:
    asker = Asker()
    asker.ask(asker.request(), b"answer__")
    assert asker.ask(asker.request(**other), b"another_") is None
    assert asker.ask(asker.request(**other)) == b"another_"
    assert asker.ask(asker.request()) == b"answer__"


def test_equal_hashes_are_not_enough() -> None:
    """-1 and -2 have one hash in Python, so that these keys do, too."""
    asker = Asker()
    asker.ask(asker.request(shape=(-1,)), b"answer__")
    assert hash((-1,)) == hash((-2,)) and asker.ask(asker.request(shape=(-2,))) is None


def test_another_model_has_not_either() -> None:
    asker = Asker()
    asker.ask(asker.request(), b"answer__")
    asker.cached = asker.another()
    assert asker.ask(asker.request()) is None


@pytest.mark.parametrize("extras", [("", None, "{}", 5, 0, 0), ("", None, "{}", "five", 0, 0), ("", None, "{}", 0, 1, 0)])
def test_sequences_are_not_looked_up(extras: Tuple[Any, ...]) -> None:
    asker = Asker()
    request = asker.request(extras=extras)
    respond = request.respond
    assert asker.cached.find(request) is None and request.respond == respond


def test_what_has_failed_is_not_kept() -> None:
    asker = Asker()
    request = asker.request()
    assert asker.cached.find(request) is None
    error = InternalError("no")
    request.respond(error, True)
    assert asker.told == [(error, True)] and asker.cache.used == 0


def test_what_is_too_large_is_not_kept() -> None:
    asker = Asker(ENTRY_BYTES + 100)
    asker.ask(asker.request(), b"x" * 128)
    assert asker.cache.used == 0
    assert asker.ask(asker.request(b"x" * 2000), b"small___") is None and asker.cache.used == 0
    asker.ask(asker.request(), b"x" * 64)
    assert ENTRY_BYTES < asker.cache.used <= ENTRY_BYTES + 100


def test_nothing_is_kept_of_a_model_that_has_gone() -> None:
    asker = Asker()
    asker.ask(asker.request(), b"answer__")
    late = asker.request(b"late")
    assert asker.ask(late) is None
    asker.cached.drop()
    late.respond(asker.response(b"answer__"), True)
    assert asker.cache.used == 0


def test_a_change_of_the_answer_does_not_change_what_is_kept() -> None:
    asker = Asker()
    asker.ask(asker.request(), b"answer__")
    found = asker.cached.find(asker.request())
    assert found is not None
    segment, start = found.places[0]
    segment.memory[start : start + 8] = b"scribble"
    assert asker.ask(asker.request()) == b"answer__"


@pytest.mark.parametrize(
    "section, complaint",
    [
        ("model_transaction_policy { decoupled: true }", "with 'decoupled' transaction policy"),
        ("max_batch_size: 4 sequence_batching { }", "with sequence batching scheduler"),
    ],
)
def test_models_that_cannot_have_one(section: str, complaint: str) -> None:
    text = 'backend: "python" response_cache { enable: true } input { name: "A" data_type: TYPE_FP32 dims: 1 } '
    config = model_config.parse(text + section, "config.pbtxt")
    with pytest.raises(ValueError) as raised:
        check_response_cache(config, "m")
    assert str(raised.value) == f"Response Cache does not currently support model m {complaint}. Please disable the response cache."


def test_a_model_without_memory_for_a_copy_is_asked() -> None:
    asker = Asker()
    asker.ask(asker.request(), b"answer__")
    request = asker.request()

    def full(_: int) -> Any:
        raise OutOfSharedMemory("full")

    asker.arena = SimpleNamespace(allocate=full)  # type: ignore[assignment]
    assert asker.cached.find(request) is None and not request.cached_ns
