(function () {
  const $ = (id) => document.getElementById(id);
  const NAMES = [["IMAGE"], ["LEFT", "RIGHT"]];
  const SMALL = 200; // pixels: below this a picture is shown with its pixels told apart
  let images = [], offered = Math.floor(Math.random() * 1e6);

  /** The part of a picture that a step was given, as drawn by SVG, with boxes in pixels of that part. */
  function region(value, pictures, boxes, alt) {
    const root = pictures[value.image];
    if (!root) return null;
    const [x1, y1, x2, y2] = value.region;
    const svg = el("svg", { class: "region", viewBox: `${x1} ${y1} ${x2 - x1} ${y2 - y1}`, role: "img", "aria-label": alt });
    const small = root.width < SMALL ? "small" : "";
    svg.append(el("image", { href: root.src, width: root.width, height: root.height, preserveAspectRatio: "none", class: small }));
    for (const [kind, list] of boxes)
      for (const [bx1, by1, bx2, by2, score] of list) {
        const place = { x: x1 + bx1, y: y1 + by1, width: Math.max(0, bx2 - bx1), height: Math.max(0, by2 - by1) };
        svg.append(el("rect.halo", place), el(`rect.${kind}`, place, el("title", {}, score == null ? kind : `${kind} ${score.toFixed(2)}`)));
      }
    return svg;
  }

  const isImage = (value) => value && typeof value === "object" && "image" in value && "region" in value;
  const isBox = (value) => Array.isArray(value) && value.length === 5 && value.every((part) => typeof part === "number");
  function boxesOf(value) {
    if (isBox(value)) return [value];
    if (Array.isArray(value)) return value.flatMap(boxesOf);
    return value && typeof value === "object" && value.object ? [value.object.box] : [];
  }

  /** A value in few words. */
  function say(value) {
    if (value === true || value === false) return value ? "yes" : "no";
    if (value == null) return "nothing";
    if (typeof value === "number") return String(Math.round(value * 1e4) / 1e4);
    if (isImage(value)) return `a picture of ${value.region[2] - value.region[0]} × ${value.region[3] - value.region[1]} pixels`;
    if (isBox(value)) return `a box at (${value.slice(0, 4).map(Math.round).join(", ")})`;
    if (Array.isArray(value)) {
      const boxes = boxesOf(value).length;
      if (!value.length) return "none";
      return boxes === value.length ? `${boxes} ${boxes === 1 ? "box" : "boxes"}` : value.map(say).join(", ");
    }
    return typeof value === "string" ? value : text(value);
  }

  function distribution(step) {
    const found = Object.entries(step.output_dist || {}).sort((a, b) => b[1] - a[1]).filter(([, p], i) => i < 4 && (i < 2 || p >= 0.02));
    if (!found.length) return null;
    return el("div.dist", { role: "group", "aria-label": "How probable the module thinks each answer" }, found.flatMap(([answer, p]) => [
      el("span", {}, answer),
      el("span.bars", {}, el("span.after", {}, el("i", { style: `width:${(100 * p).toFixed(1)}%` }), `${(100 * p).toFixed(0)} %`)),
    ]));
  }

  function stepItem(step, line, pictures) {
    const args = Object.entries(step.args), seen = [];
    const asked = args.map(([, value]) => value).find(isImage);
    if (asked) seen.push(region(asked, pictures, [["given", boxesOf(step.args.box)], ["found", boxesOf(step.output)]], "What this step looked at"));
    if (isImage(step.output)) seen.push(region(step.output, pictures, [], "What this step made"));
    const figures = seen.filter(Boolean).map((svg) => el("figure", {}, svg));
    const call = line || `${step.module}(${args.map(([name, value]) => `${name}=${typeof value === "string" ? JSON.stringify(value) : isImage(value) ? "image" : say(value)}`).join(", ")})`;
    const answer = step.error ? el("span.flag", {}, step.error) : el("dl.said", {}, el("div", {}, el("dt", {}, "answer"), el("dd", {}, say(step.output))));
    const side = el("div.side", {}, source(call), answer, step.out_of_vocabulary && el("span.flag", {}, "this module does not know all of these words"), isImage(step.output) && args.some(([, value]) => Array.isArray(value) && !value.length) && el("span.flag", {}, "a fallback: there was no box"), distribution(step));
    return el(`li.step${figures.length ? "" : ".plain"}`, {}, el("span.number", {}, String(step.step + 1)), figures.length > 0 && el("div.seen", {}, figures), side, el("time", {}, `${step.ms.toFixed(1)} ms`));
  }

  function showError(problem) {
    $("result").hidden = false;
    $("answer").replaceChildren(el("p.story", {}, [problem.where, problem.message].filter(Boolean).join(": "), problem.remedy ? ` — ${problem.remedy}` : ""));
    $("trace").replaceChildren();
    $("written").hidden = !$("program").value;
    if (problem.kind === "key") { $("keyed").hidden = false; $("key").focus(); }
  }

  function show(found, seconds) {
    $("result").hidden = false;
    const pictures = found.pictures || {}, program = found.program || { text: "", dsl: $("dsl").value, source: "" };
    if (program.text) { $("program").value = program.text; $("program").rows = Math.min(16, program.text.split("\n").length + 1); $("program").dataset.dsl = program.dsl; }
    $("written").hidden = !program.text;
    $("source").textContent = program.source && program.source !== "client" ? `written by: ${program.source}` : "";
    if (found.error) showError(found.error);
    else {
      const shown = isImage(found.answer) ? region(found.answer, pictures, [], "The answer") : null;
      const notes = found.images.flatMap((image) => image.notes);
      const facts = [found.confidence != null && `confidence ${(100 * found.confidence).toFixed(0)} %`, `${(1000 * seconds).toFixed(0)} ms`, ...notes].filter(Boolean);
      $("answer").replaceChildren(el("p.says", {}, shown || say(found.answer)), el("p.facts-line", {}, facts.join(" · ")));
    }
    const lines = program.dsl === "visprog" ? program.text.split("\n").map((line) => line.trim()).filter((line) => line && !line.startsWith("#")) : [];
    $("trace").replaceChildren(el("ol.steps", {}, (found.steps || []).map((step) => stepItem(step, lines[step.step], pictures))));
  }

  const unreachable = (error) => ({ message: `the server does not answer: ${error.message}`, remedy: "is it still running?" });

  async function send(path, body) {
    const headers = { "Content-Type": "application/json" };
    if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
    const response = await fetch(path, body === undefined ? { headers } : { method: "POST", headers, body: JSON.stringify(body) });
    return response.json();
  }

  /** Ask the server; while it works, nothing else can be asked. */
  async function ask(path, more) {
    if (!images.length) return showError({ message: "There is no picture yet.", remedy: "choose one, or have one shown" });
    const buttons = [$("ask"), $("run")], began = performance.now();
    buttons.forEach((button) => { button.disabled = true; });
    try {
      const found = await send(path, { images: images.map((image) => image.data), pictures: true, ...more });
      if (found.steps || found.status) show(found, (performance.now() - began) / 1000);
      else showError(found.error);
    } catch (error) {
      showError(unreachable(error));
    } finally {
      buttons.forEach((button) => { button.disabled = false; });
    }
  }

  function place(list) {
    images = list.slice(0, 2);
    $("inputs").replaceChildren(...images.map(({ url }, i) => {
      const img = el("img", { alt: NAMES[images.length - 1][i] });
      img.addEventListener("load", () => img.classList.toggle("small", img.naturalWidth < SMALL));
      img.addEventListener("error", () => { img.alt = "this browser cannot show it; the server may still read it"; });
      img.src = url;
      return img;
    }));
  }

  async function read(files) {
    const list = [...files].slice(0, 2).map((file) => new Promise((done) => {
      const reader = new FileReader();
      reader.onload = () => done({ data: reader.result.slice(reader.result.indexOf(",") + 1), url: URL.createObjectURL(file) });
      reader.readAsDataURL(file);
    }));
    if (list.length) { place(await Promise.all(list)); $("ideas").replaceChildren(); }
  }

  /** A picture of the server's own; at first its absence is nobody's trouble. */
  async function offer(first) {
    let found;
    try {
      found = await send(`/v1/sample?number=${offered}`);
    } catch (error) {
      return showError(unreachable(error));
    }
    if (found.error) return first && found.error.kind === "input" ? undefined : showError(found.error);
    offered = (offered + 1) % 1e6;
    place([{ data: found.picture, url: `data:${found.type};base64,${found.picture}` }]);
    $("question").value = found.questions[0];
    $("ideas").replaceChildren(...found.questions.map((question) => {
      const chip = el("button", { type: "button" }, question);
      chip.addEventListener("click", () => { $("question").value = question; $("form").requestSubmit(); });
      return chip;
    }));
  }

  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = $("question").value.trim();
    if (question) ask("/v1/solve", { question, dsl: $("dsl").value });
    else $("question").focus();
  });
  $("run").addEventListener("click", () => ask("/v1/run", { program: $("program").value, dsl: $("program").dataset.dsl }));
  $("offer").addEventListener("click", () => offer(false));
  $("file").addEventListener("change", (event) => read(event.target.files));
  for (const kind of ["dragover", "dragleave", "drop"])
    $("drop").addEventListener(kind, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") read(event.dataTransfer.files);
    });
  offer(true);
})();
