//! The tables, and every statement on them. Each statement is a transaction by itself, at READ COMMITTED; only the server's
//! clock is asked.
//!
//! What makes them safe together:
//! - Whoever queues for a lock has the lock's row until it commits. So numbers become visible in their order, and the smallest
//!   that is there is the holder's.
//! - A session ends when its row is deleted, not when its time is over. Whoever deletes it for that reason has the row, and
//!   looks at the time again; a keep-alive has the row, too. One of the two comes first, and the other finds out.
//! - A number is at least the time in units of 2^-20 seconds. So numbers grow even when the row of a lock was cleared up, or a
//!   standby took over that had not seen the last ones.

/// Makes the tables if they are not there. One at a time: two that make the same table at once disturb each other.
pub(super) const TABLES: &str = "
SELECT pg_advisory_xact_lock(7305808869231650152);
CREATE TABLE IF NOT EXISTS seawall_session (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    secret text NOT NULL,
    owner text NOT NULL,
    ttl_ms bigint NOT NULL,
    until timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS seawall_session_until ON seawall_session (until);
CREATE TABLE IF NOT EXISTS seawall_lock (
    name text PRIMARY KEY,
    epoch bigint NOT NULL,
    used timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS seawall_claim (
    name text NOT NULL,
    token text NOT NULL,
    session bigint NOT NULL REFERENCES seawall_session ON DELETE CASCADE,
    epoch bigint,
    modified bigint NOT NULL,
    info text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, token),
    UNIQUE (name, epoch)
);
ALTER TABLE seawall_claim ADD COLUMN IF NOT EXISTS priority integer NOT NULL DEFAULT 0;
CREATE INDEX IF NOT EXISTS seawall_claim_session ON seawall_claim (session);
CREATE OR REPLACE FUNCTION seawall_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM pg_notify('seawall', coalesce(OLD.epoch, 0) || ' ' || OLD.name);
    ELSIF starts_with(NEW.name, 'elect/') THEN
        PERFORM pg_notify('seawall', '0 ' || NEW.name);
    END IF;
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS seawall_tell ON seawall_claim;
CREATE TRIGGER seawall_tell AFTER INSERT OR UPDATE OR DELETE ON seawall_claim
    FOR EACH ROW EXECUTE FUNCTION seawall_tell();
";

/// Whether they are there.
pub(super) const ARE_THERE: &str = "SELECT to_regclass('seawall_claim') IS NOT NULL
    AND EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('seawall_claim') AND tgname = 'seawall_tell')
    AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('seawall_claim') AND attname = 'priority')";

/// On every connection. An answer that is not durable is none, and the statements above are thought out for one isolation.
pub(super) const GREETING: &str = "
SET default_transaction_isolation = 'read committed';
SET statement_timeout = 5000;
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local');
";

/// `ttl_ms, secret, owner` -> `id`
pub(super) const OPEN: &str = "INSERT INTO seawall_session (ttl_ms, secret, owner, until)
    VALUES ($1, $2, $3, clock_timestamp() + $1 * interval '1 millisecond') RETURNING id";

/// `id, secret` -> a row if the session lives
pub(super) const LIVES: &str =
    "SELECT 1 FROM seawall_session WHERE id = $1 AND secret = $2 AND until > clock_timestamp()";

/// `id, secret` -> `ttl_ms` if it lived
pub(super) const RENEW: &str =
    "UPDATE seawall_session SET until = clock_timestamp() + ttl_ms * interval '1 millisecond'
    WHERE id = $1 AND secret = $2 AND until > clock_timestamp() RETURNING ttl_ms";

/// `id, secret`
pub(super) const CLOSE: &str = "DELETE FROM seawall_session WHERE id = $1 AND secret = $2";

/// Sessions that ended and held nothing that anybody wanted.
pub(super) const SWEEP_SESSIONS: &str = "DELETE FROM seawall_session WHERE id IN
    (SELECT id FROM seawall_session WHERE until < clock_timestamp() LIMIT 100 FOR UPDATE SKIP LOCKED)";

/// Locks that nobody has wanted for a day, as there is one for every payment; and withdrawals of long ago.
pub(super) const SWEEP_LOCKS: &str = "WITH gone AS (DELETE FROM seawall_claim
        WHERE epoch IS NULL AND since < clock_timestamp() - interval '1 hour')
    DELETE FROM seawall_lock WHERE name IN
        (SELECT name FROM seawall_lock l WHERE used < clock_timestamp() - interval '1 day'
            AND NOT EXISTS (SELECT FROM seawall_claim c WHERE c.name = l.name) LIMIT 100 FOR UPDATE SKIP LOCKED)";

/// `name, token, id, secret, info, priority`: a place in the queue, unless it is there. Whether there is one now, the next look tells.
pub(super) const ENQUEUE: &str = "WITH place AS (
        INSERT INTO seawall_lock AS l (name, epoch, used)
        VALUES ($1, floor(extract(epoch FROM clock_timestamp()) * 1048576)::bigint, clock_timestamp())
        ON CONFLICT (name) DO UPDATE SET epoch = greatest(l.epoch + 1, excluded.epoch), used = excluded.used
        RETURNING epoch)
    INSERT INTO seawall_claim (name, token, session, epoch, modified, info, priority)
    SELECT $1, $2, s.id, place.epoch, place.epoch, $5, $6::bigint FROM place, seawall_session s
        WHERE s.id = $3 AND s.secret = $4 AND s.until > clock_timestamp()
    ON CONFLICT (name, token) DO NOTHING";

