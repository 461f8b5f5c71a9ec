"use strict";

for (const grids of document.querySelectorAll(".grids")) {
  const figures = [...grids.querySelectorAll("figure")];
  const slider = grids.querySelector("input");
  const output = grids.querySelector("output");
  const show = () => {
    figures.forEach((figure, i) => (figure.hidden = i !== Number(slider.value)));
    const text = `step ${figures[slider.value].dataset.step}`;
    slider.setAttribute("aria-valuetext", text);
    output.value = text;
  };
  slider.addEventListener("input", show);
  slider.parentElement.hidden = figures.length < 2;
  show();
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.key;
  const compare = (a, b) => (a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b));
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((one, other) => {
        const [a, b] = [key(one, column), key(other, column)];
        return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b); // without a value: last
      });
      body.append(...rows);
    });
  });
}
