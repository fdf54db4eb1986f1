// One module in numbers and reasons.

class Details {
  // `running`: [row, facts] of blocks, what each needs while it runs.
  constructor(rows, reasons, running) {
    this.running = new Map(running);
    this.rows = rows;
    this.reasons = reasons;
    this.name = document.getElementById("details-name");
    this.facts = document.getElementById("details-facts");
    this.list = document.getElementById("details-reasons");
    this.others = document.getElementById("details-others");
    this.othersTitle = document.getElementById("details-others-title");
  }

  show(node) {
    const { rows } = this;
    this.name.textContent = node.title;
    const size = node.isRun ? node.size : rows.exact[node.row];
    const facts = [
      ["lies on", rows.place(node.home), rows.style(node.home)],
      ["size", formatBytes(size)],
      ["share", `${percent(node.size, rows.sizes[0])} of the model`],
    ];
    if (node.run !== node.home && node.home !== NOWHERE) facts.splice(1, 0, ["runs on", rows.place(node.run), rows.style(node.run)]);
    if (node.home === SEVERAL && !node.isRun) facts.push(...this.#parts(node.row));
    if (!node.isRun) facts.push(...this.#relations(node.row), ...(this.running.get(node.row) ?? []));
    this.facts.replaceChildren(...facts.flatMap(([term, words, style]) => this.#fact(term, words, style)));
    this.list.replaceChildren(...this.#sentences(node).map((words) => item(...words)));
    const others = node.isRun || node.home < 0 ? [] : this.reasons.whyNot(node.row);
    this.others.replaceChildren(...others.map((words) => item(words)));
    this.others.hidden = this.othersTitle.hidden = !others.length;
  }

  #parts(row) {
    const { rows } = this;
    return rows.bytesByDevice(row).flatMap((bytes, device) =>
      bytes ? [[`on ${rows.place(device)}`, formatBytes(bytes), rows.style(device)]] : []);
  }

  #relations(row) {
    const { rows } = this;
    const facts = [];
    const block = this.reasons.block(row);
    if (block !== row) facts.push(["block", rows.title(block)]);
    const shared = new Set();
    for (const [copy, first] of rows.originals) {
      if (rows.isInside(copy, row) && !rows.isInside(first, row)) shared.add(rows.title(first));
      if (shared.size > MOST_REASONS) break;
    }
    if (shared.size) facts.push(["counted at", [...shared].slice(0, MOST_REASONS).join(", ")]);
    return facts;
  }

  #sentences(node) {
    if (node.home === SEVERAL && !node.isRun) return []; // each block inside has its own
    const found = this.reasons.of(node.row);
    const all = node.isRun ? found.filter((reason) => node.row <= reason.row) : found;
    const sentences = all.slice(0, MOST_REASONS).map((reason) => [this.reasons.sentence(reason)]);
    if (all.length > MOST_REASONS) sentences.push([`and ${counted(all.length - MOST_REASONS, "more reason")}.`]);
    if (!all.length && node.home !== NOWHERE) sentences.push([this.reasons.undecided]);
    return sentences;
  }

  #fact(term, words, style) {
    const title = document.createElement("dt");
    title.textContent = term;
    const text = document.createElement("dd");
    if (style) text.append(span(`swatch ${style}`, ""));
    text.append(words);
    return [title, text];
  }
}

function item(...content) {
  const element = document.createElement("li");
  element.append(...content);
  return element;
}
