
// --- filters: a row stays if it has every word and fits every choice -------------------------------------------------------

const rows = all("table.results tbody tr:not(.group)");

function filter() {
  const words = by("words").value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const text = `${row.title} ${row.textContent}`.toLowerCase();
    row.hidden = !(words.every((word) => text.includes(word)) && (by("every").checked || "best" in row.dataset)
      && ["objective", "real"].every((id) => ["", row.dataset[id]].includes(by(id).value)));
  }
  for (const part of all("section:has(.results), .results tbody")) part.hidden = all("tbody tr:not(.group)", part).every((row) => row.hidden);
  by("count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
}

for (const id of ["words", "objective", "real", "every"]) by(id).addEventListener("input", filter);
filter();
