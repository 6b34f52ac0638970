"use strict";
const SETTINGS = __SETTINGS__;
const EXAMPLES = [
  "What is 4821 * 37?",
  "Convert 12 kilometres to metres.",
  "Spell 'environment' backwards.",
  "What does len do?",
];
const $ = (id) => document.getElementById(id);
const log = $("log"), form = $("form"), input = $("input"), send = $("send"), state = $("state");
let history = [];
let running = null; // AbortController of the answer that is being written

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Code in backticks is set as code; everything else is shown letter for letter.
function setText(node, text) {
  node.replaceChildren();
  text.split(/(```[\s\S]*?(?:```|$)|`[^`\n]+`)/).forEach((part) => {
    if (part.startsWith("```")) {
      node.append(element("pre", "", part.replace(/^```[^\n]*\n?/, "").replace(/\n?```$/, "")));
    } else if (part.length > 2 && part.startsWith("`")) {
      node.append(element("code", "", part.slice(1, -1)));
    } else if (part) {
      node.append(part);
    }
  });
}

function showArguments(list, values) {
  for (const [key, value] of Object.entries(values)) {
    const shown = element("dd");
    shown.append(element("pre", "", typeof value === "string" ? value : JSON.stringify(value)));
    list.append(element("dt", "", key), shown);
  }
}

function toolCard(event) {
  const card = element("div", "card");
  const head = element("div", "head");
  head.innerHTML = '<svg viewBox="0 0 24 24"><path d="M14.7 6.3a4 4 0 0 0-5.4 5.2L3 17.8 6.2 21l6.3-6.3a4 4 0 0 0 5.2-5.4l-2.6 2.6-2.8-.2-.2-2.8z"/></svg>';
  head.append(event.name || "unreadable call", element("span", "", "running"));
  const list = element("dl");
  showArguments(list, event.arguments || { problem: event.error });
  card.append(head, list);
  return card;
}

function finishCard(card, event) {
  const failed = event.content.startsWith("error");
  const mark = card.querySelector(".head span");
  mark.textContent = failed ? "failed" : "done";
  mark.className = failed ? "bad" : "ok";
  const shown = element("dd");
  shown.append(element("pre", "", event.content));
  card.querySelector("dl").append(element("dt", "", "result"), shown);
}

