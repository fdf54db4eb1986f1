// Modules and tensors in preorder: what is inside a row are the rows up to its end.

// Places that are no device.
const SEVERAL = -1;
const NOWHERE = -2;

class Rows {
  constructor(data) {
    this.devices = data.devices;
    this.names = data.names;
    this.parents = data.parents;
    this.exact = data.bytes;
    this.sizes = data.bytes.map(Number);
    this.homes = data.homes;
    this.runs = data.runs;
    this.originals = new Map(data.originals);
    this.count = data.names.length;
    this.ends = this.#ends();
    this.full = this.#fullNames();
    this.own = this.#ownSizes();
  }

  // Row after the last one inside each.
  #ends() {
    const ends = Int32Array.from(this.names, (_, row) => row + 1);
    for (let row = this.count - 1; row > 0; row--) {
      const above = this.parents[row];
      if (ends[row] > ends[above]) ends[above] = ends[row];
    }
    return ends;
  }

  #fullNames() {
    const full = new Array(this.count);
    full[0] = "";
    for (let row = 1; row < this.count; row++) {
      const above = this.parents[row];
      full[row] = above ? `${full[above]}.${this.names[row]}` : this.names[row];
    }
    return full;
  }

  // Bytes of each row without what is inside it.
  #ownSizes() {
    const own = Float64Array.from(this.sizes);
    for (let row = 1; row < this.count; row++) own[this.parents[row]] -= this.sizes[row];
    return own;
  }

  children(row) {
    const found = [];
    for (let child = row + 1; child < this.ends[row]; child = this.ends[child]) found.push(child);
    return found;
  }

  // Bytes inside a row by device, in the plan's order of devices.
  bytesByDevice(row) {
    const sums = this.devices.map(() => 0);
    for (let inner = row; inner < this.ends[row]; inner++) {
      if (this.homes[inner] >= 0) sums[this.homes[inner]] += this.own[inner];
    }
    return sums;
  }

  isInside(row, outer) {
    return outer <= row && row < this.ends[outer];
  }

  isLeaf(row) {
    return this.ends[row] === row + 1;
  }

  // From the model down to the row.
  path(row) {
    const path = [row];
    while (path[0] > 0) path.unshift(this.parents[path[0]]);
    return path;
  }

  title(row) {
    return row ? this.full[row] : "the model";
  }

  place(device) {
    return device >= 0 ? this.devices[device].place : device === SEVERAL ? "several devices" : "nowhere: no tensors";
  }

  style(device) {
    return device >= 0 ? this.devices[device].style : "several";
  }

  // Where it runs, if that is not where it lies.
  runsElsewhere(row) {
    return this.runs[row] !== this.homes[row] && this.homes[row] !== NOWHERE;
  }
}
