// What the treemap shows: a row, or a run of neighbours where a module has more children than anybody could tell apart.

const MOST_CHILDREN = 120;

class Node {
  constructor(rows, members, parent) {
    this.rows = rows;
    this.members = members; // neighbours, in order; one unless it is a run
    this.row = members[0];
    this.isRun = members.length > 1;
    this.parentRow = parent;
    this.size = members.reduce((sum, row) => sum + rows.sizes[row], 0);
    this.end = rows.ends[members[members.length - 1]];
  }

  get label() {
    const { names } = this.rows;
    if (!this.row) return "the model";
    return this.isRun ? `${names[this.row]} – ${names[this.members.at(-1)]}` : names[this.row];
  }

  get title() {
    if (!this.isRun) return this.rows.title(this.row);
    return `${this.rows.title(this.row)} – ${this.rows.names[this.members.at(-1)]}`;
  }

  get home() {
    return this.#common(this.rows.homes);
  }

  get run() {
    return this.#common(this.rows.runs);
  }

  // Whether there is something to go into.
  get canOpen() {
    return this.isRun || !this.rows.isLeaf(this.row);
  }

  // Whether its parts say more than itself: modules inside modules, or several devices.
  get isWorthOpening() {
    if (this.isRun || this.home === SEVERAL) return true;
    return this.rows.children(this.row).some((child) => !this.rows.isLeaf(child));
  }

  inside() {
    const below = this.isRun ? this.members : this.rows.children(this.row);
    const shown = below.filter((row) => this.rows.sizes[row] > 0);
    const parent = this.isRun ? this.parentRow : this.row;
    return inRuns(shown).map((members) => new Node(this.rows, members, parent));
  }

  #common(devices) {
    const first = devices[this.row];
    return this.members.every((row) => devices[row] === first) ? first : SEVERAL;
  }
}

// Rows one by one, or in equally long runs where there are too many.
function inRuns(members) {
  const length = Math.ceil(members.length / MOST_CHILDREN);
  const runs = [];
  for (let start = 0; start < members.length; start += length) runs.push(members.slice(start, start + length));
  return runs;
}
