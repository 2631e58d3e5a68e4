"""What is said of a broker that is away, and how often."""

from __future__ import annotations

from trunkline._outage import Outage


def test_the_first_failure_is_said_and_then_one_line_in_ten_seconds_and_the_end():
    outage, said = Outage(), []
    for tenth in range(0, 300):
        if (line := outage.handle_failed(tenth / 10, "refused")) is not None:
            said.append((tenth / 10, line))
    assert [at for at, _ in said] == [0, 10, 20]
    assert said[0][1] == "refused; trying again" and said[1][1] == "refused; 100 attempts since, 10 s in all"
    assert outage.handle_recovered(30.5) == "back after 30.5 s"
    assert outage.handle_recovered(31) is None
    assert outage.handle_failed(32, "refused") == "refused; trying again", "another outage"


def test_another_reason_is_news_but_two_that_take_turns_are_not_said_each_time():
    outage = Outage()
    assert outage.handle_failed(0, "refused")
    assert outage.handle_failed(2, "certificate") == "certificate; 1 attempts since, 2 s in all"
    said = [outage.handle_failed(3 + n / 100, ["refused", "certificate"][n % 2]) for n in range(300)]
    assert sum(line is not None for line in said) <= 3
