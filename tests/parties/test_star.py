import time

import numpy as np
import pytest

from tacit.core.coins import Coins
from tacit.core.cost import Cost
from tacit.core.errors import (
    BudgetExhausted,
    ConfigError,
    DecryptionFailed,
    Diverged,
    PeerRefused,
    TooFewParties,
    WireError,
)
from tacit.core.wire import Message, decode, encode
from tacit.crypto.keys import generate, key_pair_from, seal, unseal
from tacit.parties.faults import Fault, Faults, Harm, Way
from tacit.parties.links.local import LocalHub, Timing
from tacit.parties.roles import SERVER, Role, owners
from tacit.parties.star import ask, refusal
from tacit.parties.views import FULL

A, B, C = owners(3)


class Counter:
    """Adds up what it is sent; a pure state machine with one number of state."""

    def __init__(self, total=0):
        self.total = total
        self.handled = 0

    def handle(self, request):
        self.handled += 1
        if request.tag == "fail":
            raise Diverged("the loss is not finite")
        if request.tag == "break":
            raise ZeroDivisionError
        self.total += request.integer("add", low=0)
        return Message("total", total=self.total)

    def export(self):
        return encode(Message("state", total=self.total))

    def restore(self, state):
        self.total = decode(state).integer("total")


def add(amount):
    return Message("add", add=amount)


def star(count=3, **options):
    return LocalHub({role: Counter() for role in owners(count)}, **options)


def totals(replies):
    return {role: reply.integer("total") for role, reply in replies.items()}


def everyone(hub, amount=1):
    return dict.fromkeys(hub.members(), add(amount))


# --- one wave


def test_a_wave_brings_every_members_reply_in_order_of_role():
    hub = star()
    replies = ask(hub, {C: add(3), A: add(1), B: add(2)})
    assert list(replies) == [A, B, C] and totals(replies) == {A: 1, B: 2, C: 3}
    assert totals(ask(hub, everyone(hub))) == {A: 2, B: 3, C: 4}


def test_a_wave_may_ask_some_members_only():
    hub = star()
    assert totals(ask(hub, {B: add(5)})) == {B: 5}
    assert totals(ask(hub, everyone(hub))) == {A: 1, B: 6, C: 1}


def test_members_of_two_kinds_live_in_one_star():
    authority = Role("authority")
    hub = LocalHub({A: Counter(), authority: Counter(100), B: Counter()})
    assert hub.members() == [authority, A, B]
    assert hub.members("owner") == [A, B] and hub.members("authority") == [authority]
    assert hub.members("dealer") == []
    replies = ask(hub, dict.fromkeys(hub.members("owner"), add(1)) | {authority: add(2)})
    assert totals(replies) == {authority: 102, A: 1, B: 1}


def test_posting_to_a_stranger_is_refused_and_sends_nothing():
    hub = star(recording=FULL)
    with pytest.raises(ConfigError, match="no member is owner 7; members are owner 0, owner 1"):
        hub.post({A: add(1), Role("owner", 7): add(1)})
    assert hub.cost.total() == Cost() and not list(hub.views[SERVER].sent())
    with pytest.raises(ConfigError, match="no member is server 0"):
        hub.replace(SERVER, Counter())


def test_a_star_needs_members_who_are_not_the_coordinator():
    for members in ({}, {SERVER: Counter()}, {A: Counter(), SERVER: Counter()}):
        with pytest.raises(ConfigError, match="at least one member"):
            LocalHub(members)
    assert LocalHub({SERVER: Counter()}, coordinator=A).members() == [SERVER]


# --- faults


LOST = pytest.mark.parametrize(
    ("harm", "way"),
    [(Harm.DROP, Way.REQUEST), (Harm.DROP, Way.REPLY), (Harm.HANG, Way.REPLY), (Harm.DIE, Way.REPLY)],
)  # fmt: skip


@LOST
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_fault_at_any_message_ends_its_wave_with_who_is_missing_and_why(harm, way, at):
    hub = star(faults=[Fault(role=B, at=at, harm=harm, way=way)])
    for wave in range(at):
        assert totals(ask(hub, everyone(hub))) == dict.fromkeys((A, B, C), wave + 1)
    with pytest.raises(TooFewParties) as caught:
        ask(hub, everyone(hub), deadline=5.0)
    assert caught.value.replied == (A, C)
    assert caught.value.missing == {B: "no reply in time"}
    assert f"wave {at}: 2 replies where at least 3" in str(caught.value)
    assert hub._members[B].total == at + (
        (harm, way) == (Harm.DROP, Way.REPLY)
    )  # only then it was handled


