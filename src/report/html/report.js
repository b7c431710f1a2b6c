// Search, filters and arrow keys. All of the page is there without it.
(() => {
  "use strict";
  document.documentElement.classList.add("js");

  // A link to a row opens the part that it is in.
  const reveal = () => {
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const part = row && row.closest("details");
    if (part) {
      if (row.hidden) { find.value = ""; kind.value = ""; filter(); }
      part.open = true;
      row.scrollIntoView({ block: "center" });
    }
  };

  const find = document.getElementById("find");
  const kind = document.getElementById("kind");
  const found = document.getElementById("found");
  const rows = [...document.querySelectorAll("#stages tr[data-kind]")];
  const parts = [...document.querySelectorAll("#stages details")];
  const opened = new Map(parts.map(part => [part, part.open]));
  const text = new Map(rows.map(row => [row, (row.dataset.part + " " + row.textContent).toLowerCase()]));
  const filter = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const asked = words.length > 0 || kind.value !== "";
    let left = 0;
    for (const row of rows) {
      const shown = words.every(word => text.get(row).includes(word)) && (!kind.value || row.dataset.kind === kind.value);
      row.hidden = !shown;
      left += shown ? 1 : 0;
    }
    for (const part of parts) {
      const some = rows.some(row => !row.hidden && part.contains(row));
      part.hidden = !some;
      part.open = asked ? some : opened.get(part);
    }
    found.textContent = asked ? left + " of " + rows.length : "";
  };
  if (find) {
    find.addEventListener("input", filter);
    kind.addEventListener("change", filter);
    find.form.addEventListener("submit", event => event.preventDefault());
    addEventListener("keydown", event => {
      if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
        event.preventDefault();
        find.focus();
      }
    });
    addEventListener("hashchange", reveal);
    if (location.hash) reveal();
  }

  // The map is one stop of the Tab key; arrows move in it.
  const map = document.getElementById("heat");
  if (map) {
    const lines = [...map.tBodies[0].rows].map(row => [...row.cells].slice(1).map(cell => cell.firstElementChild));
    let at = [0, 0];
    lines.flat().forEach(link => link && link.setAttribute("tabindex", "-1"));
    const first = map.querySelector("td.first a") || map.querySelector("td a");
    if (first) first.removeAttribute("tabindex");
    map.addEventListener("focusin", event => {
      const y = lines.findIndex(line => line.includes(event.target));
      if (y < 0) return;
      map.querySelectorAll("a:not([tabindex])").forEach(link => link.setAttribute("tabindex", "-1"));
      event.target.removeAttribute("tabindex");
      at = [y, lines[y].indexOf(event.target)];
    });
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    map.addEventListener("keydown", event => {
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      let [y, x] = at;
      do { y += step[0]; x += step[1]; } while (lines[y] && x >= 0 && x < lines[y].length && !lines[y][x]);
      if (lines[y] && lines[y][x]) lines[y][x].focus();
    });
  }
})();
