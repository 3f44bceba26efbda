// Makes the heads of the table of layers buttons that sort it. The page is whole without it.
for (const head of document.querySelectorAll("th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const column = head.cellIndex;
    const first = head.dataset.first;
    const was = head.getAttribute("aria-sort");
    const order = was === null ? first : was === "ascending" ? "descending" : "ascending";
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return sign * (first === "ascending" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    });
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    body.replaceChildren(...rows);
  });
}
