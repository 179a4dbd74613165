"""The service without HTTP: keys, policies, checks, and that a charge comes before the model and stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tacit.core.coins import Coins
from tacit.core.errors import (
    BudgetExhausted,
    ConfigError,
    EndpointRefused,
    UnknownName,
    UnsupportedLayer,
)
from tacit.nn.networks import initialise
from tacit.nn.policies import Policy
from tacit.nn.spec import load_model
from tacit.prediction.ledger import Ledger
from tacit.prediction.plain import (
    AccessPolicy,
    Keys,
    Limits,
    ModelError,
    RateLimited,
    Service,
    access_from,
    read_keys,
    settings_of,
    write_keys,
)

POLICIES = (
    Policy(), Policy(top_k=2), Policy(digits=2), Policy(temperature=3.0), Policy(top_k=1, digits=1, temperature=2.0),
)  # fmt: skip


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    return initialise(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), generator).to(
        dtype
    )


def records(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def service(model: nn.Module | None = None, limits: Limits | None = None, **settings) -> Service:
    access = access_from("anyone", settings)
    return Service(model or network(), (4,), Keys(anyone=access), Ledger(), limits)


def ask(served: Service, inputs: torch.Tensor) -> torch.Tensor:
    return served.predict(served.admit(None), inputs)


def spent(served: Service) -> int:
    return served.describe(served.admit(None))["spent"]


# --- keys


def test_a_key_is_known_by_its_digest_and_by_nothing_else(tmp_path: Path) -> None:
    keys, alice = Keys().added(AccessPolicy(name="alice", budget=5))
    keys, bob = keys.added(
        AccessPolicy(name="bob", policy=Policy(labels_only=True), rate=3.5, burst=2)
    )
    assert keys.admit(alice).name == "alice" and keys.admit(bob).name == "bob"
    for wrong in ("", alice[:-1], alice + "x", bob.lower(), "ключ", "\udcff"):
        with pytest.raises(EndpointRefused, match="no such key") as caught:
            keys.admit(wrong)
        assert caught.value.status == 401
    with pytest.raises(EndpointRefused, match="a key expected"):
        keys.admit(None)
    write_keys(keys, path := tmp_path / "access.toml")
    text = path.read_text()
    assert alice not in text and bob not in text and alice not in repr(keys)
    assert path.stat().st_mode & 0o077 == 0
    assert read_keys(path) == keys
    assert read_keys(path).without("alice").policies == (keys.admit(bob),)


def test_keys_are_256_bits_of_coins() -> None:
    made = [Keys().added(AccessPolicy(name="a"))[1] for _ in range(50)]
    assert len(set(made)) == 50 and all(len(key) == 6 + 43 for key in made)
    twice = [Keys().added(AccessPolicy(name="a"), Coins.from_seed(b"1"))[1] for _ in range(2)]
    assert twice[0] == twice[1]


def test_two_keys_of_one_name_or_of_none_are_refused() -> None:
    keys, _ = Keys().added(AccessPolicy(name="a"))
    with pytest.raises(ConfigError, match="different names"):
        keys.added(AccessPolicy(name="a"))
    with pytest.raises(UnknownName, match="did you mean a"):
        keys.without("aa")
    for name in ("", "a b", "-x", "x" * 65, 'x"', "x\n"):
        with pytest.raises(ConfigError, match="a name of"):
            AccessPolicy(name=name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[keys.a]\n", "sha256 of 64"),
        (f'[keys.a]\nsha256 = "{"A" * 64}"', "sha256 of 64"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\nbudgets = 3', "did you mean budget"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\nbudget = "3"', "budget = '3' is not int"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\nbudget = true', "budget = True is not int"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\nbudget = -1', "budget of 0"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\nrate = 0', "a rate of"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\nburst = 2', "with a rate"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\nrate = inf', "a rate of"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\ntemperature = 1e-320', "a temperature of"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\n[keys.b]\nsha256 = "{"a" * 64}"', "one sha256"),
        (f'[keys.a]\nsha256 = "{"a" * 64}"\nlabels_only = true\ndigits = 2', "labels_only alone"),
        ("[other]\n", "nothing else expected"),
        ("keys = 3", "nothing else expected"),
        ("= no toml", "cannot be read"),
    ],
)
def test_a_file_of_keys_that_says_something_else_is_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    (path := tmp_path / "access.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_keys(path)


def test_settings_that_are_not_the_default_are_said() -> None:
    access = access_from("a", {"digits": 3, "budget": 4, "rate": 1, "download": True})
    assert settings_of(access) == {"digits": 3, "budget": 4, "rate": 1, "download": True}
    assert settings_of(AccessPolicy(name="a")) == {}


# --- answers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_answers_are_those_of_the_policy_bit_by_bit(policy: Policy, dtype: torch.dtype) -> None:
    model = network(dtype)
    served = Service(model, (4,), Keys(anyone=AccessPolicy(name="a", policy=policy)), Ledger())
    with torch.no_grad():
        wanted = policy.answers(model(records().to(dtype)))
    got = ask(served, records())
    assert got.dtype == torch.float64 and torch.equal(got, wanted)


def test_labels_only_gives_labels() -> None:
    got = ask(service(labels_only=True), records())
    with torch.no_grad():
        assert torch.equal(got, network()(records().float()).argmax(1))


def test_16_bit_weights_are_asked_in_float32() -> None:
    served = service(network(torch.bfloat16))
    assert served.describe(served.admit(None))["dtype"] == "float32"
    assert ask(served, records()).sum(1) == pytest.approx(1)


@pytest.mark.parametrize(
    ("inputs", "status", "said"),
    [
        (torch.zeros(0, 4), 422, "at least one record"),
        (torch.zeros(2, 5), 422, r"shape \[4\] expected, an array of shape \[2, 5\]"),
        (torch.zeros(4), 422, r"shape \[4\]"),
        (torch.tensor([[0.0] * 4, [0, float("nan"), 0, 0]]), 422, "record 1 holds another"),
        (torch.tensor([[float("inf"), 0, 0, 0]]), 422, "finite"),
        (torch.tensor([[1e39, 0, 0, 0]], dtype=torch.float64), 422, "float32 takes"),
        (torch.zeros(9, 4), 413, "at most 8 records"),
        (torch.full((1, 4), 3.0), 422, "from -1.0 to 2.0"),
        (torch.full((1, 4), -1.5), 422, "from -1.0 to 2.0"),
    ],
)
def test_what_is_refused_is_free(inputs: torch.Tensor, status: int, said: str) -> None:
    served = service(limits=Limits(batch=8, low=-1.0, high=2.0), budget=100)
    with pytest.raises(EndpointRefused, match=said) as caught:
        ask(served, inputs)
    assert caught.value.status == status and spent(served) == 0


def test_a_charge_is_kept_before_the_model_is_asked_and_not_given_back() -> None:
    ledger, seen = Ledger(), []

    class Watching(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(ledger.account("a").spent)
            if inputs.sum() > 100:
                raise RuntimeError("secret text")
            return inputs[:, :3] / inputs[:, 3:]

    keys = Keys(anyone=AccessPolicy(name="a", budget=10))
    served = Service(Watching(), (4,), keys, ledger)
    seen.clear()
    served.predict(keys.anyone, torch.ones(3, 4))
    assert seen == [3]
    with pytest.raises(ModelError, match="RuntimeError") as caught:
        served.predict(keys.anyone, torch.full((2, 4), 100.0))
    assert "secret" not in str(caught.value) and seen == [3, 5]
    with pytest.raises(ModelError, match="no number"):
        served.predict(keys.anyone, torch.zeros(1, 4))
    assert ledger.account("a").spent == 6
    with pytest.raises(BudgetExhausted):
        served.predict(keys.anyone, torch.ones(5, 4))
    assert len(seen) == 3 and ledger.account("a").spent == 6


def test_labels_of_what_is_no_number_are_no_labels() -> None:
    class Sick(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs[:, :3].log()

    served = service(Sick(), labels_only=True)
    assert ask(served, torch.tensor([[0.0, 1, 2, 3]])).tolist() == [2]  # log 0 is a score
    with pytest.raises(ModelError):
        ask(served, torch.tensor([[-1.0, 1, 2, 3]]))
    with pytest.raises(ModelError):
        ask(served, torch.zeros(1, 4))


def test_a_rate_says_how_long_to_wait_and_bounds_a_request() -> None:
    served = service(rate=60, burst=4)
    assert served.most(served.admit(None)) == 4
    ask(served, records(4))
    with pytest.raises(RateLimited) as caught:
        ask(served, records(2))
    assert 1.5 < caught.value.retry_after <= 2 and caught.value.status == 429
    with pytest.raises(EndpointRefused, match="at most 4 records") as refused:
        ask(served, records(5))
    assert refused.value.status == 413 and spent(served) == 4


# --- the model


def test_the_model_itself_is_for_who_may_have_it(tmp_path: Path) -> None:
    keys = Keys((), AccessPolicy(name="a", download=True))
    served = Service(network(torch.float64), (4,), keys, Ledger())
    (path := tmp_path / "model.safetensors").write_bytes(served.weights(keys.anyone))
    assert torch.equal(load_model(path)(records()), network(torch.float64)(records()))
    with pytest.raises(EndpointRefused) as caught:
        served.weights(AccessPolicy(name="b"))
    assert caught.value.status == 403


def test_a_model_is_named_by_its_weights_and_by_nothing_that_others_could_compute(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger"
    names = []
    for model in (network(), network(), network(torch.float64)):
        served = Service(model, (4,), Keys(anyone=AccessPolicy(name="a")), ledger := Ledger(path))
        names.append(served.describe(served.admit(None))["model"])
        ledger.close()
    assert names[0] == names[1] != names[2]
    assert service().describe(AccessPolicy(name="a"))["model"] != names[0]  # another salt


class Other(nn.Module):
    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, inputs: torch.Tensor):
        return self.answer(inputs)


@pytest.mark.parametrize(
    "answer",
    [lambda x: x[:, 0], lambda x: x[:, :1], lambda x: x[:0], lambda x: [1], lambda x: x @ x],
)
def test_a_model_that_gives_no_scores_is_refused_at_the_start(answer) -> None:
    with pytest.raises(ConfigError):
        service(Other(answer))


def test_a_policy_that_does_not_fit_the_model_is_refused_at_the_start_and_later() -> None:
    with pytest.raises(ConfigError, match="top_k of at most 3 classes expected, 4 came"):
        service(top_k=4)
    with pytest.raises(UnsupportedLayer):
        service(Other(lambda x: x), download=True)
    served = service()
    with pytest.raises(ConfigError, match="top_k"):
        served.keys = Keys(anyone=access_from("a", {"top_k": 9}))
    assert served.admit(None).policy == Policy()


def test_limits_that_make_no_sense_are_refused() -> None:
    for settings in ({"batch": 0}, {"low": 1.0, "high": 1.0}, {"low": float("nan")}):
        with pytest.raises(ConfigError):
            Limits(**settings)
