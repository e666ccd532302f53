"""JSON schemas of what goes over HTTP, for the description of the server (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any, Dict

Schema = Dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
UNSIGNED: Schema = {"type": "integer", "minimum": 0}
ANY: Schema = {}
NAME: Schema = {"type": "string", "pattern": "^[^/]+$"}
OBJECT: Schema = {"type": "object"}


def array(items: Schema) -> Schema:
    """An array of such items."""
    return {"type": "array", "items": items}


def record(required: Dict[str, Schema], **optional: Schema) -> Schema:
    """An object with these members, of which only some must be there."""
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


ERROR = record({"error": STRING})


SERVER = record({"name": STRING, "version": STRING, "extensions": array(STRING)})

_TENSOR = record({"name": STRING, "datatype": STRING, "shape": array({"type": "integer"})}, optional=BOOLEAN)
MODEL = record({"name": STRING, "versions": array(STRING), "platform": STRING, "inputs": array(_TENSOR), "outputs": array(_TENSOR)})

PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}

_SHAPE = array(UNSIGNED)
_REGION = {"shared_memory_region": STRING, "shared_memory_offset": UNSIGNED, "shared_memory_byte_size": UNSIGNED}
_INPUT = record(
    {"name": STRING, "shape": _SHAPE, "datatype": STRING},
    parameters={"type": "object", "properties": {"binary_data_size": UNSIGNED, **_REGION}},
    data=array(ANY),
)
_WANTED = record(
    {"name": STRING}, parameters={"type": "object", "properties": {"binary_data": BOOLEAN, "classification": UNSIGNED, **_REGION}}
)
INFER_REQUEST = record({"inputs": array(_INPUT)}, id=STRING, parameters=PARAMETERS, outputs=array(_WANTED))
_OUTPUT = record({"name": STRING, "datatype": STRING, "shape": _SHAPE}, parameters=OBJECT, data=array(ANY))
INFER_RESPONSE = record({"model_name": STRING, "model_version": STRING, "outputs": array(_OUTPUT)}, id=STRING, parameters=PARAMETERS)

GENERATE_REQUEST: Schema = {"type": "object", "properties": {"id": STRING, "parameters": OBJECT}}
GENERATE_RESPONSE = record({"model_name": STRING, "model_version": STRING}, id=STRING)

EVENT = record({"data": STRING})
"""Of a stream; ``data`` is the JSON of a ``GENERATE_RESPONSE``, or of an ``ERROR``."""

INDEX_REQUEST = record({}, ready=BOOLEAN)
INDEX = array(record({"name": STRING}, version=STRING, state=STRING, reason=STRING))
LOAD_REQUEST = record({}, parameters={"type": "object", "properties": {"config": STRING}, "additionalProperties": STRING})
UNLOAD_REQUEST = record({}, parameters=record({}, unload_dependents=BOOLEAN))

_DURATION = record({"count": UNSIGNED, "ns": UNSIGNED})
_STATISTICS = record(
    {
        "name": STRING, "version": STRING, "last_inference": UNSIGNED, "inference_count": UNSIGNED, "execution_count": UNSIGNED,
        "inference_stats": {"type": "object", "additionalProperties": _DURATION}, "batch_stats": array(OBJECT),
    },
    response_stats=OBJECT, memory_usage=array(OBJECT),
)  # fmt: skip
STATISTICS = record({"model_stats": array(_STATISTICS)})

_LOG = {
    "log_file": STRING, "log_info": BOOLEAN, "log_warning": BOOLEAN, "log_error": BOOLEAN, "log_verbose_level": UNSIGNED, "log_format": STRING,
}  # fmt: skip
LOG_SETTINGS = record(_LOG)
LOG_CHANGES = record({}, **_LOG)

_TRACE = {"trace_level": array(STRING), "trace_rate": STRING, "trace_count": STRING, "trace_mode": STRING}
_TRACE_MORE = {"trace_file": STRING, "log_frequency": STRING}
TRACE_SETTINGS = record(_TRACE, **_TRACE_MORE)
TRACE_CHANGES = record({}, **{name: {"anyOf": [schema, {"type": "null"}]} for name, schema in {**_TRACE, **_TRACE_MORE}.items()})

SYSTEM_REGION = record({"key": STRING, "byte_size": UNSIGNED}, offset=UNSIGNED)
SYSTEM_REGIONS = array(record({"name": STRING, "key": STRING, "offset": UNSIGNED, "byte_size": UNSIGNED}))
CUDA_REGION = record({"raw_handle": record({"b64": STRING}), "device_id": UNSIGNED, "byte_size": UNSIGNED})
CUDA_REGIONS = array(record({"name": STRING, "device_id": UNSIGNED, "byte_size": UNSIGNED}))
