// What is inside the module in view, row by row and page by page, for whoever reads rather than looks.

const PAGE_ROWS = 50;

class Table {
  constructor(rows, reasons) {
    this.rows = rows;
    this.reasons = reasons;
    this.body = document.querySelector("#table tbody");
    this.caption = document.getElementById("table-caption");
    this.state = document.getElementById("page-state");
    this.before = document.getElementById("page-before");
    this.after = document.getElementById("page-after");
    this.insideBlocks = document.getElementById("inside-blocks");
    this.insideBlocks.addEventListener("change", () => this.#list());
    this.before.addEventListener("click", () => this.#turn(-PAGE_ROWS));
    this.after.addEventListener("click", () => this.#turn(PAGE_ROWS));
  }

  show(node) {
    this.node = node;
    this.caption.textContent = `${node.title}: modules and tensors in order, each with what is inside it`;
    this.#list();
  }

  // Down to what was decided on; inside that everything lies together.
  #list() {
    const { row: first, end } = this.node;
    const isInsideBlock = this.reasons.block(first) !== first || this.reasons.isDecided(first);
    const all = this.insideBlocks.checked || (isInsideBlock && first > 0);
    this.listed = [];
    for (let row = first; row < end; row++) if (all || this.reasons.block(row) === row) this.listed.push(row);
    this.start = 0;
    this.#fill();
  }

  #turn(step) {
    this.start += step;
    this.#fill();
  }

  #fill() {
    const stop = Math.min(this.listed.length, this.start + PAGE_ROWS);
    this.body.replaceChildren(...this.listed.slice(this.start, stop).map((row) => this.#line(row)));
    this.before.disabled = this.start === 0;
    this.after.disabled = stop === this.listed.length;
    this.state.textContent = `Rows ${this.start + 1} to ${stop} of ${this.listed.length}`;
  }

  #line(row) {
    const { rows } = this;
    const line = document.createElement("tr");
    line.dataset.row = row;
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = rows.title(row);
    const size = document.createElement("data");
    size.value = rows.exact[row];
    size.textContent = formatBytes(rows.exact[row]);
    const runs = cell("runs on", rows.runsElsewhere(row) ? rows.place(rows.runs[row]) : "the same");
    runs.classList.toggle("same", !rows.runsElsewhere(row)); // left out where there is little room
    line.append(name,
      cell("lies on", span(`swatch ${rows.style(rows.homes[row])}`, ""), rows.place(rows.homes[row])),
      runs,
      cell("size", size),
      cell("why", this.#why(row)));
    return line;
  }

  #why(row) {
    const { rows, reasons } = this;
    const block = reasons.block(row);
    if (block !== row) return `as part of ${rows.title(block)}`;
    const found = reasons.of(row);
    const own = found.filter((reason) => reason.row === row);
    if (own.length) return own.map((reason) => reasons.sentence(reason)).join(" ");
    if (rows.originals.has(row)) return `the same tensor as ${rows.title(rows.originals.get(row))}`;
    if (rows.homes[row] === NOWHERE) return "";
    return found.length ? `${counted(found.length, "decision")} on what is inside` : reasons.undecided;
  }
}

function cell(label, ...content) {
  const element = document.createElement("td");
  element.dataset.label = label;
  element.append(...content);
  return element;
}
