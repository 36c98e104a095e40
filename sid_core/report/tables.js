// Tables that are sorted and copied, and figures that are copied, on every page of the report.
const all = (selector, parent = document) => [...parent.querySelectorAll(selector)];
const by = (id) => document.getElementById(id);

// --- tables: a click on a heading sorts each group of rows by it, up, down, up; rows without a value stay last -----------

function inOrder(a, b) {
  return isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
}

for (const table of all("table.results")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.firstChild.addEventListener("click", () => {
    const down = heading.ariaSort === "ascending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const body of table.tBodies) {
      const value = (row) => row.cells[column].dataset.sort;
      const [group, ...rows] = body.rows;
      rows.sort((a, b) => {
        if (value(a) === undefined || value(b) === undefined) return (value(a) === undefined) - (value(b) === undefined);
        return (down ? -1 : 1) * inOrder(value(a), value(b));
      });
      body.append(group, ...rows);
    }
  }));
}

// --- copies: buttons below each table and figure -----------------------------------------------------------------------------

const LATEX = {
  "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "~": "\\textasciitilde{}",
  "^": "\\textasciicircum{}", "±": "$\\pm$", "−": "$-$", "↓": "$\\downarrow$", "↑": "$\\uparrow$", "κ": "$\\kappa$", "ε": "$\\varepsilon$",
  "α": "$\\alpha$", "∞": "$\\infty$", "₁": "$_1$", "₂": "$_2$", "₃": "$_3$", "₄": "$_4$", "—": "---",
};

const FORMATS = {
  LaTeX(head, groups) {
    const text = (cell) => cell.text.replace(/./gu, (letter) => LATEX[letter] ?? letter);
    const line = (cells) => `${cells.map((cell) => (cell.best ? `\\textbf{${text(cell)}}` : text(cell))).join(" & ")} \\\\`;
    const body = groups.flatMap((rows) => ["\\midrule", ...rows.map(line)]);
    return [`\\begin{tabular}{l${"r".repeat(head.length - 1)}}`, "\\toprule", line(head), ...body, "\\bottomrule", "\\end{tabular}"];
  },
  Markdown(head, groups) {
    const text = (cell) => cell.text.replaceAll("|", "\\|");
    const line = (cells) => `| ${cells.map((cell) => (cell.best ? `**${text(cell)}**` : text(cell))).join(" | ")} |`;
    return [line(head), `|---|${"---:|".repeat(head.length - 1)}`, ...groups.flat().map(line)];
  },
  CSV(head, groups) {
    const text = (cell) => (/[",]/.test(cell.text) ? `"${cell.text.replaceAll('"', '""')}"` : cell.text);
    return [head, ...groups.flat()].map((cells) => cells.map(text).join(","));
  },
};

// As shown: in its order, without hidden rows, and without columns that only draw.
function copyOf(table, format) {
  const heading = [...table.tHead.rows[0].cells];
  const cells = (row) => [...row.cells]
    .filter((_, column) => !heading[column].querySelector(".unseen"))
    .map((cell) => ({ text: cell.textContent.trim().replace(/\s+/g, " "), best: cell.querySelector("strong") !== null }));
  const groups = [...table.tBodies].map((body) => [...body.rows].filter((row) => !row.hidden && !row.matches(".group")).map(cells));
  return `${FORMATS[format](cells(table.tHead.rows[0]), groups.filter((rows) => rows.length)).join("\n")}\n`;
}

// A figure in the page's present colours, without its buttons.
function svgOf(figure) {
  const copy = figure.cloneNode(true);
  all(".point", copy).forEach((part) => part.remove());
  copy.setAttribute("font-family", "sans-serif");
  const style = getComputedStyle(document.documentElement);
  return new XMLSerializer().serializeToString(copy).replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
}

function addButtons(after, label, buttons) {
  const group = document.createElement("div");
  group.className = "copies";
  group.setAttribute("role", "group");
  group.ariaLabel = label;
  group.append(label, ...Object.entries(buttons).map(([name, action]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", async () => {
      const done = await action().then(() => "done", (error) => `failed (${error.message})`);
      button.textContent = `${name}: ${done}`;
      setTimeout(() => { button.textContent = name; }, 2000);
    });
    return button;
  }));
  after.after(group);
}

for (const table of all("table.results, table.plain")) {
  const copy = (format) => [format, () => navigator.clipboard.writeText(copyOf(table, format))];
  addButtons(table.closest(".scroll"), "Copy table as", Object.fromEntries(Object.keys(FORMATS).map(copy)));
}

for (const figure of all("figure:not(.overview) svg")) {
  const save = async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([svgOf(figure)], { type: "image/svg+xml" }));
    link.download = `${figure.getAttribute("aria-label").replace(/\W+/g, "-")}.svg`;
    link.click();
  };
  addButtons(figure.closest(".scroll"), "Figure as SVG", { Copy: () => navigator.clipboard.writeText(svgOf(figure)), Save: save });
}
