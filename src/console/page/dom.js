// Small pieces that every tab uses. Whatever comes from the server is put in as text, never as markup: there is no
// innerHTML anywhere in this folder.

/** Everything the page asks for is below the path it came from. */
export const root = location.pathname.replace(/\/console\/?$/, '');

/** An element with properties (`class`, `data-x`, `onclick`, …) and children, which are text unless they are nodes. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'value' || name === 'checked' || name === 'selected') node[name] = value;
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

export const at = (id) => document.getElementById(id);

/** Asks the console; a refusal is an Error with the server's words. */
export async function ask(path, { method = 'GET', body } = {}) {
  const options = { method, headers: { Accept: 'application/json' }, cache: 'no-store' };
  if (body !== undefined) {
    options.headers['Content-Type'] = 'application/json';
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(`${root}/console/${path}`, options);
  if (answer.status === 401) {
    location.reload();
    throw new Error('The token is wanted again.');
  }
  const json = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(json.error ?? `The server answered ${answer.status}.`);
  return json;
}

export const segment = (text) => encodeURIComponent(text);

/** A button that copies what `text` gives at the time. */
export function copyButton(text, label = 'Copy') {
  const button = el('button', { type: 'button', class: 'copy' }, label);
  button.addEventListener('click', async () => {
    const done = await copy(text());
    button.textContent = done ? 'Copied' : 'Press Ctrl+C';
    say(done ? 'Copied to the clipboard.' : 'Select the text and press Ctrl+C.');
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP from another machine browsers give no clipboard.
    const area = el('textarea', { class: 'hidden-text', 'aria-hidden': 'true' });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}

/** Says something to those who hear the page. */
export function say(text) {
  at('spoken').textContent = text;
}

export function number(value) {
  if (value === undefined || value === null) return '–';
  if (value >= 1e6) return `${(value / 1e6).toFixed(value >= 1e7 ? 0 : 1)}M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(value >= 1e5 ? 0 : 1)}k`;
  return value.toLocaleString('en');
}

export function bytes(value) {
  if (value === undefined || value === null) return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB'];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export function micros(value) {
  if (value === undefined || value === null) return '–';
  if (value < 1000) return `${value} µs`;
  return value < 1e6 ? `${value / 1000} ms` : `${value / 1e6} s`;
}

export function ago(seconds) {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

export function clock(millis) {
  const moment = new Date(millis);
  const two = (value) => String(value).padStart(2, '0');
  const time = [moment.getHours(), moment.getMinutes(), moment.getSeconds()].map(two).join(':');
  return `${time}.${String(moment.getMilliseconds()).padStart(3, '0')}`;
}

/** A payload as a person reads it: JSON with lines, anything else as it is. */
export function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** Reads lines of JSON from an answer for as long as it goes on. */
export async function readLines(answer, take) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split('\n');
    rest = lines.pop();
    for (const line of lines) if (line) take(line);
  }
}
