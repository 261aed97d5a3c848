// What the visitor does, and what the server is asked for then.
const { about } = props;
const find = (selector) => element.querySelector(selector);
const names = about.classes.map((entry) => entry.name);
const view = new View(find("canvas"), about.classes.map((entry) => entry.colour));
const state = { photo: null, name: "", hidden: new Set(), answers: new Map(), busy: false, again: false };
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}\u00a0%`;

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function fill(select, values, labels = values) {
  select.replaceChildren(...values.map((value, index) => make("option", { value, textContent: labels[index] })));
}

function fail(sentence, retry = null) {
  find(".error").hidden = !sentence;
  find(".error span").textContent = sentence || "";
  find(".again").hidden = !retry;
  find(".again").onclick = retry;
}

function tell(text, busy = false) {
  find(".status").textContent = text;
  find(".status").classList.toggle("busy", busy);
}

// Calls a function of the server; undefined after an error, which is then on the page.
async function ask(name, request, doing, retry) {
  tell(doing, true);
  fail("");
  try {
    const answer = await server[name](request); // Gradio: undefined if there is no connection
    if (answer?.error) fail(answer.error);
    if (answer) return answer.error ? undefined : answer;
  } catch (error) {
    console.warn(error);
  } finally {
    tell("");
  }
  fail("The server cannot be reached, or refused the request. The photo is still in this tab.", retry);
}

function choice() {
  const corruption = find(".corruption").value;
  return {
    adapter: find(".adapter").value,
    detail: find(".detail").value,
    corruption,
    severity: corruption ? Number(find(".severity").value) : 1,
  };
}

const current = () => state.answers.get(JSON.stringify(choice()));
const undamaged = () => state.answers.get(JSON.stringify({ ...choice(), corruption: "", severity: 1 }));

// Asks for what the controls say. What they say while that takes its time is asked for next.
async function refresh() {
  state.again = true;
  if (state.busy || !state.photo) return;
  state.busy = true;
  while (state.again) {
    state.again = false;
    const [photo, wanted] = [state.photo, choice()];
    const key = JSON.stringify(wanted);
    if (!state.answers.has(key)) {
      const answer = await ask("segment", { photo, ...wanted }, `Segmenting with ${wanted.adapter} …`, refresh);
      if (photo !== state.photo) continue; // another photo was chosen meanwhile
      if (answer) {
        if (state.answers.size > 11) state.answers.delete(state.answers.keys().next().value);
        state.answers.set(key, await decode(answer));
      }
    }
    if (current()) present(current());
  }
  state.busy = false;
}

function present(answer) {
  find(".work").hidden = false;
  view.show(answer);
  const facts = about.adapters.find((entry) => entry.name === answer.adapter);
  const count = (number) => number.toLocaleString("en");
  const tuned = facts.adapter_parameters ? `${count(facts.adapter_parameters)} of ${facts.method}, ` : "";
  const rows = {
    parameters: `${tuned}${count(facts.head_parameters)} of the head, ${count(facts.backbone_parameters)} of the backbone`,
    time: `${count(answer.milliseconds)} ms on ${about.device}`,
    photo: `${answer.size.join("x")}, seen as ${answer.seen.join("x")} in ${answer.windows} window${answer.windows > 1 ? "s" : ""}`,
  };
  find(".facts").replaceChildren(
    ...Object.entries(rows).flatMap(([title, text]) => [make("dt", { textContent: title }), make("dd", { textContent: text })]),
  );
  const [chosen, clean] = [choice(), undamaged()];
  find(".kept").textContent = !about.corruptions.length
    ? 'Not installed on this server: pip install "rein-hf[corruptions]".'
    : chosen.corruption && clean && clean.labels.length === answer.labels.length
      ? `${percent(sharedLabels(clean, answer))} of the pixels keep the class that they have in the clean photo.`
      : "";
  find(".explain").disabled = !facts.explains;
  find(".explain").title = facts.explains ? "" : "Only Rein has tokens whose attention can be shown.";
  find(".sheet").hidden = true;
  listClasses(answer);
  draw();
}

function listClasses(answer) {
  const present = names.map((_, id) => id).filter((id) => answer.counts[id]);
  find(".entries").replaceChildren(
    ...present.map((id) => {
      const box = make("input", { type: "checkbox", checked: !state.hidden.has(id), name: names[id] });
      box.onchange = () => {
        box.checked ? state.hidden.delete(id) : state.hidden.add(id);
        draw();
      };
      const swatch = make("i", { className: "swatch" });
      swatch.style.background = `rgb(${about.classes[id].colour.join(",")})`;
      const text = `${names[id]} ${percent(answer.counts[id] / answer.labels.length)}`;
      const entry = make("label", {}, box, swatch, make("span", { textContent: text }));
      entry.dataset.id = id;
      return entry;
    }),
  );
}

function draw() {
  if (!view.answer) return;
  view.draw({
    opacity: find(".opacity").value / 100,
    before: find(".before").value / 100,
    hidden: state.hidden,
    view: find("[name=rein-view]:checked").value,
  });
}

function name(pixel) {
  const [id, confidence] = view.at(pixel);
  find(".pixel").textContent = `${names[id] ?? "no class"}, probability ${percent(confidence)}`;
  element.querySelectorAll(".entries label").forEach((entry) => entry.classList.toggle("named", entry.dataset.id === String(id)));
}

function take(photo, title) {
  Object.assign(state, { photo, name: title, answers: new Map() });
  view.cross = null;
  find(".work").hidden = true;
  find(".pixel").textContent = "Point at the picture, tap it, or use the arrow keys: the class of that pixel is named here.";
  refresh();
}

function takeFile(file) {
  if (!file) return;
  if (file.size > about.bounds.megabytes * 1e6) {
    const size = (file.size / 1e6).toFixed(1);
    fail(`The photo's file has ${size} MB; this page takes ${about.bounds.megabytes} MB at most. Save it smaller, or as JPEG.`);
    return;
  }
  const reader = new FileReader();
  reader.onload = () => take(reader.result.replace(/^data:[^,]*?(;base64)?,/, "data:image/any;base64,"), file.name.replace(/\.[^.]*$/, ""));
  reader.onerror = () => fail("The browser cannot read this file. Choose it again.");
  reader.readAsDataURL(file);
}

