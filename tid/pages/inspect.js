"use strict";
(() => {
  const marks = JSON.parse(document.getElementById("marks").textContent);
  const text = document.getElementById("text"), hint = document.getElementById("hint");
  const slider = document.getElementById("rate"), shown = document.getElementById("rate-shown");
  const cells = [...text.querySelectorAll("p")];
  const start = Number(slider.value);
  let level = start, hand = null;

  // Each token has, for each scorer, the first of the slider's rates that drops it, as a letter from "A" on.
  const gone = (s, i, rate) => marks.scorers[s].level.charCodeAt(i) - 65 < rate;
  const percent = (rate) => (rate ? Math.round(1000 * marks.rates[rate - 1]) / 10 : 0) + "%";

  function strike(rate) {
    for (const cell of cells) {
      const levels = marks.scorers[cell.dataset.s].level;
      let i = Number(cell.dataset.a);
      for (let token = cell.firstElementChild; token; token = token.nextElementSibling, i++) {
        const first = levels.charCodeAt(i) - 65;
        if (first < level !== first < rate) token.classList.toggle("d");
      }
    }
    level = rate;
    say();
  }
  function say() {
    shown.textContent = percent(level) + (level === start ? "" : ", the figures below are of " + percent(start));
  }

  const nats = (value) => (value === null ? "none" : value.toFixed(2) + " nats");
  function element(tag, words, kind) {
    const made = document.createElement(tag);
    made.textContent = words;
    if (kind) made.className = kind;
    return made;
  }
  const spaces = (token) => (token.previousSibling && token.previousSibling.nodeType === 3 ? "␣".repeat(token.previousSibling.length) : "");
  function show(token) {
    const cell = token.parentElement;
    const i = Number(cell.dataset.a) + Array.prototype.indexOf.call(cell.children, token);
    for (const old of text.querySelectorAll(".at-hand")) old.classList.remove("at-hand");
    for (const other of cell.parentElement.querySelectorAll("p"))
      other.children[i - Number(other.dataset.a)].classList.add("at-hand");
    hand = token;
    const rows = document.createElement("table");
    for (const [s, scorer] of marks.scorers.entries()) {
      const row = rows.insertRow();
      const rank = scorer.rank[i];
      row.append(element("th", scorer.name), element("td", "score " + scorer.score[i]));
      row.append(element("td", rank ? "rank " + rank + " of " + scorer.of[marks.row[i]] : "protected"));
      row.append(gone(s, i, level) ? element("td", "dropped", "gone") : element("td", "kept"));
    }
    hint.replaceChildren(
      element("b", spaces(token) + token.textContent.replaceAll(" ", "␣").replaceAll("\n", "")),
      element("span", "  token " + marks.token[i] + ", " + marks.kinds[marks.kind[i]] + ", " + marks.seen[i].toLocaleString("en") + " in the training text"),
      element("div", "surprisal " + nats(marks.surprisal[i]) + " · entropy " + nats(marks.entropy[i]) + " · loss of the next token " + nats(marks.loss[i])),
      rows
    );
    hint.hidden = false;
    const box = token.getClientRects()[0] || token.getBoundingClientRect(), own = hint.getBoundingClientRect();
    const below = box.bottom + 8 + own.height < innerHeight;
    hint.style.left = Math.max(6, Math.min(box.left, innerWidth - own.width - 12)) + "px";
    hint.style.top = (below ? box.bottom + 8 : Math.max(6, box.top - own.height - 8)) + "px";
  }
  function hide() {
    hint.hidden = true;
    for (const old of text.querySelectorAll(".at-hand")) old.classList.remove("at-hand");
    hand = null;
  }
  const isToken = (node) => node.tagName === "I" && node.parentElement.dataset.s !== undefined;

  // A finger leaves the text as soon as it is lifted: what a tap showed stays until the next one.
  let mouse = true;
  text.addEventListener("pointerover", (event) => {
    mouse = event.pointerType !== "touch";
    if (isToken(event.target)) show(event.target);
    else hide();
  });
  text.addEventListener("pointerleave", () => mouse && hide());
  addEventListener("pointerdown", (event) => text.contains(event.target) || hide());
  text.addEventListener("blur", hide);
  addEventListener("scroll", () => hand && mouse && !hand.matches(":hover") && document.activeElement !== text && hide(), { passive: true });
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    if (event.key === "Escape") return hide();
    if (!step) return;
    event.preventDefault();
    const at = hand || text.querySelector("p:not(.off) i");
    let to = hand ? at[step] : at;
    if (!to) {  // on to the neighbouring piece of the same column
      const column = cells.filter((cell) => cell.dataset.s === at.parentElement.dataset.s);
      const next = column[column.indexOf(at.parentElement) + (event.key === "ArrowRight" ? 1 : -1)];
      to = next && (event.key === "ArrowRight" ? next.firstElementChild : next.lastElementChild);
    }
    if (to) {
      to.scrollIntoView({ block: "nearest" });
      show(to);
    }
  });
  slider.addEventListener("input", () => strike(Number(slider.value)));
  const controls = document.getElementById("controls");
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("change", (event) => {
    if (event.target.name !== "scorer") return;
    for (const part of text.querySelectorAll(".k" + event.target.value)) part.classList.toggle("off", !event.target.checked);
    text.style.setProperty("--columns", Math.max(1, controls.querySelectorAll("[name=scorer]:checked").length));
  });
  controls.reset();
  controls.hidden = false;
  new ResizeObserver(() => text.style.setProperty("--bar", controls.offsetHeight + "px")).observe(controls);
  text.classList.add("live");
  say();
})();
