// The live view's one script. Every page works without it; it saves reloading, and rates by keyboard.
"use strict";

// Live: the server says that something has changed, the part of the page that lives is fetched anew.
const events = document.body.dataset.events;
const live = document.getElementById("live");
if (events && live && window.EventSource) {
  let asking = false;
  const source = new EventSource(events);
  source.addEventListener("changed", async () => {
    if (asking) return;
    asking = true;
    try {
      const answer = await fetch("live");
      if (answer.ok) live.innerHTML = await answer.text(); // made and escaped by the server, as the page was
    } catch { /* the view has ended, or sleeps: the next event asks again */ }
    asking = false;
  });
}

// Findings that are being made: look again until they are there.
if (document.querySelector("[data-wait]")) setTimeout(() => location.reload(), 1500);

const form = document.querySelector("form[data-keys]");
document.addEventListener("keydown", (event) => {
  const busy = event.target.closest("input:not([type=checkbox]), select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (busy) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (form) {
    const name = form.dataset.keys === "score"
      ? /^[0-9]$/.test(event.key) ? `score"][value="${event.key}` : event.key === "x" ? 'score"][value="10' : null
      : { a: 'choice"][value="a', b: 'choice"][value="b', t: 'choice"][value="tie' }[event.key] || null;
    const wanted = name ?? (event.key === "s" ? "skip" : null);
    const button = wanted && form.querySelector(`button[name="${wanted}"]`);
    if (button) { event.preventDefault(); form.requestSubmit(button); }
    return;
  }
  const follow = { l: 'a[rel="next"]', h: 'a[rel="prev"]' }[event.key];
  const link = follow && document.querySelector(follow);
  if (link) link.click();
  const search = document.getElementById("q");
  if (event.key === "/" && search) { event.preventDefault(); search.focus(); }
});
