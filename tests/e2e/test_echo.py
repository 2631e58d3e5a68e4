"""`/echo` through the log, seen by a client library that is not ours (PyPI `websockets`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import websockets.sync.client
import websocket

import wire

CONNECTIONS = 1000
MESSAGES = 100
PROCESSES = 2
LOAD = Path(__file__).with_name("echo_load.py")


@pytest.mark.short
def test_a_thousand_connections_get_each_message_back_once_and_in_order(dev):
    share = CONNECTIONS // PROCESSES
    loads = [
        subprocess.Popen(
            [sys.executable, LOAD, dev.ws("/echo"), str(share), str(MESSAGES), str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for seed in range(PROCESSES)
    ]
    try:
        results = []
        for load in loads:
            out, err = load.communicate(timeout=270)
            assert load.returncode == 0, err.decode()[-2000:]
            results.append(json.loads(out))
    finally:
        for load in loads:
            load.kill()
    print(results)
    assert [result["errors"] for result in results] == [0] * PROCESSES, results
    assert sum(result["echoed"] for result in results) == CONNECTIONS * MESSAGES


@pytest.mark.short
@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 1 << 20])
@pytest.mark.parametrize("kind", ["text", "binary"])
def test_every_size_comes_back_as_it_was_sent(dev, size, kind):
    payload = ("x" * size) if kind == "text" else bytes(byte & 0xFF for byte in range(size))
    with websockets.sync.client.connect(dev.ws("/echo"), max_size=2 << 20, compression=None) as socket:
        socket.send(payload)
        assert socket.recv(timeout=20) == payload


@pytest.mark.short
def test_a_second_client_library_agrees(dev):
    socket = websocket.create_connection(dev.ws("/echo"), timeout=10)
    for number in range(20):
        socket.send(f"message {number} é ✓ 𝄞")
        assert socket.recv() == f"message {number} é ✓ 𝄞"
    socket.send_binary(b"\0\xff")
    assert socket.recv() == b"\0\xff"
    socket.ping("are you there")
    opcode, data = socket.recv_data(control_frame=True)
    assert (opcode, bytes(data)) == (websocket.ABNF.OPCODE_PONG, b"are you there")
    socket.close()


@pytest.mark.short
def test_fragments_are_one_message_and_a_ping_may_come_between(dev):
    with wire.Socket(dev.edge.address("ws"), "/echo") as socket:
        socket.send(wire.frame(wire.TEXT, b"one ", fin=False))
        socket.send(wire.frame(wire.PING, b"p"))
        socket.send(wire.frame(wire.CONTINUATION, b"", fin=False) + wire.frame(wire.CONTINUATION, b"two"))
        pong = socket.receive()
        assert (pong.opcode, pong.payload) == (wire.PONG, b"p")
        assert socket.receive_text() == "one two"
        socket.close()


@pytest.mark.short
def test_compression_is_declined_and_the_rest_works(dev):
    with websockets.sync.client.connect(dev.ws("/echo"), compression="deflate") as socket:
        assert socket.protocol.extensions == []
        socket.send("plain")
        assert socket.recv(timeout=10) == "plain"