@LOST
def test_a_wave_that_tolerates_a_dropout_goes_on_without_it(harm, way):
    hub = star(faults=[Fault(role=B, at=0, harm=harm, way=way)])
    assert totals(ask(hub, everyone(hub), at_least=2)) == {A: 1, C: 1}
    after = totals(ask(hub, everyone(hub), at_least=2))
    # what was lost is one message; who hangs or is dead stays away
    expected = {} if harm is not Harm.DROP else {B: 1 if way is Way.REQUEST else 2}
    assert after == {A: 2, C: 2, **expected}


def test_a_wave_with_too_few_replies_leaves_the_coordinators_model_untouched():
    """A coordinator that adds up updates: it changes its model after the wave, so not at all."""
    hub = star(faults=[Fault(role=A, at=1, harm=Harm.DIE), Fault(role=C, at=1, harm=Harm.HANG)])
    model = np.zeros(3)

    def one_round():
        replies = ask(hub, everyone(hub), at_least=2, deadline=9.0)
        model[:] += sum(totals(replies).values())

    one_round()
    before = model.copy()
    with pytest.raises(TooFewParties) as caught:
        one_round()
    assert caught.value.replied == (B,) and list(caught.value.missing) == [A, C]
    assert np.array_equal(model, before) and before.any()


def test_waiting_for_who_hangs_takes_no_real_time_and_moves_the_clock_to_the_deadline():
    hub = star(faults=[Fault(role=B, at=0, harm=Harm.HANG)], timing=Timing(link=0.5))
    start = time.perf_counter()
    with pytest.raises(TooFewParties):
        ask(hub, everyone(hub), deadline=3_600.0)
    assert time.perf_counter() - start < 5.0
    assert hub.now == 3_600.0


def test_a_full_wave_takes_as_long_as_its_slowest_member_and_no_longer():
    hub = star(timing=Timing(link=0.5, work={A: 1.0, B: 7.0}))
    ask(hub, everyone(hub), deadline=3_600.0)
    assert hub.now == 0.5 + 7.0 + 0.5
    hub = star()
    ask(hub, everyone(hub), deadline=3_600.0)
    assert hub.now == 0.0


def test_a_member_does_one_thing_at_a_time():
    hub = star(1, timing=Timing(link=1.0, work=10.0))
    tickets = [hub.post({A: add(1)}) for _ in range(3)]
    came = [(ticket, hub.now) for _, ticket, _ in hub.replies(deadline=100.0)]
    assert came == list(zip(tickets, (12.0, 22.0, 32.0), strict=True))


def test_a_refusal_carries_its_typed_error_and_its_role():
    hub = star()
    with pytest.raises(Diverged, match="owner 1: the loss is not finite"):
        ask(hub, {A: add(1), B: Message("fail")})
    with pytest.raises(WireError, match="owner 0: message 'add', field 'add': outside"):
        ask(hub, {A: add(-1)})
    assert totals(ask(hub, everyone(hub))) == {A: 2, B: 1, C: 1}  # the star goes on


def test_a_refusal_counts_as_missing_where_dropouts_are_allowed():
    hub = star()
    requests = {A: add(1), B: Message("fail"), C: add(1)}
    assert totals(ask(hub, requests, at_least=2)) == {A: 1, C: 1}
    with pytest.raises(TooFewParties) as caught:
        ask(hub, requests, at_least=3)
    assert caught.value.missing == {B: "owner 1: the loss is not finite"}


def test_a_refusal_of_no_known_kind_is_a_peer_that_refused():
    class Rude(Counter):
        def handle(self, request):
            return Message("refused", kind="SystemExit", text="no")

    class Mute(Counter):
        def handle(self, request):
            return Message("refused")

    with pytest.raises(PeerRefused, match="owner 0: no"):
        ask(LocalHub({A: Rude()}), {A: add(1)})
    with pytest.raises(PeerRefused, match="owner 0 refused and gave no reason"):
        ask(LocalHub({A: Mute()}), {A: add(1)})
    assert refusal(BudgetExhausted("spent")).fields == {"kind": "BudgetExhausted", "text": "spent"}


