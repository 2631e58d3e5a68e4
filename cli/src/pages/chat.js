// The chat page: a nickname first, then lines. Reconnects by itself, with a delay that doubles and jitters, so that the
// clients of a gateway that restarts do not all come back at once.

import { connect } from "/demo/connection.js";
import { Log } from "/demo/log.js";

const element = (id) => document.getElementById(id);
const log = new Log(element("messages"), element("newer"));
let nickname = sessionStorage.getItem("nickname") ?? "";
let joined = false;
let connection = null;

const names = { online: "online", connecting: "connecting…", offline: "offline" };

function showState(state, seconds) {
  element("state").dataset.state = state;
  element("state-text").textContent = state === "waiting" ? `back in ${seconds} s` : names[state];
  element("send").disabled = state !== "online";
}

function showForm() {
  element("introduce").hidden = joined;
  element("say").hidden = !joined;
  // stays enabled while the connection is away: only sending waits
  element("text").disabled = !joined;
  element("who").textContent = joined ? `as ${nickname}` : "";
  element(joined ? "text" : "nickname").focus();
}

function refuse(reason) {
  joined = false;
  sessionStorage.removeItem("nickname");
  connection?.close();
  connection = null;
  showState("offline");
  showForm();
  element("hint").textContent = reason;
  element("hint").hidden = false;
}

function receive(line) {
  if (line.startsWith("* ")) {
    if (!joined && line.startsWith("* a nickname")) {
      return refuse(line.slice(2));
    }
    if (!joined && line === `* ${nickname} joined`) {
      joined = true;
      sessionStorage.setItem("nickname", nickname);
      showForm();
    }
    return log.notice(line.slice(2));
  }
  const colon = line.indexOf(": ");
  if (colon < 0) {
    // published into the channel from elsewhere: `trunkline publish chat "hello, everybody"`
    return log.notice(line);
  }
  log.message(line.slice(0, colon), line.slice(colon + 2), line.slice(0, colon) === nickname);
}

async function start() {
  element("hint").hidden = true;
  const answer = await fetch("/demo/config.json");
  if (!answer.ok) {
    throw new Error(`the broker answers ${answer.status}`);
  }
  const { chat } = await answer.json();
  connection = connect(chat, {
    state: showState,
    // every new connection introduces itself: a nickname belongs to a connection
    opened: (send) => send(nickname),
    message: receive,
  });
}

element("introduce").addEventListener("submit", (event) => {
  event.preventDefault();
  nickname = element("nickname").value.trim();
  connection?.close();
  start().catch((error) => refuse(`No connection: ${error.message}`));
});

element("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = element("text").value.trim();
  if (text && connection?.send(text)) {
    element("text").value = "";
    log.toEnd();
  }
});

element("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("say").requestSubmit();
  }
});

showState("offline");
showForm();
if (nickname) {
  element("nickname").value = nickname;
  start().catch((error) => refuse(`No connection: ${error.message}`));
}
