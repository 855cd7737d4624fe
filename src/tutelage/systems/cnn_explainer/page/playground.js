"use strict";
// The playground: how input size, kernel, padding and stride make the output. It needs no network.
const Playground = (() => {
  const { make } = Draw;
  const at = (id) => document.getElementById(`play-${id}`);
  let size = { n: 6, k: 3, p: 1, s: 1 },
    cell = { r: 0, c: 0 },
    out = 0;

  const read = () => Object.fromEntries(["n", "k", "p", "s"].map((key) => [key, Number(at(key).value)]));

  const draw = () => {
    size = read();
    for (const key of Object.keys(size)) at(`${key}-value`).textContent = size[key];
    const { n, k, p, s } = size,
      exact = Engine.outputSize(n, k, p, s),
      whole = Number.isInteger(exact) && exact >= 1;
    out = Math.max(0, Math.floor(exact));
    const result = [
      "(n + 2p − k) ÷ s + 1",
      make("br"),
      `= (${n} + ${2 * p} − ${k}) ÷ ${s} + 1 = ${Number.isInteger(exact) ? exact : exact.toFixed(2)}`,
    ];
    const problem =
      exact < 1
        ? "The kernel is larger than the input: there is no output."
        : whole
          ? ""
          : `This stride does not fit: the last ${(n + 2 * p - k) % s === 1 ? "row and column" : `${(n + 2 * p - k) % s} rows and columns`} would be left out.`;
    at("formula").replaceChildren(...result, ...(problem ? [make("span", { className: "invalid", textContent: problem })] : []));
    at("formula").dataset.valid = whole;
    const wide = n + 2 * p,
      side = Math.min(34, 300 / wide);
    const cells = (count, name) =>
      Array.from({ length: count * count }, (_, i) => {
        const r = Math.floor(i / count),
          c = i % count,
          edge = name === "input" && (r < p || c < p || r >= p + n || c >= p + n);
        const element =
          name === "input" ? make("span", { textContent: edge ? "0" : "" }) : make("button", { type: "button", tabIndex: -1 });
        if (edge) element.className = "padding";
        if (name === "input") element.addEventListener("pointerenter", () => fromInput(r, c));
        else {
          element.ariaLabel = `Output row ${r}, column ${c}`;
          element.addEventListener("pointerenter", () => move(r, c));
          element.addEventListener("focus", () => move(r, c));
        }
        return element;
      });
    for (const [name, count] of [
      ["input", wide],
      ["output", out],
    ]) {
      at(name).style.cssText = `--side: ${side}px; grid-template-columns: repeat(${count}, ${side}px)`;
      at(name).replaceChildren(...cells(count, name));
    }
    move(Math.min(cell.r, Math.max(0, out - 1)), Math.min(cell.c, Math.max(0, out - 1)));
  };

  const fromInput = (r, c) => out && move(Math.min(out - 1, Math.floor(r / size.s)), Math.min(out - 1, Math.floor(c / size.s)));

  const move = (r, c) => {
    cell = { r, c };
    const { n, k, p, s } = size,
      wide = n + 2 * p;
    [...at("input").children].forEach((element, i) => {
      const y = Math.floor(i / wide) - r * s,
        x = (i % wide) - c * s;
      element.classList.toggle("inside", out > 0 && y >= 0 && y < k && x >= 0 && x < k);
    });
    [...at("output").children].forEach((element, i) => {
      const here = i === r * out + c;
      element.classList.toggle("inside", here);
      element.tabIndex = here ? 0 : -1;
    });
  };

  const step = () => {
    if (out === 0 || at("output").matches(":hover, :focus-within") || at("input").matches(":hover")) return;
    const next = (cell.r * out + cell.c + 1) % (out * out);
    move(Math.floor(next / out), next % out);
  };

  const start = () => {
    for (const key of Object.keys(size)) at(key).addEventListener("input", draw);
    at("output").addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -out, ArrowDown: out }[event.key];
      if (!move) return;
      event.preventDefault();
      const next = cell.r * out + cell.c + move;
      if (next >= 0 && next < out * out) at("output").children[next].focus();
    });
    draw();
  };

  return { start, step };
})();