def test_the_text_of_a_refusal_is_cut_and_made_printable():
    class Loud(Counter):
        def handle(self, request):
            return Message("refused", kind="Diverged", text="\x1b[2J\n" + "x" * 10_000)

    with pytest.raises(Diverged) as caught:
        ask(LocalHub({A: Loud()}), {A: add(1)})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_an_error_that_a_member_did_not_raise_on_purpose_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        ask(star(), {A: Message("break")})


def test_a_fault_says_when_and_only_a_delay_how_late():
    for wrong in ({"at": -1}, {"seconds": 1.0}, {"harm": Harm.DELAY}):
        with pytest.raises(ConfigError, match="DELAY"):
            Fault(**{"role": A, "at": 0, "harm": Harm.DIE, **wrong})


def test_a_script_of_faults_counts_each_roles_messages_by_itself():
    faults = Faults((Fault(role=A, at=1, harm=Harm.HANG), Fault(role=B, at=0, harm=Harm.DIE)))
    assert faults.meet(A, Way.REQUEST) is None and faults.meet(B, Way.REQUEST).harm is Harm.DIE
    assert faults.meet(A, Way.REQUEST).harm is Harm.HANG and faults.meet(A, Way.REQUEST) is None
    assert faults.hung == {A} and faults.dead == {B}
    faults.revive(A)
    assert not faults.hung and faults.dead == {B}


# --- stragglers and tickets


def late(**options):
    return star(faults=[Fault(role=B, at=0, harm=Harm.DELAY, seconds=10.0)], **options)


def test_ask_drops_the_late_reply_to_an_earlier_wave():
    hub = late(timing=Timing(work={C: 6.0}))
    assert totals(ask(hub, everyone(hub, 1), at_least=2, deadline=7.0)) == {A: 1, C: 1}
    assert hub.now == 7.0
    # B replies at 7 to this wave, and at 10 to the one before: the older reply does not replace the newer
    assert totals(ask(hub, everyone(hub, 10), deadline=20.0)) == {A: 11, B: 11, C: 11}
    assert hub.now == 13.0 and hub.views[SERVER].messages == 2 + 3 + 1


def test_a_late_reply_is_told_apart_by_its_ticket():
    hub = late()
    first = hub.post(everyone(hub, 1))
    on_time = [(role, ticket) for role, ticket, _ in hub.replies(deadline=5.0)]
    assert on_time == [(A, first), (C, first)]
    second = hub.post({A: add(10)})
    came = [(role, ticket, reply.integer("total")) for role, ticket, reply in hub.replies(deadline=20.0)]  # fmt: skip
    assert second != first
    assert came == [(A, second, 11), (B, first, 1)]
    assert hub.now == 10.0  # nothing is open any more, so nothing was waited for


def test_a_straggler_within_the_deadline_is_no_fault():
    hub = late()
    assert totals(ask(hub, everyone(hub), deadline=10.0)) == {A: 1, B: 1, C: 1}
    assert hub.now == 10.0


# --- asynchronous schedules


def schedule(seed, jitter=0.5, steps=40):
    """A coordinator that posts to whoever replied: (seconds, role, total) of each reply, and the hub."""
    work = {A: 1.0, B: 2.5, C: 7.0}
    hub = star(timing=Timing(link=0.1, work=work, jitter=jitter, seed=seed))
    hub.post(everyone(hub))
    trace = []
    for role, _, reply in hub.replies(deadline=1_000.0):
        trace.append((hub.now, role, reply.integer("total")))
        if len(trace) < steps:
            hub.post({role: add(1)})
    return trace, hub


def test_an_asynchronous_schedule_repeats_exactly_and_follows_its_seed():
    assert schedule(b"one")[0] == schedule(b"one")[0]
    one, other = ([role for _, role, _ in schedule(seed)[0]] for seed in (b"one", b"two"))
    assert one != other


def test_fast_members_of_an_asynchronous_schedule_reply_more_often():
    trace, _ = schedule(b"one")
    seconds = [at for at, _, _ in trace]
    assert seconds == sorted(seconds) and len(trace) == 40 + 2  # two were under way at the end
    replies = {who: [total for _, role, total in trace if role == who] for who in (A, B, C)}
    assert len(replies[A]) > 2 * len(replies[B]) > 2 * len(replies[C]) > 2
    assert all(came == list(range(1, len(came) + 1)) for came in replies.values())


def test_without_jitter_the_clock_is_exact():
    trace, _ = schedule(b"any", jitter=0.0, steps=3)
    assert [(round(at, 6), role) for at, role, _ in trace] == [
        (1.2, A), (2.4, A), (2.7, B), (3.6, A), (7.2, C),
    ]  # fmt: skip


