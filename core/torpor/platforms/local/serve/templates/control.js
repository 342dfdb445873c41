"use strict";
const LOOK_MS = 2000;
const id = (name) => document.getElementById(name);
let key = sessionStorage.getItem("torpor-key") || "";
let timer = 0;

function say(text, bad) {
  id("said").textContent = text;
  id("said").className = bad ? "bad" : "";
}

async function call(method, path) {
  const answer = await fetch(path, { method, headers: { Authorization: "Bearer " + key }, credentials: "omit", cache: "no-store" });
  const value = await answer.json();
  if (answer.status === 401) close("This key is not allowed.");
  if (!answer.ok) throw new Error(value.error.message);
  return value;
}

function close(why) {
  key = "";
  sessionStorage.removeItem("torpor-key");
  clearTimeout(timer);
  id("door").hidden = false;
  id("table").hidden = true;
  say(why, true);
}

function cell(row, text, className, label) {
  const made = row.insertCell();
  made.textContent = text;
  if (label) made.dataset.label = label;
  if (className) made.className = className;
  return made;
}

function note(parent, text, className) {
  const made = document.createElement("small");
  made.textContent = text;
  if (className) made.className = className;
  parent.append(made);
}

const gb = (bytes) => (bytes / 1e9).toFixed(2) + " GB";

function memory(one) {
  const host = one.replicas.reduce((sum, replica) => sum + replica.memory_bytes, 0);
  return one.replicas.length ? gb(host) : "0";
}

function gpus(one) {
  const held = {};
  for (const replica of one.replicas)
    for (const [card, bytes] of Object.entries(replica.gpus)) held[card] = (held[card] || 0) + bytes;
  return Object.entries(held).map(([card, bytes]) => "GPU " + card + ": " + gb(bytes));
}

function act(row, name, what, off) {
  const button = document.createElement("button");
  button.textContent = what;
  button.disabled = off;
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await call("POST", "/torpor/deployments/" + encodeURIComponent(name) + "/" + what);
      await look();
    } catch (error) { say(error.message, true); }
  });
  row.append(button);
}

function show(one) {
  const row = id("rows").insertRow();
  row.dataset.name = one.name;
  const named = cell(row, one.name, "name");
  note(named, one.models.join(", "));
  if (one.error) note(named, one.error, "bad");
  const state = cell(row, one.state + (one.pinned ? ", pinned" : ""), "state " + one.state.replaceAll(" ", "-"), "State");
  if (one.replicas.length > 1) note(state, one.replicas.length + " replicas");
  cell(row, one.in_flight, "n", "Requests");
  cell(row, one.waiting, "n", "Waiting");
  const taken = cell(row, memory(one), "n", "Memory");
  gpus(one).forEach((text) => note(taken, text));
  const last = one.starts[0];
  const told = last ? (last.error ? last.boot + " failed" : last.boot + " in " + last.seconds.toFixed(2) + " s") : "none";
  const start = cell(row, told, "start", "Last start");
  if (last) note(start, new Date(last.at * 1000).toLocaleTimeString());
  const acts = cell(row, "", "acts");
  act(acts, one.name, "wake", one.state === "serving");
  act(acts, one.name, "sleep", one.state === "on disk");
  act(acts, one.name, one.pinned ? "unpin" : "pin", false);
}

async function look() {
  clearTimeout(timer);
  const status = await call("GET", "/torpor/status");
  id("rows").replaceChildren();
  status.deployments.forEach(show);
  id("door").hidden = true;
  id("table").hidden = false;
  say("", false);
  timer = setTimeout(() => look().catch(lost), LOOK_MS);
}

function lost(error) {
  if (!key) return;
  say(error.message, true);
  timer = setTimeout(() => look().catch(lost), LOOK_MS);
}

id("door").addEventListener("submit", (event) => {
  event.preventDefault();
  key = id("key").value;
  id("key").value = "";
  look().then(() => sessionStorage.setItem("torpor-key", key), lost);
});
if (key) look().catch(lost);
