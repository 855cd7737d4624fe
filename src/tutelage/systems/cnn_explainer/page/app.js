"use strict";
// The page: pictures in, one view at a time, and what the keys, the buttons and the clock do.
const App = (() => {
  const { make } = Draw;
  const at = (id) => document.getElementById(id);
  const model = JSON.parse(at("model").textContent),
    pictures = JSON.parse(at("pictures").textContent);
  const { channels, size } = model.input,
    columns = Layout.columns(model),
    prepared = Engine.prepare(model);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let data = null,
    view = null,
    cell = null,
    playing = !calm.matches,
    asked = 0,
    begun = 0;

  // -- the engine -----------------------------------------------------------------------------------------------------

  let worker = null;
  const startWorker = () => {
    try {
      worker = new Worker(URL.createObjectURL(new Blob([at("engine").textContent], { type: "text/javascript" })));
      worker.onmessage = ({ data: answer }) => answer.id === asked && arrived(answer);
      worker.onerror = () => {
        worker = null;
        compute(compute.pixels);
      };
      worker.postMessage({ model });
    } catch {
      worker = null; // some browsers allow a file page no worker: the page computes itself, a little less smoothly
    }
  };

  /** Compute a picture, pixels 0..255 [C, H, W]; its answer fills the page. */
  const compute = (pixels) => {
    asked++;
    begun = performance.now();
    compute.pixels = pixels;
    if (worker) return worker.postMessage({ id: asked, pixels });
    const started = performance.now(),
      outputs = Engine.forward(prepared, Engine.normalize(pixels, model.input));
    arrived({ id: asked, outputs, milliseconds: performance.now() - started });
  };

  const arrived = ({ id, outputs, milliseconds }) => {
    const input = Engine.normalize(compute.pixels, model.input);
    const values = columns.map((column) =>
      column.type === "picture" ? compute.pixels : column.layer === -1 ? input : outputs[column.layer],
    );
    const flat = (column) => values[columns[column].before];
    data = {
      id,
      pixels: compute.pixels,
      model: prepared,
      outputs,
      values,
      flat,
      softmax: Engine.softmax(outputs.at(-1)),
      milliseconds,
      limits: [],
    };
    recolor();
    document.body.dataset.picture = id;
    document.body.dataset.milliseconds = (performance.now() - begun).toFixed(1);
    say(null);
  };

  const recolor = () => {
    if (!data) return;
    const groups = Layout.groups(columns, at("scale").value),
      most = new Map();
    columns.forEach(
      (column, i) => column.type === "output" || most.set(groups[i], Math.max(most.get(groups[i]) ?? 0, Draw.largest(data.values[i]))),
    );
    data.limits = columns.map((_, i) => most.get(groups[i]) || 1);
    Stage.paint(data);
    if (view) refresh();
  };

  // -- pictures -------------------------------------------------------------------------------------------------------

  const samples = pictures.map((text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));

  const addSample = (pixels, name) => {
    const canvas = make("canvas"),
      button = make(
        "button",
        { type: "button", className: "sample", attributes: { role: "radio", "aria-checked": "false", "aria-label": name }, tabIndex: -1 },
        canvas,
      );
    Draw.picture(canvas, pixels, channels, size);
    button.addEventListener("click", () => choose(button, pixels));
    at("samples").append(button);
    return button;
  };

  const choose = (button, pixels) => {
    for (const other of at("samples").children) {
      other.setAttribute("aria-checked", other === button);
      other.tabIndex = other === button ? 0 : -1;
    }
    compute(pixels);
  };

  /** Any picture the browser can read, cut to its middle square, laid over white, as pixels [C, size, size]. */
  const readPicture = async (file) => {
    const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
    const side = Math.min(picture.width, picture.height),
      canvas = make("canvas", { width: size, height: size });
    let source = picture,
      [left, top, edge] = [(picture.width - side) / 2, (picture.height - side) / 2, side];
    while (edge > 2 * size) {
      // halved step by step, so that every pixel of a large picture counts
      const half = make("canvas", { width: Math.round(edge / 2), height: Math.round(edge / 2) });
      half.getContext("2d").drawImage(source, left, top, edge, edge, 0, 0, half.width, half.height);
      [source, left, top, edge] = [half, 0, 0, half.width];
    }
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, size, size);
    context.drawImage(source, left, top, edge, edge, 0, 0, size, size);
    const { data: rgba } = context.getImageData(0, 0, size, size),
      area = size * size,
      pixels = new Uint8Array(channels * area);
    for (let i = 0; i < area; i++) {
      const [r, g, b] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
      if (channels === 1) pixels[i] = Math.round(0.299 * r + 0.587 * g + 0.114 * b);
      else [r, g, b].forEach((value, c) => (pixels[c * area + i] = value));
    }
    return pixels;
  };

  const upload = async (file) => {
    if (!file) return;
    try {
      const pixels = await readPicture(file);
      choose(addSample(pixels, `Your picture ${file.name ?? ""}`.trim()), pixels);
    } catch {
      say(`${file.name || "This file"} is no picture that the browser can read. Choose a PNG, JPEG, WebP or GIF.`, true);
    }
  };

  // -- views ----------------------------------------------------------------------------------------------------------

  /** Show a view: null is the overview, else {column, unit, part}. */
  const go = (next, moving = true) => {
    if (!data) return;
    const from = view;
    view = next;
    const oneToOne = next && !["conv", "linear", "output"].includes(columns[next.column].type);
    at("scene").classList.toggle("open", next !== null);
    at("scene").classList.toggle("narrow", Boolean(oneToOne));
    Stage.show(view, moving && !calm.matches);
    drawPath();
    at("panel").replaceChildren();
    cell = null;
    if (view) {
      cell = Panels.build(at("panel"), { data, view, columns, model });
      if (from?.column !== view.column || from?.unit !== view.unit)
        at("panel").animate?.(
          calm.matches
            ? []
            : [
                { opacity: 0, transform: "translateY(6px)" },
                { opacity: 1, transform: "none" },
              ],
          { duration: 450, delay: 150, fill: "backwards", easing: "ease-out" },
        );
      Stage.focusRow();
      const [path, panel] = [at("path"), at("panel")].map((element) => element.getBoundingClientRect());
      const scroll = (element) => element.scrollIntoView({ block: "start", behavior: calm.matches ? "auto" : "smooth" });
      if (view.part !== null && panel.top + 240 > innerHeight) scroll(at("panel"));
      else if (path.top < 50) scroll(at("path"));
    } else if (from) Stage.focusNode(from.column, from.unit);
    document.body.dataset.view = view === null ? "overview" : view.part === null ? "neuron" : "formula";
    say(null);
  };

  const refresh = () => {
    Stage.show(view, false);
    cell = Panels.build(at("panel"), { data, view, columns, model });
  };

  const open = (column, unit) => {
    if (view && view.column === column && view.unit === unit) return;
    if (columns[column].before === null) return say("This is the picture itself. Open a map of a later layer.", true);
    go({ column, unit, part: null });
  };
  const choosePart = (part) => go({ ...view, part });
  const up = () => view && go(view.part === null ? null : { ...view, part: null });
  const neighbor = (step) => {
    const { count } = columns[view.column];
    if (count > 1) go({ ...view, unit: (view.unit + step + count) % count });
  };

  const drawPath = () => {
    const crumb = (text, to) =>
      to === undefined ? make("span", { textContent: text, attributes: { "aria-current": "page" } }) : link(text, to);
    const link = (text, to) => {
      const button = make("button", { type: "button", textContent: text });
      button.addEventListener("click", () => go(to));
      return button;
    };
    const path = at("path");
    path.hidden = view === null;
    if (view === null) return path.replaceChildren();
    const turn = (text, step, label) => {
      const button = make("button", { type: "button", className: "turn", textContent: text, ariaLabel: label });
      button.addEventListener("click", () => neighbor(step));
      return button;
    };
    const column = columns[view.column],
      name = Stage.name(view.column, view.unit),
      many = column.count > 1;
    const home = crumb("←", null);
    home.ariaLabel = "All layers";
    home.append(make("span", { className: "word", textContent: " All layers" }));
    path.replaceChildren(
      home,
      "›",
      ...(many ? [turn("‹", -1, "The one before")] : []),
      view.part === null ? crumb(name) : crumb(name, { ...view, part: null }),
      ...(many ? [turn("›", 1, "The next one")] : []),
      ...(view.part === null
        ? []
        : ["›", crumb(columns[column.before].maps ? Stage.name(column.before, view.part) : columns[column.before].name)]),
    );
  };

  // -- words ----------------------------------------------------------------------------------------------------------

  const say = (text, warning = false) => {
    const status = at("status");
    status.classList.toggle("warning", warning);
    if (text !== null) status.textContent = text;
    else if (data) {
      const best = data.softmax.probabilities.indexOf(Math.max(...data.softmax.probabilities));
      status.textContent = `The network takes this for: ${model.classes[best]}, ${Draw.percent(data.softmax.probabilities[best])}. Computed in ${data.milliseconds.toFixed(0)} ms.`;
    }
  };

  const hovered = (place) => {
    if (!data || place === null) return say(null);
    const column = columns[place.column],
      values = data.values[place.column],
      name = Stage.name(place.column, place.unit);
    if (column.type === "output")
      return say(`${name}: logit ${Draw.number(values[place.unit])}, probability ${Draw.percent(data.softmax.probabilities[place.unit])}.`);
    if (column.type === "picture") return say(`The picture, ${size} × ${size} pixels.`);
    const [, h = 1, w = 1] = column.shape,
      own = values.subarray(place.unit * h * w, (place.unit + 1) * h * w);
    const low = own.reduce((a, b) => Math.min(a, b)),
      high = own.reduce((a, b) => Math.max(a, b));
    say(h * w === 1 ? `${name}: ${Draw.number(own[0])}.` : `${name}: ${h} × ${w} values from ${Draw.number(low)} to ${Draw.number(high)}.`);
  };

  const setPlaying = (on) => {
    playing = on;
    at("play").textContent = on ? "Pause" : "Play";
    at("play").setAttribute("aria-pressed", on);
  };

  const tick = () => {
    if (!playing || document.hidden) return;
    if (cell && !at("panel").matches(":hover") && !at("panel").contains(document.activeElement)) cell.step();
  };

  const onKey = (event) => {
    if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") up();
    else if (event.key === " " && !event.target.closest("button, a")) {
      event.preventDefault();
      setPlaying(!playing);
    } else if (event.target.closest("#samples") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      const all = [...at("samples").children],
        next = all[(all.indexOf(event.target.closest("button")) + (event.key === "ArrowRight" ? 1 : -1) + all.length) % all.length];
      event.preventDefault();
      next.click();
      next.focus();
    }
  };

  const start = () => {
    startWorker();
    Stage.build(at("stage"), at("scene"), { model, columns }, { open, choose: choosePart, up, neighbor, hovered });
    const buttons = samples.map((pixels, i) => addSample(pixels, `Picture ${i + 1}`));
    Stage.show(null, false);
    setPlaying(playing);
    document.body.dataset.view = "overview";
    at("path").hidden = true;
    choose(buttons[0], samples[0]);
    at("scale").addEventListener("change", recolor);
    at("upload").addEventListener("click", () => at("file").click());
    at("file").addEventListener("change", () => {
      upload(at("file").files[0]);
      at("file").value = "";
    });
    at("play").addEventListener("click", () => setPlaying(!playing));
    at("details").addEventListener("click", () => {
      const on = at("details").getAttribute("aria-pressed") !== "true";
      at("details").setAttribute("aria-pressed", on);
      at("stage").classList.toggle("detailed", on);
    });
    for (const kind of ["dragover", "drop"])
      addEventListener(kind, (event) => {
        event.preventDefault();
        if (kind === "drop") upload(event.dataTransfer.files[0]);
      });
    addEventListener("paste", (event) => upload(event.clipboardData?.files[0]));
    addEventListener("keydown", onKey);
    const repaint = () => {
      Draw.forget();
      recolor();
    };
    new MutationObserver(repaint).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
    let width = at("scene").clientWidth;
    new ResizeObserver(() => {
      if (at("scene").clientWidth === width) return;
      width = at("scene").clientWidth;
      if (data && view) refresh();
      else Stage.show(null, false);
    }).observe(at("scene"));
    setInterval(tick, 90);
    setInterval(() => playing && !document.hidden && Playground.step(), 700);
    Playground.start();
  };

  start();
  return {
    get data() {
      return data;
    },
    get view() {
      return view;
    },
    columns,
    compute,
    go,
    readPicture,
  };
})();
