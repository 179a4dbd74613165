import time

import pytest

from tacit.core.cost import Cost, CostMeter
from tacit.parties.roles import SERVER, Role

OWNER = Role("owner", 1)


@pytest.fixture
def meter():
    """Three bookings of the server, one of an owner, in two phases and two layers."""
    meter = CostMeter()
    with meter.during("masks", "first"):
        meter.book(SERVER, messages=1, sent=10)
        meter.book(SERVER, messages=2, sent=5, seconds=0.5)
        meter.book(OWNER, received=15)
    with meter.during("sums", "second"):
        meter.book(SERVER, received=7, seconds=0.25)
    return meter


def test_costs_add_up_part_by_part():
    one = Cost(messages=1, bytes_sent=2, bytes_received=3, seconds=0.5)
    other = Cost(messages=10, bytes_sent=20, bytes_received=30, seconds=0.25)
    assert one + other == Cost(messages=11, bytes_sent=22, bytes_received=33, seconds=0.75)
    assert one + Cost() == one


def test_a_cost_is_described_by_its_parts():
    assert Cost(messages=1, seconds=0.5).described() == {
        "messages": 1,
        "bytes_sent": 0,
        "bytes_received": 0,
        "seconds": 0.5,
    }


def test_bookings_add_up_under_role_phase_and_layer(meter):
    assert meter.entries() == {
        ("server 0", "masks", "first"): Cost(messages=3, bytes_sent=15, seconds=0.5),
        ("owner 1", "masks", "first"): Cost(bytes_received=15),
        ("server 0", "sums", "second"): Cost(bytes_received=7, seconds=0.25),
    }


def test_totals_are_over_what_matches(meter):
    server = Cost(messages=3, bytes_sent=15, bytes_received=7, seconds=0.75)
    assert meter.total(role=SERVER) == meter.total(role="server 0") == server
    assert meter.total() == server + Cost(bytes_received=15)
    assert meter.total(phase="sums") == meter.total(layer="second") == meter.total(
        role=SERVER, phase="sums", layer="second"
    )  # fmt: skip
    assert meter.total(role=OWNER, phase="sums") == Cost()


def test_sums_by_role_phase_and_layer_are_all_the_same_total(meter):
    assert list(meter.by(0)) == ["server 0", "owner 1"]
    assert list(meter.by(1)) == ["masks", "sums"] and list(meter.by(2)) == ["first", "second"]
    for part in range(3):
        assert sum(meter.by(part).values(), start=Cost()) == meter.total()


def test_phases_nest_and_end_even_where_an_error_ends_them():
    meter = CostMeter()
    with meter.during("outer", "layer"):
        with pytest.raises(ZeroDivisionError), meter.during("inner"):
            assert (meter.phase, meter.layer) == ("inner", "layer")
            _ = 1 / 0
        assert (meter.phase, meter.layer) == ("outer", "layer")
    assert (meter.phase, meter.layer) == ("", "")


def test_timing_books_real_seconds_on_the_role_even_where_an_error_ends_it():
    meter = CostMeter()
    with pytest.raises(ZeroDivisionError), meter.timed(SERVER):
        time.sleep(0.02)
        _ = 1 / 0
    assert 0.02 <= meter.total(role=SERVER).seconds < 5.0


def test_rounds_are_the_longest_chain():
    meter = CostMeter()
    for depth in (1, 3, 2):
        meter.chain(depth)
    assert meter.rounds == 3
