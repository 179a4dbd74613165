"""Records collected in one place: every owner sends its records to the server, which trains and hands out the model.

**Leaks**: every record to the server; the model to every owner. **Cost**: two waves.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from tacit.core.claims import Basis, Claim
from tacit.core.errors import DataError, ProtocolError
from tacit.core.wire import Message
from tacit.nn.federated import Task
from tacit.nn.local_work import parameters_of
from tacit.parties.roles import SERVER, Role
from tacit.parties.star import Hub, Member, ask
from tacit.parties.views import Observation, View

SERVER_SEES_RECORDS = Claim(
    statement="No owner sees another owner's records; the server sees all of them.",
    basis=Basis.PROVED,
    source="survey, Centralized Training; by construction: owners receive the finished model only",
    hides=("owner",),
)


class RecordHolder:
    """An owner that hands out its records.

    Args:
        inputs: records, (n, *input shape).
        labels: classes, (n,).
    """

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self._inputs = inputs.numpy()
        self._labels = labels.numpy()

    def handle(self, request: Message) -> Message:
        """The records, or an acknowledgement of the finished model.

        Raises:
            ProtocolError: the message is of another kind.
        """
        if request.tag == "records":
            return Message("records", inputs=self._inputs, labels=self._labels)
        if request.tag == "finished":
            return Message("thanks")
        raise ProtocolError(f"expected 'records' or 'finished', came {request.tag!r}")

    def export(self) -> bytes:
        """Nothing: the records do not change."""
        return b""

    def restore(self, state: bytes) -> None:
        """Nothing to restore."""


def record_holders(task: Task) -> dict[Role, Member]:
    """A member for each owner whose records are in this process."""
    return {role: RecordHolder(*shard) for role, shard in task.here().items()}


def train_on_collected(
    hub: Hub,
    model: nn.Module,
    learn: Callable[[Tensor, Tensor], None],
    *,
    classes: int | None = None,
) -> None:
    """The server's part: collect all records, have ``learn`` train the model on them, hand it out.

    Raises:
        UnsupportedLayer: the model has no parameters, or buffers.
        DataError: a record is not finite; names its owner.
        Diverged: the loss is not finite; names the epoch.

    **Leaks**: every record to the server; the model to every owner. **Cost**: two waves.
    """
    parameters_of(model)  # a model that cannot be handed out is refused before anything is sent
    replies = ask(hub, dict.fromkeys(hub.members(), Message("records")))
    inputs, labels = [], []
    for role, reply in replies.items():
        inputs.append(reply.array("inputs", dtype="<f4"))
        labels.append(reply.array("labels", dtype="<i8", shape=(len(inputs[-1]),)))
        if not np.isfinite(inputs[-1]).all():
            raise DataError(
                f"the records of {role} hold values that are not finite: clean them first"
            )
        low, high = (int(edge(labels[-1], initial=0)) for edge in (np.min, np.max))
        if classes is not None and not 0 <= low <= high < classes:
            raise DataError(f"the labels of {role} must be from 0 to {classes - 1}")
    with hub.cost.timed(hub.coordinator):
        learn(torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(labels)))
    ask(hub, dict.fromkeys(hub.members(), Message("finished", model=parameters_of(model))))


def observe_collected(view: View, role: Role) -> Observation:
    """At the server: the records. At an owner: the finished model."""
    if role == SERVER:
        messages = ((frame.peer, frame.message()) for frame in view.frames())
        records = (
            (f"records of {peer}", message.array("inputs"))
            for peer, message in messages
            if message.tag == "records"
        )
        return Observation(intermediates=tuple(records))
    models = (frame.message() for frame in view.frames())
    return Observation(
        outputs=tuple((0, tuple(m.arrays("model"))) for m in models if m.tag == "finished")
    )
