// Treemaps that keep the order of what they show: the strips of Bederson, Shneiderman and Wattenberg, 2002.

// Places items with a `size` into a box, in reading order. Returns [{ item, x, y, width, height }].
function inStrips(items, box) {
  const shown = items.filter((item) => item.size > 0);
  const total = shown.reduce((sum, item) => sum + item.size, 0);
  if (!total || box.width <= 0 || box.height <= 0) return [];
  const scale = (box.width * box.height) / total;
  const placed = [];
  let y = box.y;
  for (const strip of cutStrips(shown, box.width, scale)) {
    const height = stripHeight(strip, box.width, scale);
    let x = box.x;
    for (const item of strip) {
      const width = height > 0 ? (item.size * scale) / height : 0;
      placed.push({ item, x, y, width, height });
      x += width;
    }
    y += height;
  }
  return placed;
}

// Each strip goes on as long as its rectangles come nearer to squares; what is left for the last may be better off before.
function cutStrips(items, width, scale) {
  const strips = [];
  let strip = [];
  for (const item of items) {
    const longer = [...strip, item];
    if (strip.length && elongation(longer, width, scale) > elongation(strip, width, scale)) {
      strips.push(strip);
      strip = [item];
    } else strip = longer;
  }
  const before = strips.at(-1);
  if (before) {
    const apart = Math.max(elongation(before, width, scale), elongation(strip, width, scale));
    if (elongation([...before, ...strip], width, scale) < apart) strip = [...strips.pop(), ...strip];
  }
  return [...strips, strip];
}

function stripHeight(strip, width, scale) {
  return (scale * strip.reduce((sum, item) => sum + item.size, 0)) / width;
}

// How far the rectangles of a strip are from squares, on average.
function elongation(strip, width, scale) {
  const height = stripHeight(strip, width, scale);
  const ratios = strip.map((item) => (item.size * scale) / (height * height));
  return ratios.reduce((sum, ratio) => sum + Math.max(ratio, 1 / ratio), 0) / strip.length;
}
