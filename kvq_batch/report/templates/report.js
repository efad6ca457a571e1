"use strict";
// Sorting of tables and cards, and filters. Without this script the report shows the same contents.
(() => {
  document.documentElement.classList.add("js");

  const collator = new Intl.Collator(undefined, { numeric: true });
  // Cells without a value come last in both directions.
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const x = Number(a), y = Number(b);
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y);
  };
  const reorder = (parent, items, key, sign) => {
    const keyed = items.map((item, i) => [key(item), i, item]);
    keyed.sort((a, b) => compare(a[0], b[0], sign) || a[1] - b[1]);
    parent.append(...keyed.map((entry) => entry[2]));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.textContent = "";
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
        reorder(body, [...body.rows], key, sign);
      });
    });
  }

  const normalise = (text) => text.toLocaleLowerCase();
  for (const input of document.querySelectorAll("input[data-filters]")) {
    const target = document.getElementById(input.dataset.filters);
    const items = [...target.querySelectorAll(input.dataset.items)];
    const count = document.getElementById(input.dataset.count);
    const texts = items.map((item) => normalise(item.dataset.text ?? item.textContent));
    const update = () => {
      const words = normalise(input.value).split(/\s+/).filter(Boolean);
      let shown = 0;
      items.forEach((item, i) => {
        item.hidden = !words.every((word) => texts[i].includes(word));
        shown += !item.hidden;
      });
      count.textContent = `${shown} of ${items.length} shown`;
    };
    input.addEventListener("input", update);
    update();
  }

  const select = document.getElementById("order");
  const list = document.getElementById("videos");
  if (select && list) {
    select.addEventListener("change", () => {
      const [name, direction] = select.value.split(" ");
      reorder(list, [...list.children], (item) => item.dataset[name], direction === "down" ? -1 : 1);
    });
  }
})();
