import itertools
import threading
import time

import numpy as np
import pytest

from tacit.core.cost import Cost
from tacit.core.errors import (
    CheatingDetected,
    ConfigError,
    DeadlineExceeded,
    Deadlock,
    PeerDropped,
    ProtocolError,
    TacitError,
)
from tacit.core.wire import Message, encode
from tacit.parties.faults import Fault, Harm
from tacit.parties.links.local import outputs_of, run_pair
from tacit.parties.roles import Role
from tacit.parties.views import FULL

ONE, TWO, DEALER = Role("server", 0), Role("server", 1), Role("dealer")

U = np.uint64


def number(value):
    return np.array([value], U)


# A product of shared numbers with a dealer's triple, in the ring of 64 bits (Beaver 1991).

SECRETS = (1234, 5678)
TRIPLE = {ONE: (11, 22, 33), TWO: (44, 55, (11 + 44) * (22 + 55) - 33)}


def dealer(channels):
    for role, (a, b, c) in TRIPLE.items():
        channels[role].send("triple", number(a), number(b), number(c))
    return "dealt"


def multiplier(role, x, y):
    """Its shares of two secrets are x and y; opens x and y less the triple's masks, then the product."""

    def party(channels):
        peer = channels[TWO if role == ONE else ONE]
        a, b, c = channels[DEALER].recv("triple")
        d, e = number(x) - a, number(y) - b
        their_d, their_e = peer.exchange("masked", d, e)
        d, e = d + their_d, e + their_e
        z = c + d * b + e * a + (d * e if role == ONE else U(0))
        (theirs,) = peer.exchange("product", z)
        return int((z + theirs)[0])

    return party


def parties(shares=((1000, 5000), (234, 678))):
    return {
        ONE: multiplier(ONE, *shares[0]),
        TWO: multiplier(TWO, *shares[1]),
        DEALER: dealer,
    }


PRODUCT = SECRETS[0] * SECRETS[1]
MESSAGES = {ONE: 2, TWO: 2, DEALER: 2}  # that each sends


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not {str(role) for role in MESSAGES} & {thread.name for thread in threading.enumerate()}


# --- without faults


def test_two_parties_multiply_with_a_dealers_triple():
    run = run_pair(parties())
    assert outputs_of(run) == {ONE: PRODUCT, TWO: PRODUCT, DEALER: "dealt"}
    assert not run.errors


def test_the_protocol_repeats_whatever_the_threads_do():
    for _ in range(20):
        run = run_pair(parties(), recording=FULL)
        assert outputs_of(run)[ONE] == PRODUCT
        assert run.cost.rounds == 3  # the triple, the masked values, the product
        assert [view.shape for view in run.views.values()] == SHAPE


TRIPLE_SIZE = len(encode(Message("triple", arrays=[number(0)] * 3)))
MASKED_SIZE = len(encode(Message("masked", arrays=[number(0)] * 2)))
PRODUCT_SIZE = len(encode(Message("product", arrays=[number(0)])))
SHAPE = [
    [],
    *(
        [
            (DEALER, "triple", TRIPLE_SIZE, 0),
            (peer, "masked", MASKED_SIZE, 0),
            (peer, "product", PRODUCT_SIZE, 1),
        ]
        for peer in (TWO, ONE)
    ),
]


def test_an_exchange_is_one_round_and_an_answer_is_another():
    def exchanging(times):
        def party(channels):
            (peer,) = channels.values()
            for _ in range(times):
                peer.exchange("x", number(1))

        return party

    for times in (1, 2, 7):
        run = run_pair({ONE: exchanging(times), TWO: exchanging(times)})
        assert run.cost.rounds == times and run.cost.total().messages == 2 * times

    def asking(channels):
        channels[TWO].send("question", number(1))
        channels[TWO].recv("answer")

    def answering(channels):
        channels[ONE].recv("question")
        channels[ONE].send("answer", number(2))

    assert run_pair({ONE: asking, TWO: answering}).cost.rounds == 2


def test_several_messages_without_an_answer_are_one_round():
    def sending(channels):
        for value in range(5):
            channels[TWO].send("x", number(value))

    def receiving(channels):
        return [int(channels[ONE].recv("x")[0][0]) for _ in range(5)]

    run = run_pair({ONE: sending, TWO: receiving})
    assert run.outputs[TWO] == [0, 1, 2, 3, 4] and run.cost.rounds == 1


def test_the_bytes_booked_are_the_lengths_of_the_frames():
    run = run_pair(parties(), recording=FULL)
    assert run.cost.total(role=DEALER).bytes_sent == 2 * TRIPLE_SIZE
    for role, view in run.views.items():
        cost = run.cost.total(role=role)
        sent, received = list(view.sent()), list(view.frames())
        assert cost.bytes_sent == sum(len(frame.data) for frame in sent)
        assert cost.bytes_received == sum(len(frame.data) for frame in received) == view.received
        assert cost.messages == len(sent) == MESSAGES[role]