def test_posting_while_iterating_is_answered_in_the_same_iteration():
    hub = star(1)
    hub.post({A: add(1)})
    came = []
    for _, _, reply in hub.replies(deadline=1.0):
        came.append(reply.integer("total"))
        if len(came) < 4:
            hub.post({A: add(1)})
    assert came == [1, 2, 3, 4]


# --- rounds and bytes


def test_a_wave_is_two_rounds_whatever_the_number_of_members():
    for count in (1, 2, 9):
        hub = star(count)
        for wave in range(1, 4):
            ask(hub, everyone(hub))
            assert hub.cost.rounds == 2 * wave


def test_rounds_are_the_longest_causal_chain():
    hub = star()
    hub.post({A: add(1)})
    hub.post({B: add(1)})  # does not wait for A's reply
    list(hub.replies(deadline=1.0))
    assert hub.cost.rounds == 2
    for role in (A, B, C):  # one after the other
        ask(hub, {role: add(1)})
    assert hub.cost.rounds == 2 + 6


def test_the_bytes_booked_are_the_lengths_of_the_frames():
    hub = star(recording=FULL)
    for amount in (1, 1 << 100, 5):
        ask(hub, {A: add(amount), B: add(1)})
    for role in (SERVER, A, B, C):
        view, cost = hub.views[role], hub.cost.total(role=role)
        sent, received = list(view.sent()), list(view.frames())
        assert cost.bytes_sent == sum(len(frame.data) for frame in sent)
        assert cost.bytes_received == sum(len(frame.data) for frame in received) == view.received
        assert cost.messages == len(sent) and view.messages == len(received)
    assert hub.cost.total().bytes_sent == hub.cost.total().bytes_received > 0
    assert hub.cost.total(role=C) == Cost()
    frame = next(iter(hub.views[A].frames()))
    assert (frame.peer, frame.wave, frame.data) == (SERVER, 0, encode(add(1)))


def test_a_lost_message_is_booked_by_its_sender_only():
    size = len(encode(add(1)))
    hub = star(1, faults=[Fault(role=A, at=0, harm=Harm.DROP, way=Way.REQUEST)])
    ask(hub, everyone(hub), at_least=0)
    assert hub.cost.total(role=SERVER).bytes_sent == size
    assert hub.cost.total(role=A) == Cost() and hub.views[A].messages == 0
    hub = star(1, faults=[Fault(role=A, at=0, harm=Harm.DROP)])
    ask(hub, everyone(hub), at_least=0)
    assert hub.cost.total(role=A).bytes_received == size
    assert hub.cost.total(role=A).bytes_sent > 0 == hub.cost.total(role=SERVER).bytes_received


def test_a_members_seconds_are_booked_on_it():
    class Slow(Counter):
        def handle(self, request):
            time.sleep(0.02)
            return super().handle(request)

    hub = LocalHub({A: Slow(), B: Counter()})
    ask(hub, everyone(hub))
    assert hub.cost.total(role=A).seconds >= 0.02 > hub.cost.total(role=SERVER).seconds


# --- restarts


@pytest.mark.parametrize("harm", [Harm.DIE, Harm.HANG])
def test_a_member_restored_in_mid_protocol_goes_on_exactly(harm):
    def run(faults):
        hub = star(faults=faults)
        saved, results = {}, []
        for wave in range(6):
            try:
                replies = ask(hub, everyone(hub, wave), deadline=1.0)
            except TooFewParties as error:
                (gone,) = error.missing
                fresh = Counter()
                fresh.restore(saved[gone])
                hub.replace(gone, fresh)
                replies = ask(hub, {gone: add(wave)})
            results.append(totals(replies)[B])
            saved = {role: hub._members[role].export() for role in hub.members()}
        return results

    undisturbed = run([])
    assert undisturbed == [0, 1, 3, 6, 10, 15]
    for at in range(1, 6):
        assert run([Fault(role=B, at=at, harm=harm)]) == undisturbed


def test_what_was_under_way_to_a_replaced_member_is_lost_and_its_replies_are_not():
    hub = star(2, timing=Timing(link=1.0))
    first = hub.post({A: add(1)})
    replies = hub.replies(deadline=10.0)
    hub.post({B: add(1)})
    assert next(replies)[:2] == (A, first)  # at 2; B's reply is due at 2, too
    hub.post({B: add(50)})  # on its way at 3
    fresh = Counter(1_000)
    hub.replace(B, fresh)
    came = [(role, reply.integer("total")) for role, _, reply in replies]
    assert came == [(B, 1)] and fresh.total == 1_000
    assert totals(ask(hub, {B: add(1)}, deadline=10.0)) == {B: 1_001}


