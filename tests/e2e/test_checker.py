"""Every rule of the checker goes red on a history that breaks it, and stays green on one that does not.

A checker that was never seen failing proves nothing.
"""

from __future__ import annotations

import pytest

import checker
from history import Handled, Record, Session, Submit, parse_journal, parse_message, parse_offset, parse_record

pytestmark = pytest.mark.short


class Log:
    """Writes a log by hand, one entry a record."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, kind: str, connection: str | None = None, text: str | None = None, *, at=None, time=None, partition=0, **fields):
        index = len(self.records) + 1
        if text is not None:
            fields["text"] = text
        time = time or f"2026-01-01T00:00:{index:02}.000000Z"
        self.records.append(Record(partition, at or (index, 0), time, kind, connection, fields))
        return self

    def open(self, connection="A"):
        return self.add("connection_opened", connection, api="effects")

    def message(self, text, connection="A"):
        return self.add("message_received", connection, text, api="effects")

    def push(self, text, connection="A"):
        return self.add("pushed", connection, text)

    def publish(self, text, channel="effects"):
        return self.add("published", None, text, channel=channel)

    def close(self, connection="A"):
        return self.add("connection_closed", connection, code=1000, cause="client")


def good() -> Log:
    log = Log().open()
    for number in range(3):
        log.message(f"s#{number}").push(f"ack s#{number}").publish(f"effect s#{number}")
    return log.close()


def session(**fields) -> Session:
    return Session(**{"name": "s", "sent": 3, "acks": [0, 1, 2], "end": "clean"} | fields)


def journal(log: Log) -> list[Handled]:
    return [
        Handled("g", r.partition, r.offset, 1, r.kind, r.connection, r.text)
        for r in log.records
        if r.kind == "message_received"
    ]


def only(violations, fragment: str) -> None:
    assert violations, f"not noticed: {fragment}"
    assert any(fragment in str(violation) for violation in violations), checker.report(violations)


def none(violations) -> None:
    assert not violations, checker.report(violations)


def test_a_good_history_breaks_no_rule():
    log = good()
    none(checker.log_order(log.records))
    none(checker.life(log.records))
    none(checker.prefix(log.records, [session()]))
    none(checker.handled(log.records, journal(log), group="g", api="effects"))
    none(checker.effects(log.records, channel="effects", api="effects"))
    none(checker.deliveries(log.records, [session()]))


def test_log_order_sees_a_step_back_a_repeat_and_time_going_back():
    only(checker.log_order(Log().open().add("message_received", "A", "s#0", at=(1, 0)).records), "comes after")
    only(checker.log_order(Log().open().add("pushed", "A", "x", at=(0, 7)).records), "comes after")
    only(checker.log_order(Log().open().add("pushed", "A", "x", time="2025-12-31T23:59:59.000000Z").records), "is before")


def test_log_order_keeps_partitions_apart():
    none(checker.log_order(Log().open().add("published", None, "x", partition=1, at=(1, 0)).records))


def test_life_sees_a_connection_opened_twice():
    only(checker.life(Log().open().open().close().records), "opened twice")


def test_life_sees_a_second_close():
    only(checker.life(Log().open().close().close().records), "closed twice")


def test_life_sees_a_connection_that_never_closes():
    only(checker.life(Log().open().records), "never closed")
    none(checker.life(Log().open().records, all_closed=False))


def test_life_sees_a_message_and_a_push_after_the_close():
    only(checker.life(Log().open().close().message("s#0").records), "message_received after its close")
    only(checker.life(Log().open().close().push("x").records), "pushed after its close")


def test_life_sees_an_event_before_the_open():
    only(checker.life(Log().message("s#0").open().close().records), "before it was opened")


def test_prefix_sees_a_gap_a_repeat_and_a_swap():
    only(checker.prefix(Log().message("s#0").message("s#2").records, [session(end="lost", acks=[])]), "message 2 at")
    only(checker.prefix(Log().message("s#0").message("s#0").records, [session(end="lost", acks=[])]), "message 0 at")
    only(checker.prefix(Log().message("s#1").message("s#0").records, [session(end="lost", acks=[])]), "message 1 at")


def test_prefix_allows_a_missing_end_unless_the_client_closed_cleanly_or_was_answered():
    log = Log().message("s#0").message("s#1").records
    none(checker.prefix(log, [session(end="lost", acks=[0])]))
    only(checker.prefix(log, [session(end="clean", acks=[])]), "closed cleanly after 3")
    only(checker.prefix(log, [session(end="lost", acks=[0, 1, 2])]), "message 2 was answered")


def test_prefix_sees_what_was_never_sent():
    only(checker.prefix(Log().message("s#0").records, [session(sent=0, end="lost", acks=[])]), "only 0 were sent")
    only(checker.prefix(Log().message("other#0").records, [session(end="lost", acks=[])]), "never was")


def test_prefix_sees_messages_on_a_wrong_connection():
    two = [session(end="lost", acks=[]), session(name="t", end="lost", acks=[])]
    only(checker.prefix(Log().message("s#0").message("t#0").records, two), "carries s and t")
    only(checker.prefix(Log().message("s#0", "A").message("s#1", "B").records, two), "spread over A and B")


def test_handled_sees_a_message_that_never_reached_the_group():
    log = good()
    only(checker.handled(log.records, journal(log)[1:], group="g", api="effects"), "never reached")
    only(checker.handled(log.records, journal(log), group="other", api="effects"), "never reached")


def test_handled_allows_repeats_but_no_first_delivery_out_of_order():
    log = good()
    rows = journal(log)
    none(checker.handled(log.records, rows + rows, group="g", api="effects"))
    only(checker.handled(log.records, [rows[1], rows[0], rows[2]], group="g", api="effects"), "first delivered after")


def test_handled_sees_an_invented_and_a_changed_event():
    log = good()
    rows = journal(log)
    phantom = Handled("g", 0, (99, 0), 1, "message_received", "A", "s#9")
    only(checker.handled(log.records, [*rows, phantom], group="g", api="effects"), "does not hold")
    changed = Handled("g", 0, rows[0].offset, 1, "message_received", "A", "s#7")
    only(checker.handled(log.records, [changed, *rows[1:]], group="g", api="effects"), "the log holds")


def test_effects_sees_doubles_and_losses():
    base = Log().open().message("s#0")
    only(checker.effects(base.push("ack s#0").push("ack s#0").publish("effect s#0").records, channel="effects", api="effects"), "pushed 2")
    log = Log().open().message("s#0").publish("effect s#0").publish("effect s#0")
    only(checker.effects(log.records, channel="effects", api="effects"), "published 2")
    log = Log().open().message("s#0").push("ack s#0")
    only(checker.effects(log.records, channel="effects", api="effects"), "never published")
    none(checker.effects(log.records, channel="effects", api="effects", settled=False))
    only(checker.effects(Log().publish("effect s#0").records, channel="effects", api="effects"), "does not hold")
    only(checker.effects(Log().push("ack s#0").message("s#0").publish("effect s#0").records, channel="effects", api="effects"), "before or beside")


def test_deliveries_sees_a_gap_a_repeat_a_swap_and_an_invention():
    log = good().records
    only(checker.deliveries(log, [session(acks=[0, 2])]), "missed 1")
    only(checker.deliveries(log, [session(acks=[0, 1, 1])]), "twice")
    only(checker.deliveries(log, [session(acks=[1, 0, 2])]), "before 0")
    only(checker.deliveries(log, [session(acks=[0, 1, 2, 3])]), "does not hold")


def test_deliveries_allows_a_missing_end_only_to_those_who_left():
    log = good().records
    none(checker.deliveries(log, [session(acks=[0, 1], end="lost")]))
    only(checker.deliveries(log, [session(acks=[0, 1], end="open")]), "missed the last 1")


def watcher(**fields) -> Session:
    return Session(**{"name": "w", "sent": 1, "published": ["e1", "e2", "e3"], "end": "open"} | fields)


def watched() -> list[Record]:
    return Log().publish("e0").open("W").message("w#0", "W").publish("e1").publish("e2").publish("e3").records


def test_fan_out_holds_a_member_to_everything_after_it_joined():
    none(checker.fan_out(watched(), [watcher()], channel="effects"))
    only(checker.fan_out(watched(), [watcher(published=["e0", "e1", "e2", "e3"])], channel="effects"), "does not hold")
    only(checker.fan_out(watched(), [watcher(published=["e2", "e3"])], channel="effects"), "missed 'e1'")
    only(checker.fan_out(watched(), [watcher(published=["e1", "e3"])], channel="effects"), "missed 'e2'")
    only(checker.fan_out(watched(), [watcher(published=["e1", "e2", "e2", "e3"])], channel="effects"), "twice")
    only(checker.fan_out(watched(), [watcher(published=["e1", "e2"])], channel="effects"), "missed the last 1")
    none(checker.fan_out(watched(), [watcher(published=["e1", "e2"], end="lost")], channel="effects"))


def test_fan_out_across_partitions_starts_where_the_join_was_forwarded_to():
    log = Log().open("W").message("w#0", "W")
    log.add("published", None, "e0", partition=1, channel="effects")
    log.add("channel_joined", "W", partition=1, channel="effects")
    log.add("published", None, "e1", partition=1, channel="effects")
    none(checker.fan_out(log.records, [watcher(published=["e1"])], channel="effects"))
    only(checker.fan_out(log.records, [watcher(published=[])], channel="effects"), "missed the last 1")


def test_submits_sees_loss_doubles_a_wrong_place_and_a_refused_one_that_happened():
    log = Log().publish("p1", "in").publish("p2", "in").records
    good_ones = [Submit("p1", "acked", "0/1.0"), Submit("p2", "acked", "0/2.0")]
    none(checker.submits(log, good_ones, channel="in"))
    only(checker.submits(log, [*good_ones, Submit("p3", "acked", "0/3.0")], channel="in"), "is lost")
    only(checker.submits(log, [good_ones[0], Submit("p2", "acked", "0/9.0")], channel="in"), "and is at 0/2.0")
    only(checker.submits(log, [good_ones[0], Submit("p2", "refused")], channel="in"), "was refused")
    only(checker.submits(log, good_ones[:1], channel="in"), "never submitted")
    twice = Log().publish("p1", "in").publish("p1", "in").records
    only(checker.submits(twice, good_ones[:1], channel="in"), "2 times")


def test_submits_lets_an_unknown_one_be_there_or_not():
    log = Log().publish("p1", "in").records
    none(checker.submits(log, [Submit("p1", "unknown"), Submit("p2", "unknown")], channel="in"))


def test_parsing():
    assert parse_offset("12.3") < parse_offset("12.10") < parse_offset("100.0")
    assert parse_message("a#b#7") == ("a#b", 7)
    assert parse_message("a#") is None and parse_message("#7") is None and parse_message("plain") is None
    record = parse_record('{"partition":1,"offset":"3.4","time":"t","kind":"pushed","connection":"A","base64":"/w=="}')
    assert (record.partition, record.offset, record.payload) == (1, (3, 4), b"\xff")
    torn = ['{"group":"g","partition":0,"offset":"1.0","attempt":1,"kind":"connection_opened","connection":"A"}', '{"group":"g","par']
    assert len(parse_journal(torn)) == 1