def test_what_a_party_does_is_booked_under_the_phase_and_layer_that_it_names():
    def party(channels):
        (peer,) = channels.values()
        peer.exchange("x", number(1))
        with peer.during("online", "first"):
            peer.exchange("x", number(2))
            with peer.during(layer="second"):
                peer.exchange("x", number(3))
                sum(range(200_000))
            peer.exchange("x", number(4))
        peer.exchange("x", number(5))

    meter = run_pair({ONE: party, TWO: party}).cost
    booked = {key: cost.messages for key, cost in meter.entries().items()}
    assert booked == {
        (str(role), *label): count
        for role in (ONE, TWO)
        for label, count in ((("", ""), 2), (("online", "first"), 2), (("online", "second"), 1))
    }
    for part in (meter.total(layer="second"), meter.total(phase="online"), meter.total()):
        assert part.bytes_sent == part.bytes_received > 0
    assert meter.total(layer="second").seconds > meter.total(layer="first").seconds > 0


def test_a_view_holds_what_its_role_received_and_sent_and_nothing_else():
    run = run_pair(parties(), recording=FULL)
    views = run.views
    assert not list(views[DEALER].frames())
    assert [(f.peer, f.message().tag, f.wave) for f in views[ONE].frames()] == [
        (DEALER, "triple", 0), (TWO, "masked", 0), (TWO, "product", 1),
    ]  # fmt: skip
    assert [(f.peer, f.message().tag, f.wave) for f in views[ONE].sent()] == [
        (TWO, "masked", 0), (TWO, "product", 1),
    ]  # fmt: skip
    sent = [frame.data for frame in views[TWO].sent()]
    assert [frame.data for frame in views[ONE].frames()][1:] == sent


def test_what_arrives_cannot_be_written_to_and_is_a_copy():
    array = np.arange(3.0)

    def sending(channels):
        channels[TWO].send("x", array)
        array[:] = -1.0

    def receiving(channels):
        (came,) = channels[ONE].recv("x")
        return came

    came = run_pair({ONE: sending, TWO: receiving}).outputs[TWO]
    assert came.tolist() == [0.0, 1.0, 2.0] and not came.flags.writeable


def test_a_channel_knows_its_peer_and_carries_empty_messages():
    def party(channels):
        assert all(channel.peer == role for role, channel in channels.items())
        return [channel.exchange("empty") for channel in channels.values()]

    run = run_pair(dict.fromkeys((ONE, TWO, DEALER), party))
    assert set(map(tuple, outputs_of(run).values())) == {((), ())}


# --- what goes wrong in a protocol


def test_a_wrong_tag_names_both_tags_and_both_roles():
    def sending(channels):
        channels[TWO].send("apples", number(1))

    def receiving(channels):
        channels[ONE].recv("pears")

    run = run_pair({ONE: sending, TWO: receiving})
    with pytest.raises(ProtocolError, match="server 1: expected 'pears' from server 0, came 'apples'"):  # fmt: skip
        outputs_of(run)
    assert list(run.errors) == [TWO] and list(run.outputs) == [ONE]


def waits_for(*roles):
    def party(channels):
        for role in roles:
            channels[role].recv("never")

    return party


@pytest.mark.parametrize(
    "stuck",
    [
        {ONE: waits_for(TWO), TWO: waits_for(ONE)},
        {ONE: waits_for(TWO), TWO: waits_for(DEALER), DEALER: waits_for(ONE)},
        {ONE: waits_for(TWO), TWO: waits_for(ONE), DEALER: waits_for(ONE)},
        {ONE: waits_for(TWO), TWO: waits_for(ONE), DEALER: lambda channels: None},
    ],
    ids=["two", "a circle", "two and one", "two beside one who finished"],
)
def test_a_deadlock_is_found_at_once(stuck):
    for _ in range(5):
        start = time.perf_counter()
        run = run_pair(stuck, deadline=300.0)
        assert time.perf_counter() - start < 10.0
        with pytest.raises(Deadlock, match="check the order of send and recv"):
            outputs_of(run)


def test_waiting_is_no_deadlock_while_somebody_works():
    def slow(channels):
        time.sleep(0.2)
        channels[ONE].send("x", number(7))

    def waiting(channels):
        return int(channels[TWO].recv("x")[0][0])

    assert run_pair({ONE: waiting, TWO: slow, DEALER: lambda _: None}).outputs[ONE] == 7


def test_a_party_that_works_past_the_deadline_is_given_up():
    freed = threading.Event()

    def stuck(channels):
        freed.wait(20.0)

    def waiting(channels):
        try:
            channels[TWO].recv("x")
        finally:
            freed.set()

    start = time.perf_counter()
    run = run_pair({ONE: waiting, TWO: stuck}, deadline=0.1)
    assert 0.1 <= time.perf_counter() - start < 10.0
    with pytest.raises(DeadlineExceeded, match=r"server 0: nothing from server 1 within 0\.1 s"):
        outputs_of(run)


