// A click on a heading sorts each group of rows by it: up, down, up. Rows without a value stay last.
const table = document.querySelector("table.results");
const headings = [...table.tHead.rows[0].cells];

function compare(a, b) {
  return isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
}

headings.forEach((heading, column) => heading.firstChild.addEventListener("click", () => {
  const down = heading.ariaSort === "ascending";
  headings.forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  for (const body of table.tBodies) {
    const value = (row) => row.cells[column].dataset.sort;
    const [group, ...rows] = body.rows;
    rows.sort((a, b) => {
      if (value(a) === undefined || value(b) === undefined) return (value(a) === undefined) - (value(b) === undefined);
      return (down ? -1 : 1) * compare(value(a), value(b));
    });
    body.append(group, ...rows);
  }
}));
