// The picture: a photo with its map over it, drawn anew whenever a control moves. The server is not asked.
class View {
  constructor(canvas, colours) {
    this.canvas = canvas;
    this.colours = colours;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.answer = null;
    this.cross = null; // [x, y] in pixels of the picture
  }

  show(answer) {
    this.answer = answer;
    [this.canvas.width, this.canvas.height] = [answer.width, answer.height];
    if (this.cross && (this.cross[0] >= answer.width || this.cross[1] >= answer.height)) this.cross = null;
  }

  // opacity and before: 0 to 1; hidden: the classes that are switched off; view: classes, confidence or photo
  draw({ opacity, before, hidden, view }) {
    const { width, height, labels, confidence, image } = this.answer;
    this.context.drawImage(image, 0, 0, width, height);
    if (view !== "photo") {
      const first = Math.round(before * width);
      const pixels = this.context.getImageData(0, 0, width, height);
      const data = pixels.data;
      for (let y = 0, at = 0; y < height; y++) {
        for (let x = 0; x < width; x++, at++) {
          if (x < first) continue;
          let colour = this.colours[labels[at]];
          if (!colour || hidden.has(labels[at])) continue;
          if (view === "confidence") colour = [confidence[at], confidence[at], confidence[at]];
          for (let channel = 0; channel < 3; channel++) {
            const value = data[4 * at + channel];
            data[4 * at + channel] = value + opacity * (colour[channel] - value);
          }
        }
      }
      this.context.putImageData(pixels, 0, 0);
      if (first > 0 && first < width) this.line(first, 0, first, height);
    }
    if (this.cross) {
      const [x, y] = this.cross;
      const arm = Math.max(8, width / 60);
      this.line(x - arm, y, x + arm, y);
      this.line(x, y - arm, x, y + arm);
    }
  }

  line(...ends) {
    for (const [style, thickness] of [["black", 5], ["white", 2]]) {
      this.context.strokeStyle = style;
      this.context.lineWidth = thickness;
      this.context.beginPath();
      this.context.moveTo(ends[0], ends[1]);
      this.context.lineTo(ends[2], ends[3]);
      this.context.stroke();
    }
  }

  // the pixel below a pointer
  locate(event) {
    const box = this.canvas.getBoundingClientRect();
    const inside = (value, size) => Math.min(Math.max(Math.floor(value), 0), size - 1);
    return [
      inside(((event.clientX - box.left) / box.width) * this.answer.width, this.answer.width),
      inside(((event.clientY - box.top) / box.height) * this.answer.height, this.answer.height),
    ];
  }

  // class and confidence, 0 to 1, of a pixel
  at([x, y]) {
    const index = y * this.answer.width + x;
    return [this.answer.labels[index], this.answer.confidence[index] / 255];
  }
}

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function decode(answer) {
  const image = new Image();
  image.src = answer.photo;
  const [labels, confidence] = await Promise.all([inflate(answer.labels), inflate(answer.confidence), image.decode()]);
  const counts = new Array(256).fill(0);
  for (const label of labels) counts[label]++;
  return { ...answer, image, labels, confidence, counts };
}

// the share of pixels whose class is the same in two answers, of pictures of one size
function sharedLabels(one, other) {
  let same = 0;
  for (let index = 0; index < one.labels.length; index++) same += one.labels[index] === other.labels[index];
  return same / one.labels.length;
}
