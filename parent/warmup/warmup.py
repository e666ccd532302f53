"""Warm-up: requests of a model's configuration that each instance executes before it serves (``model_warmup``, spec 5.5).

They go to the instance past the scheduler, and are in no statistics. For the model they are requests like any other.
"""

from __future__ import annotations

import asyncio
import logging
from operator import itemgetter
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Sequence, Tuple

from ...shm.arena import aligned
from ...shm.bytes_codec import LENGTH_BYTES
from ...shm.dtype import BY_CONFIG_NAME, BYTES, element_count
from ...shm.errors import OutOfSharedMemory
from .. import model_config
from ..errors import ServerError
from ..instance import LoadFailed
from ..log import about
from ..request import Outcome, Request, drop
from ..validation import GivenInput, check_strings, lay_out
from .samples import sample_data

if TYPE_CHECKING:
    from ..instance import Instance
    from ..model import Model

logger = logging.getLogger(__name__)

_INTERNAL = "internal error: the server's log has the details"


class Sample(NamedTuple):
    """``batch_size`` requests that are executed together, ``times`` times. Each has a block of ``nbytes`` bytes with ``pieces`` in it, and
    ``inputs``, as a message has them, in that."""

    name: str
    batch_size: int
    times: int
    nbytes: int
    pieces: List[Tuple[int, bytes]]
    inputs: Tuple[Tuple[Any, ...], ...]


def read_samples(model: Model) -> List[Sample]:
    """What the model's configuration describes. Reads files.

    Raises:
        LoadFailed: a file cannot be read, or a sample is no request to the model, in Triton's words.
    """
    samples = []
    for section in model.config.model_warmup:
        if not section.batch_size:
            text = "warmup sample '%s' of model '%s' has no batch_size, so that there is nothing to execute"
            logger.warning(text, section.name, model.name)
            continue
        _check_memory(model, section)
        try:
            nbytes, pieces, inputs = _read(model, section)
        except OSError as error:
            raise LoadFailed(f"failed to open text file for read {error.filename}: {error.strerror}") from error
        except (ServerError, ValueError) as error:
            raise LoadFailed(str(error)) from error
        samples.append(Sample(section.name, section.batch_size, max(section.count, 1), nbytes, pieces, inputs))
    return samples


def _check_memory(model: Model, section: Any) -> None:
    """Before anything is made of what a sample describes."""
    most, needed = model.server.request_memory.most, 0
    for tensor in section.inputs.values():
        dtype = BY_CONFIG_NAME[model_config.messages.DataType.Name(tensor.data_type)]
        needed += element_count(tensor.dims) * (dtype.itemsize or LENGTH_BYTES) * section.batch_size
    if needed > most:
        raise LoadFailed(
            f"failed to run warmup sample '{section.name}': its inputs take {needed} bytes, but requests may have {most} at a time "
            "(--max-inflight-bytes)"
        )


def _read(model: Model, section: Any) -> Tuple[int, List[Tuple[int, bytes]], Tuple[Tuple[Any, ...], ...]]:
    """Bytes, pieces and inputs of a sample. What it has for the inputs that the sequence batcher adds is not checked: no client sends them."""
    batch = (1,) if model.max_batch_size > 0 else ()
    given, data, added = [], [], []
    for name, tensor in sorted(section.inputs.items()):
        dtype = BY_CONFIG_NAME[model_config.messages.DataType.Name(tensor.data_type)]
        value, shape = sample_data(tensor, dtype, model.directory), batch + tuple(tensor.dims)
        if name in model.added_inputs:
            added.append((len(model.inputs) + model.added_inputs.index(name), dtype, shape, value))
        else:
            data.append(value)
            given.append(GivenInput(name, dtype.name, shape, len(value)))
    layout = lay_out(model, given)
    for place, value in zip(layout.placements, data):
        if place.spec.dtype is BYTES:
            check_strings(model, place, memoryview(value))
    pieces = [(place.offset, value) for place, value in zip(layout.placements, data)]
    inputs: List[Tuple[Any, ...]] = list(layout.inputs)
    end = aligned(layout.nbytes)
    for index, dtype, shape, value in sorted(added, key=itemgetter(0)):
        pieces.append((end, value))
        inputs.append((index, dtype.code, shape, 0, end, len(value)))
        end += aligned(len(value))
    return end, pieces, tuple(inputs)


async def warm_up(instance: Instance, samples: Sequence[Sample]) -> None:
    """Has an instance that has loaded execute the samples; then it serves, or has not loaded."""
    failure = ""
    try:
        for sample in samples:
            for iteration in range(sample.times):
                text = "model '%s' instance %s is running warmup sample '%s' for iteration %d"
                names = instance.model.name, instance.name, sample.name, iteration + 1
                logger.info(text, *names, extra=about(instance.facts))
                errors = await _execute(instance, sample)
                if errors:
                    raise LoadFailed(f"failed to run warmup sample '{sample.name}': {''.join(f'{error}; ' for error in errors)}")
    except LoadFailed as error:
        failure = str(error)
    except Exception:
        logger.exception("internal error while warming up '%s'", instance.name, extra=about(instance.facts))
        failure = _INTERNAL
    if not instance.loaded.done():  # else its process has ended, and that is the reason
        instance.warmed_up(failure)


async def _execute(instance: Instance, sample: Sample) -> List[ServerError]:
    """Returns when the last response to the last request was given: the errors among the responses."""
    model = instance.model
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    errors: List[ServerError] = []
    left = sample.batch_size

    def arrived(outcome: Optional[Outcome], final: bool) -> None:
        nonlocal left
        if isinstance(outcome, ServerError):
            errors.append(outcome)
        left -= final
        if not left and not done.done():
            done.set_result(None)

    def respond(outcome: Optional[Outcome], final: bool) -> None:
        drop(outcome)
        loop.call_soon_threadsafe(arrived, outcome, final)

    try:
        requests = [_request(model, sample, respond) for _ in range(sample.batch_size)]
    except ServerError as error:
        return [error]
    if not model.hand_directly(instance, requests):
        raise LoadFailed(f"failed to run warmup sample '{sample.name}': '{instance.name}' cannot have {sample.batch_size} requests at once")
    await done
    return errors


def _request(model: Model, sample: Sample, respond: Any) -> Request:
    block = model.allocate(sample.nbytes)
    try:
        for offset, data in sample.pieces:
            block.write(offset, data, len(data))
    except OutOfSharedMemory as error:
        block.arena.dropped.append(block)
        raise model.no_room(error) from error
    request = Request([(block, sample.nbytes)], sample.inputs, (), respond)
    request.warmup = True
    request.submitted_ns = perf_counter_ns()
    return request