async function save(uri, title) {
  const address = URL.createObjectURL(await (await fetch(uri)).blob());
  make("a", { href: address, download: title }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

find("h1").textContent = props.heading;
find(".takes").textContent = `${about.formats.join(", ")}; up to ${about.bounds.megabytes} MB and ${about.bounds.megapixels} million pixels`;
fill(find(".adapter"), about.adapters.map((entry) => entry.name));
fill(find(".detail"), about.details, [
  `a copy of ${about.crop} pixels: fast`,
  `a copy of ${2 * about.crop} pixels: fine`,
  "every pixel: slow",
]);
const spoken = about.corruptions.map((entry) => `${entry.kind}: ${entry.name.replaceAll("_", " ")}`);
fill(find(".corruption"), ["", ...about.corruptions.map((entry) => entry.name)], ["none", ...spoken]);
find(".corruption").disabled = find(".severity").disabled = !about.corruptions.length;
find(".examples").hidden = !about.examples.length;
find(".examples").append(
  ...about.examples.map((example, index) => {
    const button = make("button", { type: "button" }, make("img", { src: example.thumbnail, alt: example.name }));
    button.onclick = () => take(`example:${index}`, example.name);
    return button;
  }),
);

for (const selector of [".adapter", ".detail", ".corruption", ".severity"]) find(selector).addEventListener("change", refresh);
for (const selector of [".opacity", ".before", ".views"]) find(selector).addEventListener("input", draw);
find(".severity").addEventListener("input", () => (find(".level").textContent = find(".severity").value));
find(".all").onclick = () => (state.hidden.clear(), listClasses(view.answer), draw());
find(".none").onclick = () => (names.forEach((_, id) => state.hidden.add(id)), listClasses(view.answer), draw());

find(".file").onchange = (event) => (takeFile(event.target.files[0]), (event.target.value = ""));
element.addEventListener("dragover", (event) => (event.preventDefault(), find(".drop").classList.add("over")));
element.addEventListener("dragleave", () => find(".drop").classList.remove("over"));
element.addEventListener("drop", (event) => {
  event.preventDefault();
  find(".drop").classList.remove("over");
  takeFile(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => takeFile(event.clipboardData?.files[0]));

const canvas = find("canvas");
canvas.addEventListener("pointermove", (event) => view.answer && name(view.locate(event)));
canvas.addEventListener("click", (event) => ((view.cross = view.locate(event)), name(view.cross), draw()));
canvas.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || !view.answer) return;
  event.preventDefault();
  const { width, height } = view.answer;
  const far = Math.max(1, Math.round((event.shiftKey ? 0.05 : 0.01) * width));
  const [x, y] = view.cross ?? [width >> 1, height >> 1];
  const inside = (value, size) => Math.min(Math.max(value, 0), size - 1);
  view.cross = [inside(x + far * step[0], width), inside(y + far * step[1], height)];
  name(view.cross);
  draw();
});

find(".save-labels").onclick = () => save(view.answer.label_map, `${state.name || "photo"}_label.png`);
find(".save-overlay").onclick = async () => {
  const request = { photo: state.photo, ...choice(), label_map: view.answer.label_map };
  Object.assign(request, { opacity: find(".opacity").value / 100, hidden: [...state.hidden] });
  const answer = await ask("draw", request, "Drawing the overlay …", find(".save-overlay").onclick);
  if (answer) save(answer.overlay, `${state.name || "photo"}_overlay.jpg`);
};
find(".explain").onclick = async () => {
  const request = { photo: state.photo, ...choice() };
  const answer = await ask("explain", request, "Looking into the blocks …", find(".explain").onclick);
  if (!answer) return;
  find(".sheet").replaceChildren(make("img", { src: answer.sheet, alt: `What ${answer.adapter} does in its blocks` }));
  find(".sheet").hidden = false;
  find(".sheet").scrollIntoView({ block: "nearest" });
};
element.querySelector(".rein-page").dataset.ready = "true";
