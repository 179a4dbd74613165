"""The client against the server: the same bits and the same attack as in process, over HTTP and TLS."""

from __future__ import annotations

import datetime
import ipaddress
import threading
import time

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from tacit.attacks.access import Knowledge, Labels, QueryCounter, Scores
from tacit.attacks.extraction import Box, EquationSolving
from tacit.core.errors import (
    BudgetExhausted,
    ConfigError,
    EndpointJunk,
    EndpointRefused,
    EndpointUnreachable,
)
from tacit.nn.networks import initialise
from tacit.nn.policies import Policy
from tacit.prediction.client import Client
from tacit.web import endpoint
from tacit.web.endpoint import check_tls

POLICIES = (
    Policy(),
    Policy(top_k=2),
    Policy(digits=1),
    Policy(temperature=3.0),
    Policy(labels_only=True),
)


def network(dtype: torch.dtype) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    return initialise(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), generator).to(
        dtype
    )


def settings(policy: Policy) -> dict[str, object]:
    found = {
        name: getattr(policy, name) for name in ("top_k", "digits", "temperature", "labels_only")
    }
    return {name: value for name, value in found.items() if value not in (None, False)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_scores_and_labels_are_those_in_process_bit_by_bit(serve, policy, dtype) -> None:
    model = network(dtype)
    running = serve(network(dtype), {"plain": settings(policy)})
    inputs = torch.randn(1500, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with Client(running.url, key=running.keys["plain"]) as client:
        assert client.policy == policy and client.described.input_shape == (4,)
        for given in (inputs, inputs.float()):
            here = Scores(model, QueryCounter(), policy).scores(given.to(dtype))
            assert torch.equal(client.scores(given), here)
            labels = Labels(model).labels(given.to(dtype))
            got = client.labels(given)
            assert got.dtype == torch.int64
            if policy.digits is None:  # which makes classes equal, and the first one the label
                assert torch.equal(got, labels)
        assert client.scores(inputs[:0]).shape == (0, 3) and client.asked == 6000 == client.spent()


def test_an_attack_over_http_is_the_attack_in_process(serve) -> None:
    inputs, labels = load_digits(return_X_y=True)
    fitted = LogisticRegression(C=0.01, tol=0.01).fit(inputs / 16, labels)
    model = nn.Linear(64, 10).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(fitted.coef_))
        model.bias.copy_(torch.from_numpy(fitted.intercept_))
    running = serve(model, shape=(64,))
    knowledge = Knowledge(input_shape=(64,), classes=10)
    with Client(running.url, key=running.keys["plain"]) as client:
        found = []
        for access in (Scores(client, QueryCounter(), client.policy), Scores(model)):
            attack = EquationSolving(box=Box(dtype=torch.float64))
            got = attack.extract(access, knowledge, torch.Generator().manual_seed(3))
            found.append((got.queries, access.counter.spent, got.residual, got.model.state_dict()))
        assert found[0][:3] == found[1][:3] and found[0][0] == 65 == client.spent()
        for name, value in found[0][3].items():
            assert torch.equal(value, found[1][3][name])
        given = torch.from_numpy(inputs / 16)
        with torch.no_grad():
            answers = [torch.softmax(one(given), 1) for one in (got.model, model)]
        assert float((answers[0] - answers[1]).abs().max()) < 1e-12


def test_a_budget_that_ends_ends_the_client_too(serve) -> None:
    running = serve(access={"plain": {"budget": 10}})
    with Client(running.url, key=running.keys["plain"], batch=4) as client:
        with pytest.raises(BudgetExhausted, match="4 more records asked, 2 of 10 left"):
            client.scores(torch.zeros(12, 4))
        assert running.ledger.account("plain").spent == 8
        assert len(client.scores(torch.zeros(2, 4))) == 2


def test_a_rate_is_waited_for(serve) -> None:
    running = serve(access={"plain": {"rate": 240, "burst": 4}})
    with Client(running.url, key=running.keys["plain"], retries=0) as client:
        assert client.described.max_batch == 4
        assert len(client.scores(torch.zeros(8, 4))) == 8
    assert [one["status"] for one in running.lines()].count(429) >= 1


def test_what_is_refused_says_its_status(serve) -> None:
    running = serve(access={"plain": {}})
    with pytest.raises(EndpointRefused, match="no such key") as caught:
        Client(running.url, key="wrong")
    assert caught.value.status == 401
    with Client(running.url, key=running.keys["plain"]) as client:
        with pytest.raises(EndpointRefused) as caught:
            client.model()
        assert caught.value.status == 403
        with pytest.raises(EndpointRefused, match="finite") as caught:
            client.scores(torch.full((1, 4), float("inf")))
        assert caught.value.status == 422
        with pytest.raises(ConfigError, match=r"records \(n, 4\) expected"):
            client.scores(torch.zeros(1, 5))
        with pytest.raises(ConfigError, match="int64"):
            client.scores(torch.zeros(1, 4, dtype=torch.int64))


def test_the_model_is_downloaded_whole(serve, tmp_path) -> None:
    running = serve(network(torch.float64), {"plain": {"download": True}})
    with Client(running.url, key=running.keys["plain"]) as client:
        given = torch.ones(2, 4, dtype=torch.float64)
        assert torch.equal(client.model()(given), network(torch.float64)(given))
        client.download(tmp_path / "model.safetensors")
        assert (tmp_path / "model.safetensors").read_bytes() == running.service.weights(
            running.service.admit(running.keys["plain"])
        )


def test_memory_asks_nothing_twice(serve, tmp_path) -> None:
    running = serve(access={"plain": {"budget": 30}, "other": {"labels_only": True}})
    inputs = torch.rand(20, 4, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "memory" / "answers"
    with Client(running.url, key=running.keys["plain"], memory=path) as client:
        first = client.scores(inputs[:15])
        assert client.asked == 15
    with Client(running.url, key=running.keys["plain"], memory=path, batch=7) as client:
        again = client.scores(inputs)
        assert client.asked == 5 and torch.equal(again[:15], first)
        with pytest.raises(BudgetExhausted):  # doubles are other records
            client.scores(inputs.double())
    with Client(running.url, key=running.keys["other"], memory=path) as client:
        assert torch.equal(client.labels(inputs), again.argmax(1)) and client.asked == 20


def test_threads_may_share_a_client(serve) -> None:
    running = serve()
    inputs = torch.rand(40, 4, generator=torch.Generator().manual_seed(1))
    with Client(running.url, key=running.keys["plain"], batch=3) as client:
        expected, got = client.scores(inputs), {}

        def ask(name: int) -> None:
            got[name] = client.scores(inputs)

        threads = [threading.Thread(target=ask, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 6 and all(torch.equal(one, expected) for one in got.values())
        assert client.asked == 280


def test_a_connection_that_was_not_kept_is_no_failure(serve, monkeypatch) -> None:
    monkeypatch.setattr(endpoint, "KEPT", 0.1)
    running = serve()
    with Client(running.url, key=running.keys["plain"], retries=0) as client:
        for _ in range(3):
            client.scores(torch.zeros(1, 4))
            time.sleep(0.3)
        assert running.ledger.account("plain").spent == 3


# --- TLS


def certificate(folder, *, host: str = "127.0.0.1"):
    """A certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "endpoint")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


def test_over_tls_the_server_must_be_who_the_client_trusts(serve, tmp_path) -> None:
    pair = certificate(tmp_path)
    running = serve(tls=pair)
    inputs = torch.rand(5, 4, generator=torch.Generator().manual_seed(1))
    with Client(running.url, key=running.keys["plain"], ca=pair[0]) as client:
        assert torch.equal(client.scores(inputs), Scores(network(torch.float32)).scores(inputs))
    with pytest.raises(EndpointUnreachable, match="certificate is not to be trusted"):
        Client(running.url, key=running.keys["plain"])
    with pytest.raises((EndpointUnreachable, EndpointJunk), match=r"is it https\?"):
        Client(running.url.replace("https", "http"), key=running.keys["plain"], retries=0)


def test_a_certificate_of_another_host_is_not_trusted(serve, tmp_path) -> None:
    pair = certificate(tmp_path, host="127.0.0.2")
    running = serve(tls=pair)
    with pytest.raises(EndpointUnreachable, match="not to be trusted"):
        Client(running.url, key=running.keys["plain"], ca=pair[0])


def test_tls_files_that_are_none_are_refused(tmp_path) -> None:
    cert, key = certificate(tmp_path)
    check_tls(cert, key)
    (other := tmp_path / "other").mkdir()
    foreign = certificate(other)[1]
    (tmp_path / "junk").write_text("junk")
    locked = serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )
    (tmp_path / "locked").write_bytes(locked)
    for pair in (
        (cert, foreign),
        (cert, tmp_path / "junk"),
        (key, cert),
        (cert, tmp_path / "no"),
        (cert, tmp_path / "locked"),
    ):
        with pytest.raises(ConfigError, match="both PEM"):
            check_tls(*pair)
