"""Where the brokers are: the cases of sdk/rust/src/brokers.rs."""

from __future__ import annotations

from trunkline._brokers import Brokers, Claim, Given, Told
from trunkline.v1 import trunkline_pb2 as wire


def told(broker: int, **at: str) -> wire.Brokers:
    return wire.Brokers(broker=broker, brokers=[wire.BrokerAddress(id=int(key[1:]), grpc=value) for key, value in at.items()])


def three(broker: int) -> wire.Brokers:
    return told(broker, b1="a:1", b2="b:1", b3="c:1")


def test_the_others_are_learnt_from_one_and_each_gets_one_session():
    brokers = Brokers(["http://a:1"])
    assert brokers.missing() == []
    assert brokers.greeted(Given(0), "http://a:1", three(1)) is Claim.HELD
    assert brokers.missing() == [Told(2), Told(3)]
    assert brokers.missing() == [], "once"
    assert brokers.address(Told(3), 0) == "c:1"
    # a fourth one is added later
    brokers.learn(told(1, b1="a:1", b2="b:1", b3="c:1", b4="d:1"))
    assert brokers.missing() == [Told(4)]


def test_two_names_of_one_broker_make_one_stream():
    brokers = Brokers(["http://localhost:1", "b:1"])
    assert brokers.greeted(Given(0), "http://localhost:1", three(1)) is Claim.HELD
    assert brokers.missing() == [Told(3)], "2 is given by that name, and 1 is held by another"
    assert brokers.greeted(Given(1), "b:1", three(1)) is Claim.TWICE, "b:1 is broker 1 too"
    brokers.ended(Given(1))
    assert brokers.missing() == [Told(2)]
    assert brokers.greeted(Told(2), "b:1", three(1)) is Claim.OTHER


def test_an_address_that_leads_to_another_broker_now_leaves_none_without_a_session():
    brokers = Brokers(["any:1"])
    brokers.greeted(Given(0), "any:1", three(2))
    assert brokers.missing() == [Told(1), Told(3)]
    brokers.greeted(Told(1), "a:1", three(1))
    brokers.released(Given(0))
    assert brokers.missing() == [], "it is coming back"
    assert brokers.greeted(Given(0), "any:1", three(1)) is Claim.TWICE
    brokers.ended(Given(0))
    assert brokers.missing() == [Told(2)]
    assert brokers.address(Told(1), 1) == "any:1", "tried too, after its own"


def test_a_broker_that_was_removed_is_forgotten_once_its_stream_ends():
    brokers = Brokers(["a:1"])
    brokers.greeted(Given(0), "a:1", three(1))
    brokers.missing()
    brokers.greeted(Told(3), "c:1", three(3))
    brokers.learn(told(1, b1="a:1", b2="b:1"))
    assert brokers.address(Told(3), 0) is not None, "it says itself that it is there"
    brokers.released(Told(3))
    assert brokers.address(Told(3), 0) is None
    # the last one heard counts while nobody is there
    brokers.released(Given(0))
    assert brokers.address(Told(2), 5) == "b:1"


def test_a_broker_that_moved_is_looked_for_where_others_say():
    brokers = Brokers(["a:1"])
    brokers.greeted(Given(0), "a:1", three(1))
    brokers.missing()
    brokers.greeted(Told(2), "b:1", three(2))
    brokers.released(Given(0))
    brokers.learn(told(2, b1="a:2", b2="b:1"))
    assert [brokers.address(Given(0), attempt) for attempt in range(3)] == ["a:1", "a:2", "a:1"]


def test_what_brokers_tell_is_bounded():
    brokers = Brokers(["a:1"])
    brokers.learn(wire.Brokers(broker=1, brokers=[wire.BrokerAddress(id=n, grpc=f"h{n}:1") for n in range(1, 1000)]))
    assert len(brokers.missing()) <= 64


def test_whoever_waits_for_changes_is_told():
    calls = []
    brokers = Brokers(["a:1"], lambda: calls.append(1))
    brokers.greeted(Given(0), "a:1", three(1))
    brokers.ended(Given(0))
    assert len(calls) == 2
