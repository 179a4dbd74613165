"""What an endpoint takes and answers, as an OpenAPI 3.1 document.

Written from the service that answers, so that the shape of a record, the number of classes and the limits are the real ones.
"""

from __future__ import annotations

from typing import Any

import tacit
from tacit.prediction.plain import Service

_JSON, _RAW = "application/json", "application/octet-stream"

_ERRORS = {
    "400": "not JSON",
    "401": "no key, or an unknown one",
    "403": "not with this key",
    "404": "no such place",
    "408": "the body did not come in time",
    "413": "more bytes or records than a request may hold",
    "415": "a body of another type",
    "422": "records of another shape, out of range, or not finite",
    "429": "the budget is spent for good (BudgetExhausted), or the rate for now (RateLimited, with Retry-After)",
    "500": "the model failed",
    "503": "too much at once",
}


def document(service: Service, body: int) -> dict[str, Any]:
    """The document.

    Args:
        service: what it describes.
        body: bytes of a request, at most.
    """
    security: list[dict[str, list[str]]] = [
        {"key": []},
        *([{}] if service.keys.anyone is not None else []),
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "A prediction endpoint of tacit",
            "version": tacit.__version__,
            "description": "Answers with what an access policy leaves of a model's scores. Records are charged to the key's "
            "budget before the model is asked, and never given back.",
        },
        "paths": {
            "/predict": {"post": _predict(service, body) | {"security": security}},
            "/model": {
                "get": {
                    "operationId": "model", "summary": "What this key may know and do.", "security": security,
                    "responses": {"200": _answer("The model and the key.", _MODEL), **_errors("401", "500", "503")},
                }
            },
            "/model/weights": {
                "get": {
                    "operationId": "weights", "summary": "The model itself, if the key may have it.", "security": security,
                    "responses": {
                        "200": {
                            "description": "A safetensors file; its metadata tacit.spec describes the layers.",
                            "content": {_RAW: {"schema": {"type": "string", "format": "binary"}}},
                        },
                        **_errors("401", "403", "500"),
                    },
                }
            },
            "/health": {
                "get": {
                    "operationId": "health", "summary": "Whether the server lives.", "security": [],
                    "responses": {"200": _answer("It does.", _object(status={"const": "ok"})), **_errors("500")},
                }
            },
            "/openapi.json": {
                "get": {
                    "operationId": "openapi", "summary": "This document.", "security": [],
                    "responses": {"200": _answer("The document.", {"type": "object"}), **_errors("500")},
                }
            },
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _object(error=_object(type=_TEXT, message=_TEXT))},
            "headers": {
                "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}
            },
        },
    }  # fmt: skip


_TEXT, _WHOLE = {"type": "string"}, {"type": "integer", "minimum": 0}
_MAYBE_WHOLE = {"type": ["integer", "null"], "minimum": 0}
_MAYBE = {"type": ["number", "null"]}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


_MODEL = _object(
    input_shape={"type": "array", "items": _WHOLE},
    classes=_WHOLE,
    dtype={"enum": ["float32", "float64"]},
    model=_TEXT,
    policy=_object(
        top_k=_MAYBE_WHOLE, digits=_MAYBE_WHOLE, temperature={"type": "number"}, labels_only={"type": "boolean"}
    ),
    download={"type": "boolean"},
    budget=_MAYBE_WHOLE,
    spent=_WHOLE,
    rate=_MAYBE,
    burst=_MAYBE_WHOLE,
    max_batch=_WHOLE,
    range={"type": "array", "items": _MAYBE, "minItems": 2, "maxItems": 2},
)  # fmt: skip


def _predict(service: Service, body: int) -> dict[str, Any]:
    limits = service.limits
    record: dict[str, Any] = {"type": "number"}
    # What float32 takes.
    record["minimum"] = -3e38 if limits.low is None else limits.low
    record["maximum"] = 3e38 if limits.high is None else limits.high
    for size in reversed(service.input_shape):
        record = {"type": "array", "items": record, "minItems": size, "maxItems": size}
    most = max((service.most(access) for access in service.keys.policies), default=limits.batch)
    inputs = {"type": "array", "items": record, "minItems": 1, "maxItems": most}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    classes = {"const": service.classes}
    row = {
        "type": "array",
        "items": share,
        "minItems": service.classes,
        "maxItems": service.classes,
    }
    label = {"type": "integer", "minimum": 0, "maximum": service.classes - 1}
    answer = {
        "oneOf": [
            _object(scores={"type": "array", "items": row}, classes=classes),
            _object(labels={"type": "array", "items": label}, classes=classes),
        ]
    }
    size = 4 * service.record_size
    raw = {"schema": {"type": "string", "format": "binary"}}
    return {
        "operationId": "predict",
        "summary": "Ask the model about records.",
        "description": f"JSON, or raw little-endian float32, {size} bytes a record; at most {body} bytes. The answer is of "
        "the same type, or as Accept says. Raw scores are float64, one after the other, a row a record; raw labels int64.",
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": _object(inputs=inputs)}, _RAW: raw},
        },
        "responses": {
            "200": {
                "description": "Scores, or labels where the key's policy gives labels only.",
                "content": {_JSON: {"schema": answer}, _RAW: raw},
            },
            **_errors("400", "401", "408", "413", "415", "422", "429", "500", "503"),
        },
    }


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": schema}}}


def _errors(*statuses: str) -> dict[str, Any]:
    found = {
        status: _answer(_ERRORS[status], {"$ref": "#/components/schemas/Error"})
        for status in statuses
    }
    for status in set(statuses) & {"429", "503"}:
        found[status]["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return found
