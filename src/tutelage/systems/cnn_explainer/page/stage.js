"use strict";
// The stage: every map of the network as a button, the edges between them, and the scene of one neuron.
const Stage = (() => {
  const { make } = Draw;
  let root,
    scene,
    model,
    columns,
    act,
    edges,
    hot,
    inner,
    extra,
    placed,
    sideways = true;
  let nodes = [],
    focus = { column: 0, unit: 0 },
    view = null,
    data = null;

  const build = (element, parent, given, actions) => {
    [root, scene, { model, columns }, act] = [element, parent, given, actions];
    [edges, inner, hot] = root.querySelectorAll("path");
    for (const column of columns) {
      const about = { picture: "input", output: "softmax" }[column.type] ?? column.type;
      const href = document.getElementById(`about-${about}`) ? `#about-${about}` : "#article";
      const shape = column.type === "output" ? `${column.count} classes` : column.type === "picture" ? "" : column.shape.join(" × ");
      column.label = make(
        "div",
        { className: "layer-name" },
        make("a", { href, textContent: column.name, title: `${column.name}${column.note ? `, ${column.note}` : ""}` }),
        make("small", { textContent: shape }),
      );
      column.legend = make("div", { className: "legend-bar" }, make("canvas"), make("small"));
      root.append(column.label, column.legend);
      nodes.push(Array.from({ length: column.count }, (_, unit) => node(column, unit)));
    }
    root.addEventListener("keydown", onKey);
    root.addEventListener("pointerleave", () => hover(null));
    scene.addEventListener("click", (event) => event.target.closest("button, a, canvas, .panel, .big") || act.up());
    extra = make("div", { className: "extra" });
    root.append(extra);
  };

  const node = (column, unit) => {
    const canvas = make("canvas", { width: 1, height: 1 });
    const element = make(
      "button",
      { type: "button", className: `node of-${column.type}${column.maps ? "" : " single"}`, tabIndex: -1 },
      canvas,
    );
    if (column.type === "output") {
      canvas.remove();
      element.append(
        make("span", { className: "class-name", textContent: model.classes[unit] }),
        make("span", { className: "class-share" }),
        make("i", { className: "class-bar" }),
      );
    }
    element.addEventListener("pointerenter", () => hover({ column: column.index, unit }));
    element.addEventListener("focus", () => {
      tab(column.index, unit);
      hover({ column: column.index, unit });
    });
    element.addEventListener("click", () => act.open(column.index, unit));
    root.append(element);
    return { element, canvas };
  };

  const tab = (column, unit) => {
    nodes[focus.column]?.[focus.unit] && (nodes[focus.column][focus.unit].element.tabIndex = -1);
    focus = { column, unit };
    nodes[column][unit].element.tabIndex = 0;
  };

  /** The units of the column before that a unit is computed from. */
  const sources = (column, unit) => {
    const { before, type } = columns[column];
    if (before === null) return [];
    if (type === "input" || ["conv", "linear", "output"].includes(type)) return Array.from({ length: columns[before].count }, (_, i) => i);
    return [unit];
  };

  const name = (column, unit) => {
    const { type, name: text, count } = columns[column];
    if (type === "output") return model.classes[unit];
    if (type === "picture") return "The picture";
    if (type === "input") return count === 3 ? `${["Red", "Green", "Blue"][unit]} channel` : "Input";
    return `${text}, ${columns[column].maps ? "map" : "unit"} ${unit + 1} of ${count}`;
  };

  // -- painting -------------------------------------------------------------------------------------------------------

  const paint = (given) => {
    data = given;
    columns.forEach((column, c) => {
      const [, h = 1, w = 1] = column.shape,
        values = data.values[c];
      nodes[c].forEach(({ element, canvas }, unit) => {
        let about = name(c, unit);
        if (column.type === "picture") Draw.picture(canvas, data.pixels, model.input.channels, model.input.size);
        else if (column.type === "input") Draw.picture(canvas, data.pixels, model.input.channels, model.input.size, unit);
        else if (column.type === "output") {
          const share = data.softmax.probabilities[unit];
          element.children[1].textContent = Draw.percent(share);
          element.style.setProperty("--share", share);
          element.classList.toggle("best", share === Math.max(...data.softmax.probabilities));
          about += `: probability ${Draw.percent(share)}`;
        } else Draw.paint(canvas, values, unit * h * w, h, w, data.limits[c], "map");
        element.ariaLabel = about;
      });
      const limit = data.limits[c],
        shown = !["picture", "input", "output"].includes(column.type);
      column.legend.hidden = !shown;
      if (shown) {
        Draw.legend(column.legend.firstChild, "map");
        column.legend.lastChild.textContent = `± ${Draw.number(limit)}`;
      }
    });
  };

  // -- where things stand ---------------------------------------------------------------------------------------------

  const put = ({ element }, x, y, size, shown = true, width = null) => {
    const own = Number(element.dataset.size);
    if (width !== null) element.style.width = `${width}px`;
    element.style.transform = `translate(${x}px, ${y}px) scale(${width === null ? size / own : 1})`;
    element.classList.toggle("away", !shown);
  };

  const show = (next, moving = true) => {
    const changed = JSON.stringify([next?.column, next?.unit]) !== JSON.stringify([view?.column, view?.unit]);
    view = next;
    root.classList.toggle("still", !moving);
    root.classList.toggle("one", view !== null);
    const width = scene.clientWidth,
      layout = Layout.overview(columns, width);
    sideways = layout.sideways;
    placed = layout.placed;
    if (view === null || !root.dataset.placed || !moving) {
      columns.forEach((column, c) =>
        nodes[c].forEach((one, unit) => {
          const at = placed[c].nodes[unit];
          one.element.dataset.size = at.size;
          Object.assign(one.element.style, { width: `${at.width ?? at.size}px`, height: `${at.size}px` });
        }),
      );
      root.dataset.placed = "yes";
    }
    columns.forEach((column, c) => {
      const { nodes: places, label } = placed[c];
      nodes[c].forEach((one, unit) =>
        put(one, places[unit].x, places[unit].y, places[unit].size, view === null, places[unit].width ?? null),
      );
      Object.assign(column.label.style, { transform: `translate(${label.x}px, ${label.y}px)`, width: `${label.width}px` });
      Object.assign(column.legend.style, {
        transform: `translate(${label.x}px, ${sideways ? layout.height - 26 : label.y}px)`,
        width: `${label.width}px`,
      });
    });
    edges.setAttribute("d", view === null ? columns.map((_, c) => edgesInto(c)).join("") : "");
    hover(null);
    if (view === null) {
      extra.replaceChildren();
      inner.setAttribute("d", "");
      root.style.height = `${layout.height}px`;
    } else neuron(width, changed);
    if (view === null) tab(focus.column, Math.min(focus.unit, columns[focus.column].count - 1));
  };

  const MOST_EDGES = 3000;
  const edgesInto = (c, unit = null) => {
    const units = unit === null ? nodes[c].keys() : [unit];
    const { before, count, type } = columns[c];
    if (before === null || (!sideways && type === "output") || (unit === null && count * columns[before].count > MOST_EDGES)) return "";
    let path = "";
    for (const to of units) for (const from of sources(c, to)) path += edge(placed[before].nodes[from], placed[c].nodes[to]);
    return path;
  };

  const edge = (from, to) => {
    if (sideways) return curve(from.x + from.size, from.y + from.size / 2, to.x, to.y + to.size / 2);
    const [x, y, left, top] = [from.x + from.size / 2, from.y + from.size, to.x + to.size / 2, to.y],
      middle = (y + top) / 2;
    return `M${x.toFixed(1)} ${y.toFixed(1)}C${x.toFixed(1)} ${middle.toFixed(1)} ${left.toFixed(1)} ${middle.toFixed(1)} ${left.toFixed(1)} ${top.toFixed(1)}`;
  };

  const curve = (x, y, left, top) => {
    const middle = ((x + left) / 2).toFixed(1);
    return `M${x.toFixed(1)} ${y.toFixed(1)}C${middle} ${y.toFixed(1)} ${middle} ${top.toFixed(1)} ${left.toFixed(1)} ${top.toFixed(1)}`;
  };

  const hover = (at) => {
    root.querySelectorAll(".feeds, .aimed").forEach((element) => element.classList.remove("feeds", "aimed"));
    root.classList.toggle("hovering", at !== null && view === null);
    if (view !== null) return;
    hot.setAttribute("d", at === null ? "" : edgesInto(at.column, at.unit));
    act.hovered(at);
    if (at === null) return;
    nodes[at.column][at.unit].element.classList.add("aimed");
    const { before } = columns[at.column];
    for (const unit of sources(at.column, at.unit)) nodes[before][unit].element.classList.add("feeds");
  };

  // -- one neuron -----------------------------------------------------------------------------------------------------

  const neuron = (width, changed) => {
    const column = columns[view.column],
      weighted = ["conv", "linear", "output"].includes(column.type);
    const maps = column.before !== null && columns[column.before].maps,
      from = sources(view.column, view.unit);
    const rows = weighted && maps ? from.length : 1;
    const at = Layout.neuron(rows, width, weighted);
    root.style.height = `${at.height}px`;
    hot.setAttribute("d", "");
    const own = column.type === "output" ? Math.min(168, at.whole - at.columns.sum - 40) : null;
    const left = own === null ? at.columns.out : at.whole - own,
      high = own === null ? at.out : placed[view.column].nodes[0].size;
    put(nodes[view.column][view.unit], left, at.middle - high / 2, high, true, own);
    if (maps || !weighted)
      from.forEach((unit, i) => put(nodes[column.before][unit], at.columns.source, at.rows[weighted ? i : 0], at.size));
    if (!changed && extra.childElementCount) extra.replaceChildren();
    extra.replaceChildren();
    extra.classList.toggle("fresh", changed);
    const lines = [],
      mid = (i) => at.rows[i] + at.size / 2;
    const caption = (text, x, y = 14) =>
      extra.append(make("span", { className: "heading", textContent: text, style: { transform: `translate(${x}px, ${y}px)` } }));
    if (!weighted) {
      lines.push(curve(at.columns.source + at.size + 4, at.middle, left - 4, at.middle));
      const text =
        {
          relu: "max(0, x)",
          pool: `largest of ${model.layers[column.layer]?.size ?? 2} × ${model.layers[column.layer]?.size ?? 2}`,
          mean: "mean",
        }[column.type] ?? "";
      extra.append(
        make("span", {
          className: "operation",
          textContent: text,
          style: { left: `${(at.columns.source + at.size + left) / 2}px`, top: `${at.middle}px` },
        }),
      );
    } else {
      const parts = Pieces.parts(data.model.layers[column.layer], data, view, columns);
      caption(maps ? "maps" : "values", at.columns.source);
      caption(column.type === "conv" ? "kernels" : "weights", at.columns.weight);
      caption("products", at.columns.product);
      parts.forEach((part, i) => {
        extra.append(row(part, i, at, maps));
        lines.push(
          curve(at.columns.source + at.size, mid(i), at.columns.weight, mid(i)),
          curve(at.columns.weight + at.size, mid(i), at.columns.product, mid(i)),
          curve(at.columns.product + at.size, mid(i), at.columns.sum, at.middle),
        );
      });
      lines.push(curve(at.columns.sum + 30, at.middle, left, at.middle));
      const bias = data.model.layers[column.layer].bias[view.unit];
      extra.append(
        make("span", { className: "sum", textContent: "Σ", style: { transform: `translate(${at.columns.sum}px, ${at.middle - 15}px)` } }),
      );
      extra.append(
        make("span", {
          className: "bias",
          textContent: `bias ${Draw.signed(bias)}`,
          style: {
            transform: `translate(${at.columns.sum + 15}px, ${at.middle + 24 + (at.phone ? (own ? 48 : 26) : 0)}px) translateX(-50%)`,
          },
        }),
      );
      if (column.type === "output")
        extra.append(
          make("span", {
            className: "bias",
            textContent: `logit ${Draw.number(data.values[view.column][view.unit])}`,
            style: { transform: `translate(${left + own / 2}px, ${at.middle + high / 2 + (at.phone ? 34 : 10)}px) translateX(-50%)` },
          }),
        );
    }
    inner.setAttribute("d", lines.join(""));
  };

  const row = (part, i, at, maps) => {
    const canvas = (values, kind, limit, x, [h, w]) => {
      const shown = make("canvas", { style: { left: `${x}px`, width: `${at.size}px`, height: `${at.size}px` } });
      Draw.paint(shown, values, 0, h, w, limit, kind);
      return shown;
    };
    const chosen = view.part === i;
    const element = make("button", {
      type: "button",
      className: `factor${chosen ? " chosen" : ""}`,
      tabIndex: i === (view.part ?? 0) ? 0 : -1,
      style: { top: `${at.rows[i] - 4}px`, height: `${at.size + 8}px`, width: `${at.columns.product + at.size + 4}px` },
      attributes: { "aria-pressed": chosen },
    });
    element.ariaLabel = `${part.name}: ${part.total === undefined ? "kernel and product" : `contributes ${Draw.number(part.total)}`}`;
    if (!maps) element.append(canvas(part.values, "map", part.limit, at.columns.source, part.shape));
    element.append(
      canvas(part.weight, "weight", part.weightLimit, at.columns.weight, part.weightShape),
      canvas(part.product, "map", part.productLimit, at.columns.product, part.productShape),
    );
    if (part.total !== undefined)
      extra.append(
        make("span", {
          className: "total",
          textContent: Draw.number(part.total),
          style: { transform: `translate(${at.columns.product + at.size + 6}px, ${at.rows[i] + at.size / 2}px) translateY(-50%)` },
        }),
      );
    element.addEventListener("click", () => act.choose(chosen ? null : i));
    return element;
  };

  // -- keys -----------------------------------------------------------------------------------------------------------

  const onKey = (event) => {
    const across = { ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0,
      down = { ArrowUp: -1, ArrowDown: 1 }[event.key] ?? 0;
    if (!across && !down) return;
    event.preventDefault();
    if (view !== null) {
      if (across) return act.neighbor(across);
      const rows = [...extra.querySelectorAll(".factor")],
        at = rows.indexOf(document.activeElement);
      rows[(at + down + rows.length) % rows.length]?.focus();
      return;
    }
    const [step, turn] = sideways ? [across, down] : [down, across];
    const column = Math.max(0, Math.min(columns.length - 1, focus.column + step)),
      count = columns[column].count;
    const unit = step
      ? Math.round((focus.unit / Math.max(1, columns[focus.column].count - 1)) * (count - 1))
      : (focus.unit + turn + count) % count;
    tab(column, unit);
    nodes[column][unit].element.focus();
  };

  const focusNode = (column, unit) => {
    tab(column, unit);
    nodes[column][unit].element.focus({ preventScroll: true });
  };

  const focusRow = () => (extra.querySelector(".factor.chosen") ?? extra.querySelector(".factor"))?.focus({ preventScroll: true });

  return { build, paint, show, name, sources, focusNode, focusRow };
})();
