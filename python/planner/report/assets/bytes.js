"use strict";
// Sizes as people read them. Exact numbers may arrive as strings, because JavaScript would round them.

// As planner.units.format_bytes writes them, to the last digit.
function formatBytes(size) {
  let value = Math.abs(Number(size));
  const sign = Number(size) < 0 ? "-" : "";
  if (value < 1024) return `${sign}${value} B`;
  let unit;
  for (unit of ["KiB", "MiB", "GiB", "TiB", "PiB"]) {
    value /= 1024;
    if (value < 1024) break;
  }
  return `${sign}${fixedToEven(value, value < 10 ? 2 : value < 100 ? 1 : 0)} ${unit}`;
}

// Like toFixed, but an exact half goes to the even digit, as in Python. Sizes are often exact halves: 1.125 GiB.
function fixedToEven(value, digits) {
  const scaled = value * 10 ** digits;
  const below = Math.floor(scaled);
  // A half of a size in binary units is exact, so the product is, too.
  if (scaled - below === 0.5) return ((below + (below % 2)) / 10 ** digits).toFixed(digits);
  return value.toFixed(digits);
}

function percent(part, whole) {
  if (!whole || !part) return "0 %";
  const share = (100 * part) / whole;
  return share < 0.1 ? "< 0.1 %" : `${share.toFixed(share < 10 ? 1 : 0)} %`;
}

function counted(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}
