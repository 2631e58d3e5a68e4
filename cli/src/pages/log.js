// The list of messages. Follows the end unless the reader has scrolled up.

const LINES_MAX = 500;
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });

export class Log {
  constructor(list, newer) {
    this.list = list;
    this.newer = newer;
    newer.addEventListener("click", () => this.toEnd());
    list.addEventListener("scroll", () => this.atEnd() && (newer.hidden = true), { passive: true });
  }

  message(from, text, mine) {
    const meta = part("div", "meta", part("span", "from", from), part("time", "", clock.format(new Date())));
    this.add(part("li", mine ? "message mine" : "message", meta, part("div", "text", text)));
  }

  notice(text) {
    this.add(part("li", "notice", text));
  }

  atEnd() {
    return this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 40;
  }

  toEnd() {
    this.list.scrollTop = this.list.scrollHeight;
    this.newer.hidden = true;
  }

  add(line) {
    const follow = this.atEnd();
    this.list.append(line);
    while (this.list.childElementCount > LINES_MAX) {
      this.list.firstElementChild.remove();
    }
    if (follow) {
      this.toEnd();
    } else {
      this.newer.hidden = false;
    }
  }
}

// text only: what people write never becomes markup
function part(name, className, ...children) {
  const element = document.createElement(name);
  element.className = className;
  element.append(...children);
  return element;
}
