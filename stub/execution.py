"""The execute contract: what a model returns, checked (spec 2.4)."""

from __future__ import annotations

from typing import Any, List

from .error import TritonModelException
from .inference import InferenceResponse


def check_returned(returned: Any, requests: int) -> List[InferenceResponse]:
    """The responses that ``execute`` returned for ``requests`` requests.

    Raises:
        TritonModelException: not a list, of another length, or with something else in it; the text is the one Triton's users know.
    """
    if not isinstance(returned, list):
        raise TritonModelException(f"Expected a list in the execute return, found type '{type(returned)}'.")
    if len(returned) != requests:
        raise TritonModelException(
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            f"InferenceRequest(s) size is:{requests}, and InferenceResponse(s) size is:{len(returned)}\n"
        )
    for response in returned:
        if not isinstance(response, InferenceResponse):
            raise TritonModelException(
                f"Expected an 'InferenceResponse' object in the execute function return list, found type '{type(response)}'."
            )
    return returned