// One answer on the page: text, scratchpads and cards in the order in which they come.
class Answer {
  constructor() {
    this.root = element("article", "theirs");
    this.wait = element("div", "wait");
    this.root.append(this.wait);
    this.cards = [];
    this.part = null;
    this.content = "";
    this.began = performance.now();
    log.append(this.root);
  }
  insert(node) {
    this.draw();
    this.root.insertBefore(node, this.wait);
    return node;
  }
  text(piece) {
    this.content += piece;
    if (this.part?.kind !== "text") this.part = { kind: "text", value: "", node: this.insert(element("div", "text")) };
    this.part.value += piece;
    this.stale = this.part; // drawn once per frame, however fast the tokens come
  }
  draw() {
    if (this.stale) setText(this.stale.node, this.stale.value);
    this.stale = null;
  }
  scratchpad(piece) {
    if (this.part?.kind !== "pad") {
      const fold = element("details", "pad");
      const body = element("div");
      fold.append(element("summary", "", "Scratchpad"), body);
      this.part = { kind: "pad", node: body };
      this.insert(fold);
    }
    this.part.node.append(piece);
  }
  tool(event) {
    this.part = null;
    if (event.type === "call") this.cards.push(this.insert(toolCard(event)));
    else finishCard(this.cards.find((card) => !card.querySelector(".ok, .bad")) || this.cards.at(-1), event);
  }
  call(call) {
    const values = JSON.parse(call.function.arguments);
    const card = this.insert(toolCard({ name: call.function.name, arguments: values }));
    card.querySelector(".head span").textContent = "not run: the server has no such tool";
  }
  forget() {
    if (!this.root.querySelector(".note")) this.insert(element("div", "note", "The context is full: the oldest messages are forgotten."));
  }
  fail(message) {
    this.insert(element("div", "error", message));
  }
  finish(tokens, reason) {
    const seconds = (performance.now() - this.began) / 1000;
    const rate = tokens ? `${Math.round(tokens / seconds)} tokens/s · ${tokens} tokens · ${seconds.toFixed(2)} s` : "";
    const why = { length: "cut at the length limit", stopped: "stopped" }[reason];
    const line = [rate, why].filter(Boolean).join(" · ");
    if (line) this.insert(element("div", "foot", line));
    this.draw();
    this.wait.remove();
    if (rate) state.textContent = rate.split(" · ")[0];
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// Send the conversation; where it is longer than the context, without its oldest exchanges.
async function request(answer, signal) {
  for (;;) {
    const body = {
      model: SETTINGS.model, messages: history, stream: true, stream_options: { include_usage: true },
      tool_choice: $("tools")?.checked ? "auto" : "none",
    };
    const headers = { "Content-Type": "application/json" };
    const response = await fetch("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
    if (response.ok) return response;
    const { error } = await response.json();
    const next = history.findIndex((message, index) => index > 0 && message.role === "user");
    if (error.code !== "context_length_exceeded" || next < 0) throw new Error(error.message);
    history.splice(0, next);
    answer.forget();
  }
}

async function ask(answer, signal) {
  const response = await request(answer, signal);
  let tokens = 0, reason = "", trace = null, drawing = false;
  for await (const chunk of events(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (!choice) continue;
    const { delta } = choice;
    if (delta.reasoning_content) answer.scratchpad(delta.reasoning_content);
    if (delta.content) answer.text(delta.content);
    for (const event of delta.tool_events || []) answer.tool(event);
    for (const call of delta.tool_calls || []) answer.call(call);
    reason = choice.finish_reason || reason;
    trace = choice.trace || trace;
    if (!drawing) {
      drawing = true;
      requestAnimationFrame(() => { drawing = false; answer.draw(); follow(); });
    }
  }
  if (trace) history.push(...trace);
  return [tokens, reason];
}

function follow(always) {
  if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 160) log.scrollTop = log.scrollHeight;
}

function setBusy(controller) {
  running = controller;
  form.classList.toggle("busy", Boolean(controller));
  send.title = controller ? "Stop" : "Send (Enter)";
  state.textContent = controller ? "writing" : state.textContent;
  refresh();
}

async function say(text) {
  $("welcome")?.remove();
  const mine = element("div", "mine");
  mine.append(element("div", "", text));
  log.append(mine);
  const answer = new Answer();
  const question = { role: "user", content: text };
  history.push(question);
  setBusy(new AbortController());
  follow(true);
  try {
    const [tokens, reason] = await ask(answer, running.signal);
    answer.finish(tokens, reason);
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (!stopped) answer.fail(error.message);
    answer.finish(0, stopped ? "stopped" : "");
    if (stopped && answer.content) history.push({ role: "assistant", content: answer.content });
    else history.length = history.indexOf(question); // the question was not answered: it is no part of the conversation
    state.textContent = "ready";
  }
  setBusy(null);
  follow();
  input.focus();
}

function refresh() {
  send.disabled = !running && !input.value.trim();
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const text = input.value.trim();
  if (!text) return;
  input.value = "";
  refresh();
  say(text);
});
input.addEventListener("input", refresh);
input.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) form.requestSubmit();
  }
});
$("fresh").addEventListener("click", () => location.reload());
$("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--bg").trim() === "#10141c";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", document.documentElement.dataset.theme); } catch { /* storage may be off */ }
});
try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* storage may be off */ }
for (const example of EXAMPLES) {
  const button = element("button", "", example);
  button.type = "button";
  button.addEventListener("click", () => { if (!running) say(example); });
  $("examples").append(button);
}
if (!SETTINGS.tools.length) document.querySelector(".switch").remove();
refresh();
(async () => { // a link may carry questions: #ask=...&ask=...
  for (const question of new URLSearchParams(location.hash.slice(1)).getAll("ask")) await say(question);
})();
