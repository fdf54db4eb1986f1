// Modules by part of their name.

const MOST_FOUND = 30;

class Search {
  // `onFound(rows or null)` whenever the query changes, `onChoose(row)` for one of the list.
  constructor(rows, { onFound, onChoose }) {
    this.rows = rows;
    this.lower = null;
    this.onFound = onFound;
    this.onChoose = onChoose;
    this.query = document.getElementById("query");
    this.box = document.getElementById("found");
    this.count = document.getElementById("found-count");
    this.list = document.getElementById("found-list");
    this.query.addEventListener("input", () => this.#run());
    document.getElementById("search").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.found.length) onChoose(this.found[0]);
    });
    this.found = [];
  }

  #run() {
    const wanted = this.query.value.trim().toLowerCase();
    this.box.hidden = !wanted;
    this.found = wanted ? this.#find(wanted) : [];
    this.count.textContent = this.#words(wanted);
    this.list.replaceChildren(...this.found.slice(0, MOST_FOUND).map((row) => this.#button(row)));
    this.onFound(wanted ? this.found : null);
  }

  // Where nothing has the name, what is around it: a plan without a model does not know the inside of its blocks.
  #find(wanted) {
    this.lower ??= this.rows.full.map((name) => name.toLowerCase());
    let part = wanted;
    for (;;) {
      const found = [];
      for (let row = 1; row < this.lower.length; row++) if (this.lower[row].includes(part)) found.push(row);
      if (found.length || !part.includes(".")) return found;
      part = part.slice(0, part.lastIndexOf("."));
      const around = this.lower.indexOf(part);
      if (around > 0) return [around];
    }
  }

  #words(wanted) {
    const { length } = this.found;
    if (!wanted) return "";
    const shown = length > MOST_FOUND ? `, the first ${MOST_FOUND} of them` : "";
    return length ? `${length} found${shown}:` : "Nothing has that name.";
  }

  #button(row) {
    const { rows } = this;
    const button = document.createElement("button");
    button.type = "button";
    button.append(span(`swatch ${rows.style(rows.homes[row])}`, ""), span("name", rows.title(row)));
    button.append(span("size", `${formatBytes(rows.exact[row])} · ${rows.place(rows.homes[row])}`));
    button.addEventListener("click", () => this.onChoose(row));
    return item(button);
  }
}