# --- members who seal to each other

CANARY = b"the canary in the gradient " * 4


class Sealer:
    """Tells its public key, seals a text to a peer, opens what a peer sealed to it."""

    def __init__(self, secret, text, *, in_the_clear=False):
        self.key = key_pair_from(secret)
        self.coins = Coins.from_seed(secret).child("seal")
        self.text = text
        self.in_the_clear = in_the_clear
        self.opened = None

    def handle(self, request):
        if request.tag == "key":
            return Message("key", key=self.key.public)
        if request.tag == "seal":
            if self.in_the_clear:
                return Message("sealed", box=self.text)
            peer = request.blob("peer", length=32)
            box = seal(self.text, sender=self.key, recipient=peer, context=b"c", coins=self.coins)
            return Message("sealed", box=box)
        peer, box = request.blob("peer", length=32), request.blob("box")
        if self.in_the_clear:
            self.opened = box
        else:
            self.opened = unseal(box, sender=peer, recipient=self.key, context=b"c")
        return Message("thanks")

    def export(self):
        return b""

    def restore(self, state):
        pass


def through_the_coordinator(*, in_the_clear=False, tamper=None):
    """A and B exchange a sealed text each, through the coordinator; the members and the hub."""
    secrets = {role: bytes([index + 1]) * 32 for index, role in enumerate((A, B))}
    members = {
        role: Sealer(secrets[role], CANARY + str(role).encode(), in_the_clear=in_the_clear)
        for role in (A, B)
    }
    hub = LocalHub(members, recording=FULL)
    keys = {r: m.blob("key", length=32) for r, m in ask(hub, dict.fromkeys((A, B), Message("key"))).items()}  # fmt: skip
    peers = {A: B, B: A}
    sealed = ask(hub, {role: Message("seal", peer=keys[peers[role]]) for role in (A, B)})
    boxes = {role: sealed[peers[role]].blob("box") for role in (A, B)}
    if tamper:
        boxes = tamper(boxes)
    ask(hub, {role: Message("open", peer=keys[peers[role]], box=boxes[role]) for role in (A, B)})
    return members, hub


def everything_at(hub, role):
    view = hub.views[role]
    return b"".join(frame.data for frame in (*view.frames(), *view.sent()))


def test_members_exchange_sealed_texts_that_the_coordinator_cannot_read():
    members, hub = through_the_coordinator()
    assert members[A].opened == CANARY + b"owner 1" and members[B].opened == CANARY + b"owner 0"
    seen = everything_at(hub, SERVER)
    assert len(seen) > 4 * len(CANARY)  # the boxes did pass through it
    assert b"canary" not in seen
    # with a key of its own it opens neither box
    boxes = [f.message().blob("box") for f in hub.views[SERVER].frames() if f.message().tag == "sealed"]  # fmt: skip
    own = generate(Coins.from_seed(b"coordinator"))
    for box in boxes:
        for member in members.values():
            with pytest.raises(DecryptionFailed):
                unseal(box, sender=member.key.public, recipient=own, context=b"c")


def test_an_unsealed_text_is_found_in_the_coordinators_view():
    """The control: the search would find the canary."""
    _, hub = through_the_coordinator(in_the_clear=True)
    assert everything_at(hub, SERVER).count(CANARY) == 4  # each came in and went out


def test_a_coordinator_that_tampers_with_a_sealed_text_is_noticed_by_its_recipient():
    def flip(boxes):
        return {**boxes, B: boxes[B][:40] + bytes([boxes[B][40] ^ 1]) + boxes[B][41:]}

    def swap(boxes):
        return {A: boxes[B], B: boxes[A]}

    for tamper in (flip, swap):
        with pytest.raises(DecryptionFailed, match=r"owner [01]: a sealed message does not open"):
            through_the_coordinator(tamper=tamper)


def test_a_fault_aimed_at_nobody_is_refused_and_asking_nobody_asks_nothing():
    members = {Role("owner", 0): Counter()}
    with pytest.raises(ConfigError, match="owner 7, who does not take part"):
        LocalHub(members, faults=(Fault(role=Role("owner", 7), at=0, harm=Harm.DIE),))
    hub = LocalHub(members)
    assert ask(hub, {}) == {} and hub.cost.total().messages == 0
