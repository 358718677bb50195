// The npm package oidc-provider as it comes, with one client and its own pages for login and consent.
// node oidc_provider.mjs PORT REDIRECT_URI LOGOUT_URI; it says "ready" when it listens.
import { Provider } from 'oidc-provider';

const [port, redirect, logout] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const provider = new Provider(issuer, {
  clients: [{
    client_id: 'shop',
    client_secret: 'the secret of the shop, long enough',
    redirect_uris: [redirect],
    post_logout_redirect_uris: [logout],
    grant_types: ['authorization_code', 'refresh_token'],
  }],
  pkce: { required: () => true },
  cookies: { keys: ['only for this run'] },
  ttl: { AccessToken: 35, IdToken: 600, RefreshToken: 3600, Session: 3600, Grant: 3600, Interaction: 600 },
  rotateRefreshToken: true,
  issueRefreshToken: async (ctx, client, code) => client.grantTypeAllowed('refresh_token') && code.scopes.has('openid'),
  features: { devInteractions: { enabled: true }, revocation: { enabled: true }, rpInitiatedLogout: { enabled: true } },
  claims: { openid: ['sub'] },
  findAccount: async (ctx, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
});
provider.listen(Number(port), '127.0.0.1', () => console.log('ready'));
