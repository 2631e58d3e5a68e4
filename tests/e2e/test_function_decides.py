"""The registration function is asked who may come in: it is told the token, and nobody else is."""

from __future__ import annotations

import json

import pytest
import requests
from websockets.exceptions import InvalidStatus

from function_server import TOKEN
from harness import Dev
from test_functions import CONFIG, Functions, connect

pytestmark = pytest.mark.short

PLACES = {
    "header": lambda token: ("/asks", {"additional_headers": {"Authorization": f"Bearer {token}"}}),
    "query": lambda token: (f"/asks?room=7&access_token={token}", {}),
    "subprotocol": lambda token: ("/asks", {"subprotocols": ["bearer", token]}),
}
"""Where a client has it: path and options."""


@pytest.fixture(scope="module")
def asks(module_folder):
    functions = Functions(module_folder / "functions", "asks")
    config = CONFIG.format(name="asks", port=functions.port, on_failure="retry") + "forward_request = true\n"
    dev = Dev(module_folder, config=f'[edge]\nheaders = ["host", "authorization"]\n{config}').start()
    functions.start(dev.process.http())
    yield dev, functions
    functions.process.kill9()
    dev.process.stop()


@pytest.mark.parametrize("place", PLACES)
def test_who_brings_the_token_is_let_in_and_nobody_else_and_it_is_shown_nowhere(asks, place):
    dev, functions = asks
    path, options = PLACES[place]("another-token-of-nobody")
    with pytest.raises(InvalidStatus) as refused:
        connect(dev, path, **options)
    assert (refused.value.response.status_code, json.loads(refused.value.response.body)["errNo"]) == (403, 401)
    path, options = PLACES[place](TOKEN)
    with connect(dev, path, **options) as client:
        client.send("echo hello")
        assert client.recv(timeout=10) == "echo hello"
        urls = [f"{dev.broker.http()}{path}" for path in ("/v1/connections", "/v1/log?partition=0", "/metrics")]
        shown = {url: requests.get(url, timeout=10).text for url in urls}
        for words in (["tail", "--from", "earliest"], ["tail", "--from", "earliest", "--json"], ["connections", "--json"], ["state", "--json"]):
            shown[" ".join(words)] = dev.cli(*words).stdout.decode()
    assert "(not shown)" in shown["tail --from earliest --json"], "what was kept for the function"
    shown["log"] = dev.process.log_text()
    for name, text in shown.items():
        assert TOKEN not in text and "another-token-of-nobody" not in text, f"{name} shows the token"
