// Decisions of a plan, by row.

const MOST_REASONS = 5;

class Reasons {
  constructor(rows, data) {
    this.rows = rows;
    this.words = data.words;
    this.undecided = data.undecided;
    this.places = new Map(data.devices.map(({ id, place }) => [id, place]));
    this.whyNotWords = data.whyNot;
    this.rooms = data.rooms.map((room) => room.map((size) => (size === null ? Infinity : Number(size))));
    this.ranks = data.ranks;
    this.placed = data.placed;
    this.blocks = new Set(data.blocks);
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
      device: this.places.get(reason.device) ?? reason.device,
      needed: String(reason.needed),
      available: reason.available === null ? "unlimited" : String(reason.available),
    };
    return this.words[reason.rule].replace(/\{(\w+)\}/g, (_, field) => values[field]);
  }

  // Why what is in one place is not on the other devices, a sentence for each.
  whyNot(row) {
    const { rows } = this;
    let block = row;
    while (block > 0 && !this.blocks.has(block)) block = rows.parents[block];
    if (!this.blocks.has(block)) return [];
    const isInside = (inner, outer) => inner >= outer && inner < rows.ends[outer];
    if (this.placed.some((placed) => isInside(block, placed) || isInside(placed, block))) return [this.whyNotWords.user];
    const needed = this.#needed(block), home = rows.homes[block];
    return this.rooms.flatMap(([room, free], device) => {
      if (device === home) return [];
      const rule = needed > room ? "too_small" : needed > free ? "no_room"
        : this.ranks[device] > (this.ranks[home] ?? 3) ? "slower" : "also";
      const values = {
        place: rows.place(device), home: rows.place(home), needed: formatBytes(needed),
        room: formatBytes(room), free: free === Infinity ? "no limit" : formatBytes(free),
      };
      return [this.whyNotWords[rule].replace(/\{(\w+)\}/g, (_, field) => values[field])];
    });
  }

  // With all that shares a place with it.
  #needed(block) {
    const own = this.#between(block, block + 1).find((reason) => this.placing.has(reason.rule));
    return Math.max(Number(own?.needed ?? 0), this.rows.sizes[block]);
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
