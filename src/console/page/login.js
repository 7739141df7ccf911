// Asks for the token.

const root = location.pathname.replace(/\/console\/?$/, '');
const form = document.getElementById('login');
const problem = document.getElementById('problem');

form.addEventListener('submit', async (event) => {
  event.preventDefault();
  const token = document.getElementById('token').value;
  const answer = await fetch(`${root}/console/login`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ token }),
  });
  if (answer.ok) return location.reload();
  const json = await answer.json().catch(() => ({}));
  problem.textContent = json.error ?? `The server answered ${answer.status}.`;
  document.getElementById('token').select();
});
