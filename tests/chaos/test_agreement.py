"""The rules over several brokers, each with a history that must pass and ones that must not."""

from __future__ import annotations

import pytest

import agreement


def record(index: int, text: str = "", partition: int = 0) -> dict:
    return {"partition": partition, "offset": f"{index}.0", "text": text or f"text {index}"}


def log(*indexes: int, **other: str) -> agreement.Log:
    return agreement.log_of(record(index, other.get(f"at{index}", "")) for index in indexes)


def read(*records: dict, broker: str = "b1") -> dict:
    return {"broker": broker, "partition": 0, "records": list(records)}


def details(violations) -> str:
    return "\n".join(map(str, violations))


def test_equal_logs_are_one():
    assert not agreement.one_log({"b1": log(1, 2, 3), "b2": log(1, 2, 3), "b3": log(1, 2, 3)})


def test_what_one_broker_has_trimmed_already_is_no_difference():
    assert not agreement.one_log({"b1": log(1, 2, 3), "b2": log(3)})


def test_what_came_while_it_was_read_may_be_at_one_broker_only():
    logs = {"b1": log(1, 2, 3), "b2": log(1, 2)}
    assert not agreement.one_log(logs, {0: (2, 65535)})
    assert agreement.one_log(logs, {0: (3, 65535)})


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (log(1, 2), "b2 lacks 1 records, from 3.0 to 3.0"),
        (log(1, 3), "b2 lacks 1 records, from 2.0 to 2.0"),
        (log(1, 2, 3, at2="other bytes"), "0/2.0: differs between b1 and b2"),
        (log(1, 2, 3, 4), "b1 lacks 1 records, from 4.0 to 4.0"),
    ],
)
def test_differences_are_found(other, says):
    assert says in details(agreement.one_log({"b1": log(1, 2, 3), "b2": other}))


def test_readers_at_their_own_pace_are_well():
    rows = [read(record(1)), read(record(1), record(2), broker="b2"), read(record(2), record(3)), read(record(3), broker="b2")]
    assert not agreement.reading(rows, log(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([read(record(1), record(5))], "0/5.0: b1 gave a record that the log does not hold"),
        ([read(record(1), record(2, "what was never committed"))], "0/2.0: b1 gave other bytes than the log holds"),
        ([read(record(1), record(3))], "0/3.0: b1 left out 1 records after 1.0"),
        ([read(record(1)), read(record(3))], "left out 1 records"),
        ([read(record(1), record(2)), read(record(2))], "0/2.0: b1 gave it after 2.0"),
        ([read(record(2)), read(record(1))], "0/1.0: b1 gave it after 2.0"),
    ],
)
def test_what_a_reader_must_not_see_is_found(rows, says):
    assert says in details(agreement.reading(rows, log(1, 2, 3)))


def test_a_reader_that_was_told_of_trimming_may_jump():
    rows = [read(record(1)), {"broker": "b1", "partition": 0, "trimmed": "earliest is 3.0"}, read(record(3))]
    assert not agreement.reading(rows, log(1, 2, 3))


def test_readers_are_compared_where_the_log_was_trimmed_since():
    rows = [read(record(1)), read(record(1, "other bytes"), broker="b2"), read(record(3))]
    assert "0/1.0: b2 gave other bytes than b1" in details(agreement.reading(rows, log(3)))


def test_digests_are_compared_where_the_index_is_equal():
    rows = [("b1", {"partition": 0, "applied": "9.0", "digest": "aa"}), ("b2", {"partition": 0, "applied": "8.0", "digest": "bb"})]
    assert not agreement.digests(rows)
    rows.append(("b3", {"partition": 0, "applied": "9.0", "digest": "cc"}))
    assert "partition 0 at 9.0: b1 aa, b3 cc" in details(agreement.digests(rows))
