"use strict";
(() => {
  // what a screen shows of a long table before it is asked for more
  const SCREEN = 40;
  const SMALL = 8;
  const UNITS = { k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15 };
  const collator = new Intl.Collator("en", { numeric: true });

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  // --- tables: sorting, filtering, folding

  function numberIn(text) {
    if (/^[+]?(inf|∞)/i.test(text)) return Infinity;
    if (/^-(inf|∞)/i.test(text)) return -Infinity;
    const found = /^[-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?(?=\s*([kMGTP])?)/i.exec(text);
    return found ? parseFloat(found[0].replaceAll(",", "")) * (UNITS[found[1]] || 1) : NaN;
  }

  function forest(rows) {
    const root = { children: [], depth: -1, open: true, path: "", parent: null };
    let last = root;
    for (const tr of rows) {
      const depth = Number(tr.dataset.depth || 0);
      while (last.depth >= depth) last = last.parent;
      const name = tr.cells[0].textContent.trim();
      const path = last.path ? `${last.path}.${name}` : name;
      const node = { tr, depth, path, parent: last, children: [], open: true, at: last.children.length, words: null };
      last.children.push(node);
      last = node;
    }
    return root;
  }

  // parents before children, in the order shown
  function* walk(root, into = () => true) {
    const pending = [...root.children].reverse();
    while (pending.length) {
      const node = pending.pop();
      yield node;
      if (into(node)) for (let i = node.children.length; i--; ) pending.push(node.children[i]);
    }
  }

  function enhance(table) {
    const body = table.tBodies[0];
    const root = forest(body.rows);
    const nodes = [...walk(root)];
    const folds = nodes.some((node) => node.children.length);
    const section = table.closest("section");
    const heading = section.querySelector(".title");
    const title = heading ? heading.textContent : "the table";
    let query = "";
    let limit = SCREEN;

    if (folds && nodes.length > SCREEN) {
      const counts = [];
      for (const node of nodes) counts[node.depth] = (counts[node.depth] || 0) + 1;
      let level = 0;
      for (let shown = counts[0]; level + 1 < counts.length && (shown += counts[level + 1] || 0) <= SCREEN; ) level++;
      for (const node of nodes) node.open = node.depth < level;
    }

    const more = make("button", { type: "button", className: "more" });
    more.onclick = () => { limit = Infinity; update(); };
    table.parentElement.after(more);
    const told = make("output", {});

    function update() {
      let shown = null;
      if (query) {
        shown = new Set();
        for (const node of nodes) {
          node.words ??= `${node.path}\n${node.tr.textContent}`.toLowerCase();
          if (node.words.includes(query)) for (let n = node; n !== root && !shown.has(n); n = n.parent) shown.add(n);
        }
      } else {
        shown = new Set(walk(root, (node) => node.open));
      }
      let seen = 0;
      for (const node of walk(root)) {
        const visible = shown.has(node) && seen < limit;
        seen += shown.has(node);
        node.tr.hidden = !visible;
        node.twist?.setAttribute("aria-expanded", String(Boolean(query) || node.open));
        if (node.twist) node.twist.disabled = Boolean(query);
      }
      more.hidden = seen <= limit;
      more.textContent = `Show all ${seen.toLocaleString("en")} rows`;
      told.textContent = query ? `${seen.toLocaleString("en")} of ${nodes.length.toLocaleString("en")}` : "";
    }

    for (const node of nodes) {
      if (!node.children.length) continue;
      node.twist = make("button", { type: "button", className: "twist" });
      node.twist.setAttribute("aria-label", `what is in ${node.path.slice(-200)}`);
      node.twist.onclick = () => {
        node.open = !node.open;
        if (node.open) limit += [...walk(node, (below) => below.open)].length;
        update();
      };
      node.tr.cells[0].prepend(node.twist);
    }

    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((th, column) => {
      if (nodes.length < 2) return;
      const numeric = th.classList.contains("number") || th.classList.contains("share");
      const button = make("button", { type: "button" }, ...th.childNodes);
      th.append(button);
      button.onclick = () => {
        const first = numeric ? "descending" : "ascending";
        const before = th.getAttribute("aria-sort");
        const next = !before ? first : before !== first ? null : numeric ? "ascending" : "descending";
        for (const other of heads) other.removeAttribute("aria-sort");
        if (next) th.setAttribute("aria-sort", next);
        sort(next && column, numeric, next === "descending" ? -1 : 1);
      };
    });

    function sort(column, numeric, sign) {
      const key = (node) => {
        const text = node.tr.cells[column].textContent.trim();
        return numeric ? numberIn(text) : text;
      };
      const empty = (value) => value === "" || Number.isNaN(value);
      const compare = (a, b) => {
        if (empty(a.key) || empty(b.key)) return empty(a.key) - empty(b.key) || a.at - b.at;
        return sign * (numeric ? (a.key > b.key) - (a.key < b.key) : collator.compare(a.key, b.key)) || a.at - b.at;
      };
      if (column !== null) for (const node of nodes) node.key = key(node);
      for (const node of [root, ...nodes]) node.children.sort(column === null ? (a, b) => a.at - b.at : compare);
      // all at once: to move rows out of a long table one by one takes minutes
      body.replaceChildren();
      const ordered = document.createDocumentFragment();
      for (const node of walk(root)) ordered.append(node.tr);
      body.append(ordered);
      update();
    }

    if (nodes.length > SMALL || folds) {
      const tools = make("div", { className: "tools" });
      if (folds) {
        const all = (open) => () => {
          for (const node of nodes) node.open = open;
          limit = open ? Infinity : SCREEN;
          update();
        };
        tools.append(make("button", { type: "button", onclick: all(true) }, "Expand all"));
        tools.append(make("button", { type: "button", onclick: all(false) }, "Collapse all"));
      }
      if (nodes.length > SMALL) {
        const input = make("input", { type: "search", placeholder: "Filter", autocomplete: "off", spellcheck: false });
        input.setAttribute("aria-label", `Filter ${title}`);
        input.oninput = () => {
          query = input.value.trim().toLowerCase();
          update();
        };
        tools.append(told, input);
      }
      const head = make("div", { className: "head" });
      section.prepend(head);
      head.append(...(heading ? [heading] : []), tools);
    }
    update();
  }

  // --- hints: what a title says, at once, on hover and on focus

  const tip = make("div", { id: "tip", hidden: true });
  document.body.append(tip);

  function hint(target) {
    const titled = target.closest?.("[title], [data-tip], rect");
    if (!titled) return (tip.hidden = true);
    const inner = titled.querySelector(":scope > title");
    titled.dataset.tip ??= inner ? inner.textContent : titled.title;
    inner?.remove();
    titled.removeAttribute("title");
    tip.textContent = titled.dataset.tip;
    tip.hidden = false;
    const at = titled.getBoundingClientRect();
    const left = Math.min(Math.max(at.left + at.width / 2 - tip.offsetWidth / 2, 8), innerWidth - tip.offsetWidth - 8);
    const above = at.top - tip.offsetHeight - 6;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : at.bottom + 6}px`;
  }
  document.addEventListener("pointerover", (event) => hint(event.target));
  document.addEventListener("focusin", (event) => hint(event.target));
  document.addEventListener("scroll", () => (tip.hidden = true), { passive: true, capture: true });
  document.addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));

  // --- heat maps: one stop for the tab key, arrows within

  for (const heat of document.querySelectorAll(".heat")) {
    const strips = [...heat.querySelectorAll("ul")].map((ul) => [...ul.children]).filter((cells) => cells.length);
    strips.flat().forEach((cell, at) => (cell.tabIndex = at ? -1 : 0));
    heat.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      const row = strips.findIndex((cells) => cells.includes(event.target));
      if (!step || row < 0) return;
      const cells = strips[row + step[0]];
      const at = strips[row].indexOf(event.target) + step[1];
      const next = cells && cells[Math.min(at, cells.length - 1)];
      if (!next || at < 0) return;
      event.preventDefault();
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }

  for (const table of document.querySelectorAll("table")) enhance(table);
})();
