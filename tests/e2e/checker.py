"""Judges a finished run. Every rule is a pure function from histories to violations, in one pass.

What each rule holds, in the words of the design's promises:

| rule | promise |
|---|---|
| `log_order`      | offsets of a partition rise, its time never goes back |
| `life`           | per connection: opened, then events, then exactly one closed; nothing after it |
| `prefix`         | the messages of a connection are an unbroken prefix of what its client sent; all of them if it closed cleanly |
| `handled`        | every message reached the handler group, first deliveries of a connection in order, nothing invented |
| `effects`        | what the handler committed for a message exists once |
| `deliveries`     | a client sees the pushes to it in order, none missing, none twice; all of them while it stays connected |
| `fan_out`        | the same for the publishes of a channel |
| `submits`        | what was acknowledged is in the log once, where the answer said; what was refused is not |
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from history import EVENTS, Handled, Record, Session, Submit, parse_message

TO_CONNECTION = frozenset({"pushed", "close_requested", "connection_accepted", "connection_rejected", "attributes_set"})
"""Commands that the state refuses once their connection is closed. (Joins and leaves of a channel's partition may
follow the close: they are forwarded.)"""


@dataclass(frozen=True)
class Violation:
    rule: str
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.subject}: {self.detail}"


def log_order(log: Iterable[Record]) -> list[Violation]:
    found = []
    last: dict[int, Record] = {}
    for record in log:
        before = last.get(record.partition)
        if before and record.offset <= before.offset:
            found.append(Violation("log_order", record.place, f"comes after {before.place}"))
        if before and record.time < before.time:
            found.append(Violation("log_order", record.place, f"time {record.time} is before {before.time}"))
        last[record.partition] = record
    return found


def life(log: Iterable[Record], *, all_closed: bool = True) -> list[Violation]:
    """`all_closed`: the run is over, so no connection may be left without its close record."""
    found = []
    opened: dict[str, Record] = {}
    closed: dict[str, Record] = {}
    for record in log:
        name = record.connection
        if name is None or (record.kind not in EVENTS and record.kind not in TO_CONNECTION):
            continue
        if record.kind == "connection_opened":
            if name in opened:
                found.append(Violation("life", name, f"opened twice, at {opened[name].place} and {record.place}"))
            opened[name] = record
            continue
        if name not in opened:
            found.append(Violation("life", name, f"{record.kind} at {record.place} before it was opened"))
        if name in closed:
            what = "closed twice" if record.kind == "connection_closed" else f"{record.kind} after its close"
            found.append(Violation("life", name, f"{what}, at {record.place}; closed at {closed[name].place}"))
        if record.kind == "connection_closed":
            closed.setdefault(name, record)
    if all_closed:
        found += [Violation("life", name, "never closed") for name in opened if name not in closed]
    return found


def prefix(log: Iterable[Record], sessions: Iterable[Session]) -> list[Violation]:
    known = {session.name: session for session in sessions}
    found = []
    owner: dict[str, str] = {}
    """connection → the session whose messages it carries"""
    carried_by: dict[str, str] = {}
    count: Counter[str] = Counter()
    for record in log:
        if record.kind != "message_received":
            continue
        parsed = parse_message(record.text)
        if parsed is None:
            continue
        name, number = parsed
        if name not in known:
            found.append(Violation("prefix", record.place, f"message of a session that never was: {record.text!r}"))
            continue
        if owner.setdefault(record.connection, name) != name:
            found.append(Violation("prefix", record.connection, f"carries {owner[record.connection]} and {name}"))
        if carried_by.setdefault(name, record.connection) != record.connection:
            found.append(Violation("prefix", name, f"is spread over {carried_by[name]} and {record.connection}"))
        if number != count[name]:
            found.append(Violation("prefix", name, f"message {number} at {record.place}, expected {count[name]}"))
        if number >= known[name].sent:
            found.append(Violation("prefix", name, f"message {number} in the log, only {known[name].sent} were sent"))
        count[name] = number + 1
    for session in known.values():
        if session.end == "clean" and count[session.name] != session.sent:
            detail = f"closed cleanly after {session.sent} messages, the log holds {count[session.name]}"
            found.append(Violation("prefix", session.name, detail))
        if session.acks and max(session.acks) >= count[session.name]:
            detail = f"message {max(session.acks)} was answered, the log holds {count[session.name]}"
            found.append(Violation("prefix", session.name, detail))
    return found


def handled(log: Iterable[Record], journal: Iterable[Handled], *, group: str, api: str) -> list[Violation]:
    found = []
    expected = {}
    for record in log:
        if record.kind == "message_received" and record.fields.get("api") == api:
            expected[(record.partition, record.offset)] = record
    first: set[tuple] = set()
    last: dict[str, tuple] = {}
    for row in journal:
        if row.group != group or row.kind != "message_received":
            continue
        key = (row.partition, row.offset)
        place = f"{row.partition}/{row.offset[0]}.{row.offset[1]}"
        if key not in expected:
            found.append(Violation("handled", place, f"the handler got {row.text!r}, which the log does not hold"))
            continue
        if expected[key].text != row.text or expected[key].connection != row.connection:
            found.append(Violation("handled", place, f"the handler got {row.text!r}, the log holds {expected[key].text!r}"))
        if key in first:
            continue
        first.add(key)
        if key < last.get(row.connection, key):
            found.append(Violation("handled", row.connection, f"{place} was first delivered after {last[row.connection]}"))
        last[row.connection] = key
    missing = [record for key, record in expected.items() if key not in first]
    found += [Violation("handled", record.place, f"never reached the group: {record.text!r}") for record in missing]
    return found


def effects(log: Iterable[Record], *, channel: str, api: str, settled: bool = True) -> list[Violation]:
    """The test handler answers message `M` with a push `ack M` and a publish `effect M` on `channel`, in one commit.

    A push to a connection that is gone by then is refused alone, so it exists at most once; the publish exactly once
    when the group has settled everything.
    """
    found = []
    messages: dict[str, Record] = {}
    pushed: Counter[str] = Counter()
    published: Counter[str] = Counter()
    for record in log:
        text = record.text if record.kind in {"message_received", "pushed", "published"} else ""
        if record.kind == "message_received" and record.fields.get("api") == api and parse_message(text):
            messages[text] = record
        elif record.kind == "pushed" and text.startswith("ack "):
            pushed[text[4:]] += 1
            if text[4:] not in messages or messages[text[4:]].connection != record.connection:
                found.append(Violation("effects", record.place, f"push {text!r} before or beside its message"))
        elif record.kind == "published" and record.fields.get("channel") == channel and text.startswith("effect "):
            published[text[7:]] += 1
    for name, count in pushed.items():
        if count > 1:
            found.append(Violation("effects", name, f"pushed {count} times"))
    for name, count in published.items():
        if count > 1:
            found.append(Violation("effects", name, f"published {count} times"))
        if name not in messages:
            found.append(Violation("effects", name, "published for a message the log does not hold"))
    if settled:
        found += [Violation("effects", name, "never published") for name in messages if name not in published]
    return found


def deliveries(log: Iterable[Record], sessions: Iterable[Session]) -> list[Violation]:
    """Pushes to a session's connection, against those it received."""
    found = []
    pushed: dict[str, list[int]] = defaultdict(list)
    for record in log:
        if record.kind == "pushed" and record.text.startswith("ack "):
            parsed = parse_message(record.text[4:])
            if parsed:
                pushed[parsed[0]].append(parsed[1])
    for session in sessions:
        found += _against(session.name, session.acks, pushed[session.name], complete=session.end == "open")
    return found


