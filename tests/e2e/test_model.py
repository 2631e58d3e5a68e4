"""The model itself, on a log written by hand."""

from __future__ import annotations

import pytest

from history import Record
from model import connections_at, differences

pytestmark = pytest.mark.short


def record(index: int, kind: str, connection: str | None = "A", partition: int = 0, **fields) -> Record:
    return Record(partition, (index, 0), f"t{index}", kind, connection, fields)


LOG = [
    record(1, "connection_opened", api="gate", edge="e", channels=["lobby"]),
    record(2, "connection_accepted", subprotocol="v1", attributes={"user": "ada"}, channels=["blue"]),
    record(2, "connection_opened", "B", partition=1, api="gate", edge="e"),
    record(3, "channel_left", channel="lobby"),
    record(4, "attributes_set", attributes={"mood": "good"}, removed=["user"]),
    record(5, "channel_joined", "unknown", channel="red"),
    record(6, "connection_closed", code=1000, cause="client"),
]


def test_folding():
    at = {index: connections_at(LOG, 0, (index, 0)) for index in range(8)}
    assert at[0] == {}
    assert at[1]["A"]["channels"] == ["lobby"] and at[1]["A"]["opened_at"] == "t1" and at[1]["A"]["subprotocol"] == ""
    assert at[2]["A"]["channels"] == ["blue", "lobby"] and at[2]["A"]["attributes"] == {"user": "ada"}
    assert at[2]["A"]["subprotocol"] == "v1" and "B" not in at[2]
    assert at[3]["A"]["channels"] == ["blue"]
    assert at[4]["A"]["attributes"] == {"mood": "good"} and at[5] == at[4]
    assert at[6] == {}
    assert list(connections_at(LOG, 1, (9, 0))) == ["B"]


def test_differences():
    expected = connections_at(LOG, 0, (4, 0))
    row = expected["A"]
    assert differences([row], expected) == []
    assert differences([], expected) == ["A is missing"]
    assert differences([row, row], expected) == ["A is printed twice"]
    assert differences([row, row | {"connection": "C"}], expected) == ["C is printed and should not be there"]
    assert "channels" in differences([row | {"channels": []}], expected)[0]
    assert "attributes" in differences([row | {"attributes": {}}], expected)[0]
