"""A peer for `trunkline-bench --peer "python bench/peers/uws.py"`: uWebSockets under socketify (PyPI; wants libuv), doing what the
floor does (bench/src/floor.rs). Its fan-out is C++ throughout, uWebSockets' own publish; in an echo each message passes through
Python, so compare that with the floor instead. Not a dependency of this project."""

from collections import deque

from socketify import App, AppListenOptions, OpCode

received = 0
# socketify's own references end too early where several requests are under way
recent = deque(maxlen=4096)
app = App()


def echo(socket, message, opcode):
    socket.send(message, OpCode.BINARY)


def count(socket, message, opcode):
    global received
    received += 1


def publish(response, request):
    recent.append(response)
    body = bytearray()

    def on_data(response, chunk, last):
        body.extend(chunk or b"")
        if last:
            app.publish("news", bytes(body), OpCode.BINARY)
            response.end("")

    response.on_aborted(lambda response: None)
    response.on_data(on_data)


def metrics(response, request):
    response.end(f"trunkline_edge_messages_received_total {received}\n")


def listening(config):
    for name in ("ws", "http", "edge-http"):
        print(f"listening {name} 127.0.0.1:{config.port}", flush=True)
    print("ready", flush=True)


shared = {"max_payload_length": 16 << 20, "max_backpressure": 16 << 20, "idle_timeout": 0}
app.ws("/echo", {**shared, "message": echo})
app.ws("/news", {**shared, "open": lambda socket: socket.subscribe("news"), "message": count})
app.ws("/*", {**shared, "message": count})
app.post("/v1/channels/news/messages", publish)
app.get("/metrics", metrics)
app.listen(AppListenOptions(port=0, host="127.0.0.1"), listening)
app.run()