def fan_out(log: Iterable[Record], sessions: Iterable[Session], *, channel: str) -> list[Violation]:
    """Publishes on `channel` against those its members received. A member's first message `NAME#0` tells its connection."""
    found = []
    log = list(log)
    publishes: list[tuple[int, tuple[int, int], str]] = []
    joined: dict[str, tuple[int, tuple[int, int]]] = {}
    connection_of: dict[str, str] = {}
    opened: dict[str, Record] = {}
    for record in log:
        if record.kind == "published" and record.fields.get("channel") == channel:
            publishes.append((record.partition, record.offset, record.text))
        elif record.kind == "connection_opened":
            opened[record.connection] = record
        elif record.kind == "channel_joined" and record.fields.get("channel") == channel:
            joined[record.connection] = (record.partition, record.offset)
        elif record.kind == "message_received" and (parsed := parse_message(record.text)):
            connection_of[parsed[0]] = record.connection
    home = publishes[0][0] if publishes else 0
    order = {text: position for position, (_, _, text) in enumerate(publishes)}
    for session in sessions:
        connection = connection_of.get(session.name)
        start = None
        if connection in joined and joined[connection][0] == home:
            start = joined[connection][1]
        elif connection in opened and opened[connection].partition == home:
            start = opened[connection].offset
        if start is None:
            if not session.published:
                continue
            first = order.get(session.published[0])
            if first is None:
                found.append(Violation("fan_out", session.name, f"received {session.published[0]!r}, never published"))
                continue
            expected = [text for _, _, text in publishes[first:]]
        else:
            expected = [text for _, offset, text in publishes if offset > start]
        found += _against(session.name, session.published, expected, complete=session.end == "open", rule="fan_out")
    return found


