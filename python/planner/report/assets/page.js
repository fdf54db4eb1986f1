// Brings the parts together. The module in view is in the address, so that the browser's own way back works.

function startPage() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = new Rows(data);
  const reasons = new Reasons(rows, data);
  const details = new Details(rows, reasons, data.running);
  const table = new Table(rows, reasons);
  const path = document.getElementById("path");
  const root = new Node(rows, [0], 0);
  let view = root, found = null;

  const tabs = new Tabs(document.getElementById("tabs"));
  const openInMap = (node) => { tabs.show("tab-map"); goInto(node); };
  new Lanes(rows, data, document.getElementById("lanes"), { onShow: (node) => details.show(node), onOpen: openInMap });
  const treemap = new Treemap(document.getElementById("map"), {
    onShow: (node) => details.show(node),
    onOpen: (node) => goInto(node),
    onBack: () => goBack(),
  });
  new Search(rows, {
    onFound: (matches) => { found = matches; treemap.mark(found); },
    onChoose: (row) => {
      openInMap(new Node(rows, [row ? rows.parents[row] : 0], 0));
      treemap.focusRow(row);
      details.show(new Node(rows, [row], rows.parents[row]));
    },
  });

  function draw() {
    treemap.draw(view);
    treemap.mark(found);
  }

  function look(node) {
    view = node;
    draw();
    table.show(view);
    details.show(view);
    path.replaceChildren(...crumbs());
  }

  function goInto(node) {
    look(node);
    treemap.focusFirst();
    const address = node.isRun ? "" : rows.full[node.row];
    if (!node.isRun && decodeAddress() !== address) location.hash = encodeURIComponent(address);
  }

  function goBack() {
    const above = view.isRun ? view.parentRow : rows.parents[view.row];
    if (above >= 0) goInto(new Node(rows, [above], 0));
  }

  function crumbs() {
    const last = view.isRun ? view.parentRow : view.row;
    const links = rows.path(last).map((row) => crumb(row ? rows.names[row] : "the model", () => goInto(new Node(rows, [row], 0))));
    if (view.isRun) links.push(crumb(view.label, () => {}));
    links.at(-1).setAttribute("aria-current", "true");
    return links;
  }

  function crumb(words, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = words;
    button.addEventListener("click", action);
    return button;
  }

  function decodeAddress() {
    try {
      return decodeURIComponent(location.hash.slice(1));
    } catch (error) {
      if (error instanceof URIError) return ""; // somebody else's address
      throw error;
    }
  }

  function followAddress() {
    const row = Math.max(0, rows.full.indexOf(decodeAddress()));
    if (view.isRun || view.row !== row) {
      tabs.show("tab-map");
      look(new Node(rows, [row], 0));
    }
  }

  drawLegend(rows);
  look(root);
  followAddress();
  window.addEventListener("hashchange", followAddress);
  new ResizeObserver(draw).observe(document.getElementById("map"));
}

function drawLegend(rows) {
  const entries = rows.devices.map((device) => item(span(`swatch ${device.style}`, ""), device.place));
  if (rows.homes.includes(SEVERAL)) entries.push(item(span("swatch several", ""), "several"));
  document.getElementById("legend").replaceChildren(...entries);
}

startPage();
