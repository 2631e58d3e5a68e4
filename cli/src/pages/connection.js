// A WebSocket that comes back.

const FIRST_MS = 500;
const MOST_MS = 30_000;
// a connection that lived this long starts over with the first delay
const STEADY_MS = 10_000;

/** Connects to `url` until closed. `on`: state(name, seconds), opened(send), message(text). */
export function connect(url, on) {
  let socket = null;
  let timer = 0;
  let attempts = 0;
  let closed = false;

  const send = (text) => {
    const open = socket?.readyState === WebSocket.OPEN;
    if (open) {
      socket.send(text);
    }
    return open;
  };

  const open = () => {
    clearInterval(timer);
    on.state("connecting");
    let openedAt = 0;
    const own = (socket = new WebSocket(url));
    own.onopen = () => {
      openedAt = Date.now();
      on.state("online");
      on.opened(send);
    };
    own.onmessage = (event) => typeof event.data === "string" && on.message(event.data);
    own.onclose = () => {
      if (closed || own !== socket) {
        return;
      }
      if (openedAt && Date.now() - openedAt > STEADY_MS) {
        attempts = 0;
      }
      wait();
    };
  };

  const wait = () => {
    const full = Math.min(MOST_MS, FIRST_MS * 2 ** attempts);
    attempts += 1;
    // between half and all of it
    const until = Date.now() + full * (0.5 + 0.5 * Math.random());
    const tick = () => {
      const left = until - Date.now();
      if (left <= 0) {
        open();
      } else {
        on.state("waiting", Math.ceil(left / 1000));
      }
    };
    timer = setInterval(tick, 200);
    tick();
  };

  const wake = () => {
    if (!closed && socket?.readyState === WebSocket.CLOSED) {
      open();
    }
  };
  // the network is back: no need to wait any longer
  addEventListener("online", wake);

  open();
  return {
    send,
    close() {
      closed = true;
      clearInterval(timer);
      removeEventListener("online", wake);
      socket?.close(1000);
    },
  };
}
