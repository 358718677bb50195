// A browser that logs in at the gateway through oidc-provider's own pages, and a service that shows what it gets.
// node oidc_browser.mjs GATEWAY PROVIDER CONTROL: addresses with ports. Prints a line for each thing that holds; exits with 1 at the first that does not.
import http from 'node:http';

const [gateway, provider, control] = process.argv.slice(2).map((addr) => `http://${addr}`);

const holds = (what, is, shown) => {
  console.log(`${is ? 'ok  ' : 'FAIL'} ${what}`);
  if (!is) {
    console.log(shown);
    process.exit(1);
  }
};

const service = http.createServer((request, response) => {
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({ path: request.url, headers: request.headers }));
});
await new Promise((ready) => service.listen(0, '127.0.0.1', ready));
await fetch(`${control}/v1/services/pages/instances/one`, {
  method: 'PUT',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ id: 'one', address: '127.0.0.1', port: service.address().port }),
});

const jars = new Map();
const jar = (url) => {
  const { host } = new URL(url);
  if (!jars.has(host)) jars.set(host, new Map());
  return jars.get(host);
};
const seen = [];
let logins = 0;

// Not fetch: that says of itself that it is a script.
const request = (url, { method = 'GET', headers, body = '' }) => new Promise((answer, fail) => {
  const options = { method, headers: { ...headers, 'content-length': Buffer.byteLength(body) }, timeout: 10_000 };
  const sent = http.request(url, options, (response) => {
    let text = '';
    response.setEncoding('utf8');
    response.on('data', (part) => { text += part; });
    response.on('end', () => answer({ status: response.statusCode, headers: response.headers, body: text }));
  });
  sent.on('timeout', () => sent.destroy(new Error(`no answer of ${url}`)));
  sent.on('error', fail);
  sent.end(body);
});

const load = async (url, { method, headers, body } = {}) => {
  const cookie = [...jar(url)].map(([name, value]) => `${name}=${value}`).join('; ');
  const form = body ? { 'content-type': 'application/x-www-form-urlencoded' } : {};
  const page = await request(url, { method, body: body?.toString(), headers: { accept: 'text/html', cookie, ...form, ...headers } });
  for (const one of page.headers['set-cookie'] ?? []) {
    const [, name, value] = /^([^=]+)=([^;]*)/.exec(one);
    const gone = /max-age=0\b|expires=thu, 01 jan 1970/i.test(one);
    if (gone) jar(url).delete(name);
    else jar(url).set(name, value);
    if (url.startsWith(gateway)) seen.push(one);
  }
  return { url, status: page.status, to: page.headers.location, body: page.body };
};

// Follows redirects, and fills the provider's forms of login and consent.
const visit = async (url, options) => {
  let page = await load(url, options);
  for (let step = 0; step < 20; step += 1) {
    if (page.status >= 300 && page.status < 400) {
      page = await load(new URL(page.to, page.url).href);
      continue;
    }
    const form = page.url.startsWith(provider) && /<form[^>]*action="([^"]+)"/.exec(page.body);
    if (!form) return page;
    const fields = new URLSearchParams();
    for (const [tag] of page.body.matchAll(/<input[^>]*>/g)) {
      const name = /name="([^"]*)"/.exec(tag)?.[1];
      if (name) fields.set(name, /value="([^"]*)"/.exec(tag)?.[1] ?? '');
    }
    if (fields.has('login')) {
      fields.set('login', 'ann');
      logins += 1;
    }
    if (fields.has('password')) fields.set('password', 'any');
    if (page.url.includes('/session/end')) fields.set('logout', 'yes');
    page = await load(new URL(form[1].replaceAll('&amp;', '&'), page.url).href, { method: 'POST', body: fields });
  }
  throw new Error(`no end to redirects at ${page.url}`);
};

const until = async (what, is) => {
  for (let tries = 0; tries < 100; tries += 1) {
    if (await is().catch(() => false)) return;
    await new Promise((wake) => setTimeout(wake, 200));
  }
  holds(what, false, 'waited in vain');
};

await until('the gateway sends browsers to the provider', async () => (await load(`${gateway}/`)).status === 303);
jars.clear();
seen.length = 0;

const first = await visit(`${gateway}/orders?page=2`);
holds('a login ends where the browser wanted to go', first.url === `${gateway}/orders?page=2` && first.status === 200, first);
const told = JSON.parse(first.body).headers;
holds('the service is told of the subject', told['x-user'] === 'ann', told);
holds('the service gets a token', /^Bearer [\w.-]{20,}$/.test(told.authorization ?? ''), told);
const info = await fetch(`${provider}/me`, { headers: { authorization: told.authorization } });
holds('the provider takes it for its own', info.status === 200 && (await info.json()).sub === 'ann', info.status);
const token = told.authorization.slice('Bearer '.length);
const cookies = [...jar(gateway)];
holds('the browser never sees it', !seen.join().includes(token) && !JSON.stringify(cookies).includes(token), seen);
holds('cookies are for the gateway alone', seen.every((cookie) => /; Path=\/;.*; Secure; HttpOnly; SameSite=Lax$/.test(cookie)), seen);
holds('the service does not see the session', !(told.cookie ?? '').includes('__Host-seawall'), told);
const again = await load(`${gateway}/again`);
holds('the session stays', again.status === 200 && JSON.parse(again.body).headers.authorization === told.authorization, again);
const spoofed = await load(`${gateway}/`, { headers: { 'x-user': 'root', authorization: 'Bearer mine' } });
holds('headers cannot be spoofed', JSON.parse(spoofed.body).headers['x-user'] === 'ann', spoofed);
const anonymous = await fetch(`${gateway}/`, { headers: { accept: 'application/json' }, redirect: 'manual' });
holds('who has no session gets 401', anonymous.status === 401, anonymous.status);

// The provider's tokens last 35 s, and are renewed when they have less than 30 left.
await new Promise((wake) => setTimeout(wake, 6_000));
const several = await Promise.all(Array.from({ length: 5 }, () => load(`${gateway}/later`)));
const tokens = new Set(several.map((page) => JSON.parse(page.body).headers?.authorization));
holds('a token is renewed, once for all who ask', tokens.size === 1 && !tokens.has(told.authorization), several);
const renewed = await fetch(`${provider}/me`, { headers: { authorization: [...tokens][0] } });
holds('the provider takes the new one too', renewed.status === 200, renewed.status);

const out = await load(`${gateway}/oauth2/logout`);
const kept = [...jar(gateway).keys()].filter((name) => !name.includes('-login-'));
holds('a logout ends the session here', out.status === 303 && kept.length === 0, [out, kept]);
const before = logins;
await visit(out.to);
holds('and at the provider, which asks for the password again', logins === before + 1, logins);
process.exit(0);
