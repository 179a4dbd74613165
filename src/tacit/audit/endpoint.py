"""An HTTP endpoint as the target of an audit: what whoever holds a key finds out, over the network.

The audit asks as any client does, through `tacit.prediction.client.Client`: what the key's policy takes from an answer is
missing here too. Attacks read logits, so that answers are brought to logarithms, of 0 at least -708. Where the key may have
the model itself it is downloaded, for the attacks that look into it.

Answers are kept in a file (`Client.memory`): an audit that was interrupted asks nothing twice when it is run again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tacit.attacks.evidence import LEAST_LOG
from tacit.audit.targets import Target
from tacit.prediction.client import Client, Described

#: The file in an audit's folder that keeps an endpoint's answers.
MEMORY = "answers.sqlite"


def open_endpoint(
    url: str,
    *,
    key: str | None = None,
    ca: Path | None = None,
    timeout: float = 10.0,
    retries: int = 5,
    memory: Path | None = None,
) -> Target:
    """An endpoint that ``tacit serve`` runs, or another that speaks as it does, as a target of `tacit.audit`.

    Args:
        url: ``http://host:port`` or ``https://``.
        key: of the client whose access is audited; None where the endpoint asks for none.
        ca: certificates that the endpoint's must be signed by, PEM; None for those the system trusts.
        timeout: seconds for one attempt at a request.
        retries: attempts after the first.
        memory: a file that keeps answers, as confidential as these; None keeps none.

    Returns:
        A target whose `Target.queries` is what is left of the key's budget, and what is remembered of the records that are
        to be asked about. Close it in the end.

    Raises:
        ConfigError: the URL, key, certificates or a setting are not what they should be, or the memory cannot be used.
        EndpointUnreachable: nobody answers.
        EndpointRefused: the key is not known.
        EndpointJunk: what answers is no such endpoint. All three, and BudgetExhausted, when it is asked, too.
    """
    client = Client(url, key=key, ca=ca, timeout=timeout, retries=retries, memory=memory)
    said = client.described
    left = None if said.budget is None else max(0, said.budget - said.spent)
    module = client.model() if said.download else None
    labels = client.policy.labels_only
    return Target(
        model=_Endpoint(client).eval(),
        gives="labels" if labels else "logits" if module is not None else "probabilities",
        kind="endpoint",
        name=f"{url} ({client.policy.name})" if client.policy.name != "none" else url,
        parameters=None if module is None else sum(one.numel() for one in module.parameters()),
        device=torch.device("cpu"),
        module=module,
        queries=None
        if left is None
        else lambda records: left + client.remembers(_taken(records, said)),
        close=client.close,
    )


def _taken(records: Tensor, said: Described) -> Tensor:
    """Records as the endpoint takes them: of its type, and within its range, beyond which disturbed ones may lie."""
    asked = records.to(said.dtype)
    if said.low is not None or said.high is not None:
        asked = asked.clamp(said.low, said.high)
    return asked


class _Endpoint(nn.Module):
    """A client as attacks read it: records (n, *record shape) to logits (n, classes) float32."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self.client = client

    def forward(self, records: Tensor) -> Tensor:
        """Logarithms of the answers; of labels, 1 at the class and 0 elsewhere. Raises as `Client.scores` does."""
        asked = _taken(records, self.client.described)
        if self.client.policy.labels_only:
            return self.client.scores(asked).float()
        return self.client.scores(asked).log().clamp_min(-LEAST_LOG).float()
