"""Judges what several brokers said of the same log. Pure, one pass each.

| rule | promise |
|---|---|
| `one_log` | a (partition, offset) names the same bytes at every broker; at the end every broker holds the same log |
| `reading` | what any reader was ever given is in the log, in order, without gaps or repeats: nothing uncommitted was visible |
| `digests` | state is a function of the log: equal digests where the applied index is equal |
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable

from checker import Violation
from history import Offset, parse_offset, show_offset

Log = dict[int, dict[Offset, str]]
"""partition → offset → fingerprint"""


def fingerprint(record: dict) -> str:
    """Equal for equal records, whoever printed them."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def log_of(records: Iterable[dict]) -> Log:
    log: Log = defaultdict(dict)
    for record in records:
        log[record["partition"]][parse_offset(record["offset"])] = fingerprint(record)
    return dict(log)


def one_log(logs: dict[str, Log], through: dict[int, Offset] | None = None) -> list[Violation]:
    """`logs`: broker → all it holds. `through`: what every broker had applied before the first was read; what came later may
    be at one broker and not at another yet. Without it, everything is compared."""
    found = []
    for partition in sorted({partition for log in logs.values() for partition in log}):
        held = {broker: log.get(partition, {}) for broker, log in logs.items()}
        # what retention has deleted at one broker may not be deleted at another yet
        start = max((min(offsets) for offsets in held.values() if offsets), default=None)
        if start is None:
            continue
        everything: dict[Offset, tuple[str, str]] = {}
        for broker, offsets in held.items():
            for offset, print_ in offsets.items():
                first, other = everything.setdefault(offset, (print_, broker))
                if first != print_:
                    found.append(Violation("one_log", f"{partition}/{show_offset(offset)}", f"differs between {other} and {broker}"))
        for broker, offsets in held.items():
            end = through.get(partition, (0, 0)) if through is not None else max(everything)
            missing = sorted(offset for offset in everything if start <= offset <= end and offset not in offsets)
            if missing:
                detail = f"{broker} lacks {len(missing)} records, from {show_offset(missing[0])} to {show_offset(missing[-1])}"
                found.append(Violation("one_log", f"partition {partition}", detail))
    return found


def reading(rows: Iterable[dict], log: Log) -> list[Violation]:
    """`rows` as crowd.py writes them, in order; `log`: what the brokers hold at the end."""
    found = []
    last: dict[tuple[str, int], Offset] = {}
    seen: dict[tuple[int, Offset], tuple[str, str]] = {}
    skipped: set[tuple[str, int]] = set()
    order = {partition: sorted(offsets) for partition, offsets in log.items()}
    place = {partition: {offset: number for number, offset in enumerate(offsets)} for partition, offsets in order.items()}
    for row in rows:
        key = (row["broker"], row["partition"])
        if "trimmed" in row:
            skipped.add(key)
            continue
        held = log.get(row["partition"], {})
        earliest = order.get(row["partition"], [(0, 0)])[:1]
        for record in row["records"]:
            text, print_ = record["offset"], fingerprint(record)
            offset = parse_offset(text)
            where = f"{row['partition']}/{text}"
            before = last.get(key)
            if before is not None and offset <= before:
                found.append(Violation("reading", where, f"{row['broker']} gave it after {show_offset(before)}"))
            first, other = seen.setdefault((row["partition"], offset), (print_, row["broker"]))
            if first != print_:
                found.append(Violation("reading", where, f"{row['broker']} gave other bytes than {other}"))
            if earliest and offset < earliest[0]:
                last[key] = offset
                continue  # retention has deleted it since
            if offset not in held:
                found.append(Violation("reading", where, f"{row['broker']} gave a record that the log does not hold"))
            elif held[offset] != print_:
                found.append(Violation("reading", where, f"{row['broker']} gave other bytes than the log holds"))
            elif before in place[row["partition"]] and key not in skipped:
                gap = place[row["partition"]][offset] - place[row["partition"]][before] - 1
                if gap > 0:
                    found.append(Violation("reading", where, f"{row['broker']} left out {gap} records after {show_offset(before)}"))
            skipped.discard(key)
            last[key] = offset
    return found


def digests(rows: Iterable[tuple[str, dict]]) -> list[Violation]:
    """`rows`: (broker, what it says of one partition)."""
    found = []
    at: dict[tuple[int, str], list[tuple[str, str]]] = defaultdict(list)
    for broker, row in rows:
        at[(row["partition"], row["applied"])].append((broker, row["digest"]))
    for (partition, applied), said in at.items():
        if len({digest for _, digest in said}) > 1:
            detail = ", ".join(f"{broker} {digest}" for broker, digest in said)
            found.append(Violation("digests", f"partition {partition} at {applied}", detail))
    return found
