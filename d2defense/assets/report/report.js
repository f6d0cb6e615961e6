"use strict";
// Columns sort by the cells' data-value; rows without one (no data) stay last either way.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const headings = Array.from(table.tHead.rows[0].cells);
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value;
      const values = Array.from(body.rows, value).filter((text) => text !== "");
      const numeric = values.every((text) => !Number.isNaN(Number(text)));
      const compare = (a, b) =>
        numeric ? Number(a) - Number(b) : a.localeCompare(b, undefined, { numeric: true });
      const rows = Array.from(body.rows);
      rows.sort((a, b) => {
        const first = value(a);
        const second = value(b);
        if (first === "" || second === "") return (first === "") - (second === "");
        return descending ? compare(second, first) : compare(first, second);
      });
      body.append(...rows);
    });
  });
}
// Closed details would be missing on paper.
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
