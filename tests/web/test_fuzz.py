"""The server against requests made up from its own OpenAPI document: it answers as it says, and lives on."""

from __future__ import annotations

import struct

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok

from tacit.prediction.plain import Limits

EXAMPLES = 40
WIDTH, LOW, HIGH = 4, -10.0, 10.0
MODES = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE

#: Raw records: that their bytes are a whole number of them no schema can say.
RECORDS = st.lists(
    st.lists(st.floats(LOW, HIGH, width=32), min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=5
).map(lambda rows: b"".join(struct.pack("<4f", *row) for row in rows))
schemathesis.openapi.media_type("application/octet-stream", RECORDS)

#: More records than a batch holds, or more bytes, are refused as too large.
CONFIG = schemathesis.Config.from_dict(
    {"checks": {"negative_data_rejection": {"expected-statuses": ["400", "401", "413", "422"]}}}
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "policy", [{"digits": 3, "download": True}, {"labels_only": True}], ids=str
)
def test_the_server_does_what_its_document_says(serve, mode, policy) -> None:
    running = serve(access={"plain": policy}, limits=Limits(batch=5, low=LOW, high=HIGH))
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json", config=CONFIG)
    key = {"Authorization": f"Bearer {running.keys['plain']}"}
    asked = []
    limits = settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    def check(case) -> None:
        asked.append((case.path, case.call_and_validate(headers=key).status_code))

    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == 4  # all but that of the document itself
    for operation in operations:
        if mode.is_positive or operation.body:  # elsewhere nothing could be wrong
            limits(given(operation.as_strategy(generation_mode=mode))(check))()
    answered = {status for path, status in asked if path == "/predict"}
    # Raw records are right in both modes.
    assert answered == {200} if mode.is_positive else answered >= {200, 422}
    assert len(asked) >= EXAMPLES and running.alive()


def test_the_document_is_what_is_checked(serve, monkeypatch) -> None:
    """A server that answers otherwise is caught."""
    running = serve()
    right = running.service.describe

    def wrong(access):
        return {**right(access), "classes": "three"}

    monkeypatch.setattr(running.service, "describe", wrong)
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    case = schema["/model"]["GET"].Case(
        headers={"Authorization": f"Bearer {running.keys['plain']}"}
    )
    with pytest.raises(schemathesis.checks.FailureGroup, match="schema"):
        case.call_and_validate()
