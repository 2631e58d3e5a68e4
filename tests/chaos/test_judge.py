"""What the judge reads of a broker's log."""

from __future__ import annotations

import json

import requests

from agreement import log_of
from judge import _pages


def answer(status: int, body: dict) -> requests.Response:
    made = requests.Response()
    made.status_code, made._content = status, json.dumps(body).encode()
    return made


class Trimming:
    """A broker whose retention takes the beginning between two pages."""

    name = "b1"

    def __init__(self) -> None:
        self.earliest = 1
        self.asked: list[str] = []

    def get(self, path: str, timeout: float, **query) -> requests.Response:
        self.asked.append(query["from"])
        first = self.earliest if query["from"] == "earliest" else int(query["from"].split(".")[0])
        if first < self.earliest:
            return answer(410, {"code": "offset_trimmed"})
        if len(self.asked) == 1:
            self.earliest = 8
        end = min(first + 4, 11)
        records = [{"partition": 0, "offset": f"{index}.0"} for index in range(first, end)]
        return answer(200, {"records": records, "next": f"{end}.0"})


def test_a_log_that_is_trimmed_while_it_is_read_is_read_anew():
    broker = Trimming()
    held = log_of(_pages(broker, 1))
    assert sorted(held[0]) == [(8, 0), (9, 0), (10, 0)], "nothing of before, which others may have trimmed later"
    assert broker.asked == ["earliest", "5.0", "earliest", "11.0"]
