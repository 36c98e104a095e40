// What belongs to a run carries its name as data-run. One run is selected at a time, everywhere at once.

// --- selection and tips ----------------------------------------------------------------------------------------------

let selected = null;

function select(run) {
  selected = run;
  hideTip();
  for (const part of all("[data-run]")) {
    part.classList.toggle("selected", part.dataset.run === run);
    if (part.hasAttribute("aria-pressed")) part.setAttribute("aria-pressed", part.dataset.run === run);
  }
  document.body.classList.toggle("selecting", run !== null);
  const point = all("[data-tip]").find((part) => part.dataset.run === run);
  by("selection").hidden = run === null;
  by("selection").firstChild.textContent = run === null ? "" : point?.dataset.tip ?? run;
  if (run !== null) compareWith(run);
}

document.addEventListener("click", (event) => {
  const part = event.target.closest("[data-run]");
  if (part) select(part.dataset.run === selected ? null : part.dataset.run);
});
by("selection").querySelector("button").addEventListener("click", () => select(null));

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") tip.hidden ? select(null) : hideTip();
  if ((event.key === "Enter" || event.key === " ") && event.target.matches(".point")) {
    event.preventDefault();
    select(event.target.dataset.run === selected ? null : event.target.dataset.run);
  }
});

const tip = by("tip");

function showTip(event) {
  const part = event.target.closest("svg [data-run]");
  if (!part) return hideTip();
  tip.textContent = part.dataset.tip ?? part.dataset.run;
  tip.hidden = false;
  // beside a point, or, of a long line, beside the pointer
  const box = part.dataset.tip || !event.clientX ? part.getBoundingClientRect() : new DOMRect(event.clientX, event.clientY, 0, 0);
  const left = box.right + 8 + tip.offsetWidth < innerWidth ? box.right + 8 : box.left - 8 - tip.offsetWidth;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, box.top - tip.offsetHeight - 4)}px`;
}

function hideTip() {
  tip.hidden = true;
}

document.addEventListener("pointerover", showTip);
document.addEventListener("focusin", showTip);
document.addEventListener("focusout", hideTip);
document.addEventListener("scroll", hideTip);

// --- images: which prompts are shown, and how large ----------------------------------------------------------------------

const choices = all("input[name=prompt]");

function showPrompts() {
  choices.forEach((choice) => { document.querySelector(`#samples [data-prompt="${choice.value}"]`).hidden = !choice.checked; });
}

choices.forEach((choice) => choice.addEventListener("change", showPrompts));
by("other-prompts").addEventListener("click", () => {
  const last = choices.findLastIndex((choice) => choice.checked);
  const count = Math.min(6, choices.length);
  choices.forEach((choice) => { choice.checked = false; });
  for (let i = 1; i <= count; i++) choices[(last + i) % choices.length].checked = true;
  showPrompts();
});
by("tile").addEventListener("input", () => {
  document.querySelector("#samples table").style.setProperty("--tile", `${by("tile").value}px`);
});

// --- samples during training: the last grid of each run up to the chosen number of images ----------------------------------

const seen = by("seen");

function showGrids() {
  const images = JSON.parse(seen.dataset.steps)[seen.value];
  document.querySelector("output").textContent = images.toLocaleString("en");
  for (const run of all(".progress figure")) {
    const grids = all("img", run);
    const current = grids.findLast((grid) => Number(grid.dataset.seen) <= images) ?? grids[0];
    grids.forEach((grid) => { grid.hidden = grid !== current; });
  }
}

if (seen) {
  seen.addEventListener("input", showGrids);
  showGrids();
}

// --- differences: of one run and all others, in one metric ---------------------------------------------------------------

const pairs = JSON.parse(by("pairs")?.textContent ?? "[]");

function differences() {
  const run = by("pair-run").value;
  const labels = new Map([...by("pair-run").options].map((option) => [option.value, option.text]));
  const order = [...labels.keys()];
  const rows = pairs
    .filter(([a, b, metric]) => metric === by("pair-metric").value && (a === run || b === run))
    .map(([a, b, , difference, low, high, better, over]) =>
      a === run ? { than: b, difference, low, high, better, over } : { than: a, difference: -difference, low: -high, high: -low, better, over })
    .sort((a, b) => order.indexOf(a.than) - order.indexOf(b.than));
  const largest = Math.max(...rows.map((row) => Math.max(Math.abs(row.low), Math.abs(row.high))));
  by("pair-verdict").textContent = `${labels.get(run)} is`;
  by("difference").tBodies[0].replaceChildren(...rows.map((row) => {
    const line = document.createElement("tr");
    const error = (row.high - row.low) / 4;
    const digits = error > 0 ? Math.min(4, Math.max(0, 1 - Math.floor(Math.log10(error)))) : 4; // two of the standard error
    const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
    const verdict = row.better === "" ? "no difference shown" : row.better === run ? "better" : "worse";
    const texts = [labels.get(row.than), signed(row.difference), `${signed(row.low)} to ${signed(row.high)}`, "", verdict, row.over];
    line.append(...texts.map((text, column) => {
      const cell = document.createElement(column ? "td" : "th");
      cell.textContent = text;
      return cell;
    }));
    line.cells[0].scope = "row";
    line.cells[3].append(bar(row, largest));
    line.className = { better: "better", worse: "worse" }[verdict] ?? "";
    return line;
  }));
}

// The interval on a common scale, 0 in the middle.
function bar({ low, high, difference }, largest) {
  const place = (value) => `${50 + (50 * value) / largest}%`;
  const box = document.createElement("span");
  box.className = "bar";
  for (const [name, left, right] of [["interval", low, high], ["value", difference, difference]]) {
    const part = document.createElement("i");
    part.className = name;
    part.style.left = place(left);
    part.style.right = `calc(100% - ${place(right)})`;
    box.append(part);
  }
  return box;
}

function compareWith(run) {
  const choice = by("pair-run");
  if (!choice || ![...choice.options].some((option) => option.value === run)) return;
  choice.value = run;
  differences();
}

if (pairs.length) {
  by("pair-run").addEventListener("change", differences);
  by("pair-metric").addEventListener("change", differences);
  differences();
}
