// One request after the other, an image for each: the server draws one at a time, and each appears when it is ready.
const at = (id) => document.getElementById(id);
let latest = 0;
let vocabulary = null; // words of the captions that the teacher was trained on, where they are few

const say = (text, wrong = false) => {
  at("said").textContent = text;
  at("said").classList.toggle("wrong", wrong);
};

const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  Object.assign(made, attributes);
  made.append(...children);
  return made;
};

const score = (value, digits, what) => (value === null || value === undefined ? "" : `${what} ${value.toFixed(digits)}`);

const start = async () => {
  const about = await (await fetch("experiment.json")).json();
  document.title = `${about.experiment}: SiD-LSG`;
  at("experiment").textContent = about.experiment;
  at("examples").append(...about.examples.map((text) => element("option", { value: text })));
  at("prompt").value = about.examples[0] ?? "";
  vocabulary = about.vocabulary && new Set(about.vocabulary);
  const fewest = Math.min(...about.runs.map((run) => run.seed));
  for (const run of about.runs) {
    const box = element("input", { type: "checkbox", name: "run", value: run.name, checked: run.seed === fewest });
    box.dataset.score = [score(run.fid, 2, "FID"), score(run.clip, 3, "CLIP"), run.note].filter(Boolean).join(", ");
    at("runs").append(element("label", {}, box, ` ${run.name}`));
  }
  if (about.examples.length) await draw(1); // one: others may have to be loaded from gigabytes
};

const checkWords = () => {
  const words = at("prompt").value.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  const unknown = vocabulary ? [...new Set(words)].filter((word) => !vocabulary.has(word)) : [];
  const known = `It knows: ${[...vocabulary ?? []].join(", ")}.`;
  at("unknown").textContent = unknown.length ? `This teacher was never trained on: ${unknown.join(", ")}. ${known}` : "";
};

const asked = () => {
  const common = { prompt: at("prompt").value, seed: at("seed").value };
  const panels = [...document.querySelectorAll("[name=run]:checked")].map((box) => ({
    title: box.value, note: box.dataset.score, query: { ...common, run: box.value },
  }));
  if (at("teacher").checked) {
    const [steps, scale] = [at("steps").value, at("guidance_scale").value];
    panels.push({ title: "teacher", note: `DPM-Solver++, ${steps} steps, CFG ${scale}`, query: { ...common, steps, guidance_scale: scale } });
  }
  return panels;
};

const draw = async (most = Infinity) => {
  const mine = ++latest; // what is asked for now makes the rest of what was asked before pointless
  const panels = asked().slice(0, most);
  if (!panels.length) return say("Choose a generator, or the teacher.", true);
  const figures = panels.map(({ title, note }) => {
    const times = element("span");
    return { times, figure: element("figure", {}, element("div", { className: "blank" }), element("figcaption", {}, title, element("span", { textContent: note }), times)) };
  });
  at("images").replaceChildren(...figures.map(({ figure }) => figure));
  for (const [i, { title, query }] of panels.entries()) {
    say(`Drawing ${i + 1} of ${panels.length}: ${title}`);
    const answer = await fetch(`image?${new URLSearchParams(query)}`);
    if (mine !== latest) return;
    if (!answer.ok) return say(await answer.text(), true);
    const image = element("img", { alt: `${query.prompt}, by ${title}, seed ${query.seed}`, src: URL.createObjectURL(await answer.blob()) });
    await image.decode();
    figures[i].figure.firstChild.replaceWith(image);
    const [loading, seconds] = ["X-Load-Seconds", "X-Seconds"].map((name) => Number(answer.headers.get(name)));
    figures[i].times.textContent = `${(1000 * seconds).toFixed(0)} ms${loading > 0.05 ? `, after ${loading.toFixed(1)} s of loading` : ""}`;
  }
  say(`Seed ${at("seed").value}: ${panels.length} drawn.`);
};

const guarded = (action) => action().catch((error) => say(`No answer from the server (${error.message}); is it still running?`, true));
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(draw);
});
at("prompt").addEventListener("input", checkWords);
at("next").addEventListener("click", () => {
  at("seed").value = (Number(at("seed").value) + 1) % 2 ** 32;
  at("form").requestSubmit();
});
guarded(start);
