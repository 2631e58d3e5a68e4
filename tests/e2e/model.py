"""What a partition's connections are at an offset, folded from `trunkline tail --json` by a program that shares no line with
the broker. `trunkline state --at` must agree with it."""

from __future__ import annotations

from collections.abc import Iterable

from history import Offset, Record


def connections_at(log: Iterable[Record], partition: int, at: Offset) -> dict[str, dict]:
    """Connection → what `state --json` prints of it, after the record at `at` (or the last before it)."""
    state: dict[str, dict] = {}
    for record in log:
        if record.partition == partition and record.offset <= at:
            apply(state, record)
    return {name: show(row) for name, row in state.items()}


def apply(state: dict[str, dict], record: Record) -> None:
    name, fields = record.connection, record.fields
    if record.kind == "connection_opened":
        state[name] = {
            "connection": name,
            "api": fields["api"],
            "edge": fields["edge"],
            "opened_at": record.time,
            "subprotocol": fields.get("subprotocol", ""),
            "attributes": {},
            "channels": set(fields.get("channels", [])),
        }
        return
    row = state.get(name)
    if row is None:
        return
    if record.kind == "connection_closed":
        del state[name]
    elif record.kind == "connection_accepted":
        row["subprotocol"] = fields.get("subprotocol", "") or row["subprotocol"]
        row["attributes"].update(fields.get("attributes", {}))
        row["channels"].update(fields.get("channels", []))
    elif record.kind == "channel_joined":
        row["channels"].add(fields["channel"])
    elif record.kind == "channel_left":
        row["channels"].discard(fields["channel"])
    elif record.kind == "attributes_set":
        for key in fields.get("removed", []):
            row["attributes"].pop(key, None)
        row["attributes"].update(fields.get("attributes", {}))


def show(row: dict) -> dict:
    return row | {"channels": sorted(row["channels"])}


COMPARED = ("connection", "api", "edge", "opened_at", "subprotocol", "attributes", "channels")


def differences(printed: Iterable[dict], expected: dict[str, dict]) -> list[str]:
    """How the lines of `state --json` differ from the model's."""
    found = []
    seen = set()
    for row in printed:
        name = row["connection"]
        if name in seen:
            found.append(f"{name} is printed twice")
        seen.add(name)
        if name not in expected:
            found.append(f"{name} is printed and should not be there")
            continue
        for key in COMPARED:
            got = sorted(row[key]) if key == "channels" else (row.get(key) or "" if key == "subprotocol" else row[key])
            if got != expected[name][key]:
                found.append(f"{name}: {key} is {got!r}, expected {expected[name][key]!r}")
    return found + [f"{name} is missing" for name in expected if name not in seen]