def _against(name: str, received: list, expected: list, *, complete: bool, rule: str = "deliveries") -> list[Violation]:
    """One violation at the first place where `received` leaves `expected`, said as what it is."""
    for position, got in enumerate(received):
        if position < len(expected) and expected[position] == got:
            continue
        if got in received[:position]:
            return [Violation(rule, name, f"received {got!r} twice")]
        if got not in expected:
            return [Violation(rule, name, f"received {got!r}, which the log does not hold")]
        if position < len(expected) and expected[position] in received[position:]:
            return [Violation(rule, name, f"received {got!r} before {expected[position]!r}")]
        missing = expected[position] if position < len(expected) else None
        return [Violation(rule, name, f"missed {missing!r}, got {got!r}")]
    if complete and len(received) < len(expected):
        return [Violation(rule, name, f"stayed connected and missed the last {len(expected) - len(received)}: {expected[len(received)]!r} on")]
    return []


def submits(log: Iterable[Record], submitted: Iterable[Submit], *, channel: str) -> list[Violation]:
    found = []
    places: dict[str, list[str]] = defaultdict(list)
    for record in log:
        if record.kind == "published" and record.fields.get("channel") == channel:
            places[record.text].append(record.place)
    attempted = set()
    for submit in submitted:
        attempted.add(submit.payload)
        at = places.get(submit.payload, [])
        if len(at) > 1:
            found.append(Violation("submits", submit.payload, f"is in the log {len(at)} times: {', '.join(at)}"))
        if submit.outcome == "acked" and not at:
            found.append(Violation("submits", submit.payload, f"was acknowledged at {submit.place} and is lost"))
        if submit.outcome == "acked" and at and submit.place is not None and submit.place not in at:
            found.append(Violation("submits", submit.payload, f"was acknowledged at {submit.place} and is at {at[0]}"))
        if submit.outcome == "refused" and at:
            found.append(Violation("submits", submit.payload, f"was refused and is at {at[0]}"))
    found += [Violation("submits", text, f"at {at[0]} was never submitted") for text, at in places.items() if text not in attempted]
    return found


def report(violations: list[Violation], limit: int = 20) -> str:
    """For an assertion's message: how many, and the first of each rule."""
    if not violations:
        return "no violations"
    counts = Counter(violation.rule for violation in violations)
    lines = [f"{len(violations)} violations: " + ", ".join(f"{rule} {count}" for rule, count in counts.items())]
    lines += [f"  {violation}" for violation in violations[:limit]]
    return "\n".join(lines)
