"""What is wrong with a message is told, even if it equals one that was right."""

from __future__ import annotations

from typing import Any, Callable, Tuple

import pytest
from message_checks import Decoder, read
from message_strategies import places, replaced
from stublet.shm import message as message_module
from stublet.shm.errors import ProtocolError
from stublet.shm.message import FINAL, FINALIZE, IN_REGION, INDIRECT, NEWS, RETURNED, WORK, decode_down, decode_up, pack

TENSOR = (0, 11, (2,), 0, 0, 8)
NAMED = ("x", *TENSOR[1:])
REQUEST = (1, 0, ((0, 0, 8),), (TENSOR,), (), ())
REGIONS = (((5, 64, 8),), ((0, 5, 128, 8),))
RESULT = (1, FINAL | RETURNED, 5, (), ((0, 0),), (TENSOR,), (), "")
CALL = (1, 0, "model", -1, ((0, 0),), (NAMED,), ("y",), ("id", "{}", 0, 0, 0))
REPLY = (1, True, ((0, 0, 8),), (NAMED,), (), "")
EXTENDED = ("id", None, "{}", 0, 0, 0)
TRACE = (7, 3, '{"traceparent":"x"}')


def down(request: Any = REQUEST, reply: Any = REPLY) -> Tuple[Any, ...]:
    return WORK, ((0, 0),), ((request,),), (reply,)


def up(result: Any = RESULT, call: Any = CALL) -> Tuple[Any, ...]:
    return NEWS, ((0, 0),), (result,), (call,)


def but(row: Tuple[Any, ...], index: int, value: Any) -> Tuple[Any, ...]:
    """The row with one part replaced."""
    return (*row[:index], value, *row[index + 1 :])


def of(tensor: Tuple[Any, ...], index: int, value: Any) -> Tuple[Any, ...]:
    """One tensor, with one part replaced."""
    return (but(tensor, index, value),)


@pytest.mark.parametrize(
    "decoder, message",
    [
        (decode_down, down()),
        (decode_down, down(but(REQUEST, 1, 1))),
        (decode_down, down(but(REQUEST, 4, EXTENDED))),
        (decode_down, down(but(REQUEST, 4, (*EXTENDED, TRACE)))),
        (decode_up, up(call=but(CALL, 7, (*CALL[7], TRACE)))),
        (decode_down, down(but(REQUEST, 5, REGIONS))),
        (decode_down, down((*REQUEST[:2], (), *REQUEST[3:5], REGIONS))),
        (decode_up, up(but(RESULT, 5, of(TENSOR, 3, IN_REGION)))),
        (decode_up, up()),
        (decode_up, up(call=(1,))),
        (decode_down, (WORK, (), (), ((1,),))),
    ],
)
def test_the_rows_are_right_before_something_in_them_is_changed(decoder: Decoder, message: Tuple[Any, ...]) -> None:
    assert decoder(pack(message)) == message


