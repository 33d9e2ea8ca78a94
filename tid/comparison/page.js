"use strict";
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const rows = all("table.sortable tbody tr");
  const drawn = all(".cfg");

  // Sorting: a click on a heading, numbers as numbers; again: the other way round. Dashes stay last.
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.order ?? cell.textContent;
    const number = Number(text);
    return text === "inf" || text === "nan" ? null : Number.isNaN(number) ? text : number;
  };
  const sort = (table, column, head) => {
    const falling = head.getAttribute("aria-sort") === "ascending";
    all("th[aria-sort]", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const body = table.tBodies[0];
    const sorted = [...body.rows].sort((one, other) => {
      const [a, b] = [value(one, column), value(other, column)];
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return falling ? -order : order;
    });
    body.append(...sorted);
  };
  for (const table of all("table.sortable")) {
    all("tr.keys th", table).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column, head));
      head.append(button);
    });
  }

  // Filtering: rows and curves whose configuration has every word.
  const labels = new Map(rows.map((row) => [row.dataset.key, row.cells[0].textContent.toLowerCase()]));
  const input = document.getElementById("filter");
  const matches = document.getElementById("matches");
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = new Set([...labels].filter(([, label]) => words.every((word) => label.includes(word))).map(([key]) => key));
    rows.forEach((row) => { row.hidden = !kept.has(row.dataset.key); });
    drawn.forEach((part) => part.classList.toggle("off", !kept.has(part.dataset.key)));
    matches.textContent = words.length ? `${kept.size} of ${labels.size}` : "";
  };
  input.addEventListener("input", filter);
  input.closest("[hidden]").hidden = false;

  // A row under the pointer lights its curves up.
  const light = (key) => drawn.forEach((part) => part.classList.toggle("lit", part.dataset.key === key));
  for (const row of rows) {
    row.addEventListener("pointerenter", () => light(row.dataset.key));
    row.addEventListener("pointerleave", () => light(null));
  }
})();
