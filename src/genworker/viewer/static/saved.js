// Search over saved pages: what is searched lies in scripts beside the page, so that it works from a disk.
"use strict";

const box = document.getElementById("search");
if (box && window.ROWS) {
  const [q, stage, state, sort] = ["q", "stage", "state", "sort"].map((id) => document.getElementById(id));
  const body = document.getElementById("rows");
  const status = document.getElementById("found");
  const first = [...body.children];
  const words = status.innerHTML;
  const shown = 200;
  box.hidden = false;

  // The address behind # says what is shown, so that a view can be linked to.
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const field of [q, stage, state, sort]) field.value = asked.get(field.id) ?? "";

  const cell = (row, text, name) => {
    const made = document.createElement("td");
    if (name) made.className = name;
    made.textContent = text ?? "";
    row.append(made);
    return made;
  };
  const show = () => {
    const wanted = q.value.toLowerCase().split(/\s+/).filter(Boolean);
    const address = new URLSearchParams();
    for (const field of [q, stage, state, sort]) if (field.value) address.set(field.id, field.value);
    history.replaceState(null, "", address.size ? `#${address}` : location.pathname + location.search);
    document.getElementById("pages").hidden = address.size > 0;
    if (!address.size) { body.replaceChildren(...first); status.innerHTML = words; return; }
    const is = (row) =>
      (!stage.value || row[0] === stage.value) &&
      (!state.value || row[2] === state.value || (state.value === "failed" && !["done", "missing", "blocked"].includes(row[2]))) &&
      wanted.every((word) => row[8].includes(word));
    const found = window.ROWS.filter(is);
    const sign = sort.value === "score" ? 1 : -1;
    if (sort.value) found.sort((a, b) => (a[3] === null) - (b[3] === null) || sign * (a[3] - b[3]));
    body.replaceChildren(...found.slice(0, shown).map((row) => {
      const line = document.createElement("tr");
      cell(line, row[0]);
      const link = document.createElement("a");
      link.className = "gen";
      link.href = `g/${row[0]}/${encodeURIComponent(row[1])}.html`;
      link.textContent = row[1];
      cell(line, "").append(link);
      cell(line, row[2]);
      cell(line, row[3] === null ? "" : row[3].toFixed(2), "n");
      for (const at of [4, 5, 6]) cell(line, row[at]);
      cell(line, row[7], "n");
      return line;
    }));
    status.textContent = `${found.length.toLocaleString("en")} of ${window.ROWS.length.toLocaleString("en")} rows` +
      (found.length > shown ? `, the first ${shown} of them` : "");
  };
  for (const field of [q, stage, state, sort]) field.addEventListener("input", show);
  addEventListener("hashchange", () => location.reload());
  show();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select")) return;
  const follow = { l: 'a[rel="next"]', h: 'a[rel="prev"]' }[event.key];
  const link = follow && document.querySelector(follow);
  if (link) link.click();
  const search = document.getElementById("q");
  if (event.key === "/" && search) { event.preventDefault(); search.focus(); }
});