@pytest.mark.parametrize(
    "decoder, message, reason",
    [
        (decode_down, 5, "a message is an array, not int"),
        (decode_down, {"a": 1}, "a message is an array, not dict"),
        (decode_down, (), "a message is an array"),
        (decode_down, (9,), "no record begins with 9 and has 1 parts"),
        (decode_down, (FINALIZE, 0), "no record begins with 2 and has 2 parts"),
        (decode_up, (FINALIZE,), "no record begins with 2 and has 1 parts"),
        (decode_down, (WORK, (), ()), "malformed record"),
        (decode_down, (WORK, (), (), (), ()), "malformed record"),
        (decode_up, (NEWS, (), ()), "malformed record"),
        (decode_up, (NEWS, (), (), (), ()), "malformed record"),
        (decode_down, (INDIRECT, 0, "0", 0), "malformed record"),
        (decode_up, (INDIRECT, 0, 0, 0.0), "malformed record"),
        (decode_down, (INDIRECT, 0, 0), "malformed record"),
        (decode_down, (WORK, ((0, "0"),), (), ()), "block 0, '0'"),
        (decode_up, (NEWS, ((0, None),), (), ()), "block 0, None"),
        (decode_up, (NEWS, ((0, 0, 0),), (), ()), "malformed record"),
        (decode_up, (NEWS, 0, (), ()), "malformed record"),
        # requests
        (decode_down, (WORK, (), ((),), ()), "a batch of no requests"),
        (decode_down, (WORK, (), (5,), ()), "malformed record"),
        (decode_down, down(REQUEST[:5]), "malformed record"),
        (decode_down, down(but(REQUEST, 0, "1")), "request '1'"),
        (decode_down, down(but(REQUEST, 2, ((0, 0),))), "malformed record"),
        (decode_down, down(but(REQUEST, 2, ((0, 0, "8"),))), "request 1 in '8' bytes at 0 of segment 0"),
        (decode_down, down(but(REQUEST, 2, ((0, 0, 7),))), "input 0 ends at 8 of 7"),
        (decode_down, down(but(REQUEST, 2, ())), "tensor 0 in block 0 of 0"),
        (decode_down, down(but(REQUEST, 2, ((0, 0, 7), (0, 0, 8)))), "input 0 ends at 8 of 7"),
        (decode_down, down(but(REQUEST, 3, {})), "inputs {}"),
        (decode_down, down(but(REQUEST, 3, (TENSOR[:5],))), "malformed record"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 4, 1))), "input 0 ends at 9 of 8"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 3, 1))), "tensor 0 in block 1 of 1"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 3, -1))), "tensor 0 in block -1 of 1"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 3, False))), "tensor 0 in block False of 1"),
        (decode_down, down(but(REQUEST, 1, False)), "request 1"),
        (decode_down, down(but(REQUEST, 1, 4)), "request 1"),
        (decode_down, down(but(REQUEST, 1, -1)), "request 1"),
        (decode_down, (WORK, (), (), ((True,),)), "reply to call True"),
        (decode_down, (WORK, (), (), ((),)), "malformed record"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 2, (3,)))), r"tensor 0 of shape \(3,\) in 8 bytes"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 2, (-2,)))), "dimension -2 of tensor 0"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 1, 99))), "data type 99 of tensor 0"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 0, -1))), "tensor -1 of 8 bytes at 0"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 0, "x"))), "tensor 'x' of 8 bytes at 0"),
        (decode_down, down(but(REQUEST, 3, of(TENSOR, 4, -8))), "tensor 0 of 8 bytes at -8"),
        (decode_down, down(but(REQUEST, 3, ((0, 13, b"\2", 0, 0, 8),))), "shape b'.x02' of tensor 0"),
        (decode_down, down(but(REQUEST, 4, EXTENDED[:5])), "malformed record"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 0, 5))), "extras of a request"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 1, ("a",)))), "requested output 'a'"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 1, 0))), "malformed record"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 2, None))), "extras of a request"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 3, 1.5))), "extras of a request"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 4, None))), "flags or timeout"),
        (decode_down, down(but(REQUEST, 4, but(EXTENDED, 5, False))), "flags or timeout"),
        (decode_down, down(but(REQUEST, 4, (*EXTENDED, ()))), "malformed record"),
        (decode_down, down(but(REQUEST, 4, (*EXTENDED, TRACE, TRACE))), "malformed record"),
        (decode_down, down(but(REQUEST, 4, (*EXTENDED, but(TRACE, 0, "7")))), "trace of a request"),
        (decode_down, down(but(REQUEST, 5, {"a": 0, "b": 1})), "regions {.a.: 0"),
        (decode_down, down(but(REQUEST, 5, ((),))), "malformed record"),
        (decode_down, down(but(REQUEST, 5, (5, ()))), "malformed record"),
        (decode_down, down(but(REQUEST, 5, (((5, 64),), ()))), "malformed record"),
        (decode_down, down(but(REQUEST, 5, ((("5", 64, 8),), ()))), "8 bytes at 64 of region '5'"),
        (decode_down, down(but(REQUEST, 5, (((5, -1, 8),), ()))), "8 bytes at -1 of region 5"),
        (decode_down, down(but(REQUEST, 5, (((5, 64, True),), ()))), "True bytes at 64 of region 5"),
        (decode_down, down(but(REQUEST, 5, ((), ((0, 5, 64, -8),)))), "-8 bytes at 64 of region 5"),
        (decode_down, down(but(REQUEST, 5, ((), ((-1, 5, 64, 8),)))), "output -1 in a region"),
        (decode_down, down(but(REQUEST, 5, ((), ({"a": 5},)))), "malformed record"),
        (decode_down, down((*REQUEST[:2], (), *REQUEST[3:5], (((5, 64, 7),), ()))), "input 0 ends at 8 of 7"),
        # replies
        (decode_down, down(reply=REPLY[:5]), "malformed record"),
        (decode_down, down(reply=but(REPLY, 0, None)), "reply to call None"),
        (decode_down, down(reply=but(REPLY, 1, 1)), "reply to call 1"),
        (decode_down, down(reply=but(REPLY, 2, ((0, 0),))), "malformed record"),
        (decode_down, down(reply=but(REPLY, 2, ((0, "0", 8),))), "8 bytes at '0' of segment 0"),
        (decode_down, down(reply=but(REPLY, 2, ())), "tensor x in block 0 of 0"),
        (decode_down, down(reply=but(REPLY, 3, {})), "tensors {}"),
        (decode_down, down(reply=but(REPLY, 3, (TENSOR,))), "name 0 of a tensor"),
        (decode_down, down(reply=but(REPLY, 3, of(NAMED, 5, 9))), "in 9 bytes"),
        (decode_down, down(reply=but(REPLY, 4, (99, "text"))), "99 is not a valid ErrorCode"),
        (decode_down, down(reply=but(REPLY, 4, (1,))), "malformed record"),
        (decode_down, down(reply=but(REPLY, 5, None)), "reply to call 1"),
        # results
        (decode_up, up(but(RESULT, 5, of(TENSOR, 3, -2))), "tensor 0 in block -2 of 1"),
        (decode_up, up(but(RESULT, 5, of(TENSOR, 3, -1.0))), "tensor 0 in block -1.0 of 1"),
        (decode_up, up(but(RESULT, 5, of(of(TENSOR, 3, IN_REGION)[0], 4, 8))), "tensor 0 in block -1 of 1"),
        (decode_up, up(RESULT[:7]), "malformed record"),
        (decode_up, up(but(RESULT, 0, 1.0)), "result 1.0"),
        (decode_up, up(but(RESULT, 1, 32)), "flags 32 of a result"),
        (decode_up, up(but(RESULT, 1, -1)), "flags -1 of a result"),
        (decode_up, up(but(RESULT, 1, True)), "flags True of a result"),
        (decode_up, up(but(RESULT, 2, "5")), "result 1"),
        (decode_up, up(but(RESULT, 3, False)), "result 1"),
        (decode_up, up(but(RESULT, 3, (-1,))), "kept block -1"),
        (decode_up, up(but(RESULT, 3, ("0",))), "kept block '0'"),
        (decode_up, up(but(RESULT, 4, ((0, 0.0),))), "block 0, 0.0"),
        (decode_up, up(but(RESULT, 4, ())), "tensor 0 in block 0 of 0"),
        (decode_up, up(but(RESULT, 5, {})), "outputs {}"),
        (decode_up, up(but(RESULT, 5, of(TENSOR, 3, 1))), "tensor 0 in block 1 of 1"),
        (decode_up, up(but(RESULT, 5, (NAMED,))), "tensor 'x' of 8 bytes"),
        (decode_up, up(but(RESULT, 6, (99, "text"))), "99 is not a valid ErrorCode"),
        (decode_up, up(but(RESULT, 6, (1, b"text"))), "text of an error"),
        (decode_up, up(but(RESULT, 6, 5)), "malformed record"),
        (decode_up, up(but(RESULT, 7, None)), "result 1"),
        (decode_up, up(but(RESULT, 7, "{")), "malformed record"),
        (decode_up, up(but(RESULT, 7, "[" * 100_000)), "parameters"),
        (decode_up, up(but(RESULT, 7, "[]")), "parameters"),
        (decode_up, up(but(RESULT, 7, '{"a": []}')), "parameters"),
        (decode_up, up(call=but(CALL, 7, ("id", "", 0, 0, 0))), "malformed record"),
        # calls
        (decode_up, up(call=()), "malformed record"),
        (decode_up, up(call=("1",)), "call '1'"),
        (decode_up, up(call=(True,)), "call True"),
        (decode_up, up(call=CALL[:7]), "malformed record"),
        (decode_up, up(call=but(CALL, 1, 8)), "call 1 of model 'model' version -1"),
        (decode_up, up(call=but(CALL, 1, False)), "call 1 of model 'model' version -1"),
        (decode_up, up(call=but(CALL, 2, b"model")), "call 1 of model b'model' version -1"),
        (decode_up, up(call=but(CALL, 3, None)), "call 1 of model 'model' version None"),
        (decode_up, up(call=but(CALL, 4, ((0,),))), "malformed record"),
        (decode_up, up(call=but(CALL, 5, (TENSOR,))), "name 0 of a tensor"),
        (decode_up, up(call=but(CALL, 5, of(NAMED, 3, 1))), "tensor x in block 1 of 1"),
        (decode_up, up(call=but(CALL, 5, None)), "tensors None"),
        (decode_up, up(call=but(CALL, 6, ("y", 0))), "requested output 0"),
        (decode_up, up(call=but(CALL, 6, None)), "requested outputs None"),
        (decode_up, up(call=but(CALL, 6, {})), "requested outputs {}"),
        (decode_up, up(call=but(CALL, 5, of(NAMED, 2, (1,) * 64 + (2,)))), "65 dimensions of tensor x"),
        (decode_up, up(but(RESULT, 5, of(TENSOR, 2, (1,) * 64 + (2,)))), "65 dimensions of tensor 0"),
        (decode_up, up(call=but(CALL, 7, ())), "malformed record"),
        (decode_up, up(call=but(CALL, 7, ("id", None, 0, 0, 0))), "extras of a request"),
        (decode_up, up(call=but(CALL, 7, ("id", "{}", None, 0, 0))), "extras of a request"),
        (decode_up, up(call=but(CALL, 7, ("id", "{}", 0, "0", 0))), "flags or timeout"),
        (decode_up, up(call=but(CALL, 7, ("id", "{}", 0, 0, True))), "flags or timeout"),
        (decode_up, up(call=but(CALL, 7, (*CALL[7], None))), "malformed record"),
        (decode_up, up(call=but(CALL, 7, (*CALL[7], but(TRACE, 1, None)))), "trace of a request"),
        (decode_up, up(call=but(CALL, 7, (*CALL[7], but(TRACE, 2, 5)))), "trace of a request"),
    ],
)
def test_a_malformed_record_is_refused_with_a_reason(decoder: Decoder, message: Any, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decoder(pack(message))


@pytest.mark.parametrize("convert", [float, bool], ids=["float", "bool"])
@pytest.mark.parametrize("decoder, message", [(decode_down, down()), (decode_up, up())])
def test_a_record_equal_to_one_seen_before_is_not_therefore_right(
    decoder: Decoder, message: Tuple[Any, ...], convert: Callable[[int], Any]
) -> None:
    """0 == 0.0 == False, but only one of them is an offset."""
    decoder(pack(message))
    for path in places(message):
        read(decoder, pack(replaced(message, path, lambda part: convert(part) if type(part) is int and part in (0, 1) else part)))


def test_inputs_seen_before_are_not_therefore_right_as_outputs() -> None:
    """Inputs in a block of no bytes, and outputs in none."""
    nothing = ((0, 11, (0,), 0, 0, 0),)
    decode_down(pack(down((1, 0, ((0, 0, 0),), nothing, (), ()))))
    with pytest.raises(ProtocolError, match="tensor 0 in block 0 of 0"):
        decode_up(pack(up((1, FINAL, 5, (), (), nothing, (), ""))))


def test_what_is_remembered_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_module, "_REMEMBERED", 10)
    message_module._known_tensors.clear()
    for size in range(8, 40):
        decode_down(pack(down(but(REQUEST, 2, ((0, 0, size),)))))
        assert 0 < len(message_module._known_tensors) <= 10