def test_a_party_that_finished_too_early_is_gone():
    def early(channels):
        channels[TWO].send("x", number(1))

    def asking(channels):
        channels[ONE].recv("x")  # what was sent before arrives
        channels[ONE].recv("x")

    with pytest.raises(PeerDropped, match="server 1: server 0 is gone"):
        outputs_of(run_pair({ONE: early, TWO: asking}))


@pytest.mark.parametrize("culprit", [ONE, TWO, DEALER], ids=str)
@pytest.mark.parametrize("error", [CheatingDetected("a bad triple"), ZeroDivisionError("by 0")])
def test_the_error_of_one_party_is_what_surfaces_and_not_its_echoes(culprit, error):
    def failing(channels):
        raise error

    run = run_pair({**parties(), culprit: failing})
    with pytest.raises(type(error)) as caught:
        outputs_of(run)
    assert caught.value is error is run.errors[culprit]
    echoes = [other for role, other in run.errors.items() if role != culprit]
    assert echoes and all(isinstance(other, PeerDropped) for other in echoes)


def test_a_party_that_ends_its_thread_is_gone_and_the_others_learn_of_it():
    def leaving(channels):
        raise SystemExit

    start = time.perf_counter()
    run = run_pair({**parties(), ONE: leaving}, deadline=300.0)
    assert time.perf_counter() - start < 10.0
    with pytest.raises(PeerDropped):
        outputs_of(run)
    assert "ended with SystemExit" in str(run.errors[ONE]) and TWO in run.errors


# --- faults

HARMS = [Harm.DROP, Harm.HANG, Harm.DIE]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.name)
@pytest.mark.parametrize("role", MESSAGES, ids=str)
@pytest.mark.parametrize("at", [0, 1])
def test_each_fault_at_each_message_ends_in_a_typed_error_and_never_in_a_wrong_result(
    role, at, harm
):
    for _ in range(5):
        start = time.perf_counter()
        run = run_pair(parties(), faults=[Fault(role=role, at=at, harm=harm)], deadline=300.0)
        assert time.perf_counter() - start < 10.0  # and not the deadline
        with pytest.raises(ProtocolError):
            outputs_of(run)
        assert all(isinstance(error, TacitError) for error in run.errors.values())
        for party, output in run.outputs.items():
            assert output == ("dealt" if party == DEALER else PRODUCT)
        if harm in (Harm.HANG, Harm.DIE):
            assert isinstance(run.errors[role], PeerDropped)
            assert ("hung" if harm is Harm.HANG else "killed") in str(run.errors[role])


def test_a_fault_after_the_last_message_changes_nothing():
    for role, harm in itertools.product(MESSAGES, HARMS):
        fault = Fault(role=role, at=MESSAGES[role], harm=harm)
        assert outputs_of(run_pair(parties(), faults=[fault]))[ONE] == PRODUCT


def test_a_lost_message_is_missed_even_where_the_next_has_the_same_tag():
    def sending(channels):
        for value in (1, 2, 3):
            channels[TWO].send("x", number(value))
        (total,) = channels[TWO].recv("sum")
        return int(total[0])

    def adding(channels):
        total = sum(channels[ONE].recv("x")[0] for _ in range(2))
        channels[ONE].send("sum", total)
        return int(total[0])

    assert outputs_of(run_pair({ONE: sending, TWO: adding})) == {ONE: 3, TWO: 3}
    for at in (0, 1):
        fault = Fault(role=ONE, at=at, harm=Harm.DROP)
        run = run_pair({ONE: sending, TWO: adding}, faults=[fault])
        with pytest.raises(ProtocolError, match=f"message {at} from server 0 was lost"):
            outputs_of(run)
        assert not run.outputs


def test_who_hangs_or_is_lost_to_one_who_does_not_wait_stops_nobody_else():
    def last_word(channels):
        channels[TWO].exchange("x", number(1))
        channels[DEALER].send("bye", number(2))

    def party(channels):
        return int(channels[ONE].exchange("x", number(5))[0][0])

    crew = {ONE: last_word, TWO: party, DEALER: lambda channels: "done"}
    run = run_pair(crew, faults=[Fault(role=ONE, at=1, harm=Harm.HANG)])
    assert run.outputs == {TWO: 1, DEALER: "done"} and list(run.errors) == [ONE]


def test_a_lost_message_is_booked_by_its_sender_only():
    run = run_pair(parties(), faults=[Fault(role=DEALER, at=0, harm=Harm.DROP)])
    assert run.cost.total(role=DEALER).bytes_sent == 2 * TRIPLE_SIZE
    assert run.cost.total(role=ONE) == Cost(seconds=run.cost.total(role=ONE).seconds)


def test_a_delay_is_refused_because_a_pair_has_no_virtual_clock():
    fault = Fault(role=ONE, at=0, harm=Harm.DELAY, seconds=1.0)
    with pytest.raises(ConfigError, match="DELAY is for stars"):
        run_pair(parties(), faults=[fault])
