// Waiting for facts. Every wait has a deadline and names what it waited for, and no test sleeps in
// the hope that something has happened meanwhile.

const DEADLINE_MS = 30_000;
const PAUSE_MS = 10;

/** Resolves with the first truthy answer of `fact`, which may be async. */
export async function until(what, fact, deadline = DEADLINE_MS) {
  const end = Date.now() + deadline;
  for (;;) {
    const answer = await fact();
    if (answer) return answer;
    if (Date.now() > end) throw new Error(`waited ${deadline} ms in vain: ${what}`);
    await new Promise((again) => setTimeout(again, PAUSE_MS));
  }
}

/**
 * Resolves with the data that `emitter` (anything with `bind`) says next under `event`. Where the
 * metadata matters too, `nextWithMetadata` has both.
 */
export async function next(emitter, event, deadline) {
  const [data] = await nextWithMetadata(emitter, event, deadline);
  return data;
}

export function nextWithMetadata(emitter, event, deadline = DEADLINE_MS) {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => {
      emitter.unbind(event, heard);
      reject(new Error(`waited ${deadline} ms in vain: ${event}`));
    }, deadline);
    function heard(...said) {
      clearTimeout(late);
      emitter.unbind(event, heard);
      resolve(said);
    }
    emitter.bind(event, heard);
  });
}
