(function () {
  "use strict";
  const { samples, labels } = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const SIDES = ["before", "after", "teacher"];
  let outcome = "all", shown = samples, index = 0;

  const tick = (right) => el(right ? "span.ok" : "span.no", {}, right ? "✓" : "✗");
  const nameOf = (task) => labels[task] || task;

  function kindOf(sample) {
    const { before, after } = sample.arms;
    return after.correct ? (before.correct ? "right" : "fixed") : before.correct ? "broken" : "wrong";
  }

  /** An image with boxes over it; boxes are in pixels of the image. */
  function picture(source, boxes, alt) {
    const overlay = el("svg", { "aria-hidden": "true" });
    const img = el("img", { alt });
    img.addEventListener("load", () => overlay.setAttribute("viewBox", `0 0 ${img.naturalWidth} ${img.naturalHeight}`));
    img.src = source;
    for (const [side, list] of boxes)
      for (const [x1, y1, x2, y2, score] of list || []) {
        const place = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) };
        if (side === "after") overlay.append(el("rect.halo", place));
        overlay.append(el(`rect.${side}`, place, el("title", {}, `${side} ${score == null ? "" : score.toFixed(2)}`)));
      }
    return el("span.picture", {}, img, overlay);
  }

  const boxesOf = (step, side) => (step[side] && step[side].boxes) || (side === "after" && step.boxes) || [];
  const hasBoxes = (step) => SIDES.some((side) => boxesOf(step, side).length);
  function isWrong(step, side) {
    const said = step[side];
    if (!said || said.value === undefined) return null;
    if (said.wrong != null) return said.wrong;
    return step.gold == null || hasBoxes(step) ? null : text(said.value) !== text(step.gold);
  }

  function distribution(step) {
    const sides = SIDES.filter((side) => step[side] && step[side].dist && Object.keys(step[side].dist).length);
    if (!sides.length) return null;
    const top = {};
    for (const side of sides) for (const [answer, p] of Object.entries(step[side].dist)) top[answer] = Math.max(top[answer] || 0, p);
    const answers = Object.keys(top).sort((a, b) => top[b] - top[a]).filter((answer, i) => i < 2 || (i < 5 && top[answer] >= 0.02));
    return el("div.dist", { role: "group", "aria-label": "Answer distributions" }, answers.flatMap((answer) => [
      el(answer === text(step.gold) ? "span.gold" : "span", {}, answer),
      el("span.bars", {}, sides.map((side) => {
        const p = step[side].dist[answer] || 0;
        return el(`span.${side}`, { title: side }, el("i", { style: `width:${(100 * p).toFixed(1)}%` }), `${(100 * p).toFixed(0)} %`);
      })),
    ]));
  }

  function said(step) {
    const swatch = { before: "--gray", after: "--us", teacher: "--violet" };
    const colour = (side) => (hasBoxes(step) ? { before: "#ff9500", after: "#00bfae", teacher: "#e0319f" }[side] : `var(${swatch[side]})`);
    const rows = SIDES.filter((side) => step[side]).map((side) => {
      const wrong = isWrong(step, side), conf = step[side].conf;
      return el("div", {}, el("dt", {}, el("svg", { width: 10, height: 10, "aria-hidden": "true" }, el("rect", { width: 10, height: 10, rx: 2, style: `fill:${colour(side)}` })), side),
        el("dd", {}, text(step[side].value), conf == null ? "" : ` (${(100 * conf).toFixed(0)} % sure)`, wrong == null ? "" : " ", wrong != null && tick(!wrong)));
    });
    if (step.gold != null) rows.push(el("div", {}, el("dt", {}, "gold"), el("dd", {}, text(step.gold))));
    return rows.length ? el("dl.said", {}, rows) : null;
  }

  function stepItem(step, images) {
    const key = step.image || (step.after && step.after.image) || (step.before && step.before.image);
    const image = key && (images[key] || (key.startsWith("data:image/") ? key : null));
    const body = el("div.side", {}, source(step.text), step.wrong && el("span.flag", {}, "went wrong here"), said(step), distribution(step));
    const view = el("figure", {}, image && picture(image, SIDES.map((side) => [side, boxesOf(step, side)]), `What step ${step.n + 1} was given`));
    return el(`li.step${step.wrong ? ".wrong" : ""}${image ? "" : ".plain"}`, {}, el("span.number", {}, String(step.n + 1)), view, body);
  }

  /** One sentence on where the program went wrong. */
  function story(sample) {
    const { before, after } = sample.arms, first = sample.steps.find((step) => step.wrong);
    const after_words = after.correct ? "After training the program is right." : `After training it still answers ${text(after.answer)}.`;
    if (!first) {
      if (before.correct && after.correct) return el("p.story.fine", {}, "Right before and after training.");
      if (before.correct) return el("p.story", {}, `Right before training; now the program answers ${text(after.answer)}.`);
      return el("p.story", {}, `No single step caused the wrong answer before training. ${after_words}`);
    }
    const module = first.module || "the program", gold = first.gold != null && !hasBoxes(first) ? ` instead of ${text(first.gold)}` : "";
    const value = first.before && first.before.value !== undefined ? ` said ${text(first.before.value)}${gold}` : " failed";
    return el(after.correct ? "p.story.fine" : "p.story", {}, `Before training it went wrong at step ${first.n + 1}: ${module}${value}. ${after_words}`);
  }

  function render(sample) {
    const { before, after } = sample.arms;
    const answer = (label, side) => el("span", {}, `${label} `, el("b", {}, text(side.answer)), " ", tick(side.correct));
    $("sample").replaceChildren(
      el("div.meta", {}, [nameOf(sample.task), sample.stage && `stage ${nameOf(sample.stage)}`, sample.id].filter(Boolean).join(" · ")),
      el("h3", {}, sample.question),
      el("div.verdict", {}, answer("before", before), answer("after", after), el("span", {}, "gold ", el("b", {}, text(sample.gold)))),
      story(sample),
      el("div.inputs", {}, Object.entries(sample.images || {}).filter(([, uri]) => uri.startsWith("data:image/"))
        .map(([name, uri]) => el("figure", {}, picture(uri, [], `Input ${name}`), el("figcaption", {}, name)))),
      el("ol.steps", {}, sample.steps.map((step) => stepItem(step, sample.images || {}))),
    );
  }

  function show(at) {
    $("previous").disabled = $("next").disabled = shown.length < 2;
    if (!shown.length) {
      $("position").textContent = "none";
      $("sample").replaceChildren(el("p.absent", {}, "No sample of this kind."));
      return;
    }
    index = (at + shown.length) % shown.length;
    $("position").textContent = `${index + 1} of ${shown.length}`;
    render(shown[index]);
  }
  function filter() {
    const task = $("task").value;
    shown = samples.filter((s) => (outcome === "all" || kindOf(s) === outcome) && (!task || s.task === task));
    show(0);
  }

  const chips = [...document.querySelectorAll("[data-outcome]")];
  for (const chip of chips)
    chip.addEventListener("click", () => {
      outcome = chip.dataset.outcome;
      for (const other of chips) other.setAttribute("aria-pressed", String(other === chip));
      filter();
    });
  $("task").addEventListener("change", filter);
  $("previous").addEventListener("click", () => show(index - 1));
  $("next").addEventListener("click", () => show(index + 1));
  $("browser").addEventListener("keydown", (event) => {
    if (event.target.tagName === "SELECT" || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    show(index + (event.key === "ArrowRight" ? 1 : -1));
  });
  show(0);
})();
