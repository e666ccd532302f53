"""The response cache: what a model answered is given again to whoever asks the same (``response_cache``, spec 5.5).

What is kept are copies in the memory of the server, of all models together as many as fit into a number of bytes; what was not used for
the longest time leaves first. Two requests are the same if everything is that a model answers by: the inputs to the last byte, the
outputs that are wanted, and the request's own parameters. That is compared, not only a hash of it.
"""

from __future__ import annotations

import itertools
import logging
import threading
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Tuple

from ...shm.arena import aligned
from ...shm.errors import OutOfSharedMemory
from ..log import about, facts
from ..request import Outcome, OutputPlan, Request, Response

if TYPE_CHECKING:
    from cachetools import LRUCache

    from ..servable import Servable

logger = logging.getLogger(__name__)

Key = Tuple[Any, ...]
"""(model, data types and shapes of the inputs, outputs that are wanted, parameters, bytes of each input)"""

ENTRY_BYTES = 1024
"""What an entry takes beside the bytes of its inputs and outputs, roughly."""


class Kept(NamedTuple):
    """A response: its outputs one after the other in ``data``, as ``plan`` says. ``nbytes``: what keeping it takes in all."""

    plan: OutputPlan
    data: bytes
    parameters: str
    nbytes: int


class ResponseCache:
    """Of all models of a server. All methods may be called in any thread; no other lock is taken meanwhile.

    Args:
        nbytes: what may be kept in all.
    """

    def __init__(self, nbytes: int) -> None:
        self.limit = nbytes
        from cachetools import LRUCache

        self._lock = threading.Lock()
        self._entries: LRUCache[Key, Kept] = LRUCache(nbytes, getsizeof=_size)
        self._owners = itertools.count()

    @property
    def used(self) -> int:
        """How many bytes are kept."""
        with self._lock:
            return int(self._entries.currsize)

    def owner(self) -> int:
        """A number for a model, with which its keys begin."""
        return next(self._owners)

    def get(self, key: Key) -> Optional[Kept]:
        """What is kept for a key."""
        with self._lock:
            return self._entries.get(key)

    def put(self, key: Key, kept: Kept) -> None:
        """Keeps something, in the place of what was used last the longest time ago; what is larger than all that may be kept is not."""
        if kept.nbytes <= self.limit:
            with self._lock:
                self._entries[key] = kept

    def forget(self, owner: int) -> None:
        """Drops all that is kept for a model."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == owner]:
                del self._entries[key]


def _size(kept: Kept) -> int:
    return kept.nbytes


class CachedResponses:
    """Those of one model version."""

    def __init__(self, model: Servable, cache: ResponseCache) -> None:
        self._model = model
        self._cache = cache
        self._owner = cache.owner()
        self._ended = False

    def find(self, request: Request) -> Optional[Response]:
        """The response to a request, if it is kept, in memory of the model's arena. If it is not, it will be when it is known. In any
        thread, and not under the lock of a model."""
        began = perf_counter_ns()
        key = self._key(request)
        if key is None:
            return None
        kept = self._cache.get(key)
        response = None if kept is None else self._restored(kept)
        now = perf_counter_ns()
        if response is None:
            self._model.statistics.cache_missed(now - began)
            request.respond = _Keeper(self, key, request)
        else:
            request.begun_ns = now
            request.cached_ns = now - began
        return response

    def keep(self, key: Key, response: Response) -> None:
        """Keeps a response that was computed."""
        began = perf_counter_ns()
        outputs = response.plan.outputs
        nbytes = sum(map(len, key[-1])) + sum([aligned(output.nbytes) for output in outputs]) + ENTRY_BYTES
        if nbytes > self._cache.limit or response.plan.in_regions or self._ended:
            return
        pieces = []
        for output in outputs:
            pieces += [response.copy(output), bytes(aligned(output.nbytes) - output.nbytes)]
        self._cache.put(key, Kept(self._packed(response.plan), b"".join(pieces), response.parameters, nbytes))
        self._model.statistics.cache_filled(perf_counter_ns() - began)

    def drop(self) -> None:
        """The model is no more: nothing is kept for it, now or later."""
        self._ended = True
        self._cache.forget(self._owner)

    def _packed(self, plan: OutputPlan) -> OutputPlan:
        """The same object for the same outputs: who encodes them remembers how."""
        packed: Optional[OutputPlan] = self._model.memo.get(plan)
        if packed is None:
            packed = plan.packed()
            self._model.remember(plan, packed)
        return packed

    def _restored(self, kept: Kept) -> Optional[Response]:
        """None if there is no room for it: the model has to be asked, then."""
        model = self._model
        try:
            with model.lock:
                block = model.arena.allocate(len(kept.data))
        except OutOfSharedMemory:
            return None
        give_back = block.arena.dropped.append
        try:
            block.write(0, kept.data, len(kept.data))
        except OutOfSharedMemory:
            give_back(block)
            return None
        return Response(kept.plan, [(block.segment, block.offset)], [(give_back, block)], kept.parameters)

    def _key(self, request: Request) -> Optional[Key]:
        """None for a request whose answer cannot be kept: it is part of a sequence, or its outputs go to shared memory of the client's, or
        its inputs alone are more than may be kept."""
        wanted, parameters = None, "{}"
        if request.extras:
            _, wanted, parameters, correlation_id, flags, *_ = request.extras
            if correlation_id or flags:
                return None
        inputs = request.inputs
        if request.regions is not None and request.regions.writes:
            return None
        if sum([nbytes for *_, nbytes in inputs]) > self._cache.limit:
            return None
        data: List[bytes] = []
        blocks = request.blocks
        for _, _, _, number, offset, nbytes in inputs:
            if number < len(blocks):
                block = blocks[number][0]
                start = block.offset + offset
                data.append(block.segment.memory[start : start + nbytes])
            else:
                assert request.regions is not None
                region, start, _ = request.regions.reads[number - len(blocks)]
                read = region.read(start + offset, nbytes)
                if read is None:
                    return None
                data.append(read)
        described = tuple([(index, dtype, shape) for index, dtype, shape, *_ in inputs])
        return self._owner, described, wanted, parameters, tuple(data)


def cached_responses(model: Servable) -> Optional[CachedResponses]:
    """Those of a model, if its configuration and the server's options say that there are any."""
    cache = model.server.response_cache
    if not model.config.response_cache.enable:
        return None
    if cache is None:
        text = "model '%s' wants its responses kept, but there is no response cache: --cache-config=local,size=BYTES makes one"
        logger.warning(text, model.name, extra=about(facts(model.name, model.version)))
        return None
    return CachedResponses(model, cache)


class _Keeper:
    """Stands in for a request's ``respond``: what is told passes by here."""

    __slots__ = ("_key", "_respond", "_responses")

    def __init__(self, responses: CachedResponses, key: Key, request: Request) -> None:
        self._responses = responses
        self._key = key
        self._respond = request.respond

    def __call__(self, outcome: Optional[Outcome], final: bool) -> None:
        if isinstance(outcome, Response):
            self._responses.keep(self._key, outcome)
        self._respond(outcome, final)