/// `name, token` -> the holder, the one before this, and this one, as far as they are there; see `lease::Row`.
pub(super) const LOOK: &str = "SELECT c.token, c.epoch, c.modified, c.info, s.owner, s.id,
        floor(extract(epoch FROM c.since) * 1000)::bigint,
        ceil(extract(epoch FROM s.until - clock_timestamp()) * 1000)::bigint, c.priority
    FROM seawall_claim c JOIN seawall_session s ON s.id = c.session
    WHERE c.name = $1 AND c.epoch IS NOT NULL AND (c.token = $2
        OR c.epoch = (SELECT min(epoch) FROM seawall_claim WHERE name = $1)
        OR c.epoch = (SELECT max(p.epoch) FROM seawall_claim p JOIN seawall_claim o ON o.name = p.name
            WHERE o.name = $1 AND o.token = $2 AND p.epoch < o.epoch))
    ORDER BY c.epoch";

/// `name` -> all that queue for it, as `LOOK`
pub(super) const SHOW: &str = "SELECT c.token, c.epoch, c.modified, c.info, s.owner, s.id,
        floor(extract(epoch FROM c.since) * 1000)::bigint,
        ceil(extract(epoch FROM s.until - clock_timestamp()) * 1000)::bigint, c.priority
    FROM seawall_claim c JOIN seawall_session s ON s.id = c.session
    WHERE c.name = $1 AND c.epoch IS NOT NULL ORDER BY c.epoch";

/// `how many` -> the names of the locks that somebody holds
pub(super) const NAMES: &str = "SELECT DISTINCT name FROM seawall_claim WHERE epoch IS NOT NULL ORDER BY name LIMIT $1";

/// `name, epoch` -> how many are before it
pub(super) const AHEAD: &str = "SELECT count(*) FROM seawall_claim WHERE name = $1 AND epoch < $2";

/// `name, token, epoch` -> a row if it is there
pub(super) const THERE: &str = "SELECT 1 FROM seawall_claim WHERE name = $1 AND token = $2 AND epoch = $3";

/// `name`: ends the sessions that queue for it and whose time is over. One that is just being kept alive is left alone.
pub(super) const REAP: &str = "DELETE FROM seawall_session WHERE id IN
    (SELECT s.id FROM seawall_session s JOIN seawall_claim c ON c.session = s.id
        WHERE c.name = $1 AND s.until < clock_timestamp() FOR UPDATE OF s SKIP LOCKED)";

/// `name, token, id, secret` -> a row if it was there
pub(super) const WITHDRAW: &str = "DELETE FROM seawall_claim c USING seawall_session s
    WHERE c.name = $1 AND c.token = $2 AND c.epoch IS NOT NULL AND s.id = c.session AND s.id = $3 AND s.secret = $4
    RETURNING 1";

/// The same for one that may still be on its way: what is left without a number keeps it from coming. -> whether it was there
pub(super) const FORESTALL: &str = "WITH held AS MATERIALIZED (
        SELECT 1 FROM seawall_claim WHERE name = $1 AND token = $2 AND epoch IS NOT NULL)
    INSERT INTO seawall_claim (name, token, session, epoch, modified, info)
    SELECT $1, $2, s.id, NULL, 0, '' FROM seawall_session s WHERE s.id = $3 AND s.secret = $4
    ON CONFLICT (name, token) DO UPDATE SET epoch = NULL
    RETURNING EXISTS (SELECT FROM held)";

/// `name` -> the holder that was removed, as `LOOK`
pub(super) const FORCE: &str = "WITH held AS (
        DELETE FROM seawall_claim WHERE (name, epoch) = (SELECT name, min(epoch) FROM seawall_claim WHERE name = $1 GROUP BY name)
        RETURNING token, epoch, modified, info, session, since, priority)
    SELECT held.token, held.epoch, held.modified, held.info, s.owner, s.id,
        floor(extract(epoch FROM held.since) * 1000)::bigint, 0::bigint, held.priority
    FROM held JOIN seawall_session s ON s.id = held.session";

/// `name, token, epoch, info` -> a row if it was there
pub(super) const PUBLISH: &str = "UPDATE seawall_claim SET info = $4, modified = modified + 1
    WHERE name = $1 AND token = $2 AND epoch = $3 RETURNING 1";

/// `name, token, epoch, to` -> whether this one leads, and the one that is called so, as `LOOK` (or nulls). If both are there,
/// all that are before the other are gone afterwards.
pub(super) const HAND_OVER: &str = "WITH own AS (
        SELECT epoch FROM seawall_claim c WHERE name = $1 AND token = $2 AND epoch = $3
            AND NOT EXISTS (SELECT FROM seawall_claim WHERE name = $1 AND epoch < $3) FOR UPDATE),
    next AS (
        SELECT c.token, c.epoch, c.modified, c.info, s.owner, s.id, c.since, c.priority
        FROM seawall_claim c JOIN seawall_session s ON s.id = c.session
        WHERE c.name = $1 AND c.epoch > $3 AND (s.owner = $4 OR s.id::text = $4) AND s.until > clock_timestamp()
            AND EXISTS (SELECT FROM own)
        ORDER BY c.epoch LIMIT 1 FOR UPDATE OF c),
    passed AS (
        DELETE FROM seawall_claim WHERE name = $1 AND epoch < (SELECT epoch FROM next) RETURNING 1)
    SELECT EXISTS (SELECT FROM own), next.token, next.epoch, next.modified, next.info, next.owner, next.id,
        floor(extract(epoch FROM next.since) * 1000)::bigint, (SELECT count(*) FROM passed), next.priority
    FROM (SELECT) one LEFT JOIN next ON true";
