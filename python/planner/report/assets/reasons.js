// Decisions of a plan, by row.

const MOST_REASONS = 5;

class Reasons {
  constructor(rows, data) {
    this.rows = rows;
    this.words = data.words;
    this.undecided = data.undecided;
    this.placing = new Set(data.placing); // rules that say where a module lies; others say what was tried
    this.all = data.reasons.map(([rule, row, device, needed, available], index) =>
      ({ rule, row, device, needed, available, index }));
    this.byRow = [...this.all].sort((left, right) => left.row - right.row || left.index - right.index);
  }

  // Those about the row, what is around it and what is inside it, in the plan's order.
  of(row) {
    const around = this.rows.path(row).slice(0, -1).flatMap((outer) => this.#between(outer, outer + 1));
    const inside = this.#between(row, this.rows.ends[row]);
    return [...around, ...inside].sort((left, right) => left.index - right.index);
  }

  isDecided(row) {
    return this.#between(row, row + 1).some((reason) => this.placing.has(reason.rule));
  }

  // Nearest module around the row, itself included, that was given its place.
  block(row) {
    for (let outer = row; outer > 0; outer = this.rows.parents[outer]) {
      if (this.isDecided(outer)) return outer;
    }
    return row;
  }

  sentence(reason) {
    const values = {
      name: this.rows.full[reason.row],
      device: reason.device,
      needed: String(reason.needed),
      available: reason.available === null ? "unlimited" : String(reason.available),
    };
    return this.words[reason.rule].replace(/\{(\w+)\}/g, (_, field) => values[field]);
  }

  #between(first, end) {
    return this.byRow.slice(this.#lowest(first), this.#lowest(end));
  }

  // Index of the first reason of a row or one after it.
  #lowest(row) {
    let low = 0, high = this.byRow.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.byRow[middle].row < row) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
