import math

import pytest

from tacit.core.claims import Basis, Claim, PrivacyLoss
from tacit.core.errors import ConfigError

LOSS = {
    "epsilon": 1.5,
    "delta": 1e-5,
    "neighbouring": "replace one participant's data",
    "unit": "participant",
    "accountant": "PLD",
    "composed": "600 releases",
}
CLAIM = {"statement": "The update is hidden.", "basis": Basis.PROVED, "source": "section 4"}


@pytest.mark.parametrize("missing", ["neighbouring", "unit", "accountant", "composed"])
def test_an_epsilon_must_name_what_gives_it_a_meaning(missing):
    assert PrivacyLoss(**LOSS).epsilon == 1.5
    with pytest.raises(ConfigError, match=missing):
        PrivacyLoss(**{**LOSS, missing: ""})
    with pytest.raises(TypeError, match=missing):
        PrivacyLoss(**{name: value for name, value in LOSS.items() if name != missing})


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": -0.1},
        {"epsilon": math.nan},
        {"delta": -1e-9},
        {"delta": 1.0},
        {"delta": math.nan},
    ],
    ids=str,
)
def test_an_epsilon_and_a_delta_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected"):
        PrivacyLoss(**{**LOSS, **wrong})


def test_an_epsilon_is_printed_with_all_that_gives_it_a_meaning():
    shown = str(PrivacyLoss(**LOSS))
    assert shown.startswith("epsilon = 1.5, delta = 1e-05 per participant")
    assert all(LOSS[name] in shown for name in ("neighbouring", "accountant", "composed"))
    assert "epsilon = inf" in str(PrivacyLoss(**{**LOSS, "epsilon": math.inf}))


@pytest.mark.parametrize("missing", ["statement", "source"])
def test_a_claim_needs_a_statement_and_a_source(missing):
    with pytest.raises(ConfigError, match="statement and a source"):
        Claim(**{**CLAIM, missing: ""})


@pytest.mark.parametrize("value", [0.7, 3, 0])
def test_a_measured_figure_needs_its_interval(value):
    measured = {**CLAIM, "basis": Basis.MEASURED, "value": value}
    with pytest.raises(ConfigError, match="interval"):
        Claim(**measured)
    assert Claim(**measured, interval=(0.0, 4.0)).value == value


def test_other_grounds_need_no_interval():
    for basis in (Basis.PROVED, Basis.ACCOUNTED, Basis.ASSUMED):
        assert Claim(**{**CLAIM, "basis": basis, "value": 0.7}).interval is None


def test_a_claim_is_described_by_plain_values():
    claim = Claim(
        **CLAIM, value=PrivacyLoss(**LOSS), interval=(1.0, 2.0), assumes=("honest dealer",)
    )
    assert claim.described() == {
        "statement": "The update is hidden.",
        "basis": "PROVED",
        "source": "section 4",
        "value": str(PrivacyLoss(**LOSS)),
        "interval": [1.0, 2.0],
        "assumes": ["honest dealer"],
    }
    assert Claim(**CLAIM).described()["value"] is None
