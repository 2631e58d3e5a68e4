"""Who may look and act, and where, and what becomes of names that clients choose (attack row A36)."""

from __future__ import annotations

import uuid

import pytest
import requests

import wire
from attack import http_answers, sum_of
from harness import until

# the fixtures: a server of this module's own, and one that asks for tokens
from test_push_attacks import ABSENT, PLACES, SURFACES, client_of, data_send, signed, target, url  # noqa: F401

pytestmark = pytest.mark.short

GUARDED = [("GET", "/metrics"), ("GET", "/v1/connections"), ("GET", "/v1/cluster"), ("GET", "/v1/log?partition=0"), ("GET", "/v1/groups"), ("POST", "/v1/channels/news/messages"), ("DELETE", f"/v1/connections/{ABSENT}"), ("POST", "/nowhere")]


@pytest.mark.attack("A36")
@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("authorization", [None, "Bearer ", "Bearer tl_guess", "Basic b3BzOm9wcw==", "bearer {}x", "{}"])
def test_metrics_and_administration_ask_who_comes(signed, under, method, path, authorization):
    headers = {"Authorization": authorization.format(signed.token)} if authorization else {}
    surface = "api" if path.startswith("/v1/") else "other"
    with under(signed, metric=http_answers(surface, 401), secrets=(signed.token,)) as attack:
        answer = requests.request(method, url(signed, path), headers=headers, data=b"x", timeout=10)
        attack.answered(answer.status_code, 401)
        assert answer.headers["www-authenticate"] == "Bearer" and signed.token not in answer.text


@pytest.mark.attack("A36")
def test_who_may_look_may_not_act(signed, under):
    headers = {"Authorization": f"Bearer {signed.reader}"}
    with under(signed, metric=http_answers("api", 403), secrets=(signed.reader,)) as attack:
        attack.answered(requests.post(url(signed, "/v1/channels/news/messages"), data="x", headers=headers, timeout=10).status_code, 403)
        attack.answered(requests.delete(url(signed, f"/v1/connections/{ABSENT}"), headers=headers, timeout=10).status_code, 403)
        attack.answered(requests.get(url(signed, "/metrics"), headers=headers, timeout=10).status_code, 200)


@pytest.mark.attack("A36")
@pytest.mark.parametrize("path", ["/metrics", "/v1/connections", "/v1/cluster", "/healthz", "/push/news", f"/prod/@connections/{ABSENT}"])
def test_the_public_listener_knows_nothing_of_it(target, under, path):
    with under(target, metric=("trunkline_edge_handshakes_total", {"outcome": "refused"})) as attack:
        for kwargs, status in (({}, 404), ({"drop": ["upgrade", "connection", "sec-websocket-key", "sec-websocket-version"]}, 426), ({"method": "POST"}, 405)):
            attack.answered(wire.request(target.ws, wire.handshake(target.ws, path, **kwargs)).status, status)


@pytest.mark.attack("A36")
@pytest.mark.parametrize("path", ["/v1/connections", "/v1/cluster", "/push/news", f"/prod/@connections/{ABSENT}", "/v1/openapi.json"])
def test_the_edge_s_own_listener_has_health_and_metrics_only(target, under, path):
    with under(target) as attack:
        for method in ("GET", "POST"):
            attack.answered(requests.request(method, target.node.edge.http("edge-http") + path, timeout=10).status_code, 404)
        attack.answered(requests.post(target.node.edge.http("edge-http") + "/metrics", timeout=10).status_code, 405)


@pytest.mark.attack("A36")
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://evil.127.0.0.1", "file://", "\xff", "http://{}@evil.example", "http://evil.example/{}"])
@pytest.mark.parametrize("path", [*PLACES, f"/v1/connections/{ABSENT}/messages"])
def test_a_page_of_another_site_does_nothing(target, under, path, origin):
    headers = {"origin": origin.format("%s:%d" % target.http).encode("latin-1"), "content-type": "text/plain"}
    with under(target, metric=http_answers(SURFACES.get(path, "api"), 403)) as attack:
        attack.answered(requests.post(url(target, path), data=b"{}", headers=headers, timeout=10).status_code, 403)


@pytest.mark.attack("A36")
def test_what_clients_say_of_themselves_is_shown_escaped(target, under):
    """Names, paths, reasons: a control character of any of them reaches no terminal, a tag no page."""
    ansi, single, tag = "\x1b[31mred\x1b[0m", "\u009b31mred", "<script>alert(1)</script>"
    agent = f"{single}{tag}".encode().decode("latin-1")
    with under(target) as attack:
        with wire.Socket(target.ws, f"/echo?q={tag.replace('<', '%3C')}", user_agent=agent) as client:
            rows = target.node.cli("connections").stdout.decode()
            client.send(wire.frame(wire.CLOSE, (4000).to_bytes(2, "big") + f"{ansi}{single}{tag}".encode()))
            attack.answered(client.expect_close(4000).close_code, 4000)
        body = {"websocket": {"action": f"{ansi}{single}{tag}", "secConnectionID": ABSENT}}
        with client_of(target, "news") as (_, id_):
            body["websocket"]["secConnectionID"] = id_
            answer = requests.post(url(target, "/push/news"), json=body, timeout=10)
            attack.answered(answer.status_code, 400)
        until(lambda: tag in target.node.cli("tail", "--from", "earliest", "--json", seconds=120).stdout.decode(), "the reason in the log", 20, every=0.2)
        shown = {
            "connections": rows,
            "tail": target.node.cli("tail", "--from", "earliest", seconds=120).stdout.decode(),
            "answer": answer.text,
            "log": target.node.process.log_text(),
            "api": requests.get(url(target, "/v1/connections"), timeout=10).text,
            "metrics": requests.get(url(target, "/metrics"), timeout=10).text,
        }
    assert tag in shown["tail"], "the reason is shown"
    for place, text in shown.items():
        assert "\x1b" not in text and "\u009b" not in text, f"{place} holds a control character"
    assert tag not in shown["metrics"]
    types = {path: requests.get(url(target, path), timeout=10).headers for path in ("/v1/connections", "/metrics", f"/v1/connections/{tag}")}
    for path, headers in types.items():
        assert not headers["content-type"].startswith("text/html") and headers["x-content-type-options"] == "nosniff", path


@pytest.mark.attack("A36")
def test_clients_make_no_labels(target, under):
    with under(target) as attack:
        # one of each kind first, so that what is new afterwards comes of the names
        for number in range(101):
            if number == 1:
                before = target.metrics()
            name = f"label{number}-{uuid.uuid4().hex}" if number else "label"
            statuses = [
                requests.get(url(target, f"/{name}"), timeout=10).status_code,
                requests.post(url(target, f"/push/{name}"), json=data_send(ABSENT, "x"), timeout=10).status_code,
                requests.post(url(target, f"/{name}/@connections/{ABSENT}"), data=b"x", timeout=10).status_code,
                requests.post(url(target, f"/v1/channels/{name}/messages"), data="x", headers={"idempotency-key": name}, timeout=10).status_code,
                wire.request(target.ws, wire.handshake(target.ws, f"/{name}", origin=f"https://{name}", host=name, user_agent=name)).status,
            ]
            for got, expected in zip(statuses, [404, 410, 410, 200, 404], strict=True):
                attack.answered(got, expected)
        after = target.metrics()
    assert not [series for series in after if "label" in series]
    assert len(after.keys() - before.keys()) == 0, after.keys() - before.keys()
    assert sum_of(after, http_answers("push", 410)) - sum_of(before, http_answers("push", 410)) >= 100
