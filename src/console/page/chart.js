// A line of the last two minutes, drawn as SVG.

const SVG = 'http://www.w3.org/2000/svg';
const WIDTH = 120;
const HEIGHT = 32;
const SECONDS = 120;

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** One tile's line. Decoration: the figure beside it says the same to those who do not see it. */
export class Spark {
  constructor(holder) {
    this.values = [];
    this.svg = shape('svg', {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', 'aria-hidden': 'true', class: 'spark',
    });
    this.area = shape('path', { class: 'area' });
    this.line = shape('path', { class: 'line', 'vector-effect': 'non-scaling-stroke' });
    this.svg.append(this.area, this.line);
    holder.append(this.svg);
  }

  add(value) {
    this.values.push(value ?? 0);
    if (this.values.length > SECONDS) this.values.shift();
    const top = Math.max(1, ...this.values);
    const left = WIDTH - ((this.values.length - 1) * WIDTH) / (SECONDS - 1);
    const points = this.values.map((one, index) => {
      const x = left + (index * WIDTH) / (SECONDS - 1);
      const y = HEIGHT - 2 - (one / top) * (HEIGHT - 4);
      return `${x.toFixed(1)} ${y.toFixed(1)}`;
    });
    const path = `M${points.join('L')}`;
    this.line.setAttribute('d', path);
    this.area.setAttribute('d', `${path}L${WIDTH} ${HEIGHT}L${left.toFixed(1)} ${HEIGHT}Z`);
  }
}
