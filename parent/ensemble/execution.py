"""One request to an ensemble on its way: does what its ``Flow`` says."""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from threading import Lock
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Deque, Dict, List, Optional, Sequence, Tuple

from ...shm.cuda.segment import DeviceSegment
from ..client_memory import Read, Write
from ..errors import InternalError, InvalidArgument, ServerError, Unavailable
from ..parameters import merged
from ..request import Outcome, Request
from ..statistics import Failure
from .flow import Actions, Flow, Run
from .route import Route, Step
from .tensors import Source, make_request, make_response, of_request, of_response

if TYPE_CHECKING:
    from ..instance import Instance
    from .servable import Ensemble

logger = logging.getLogger(__name__)

_CARRIED = 6
"""The extras of a request that are not its trace."""


class Execution:
    """Its events come in any thread, from models that may just be told something here. So each is put into a queue, which one thread at a
    time empties; whoever finds another at it leaves its event there. No lock that anybody waits for is held meanwhile."""

    __slots__ = ("_busy", "_carried", "_ensemble", "_events", "_flow", "_queue_ns", "_request", "_route", "_shared", "_writes")

    def __init__(self, ensemble: Ensemble, request: Request, route: Route) -> None:
        self._ensemble = ensemble
        self._request = request
        self._route = route
        self._flow = Flow(route.course)
        self._events: Deque[Tuple[Optional[Run], Any, bool]] = deque()
        self._busy = Lock()
        self._carried = request.extras[:_CARRIED]
        self._shared = request.borrowed or len(route.course.takers[0]) > 1
        self._queue_ns = 0
        regions = request.regions
        self._writes: Dict[str, Write] = {}
        """What the client wants in regions of its own, by the names of the outputs."""
        if regions is not None:
            self._writes = {ensemble.outputs[write[0]].name: write for write in regions.writes}

    # In any thread

    def begin(self) -> None:
        """Starts the steps that can run."""
        self._post(None, self._begin)

    def cancel(self, error: ServerError, failure: Failure) -> None:
        """Answers with the error, unless everything was answered, and lets the steps know."""
        self._post(None, partial(self._fail, error, failure, None))

    def hold(self, held: bool) -> None:
        """Has the steps that send many responses wait, or go on. Does not do it at once: whoever asks may hold a lock that is needed."""
        self._events.append((None, partial(self._hold, held), False))
        self._ensemble.soon(self._work)

    def servers(self) -> List[List[Instance]]:
        """For each execution that is still needed, who may take it up."""
        steps = self._route.steps
        found = [servers for number in self._flow.to_come() for servers in steps[number].model.servers(None)]
        for run in list(self._flow.open):
            if run.work is not None:
                step, work = run.work
                if not work.answered and not work.returned:
                    found += step.model.servers(work)
        return found

    # One thread at a time

    def _post(self, run: Optional[Run], what: Any, final: bool = False) -> None:
        self._events.append((run, what, final))
        self._work()

    def _work(self) -> None:
        events = self._events
        while events and self._busy.acquire(blocking=False):
            try:
                while events:
                    run, what, final = events.popleft()
                    if run is None:
                        what()
                    else:
                        self._responded(run, what, final)
            except Exception:
                logger.exception("internal error in a request to ensemble '%s'", self._ensemble.name)
                if not self._flow.over:
                    error = InternalError("internal error: the server's log has the details")
                    events.append((None, partial(self._fail, error, Failure.OTHER, run if final else None), False))
            finally:
                self._busy.release()

    def _begin(self) -> None:
        self._perform(self._flow.begin(of_request(self._ensemble, self._request)))

    def _hold(self, held: bool) -> None:
        if not self._flow.over:
            self._perform(self._flow.hold(held))

    def _responded(self, run: Run, outcome: Optional[Outcome], final: bool) -> None:
        step, work = run.work
        if final:
            run.work = None  # the two hold each other
            if work.begun_ns:
                self._queue_ns += work.begun_ns - work.submitted_ns
        if isinstance(outcome, ServerError):
            text = f"in ensemble '{self._ensemble.name}', {outcome}"
            self._fail(type(outcome)(text), work.failure or Failure.OTHER, run, final)
            return
        source = None
        if outcome is not None:
            writes: Dict[str, Read] = {}
            if self._writes:
                writes = {own: self._writes[name][1:] for own, name in step.outputs.items() if name in self._writes}
            source = of_response(outcome, step.outputs, writes)
        self._perform(self._flow.responded(run, source, final))

    def _fail(self, error: ServerError, failure: Failure, run: Optional[Run], final: bool = True) -> None:
        over = self._flow.over
        actions = self._flow.stop() if run is None else self._flow.failed(run, final)
        if not over:
            self._request.failure = failure
            self.answer(error, True)
        self._perform(actions)

    def _perform(self, actions: Actions) -> None:
        failed = False
        for run in actions.starts:
            if failed:
                self._flow.open.pop(run, None)
                continue
            try:
                self._start(run)
            except ServerError as error:
                failed = True
                text = f"in ensemble '{self._ensemble.name}', {error}"
                self._fail(type(error)(text), Failure.OTHER, run)
        if not failed:
            self._tell(actions)
        for run in actions.cancels:
            if run.work is not None:
                step, work = run.work
                step.model.cancel(work)
        for run, held in actions.holds:
            if run.work is not None:
                step, work = run.work
                step.model.hold(work, held)
        released: Sequence[Any] = actions.released
        for source in released:
            source.release()
        if self._flow.over and not self._flow.open:
            self._ensemble.done(self._request)

    def _tell(self, actions: Actions) -> None:
        if actions.answer is not None:
            self._respond(actions.answer, actions.end)
        elif actions.end:
            self.answer(None if self._ensemble.decoupled else self._nothing(), True)

    def _start(self, run: Run) -> None:
        step = self._route.steps[run.step]
        if not step.bound.holds(self._ensemble.server.models):
            step = self._rebound(run.step)
            if not step.model.takes_device_inputs and any(
                isinstance(loan.segment, DeviceSegment) for one in run.sources for loan in one.loans
            ):
                raise Unavailable(f"model '{step.model.name}' was loaded again meanwhile, and now takes its inputs from host memory only")
        sources = run.sources
        plan = step.plan(sources, self._route.batched)
        request = self._request
        if self._carried:
            request_id, _, parameters, correlation_id, flags, timeout = self._carried
            extras: Tuple[Any, ...] = (request_id, step.requested, parameters, correlation_id, flags, timeout)
        else:
            extras = step.plain_extras
        borrowed = self._shared or not plan.blocks or self._route.course.needs[run.step] != (0,)
        writes: List[Write] = []
        if self._writes:
            for index, spec in enumerate(step.model.outputs):
                write = self._writes.get(step.outputs.get(spec.name, ""))
                if write is not None:
                    writes.append((index, *write[1:]))
        work = make_request(step.model, plan, sources, extras, partial(self._post, run), borrowed, request.regions, writes)
        work.priority = request.priority
        work.device_outputs = self._route.keeps_on_device(run.step, request.device_outputs) and request.trace is None
        if request.trace is not None:
            work.trace = self._ensemble.server.tracer.child(request.trace.token, step.model.name)
        run.sources = ()
        run.work = step, work
        step.model.submit(work)

    def _rebound(self, number: int) -> Step:
        """A model was loaded again, or is gone, since the request began.

        Raises:
            Unavailable: the ensemble cannot go on with what there is now.
        """
        binding = self._ensemble.binding()
        if binding is None or binding.decoupled != self._route.course.decoupled:
            raise Unavailable(
                f"model '{self._route.steps[number].bound.name}' was changed or unloaded meanwhile: {self._ensemble.unavailable_text()}"
            )
        self._route = binding.route(self._route.wanted)
        return self._route.steps[number]

    def _respond(self, sources: Sequence[Source], final: bool) -> None:
        wanted = tuple([write[0] for write in self._writes.values()])
        try:
            plan = self._route.plan_answer(sources, wanted)
        except ServerError as error:
            if final:
                self._request.failure = Failure.OTHER
                self.answer(error, True)
            else:
                self._fail(error, Failure.OTHER, None)
            return
        parameters = ""
        for source in sources:
            if source.parameters:
                parameters = merged(parameters, source.parameters)
        self.answer(make_response(plan, sources, parameters), final)

    def _nothing(self) -> ServerError:
        """What is said when every step has ended and yet there is no answer."""
        request_id = self._carried[0] if self._carried and self._carried[0] else "<id_unknown>"
        self._request.failure = Failure.OTHER
        return InvalidArgument(
            f"in ensemble '{self._ensemble.name}', [request id: {request_id}] unexpected deadlock, at least one output is not set while no more "
            "ensemble steps can be made"
        )

    def answer(self, outcome: Optional[Outcome], final: bool) -> None:
        """Tells whoever asked."""
        request = self._request
        arrived = perf_counter_ns()
        if request.failure is None and not request.computed_ns and not request.cached_ns:
            request.begun_ns = min(request.submitted_ns + self._queue_ns, arrived)
            request.computed_ns = arrived
        if final:
            request.answered = True
            if request.regions is not None:
                request.regions.release()
        self._ensemble.deliver(request, outcome, final, arrived)
