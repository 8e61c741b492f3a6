"use strict";
// What pages share that take answers of people. What a page is given is shown as text, never as markup.
const $ = id => document.getElementById(id);
const say = (text, error = false) => { $("state").textContent = text; $("state").className = error ? "error" : ""; };

// The JSON that the server answers. An error is `final` if sending the same again cannot help.
async function ask(path, body) {
  const options = body ? { method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body) } : {};
  const response = await fetch(path, options);
  const found = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) throw Object.assign(new Error(found.error), { final: response.status === 400 });
  return found;
}

// Answers wait in the browser's storage until the server has confirmed that they are on its disk.
class Outbox {
  constructor(key, path) { this.key = key; this.path = path; }
  all() { return JSON.parse(localStorage.getItem(this.key) || "[]"); }
  keep(answers) { localStorage.setItem(this.key, JSON.stringify(answers)); }
  add(answer) { this.keep([...this.all(), answer]); }
  async send() {
    for (let [first] = this.all(); first; [first] = this.all()) {
      try { await ask(this.path, first); } catch (error) {
        if (!error.final) throw error;
        console.warn(error.message);  // the item is gone: this answer can never be taken
      }
      this.keep(this.all().filter(other => JSON.stringify(other) !== JSON.stringify(first)));  // other tabs send too
    }
  }
}
