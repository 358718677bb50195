//! What Redis does in one step each. A lock's value is the claim's token (32 digits), the microsecond at which it was granted
//! and the one at which it was last written (16 digits each), and a JSON text about its holder.

use std::sync::LazyLock;

use redis::Script;
use serde::{Deserialize, Serialize};

use crate::backend::view::{CandidateView, ClaimView};
use crate::class::Fence;
use crate::name::{LockName, Token};
use crate::sharing::Kind;
use seawall_types::Revision;

/// How long a candidate stands without asking again, in milliseconds.
pub(super) const STAND: u64 = 3_000;
/// How long it is remembered that a claim was withdrawn which may yet arrive, in milliseconds. Whatever waits longer in a
/// socket was given up by both sides.
pub(super) const DEAD: u64 = 120_000;

const NOW: &str =
    "local function now() local t = redis.call('TIME') return string.format('%010d%06d', t[1], t[2]) end\n";

/// KEYS: lock, withdrawn, standing, what they say. ARGV: token, time to live, JSON, how long to stand (empty: not).
/// Answers 1 and the value when the lock is this claim's, 0 with the value and its time left when it is another's, -1 when the
/// claim was withdrawn.
pub(super) static ACQUIRE: LazyLock<Script> = LazyLock::new(|| {
    script(
        "if redis.call('EXISTS', KEYS[2]) == 1 then return {-1} end
        local v = redis.call('GET', KEYS[1])
        if v and string.sub(v, 1, 32) ~= ARGV[1] then
            if ARGV[4] ~= '' then
                redis.call('ZADD', KEYS[3], now() + ARGV[4] * 1000, ARGV[1])
                redis.call('HSET', KEYS[4], ARGV[1], string.format('%010d', ARGV[2]) .. ARGV[3])
                redis.call('PEXPIRE', KEYS[3], 60000)
                redis.call('PEXPIRE', KEYS[4], 60000)
            end
            return {0, v, redis.call('PTTL', KEYS[1])}
        end
        if ARGV[4] ~= '' then
            redis.call('ZREM', KEYS[3], ARGV[1])
            redis.call('HDEL', KEYS[4], ARGV[1])
        end
        if v then
            redis.call('PEXPIRE', KEYS[1], ARGV[2])
            return {1, v}
        end
        local at = now()
        v = ARGV[1] .. at .. at .. ARGV[3]
        redis.call('SET', KEYS[1], v, 'PX', ARGV[2])
        if ARGV[4] ~= '' then redis.call('PUBLISH', KEYS[1], '') end
        return {1, v}",
    )
});

/// KEYS: lock, withdrawn, standing, what they say. ARGV: token, how long to remember that it was withdrawn (0: not at all).
/// Answers whether it held the lock.
pub(super) static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    script(
        "if redis.call('ZREM', KEYS[3], ARGV[1]) == 1 then redis.call('HDEL', KEYS[4], ARGV[1]) end
        local v = redis.call('GET', KEYS[1])
        if v and string.sub(v, 1, 32) == ARGV[1] then
            redis.call('DEL', KEYS[1])
            redis.call('PUBLISH', KEYS[1], '')
            return 1
        end
        if ARGV[2] ~= '0' then redis.call('SET', KEYS[2], '', 'PX', ARGV[2]) end
        return 0",
    )
});

/// KEYS: locks. ARGV: time to live, and a token for each. Answers for each whether it is held still.
pub(super) static EXTEND: LazyLock<Script> = LazyLock::new(|| {
    script(
        "local held = {}
        for i, key in ipairs(KEYS) do
            local v = redis.call('GET', key)
            if v and string.sub(v, 1, 32) == ARGV[i + 1] then
                held[i] = redis.call('PEXPIRE', key, ARGV[1])
            else
                held[i] = 0
            end
        end
        return held",
    )
});

/// KEYS: lock. ARGV: token, JSON. Answers whether it holds the lock.
pub(super) static UPDATE: LazyLock<Script> = LazyLock::new(|| {
    script(
        "local v = redis.call('GET', KEYS[1])
        if not v or string.sub(v, 1, 32) ~= ARGV[1] then return 0 end
        redis.call('SET', KEYS[1], string.sub(v, 1, 48) .. now() .. ARGV[2], 'KEEPTTL')
        redis.call('PUBLISH', KEYS[1], '')
        return 1",
    )
});

/// KEYS: lock, standing, what they say. ARGV: token, owner or session of who is to lead. Answers 1 and the new value, 0 when
/// nobody of that name stands, -1 when the token does not hold the lock.
pub(super) static HAND_OVER: LazyLock<Script> = LazyLock::new(|| {
    script(
        "local v = redis.call('GET', KEYS[1])
        if not v or string.sub(v, 1, 32) ~= ARGV[1] then return {-1} end
        local at = now()
        local next, ttl, body, since
        for _, token in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], at, '+inf')) do
            local said = redis.call('HGET', KEYS[3], token)
            if said then
                local about = cjson.decode(string.sub(said, 11))
                if (about.owner == ARGV[2] or about.session == ARGV[2]) and (not next or about.since_ms < since) then
                    next, ttl, body, since = token, tonumber(string.sub(said, 1, 10)), string.sub(said, 11), about.since_ms
                end
            end
        end
        if not next then return {0} end
        redis.call('ZREM', KEYS[2], next)
        redis.call('HDEL', KEYS[3], next)
        v = next .. at .. at .. body
        redis.call('SET', KEYS[1], v, 'PX', ttl)
        redis.call('PUBLISH', KEYS[1], '')
        return {1, v}",
    )
});

/// KEYS: lock, standing, what they say. Answers the lock's value, and what each says that stands.
pub(super) static CANDIDATES: LazyLock<Script> = LazyLock::new(|| {
    script(
        "local standing = {}
        for _, token in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], now(), '+inf')) do
            local said = redis.call('HGET', KEYS[3], token)
            if said then standing[#standing + 1] = string.sub(said, 11) end
        end
        return {redis.call('GET', KEYS[1]), standing}",
    )
});

fn script(text: &str) -> Script {
    Script::new(&format!("{NOW}{text}"))
}

/// The keys of a lock; with the tag by which a cluster keeps them together. The first is also the channel on which is told that
/// it has become free.
pub(super) struct Names {
    pub(super) lock: String,
    pub(super) withdrawn: String,
    pub(super) standing: String,
    pub(super) said: String,
}

impl Names {
    pub(super) fn new(prefix: &str, name: &LockName, token: &Token) -> Self {
        let tag = match name.election() {
            Some(election) => format!("{prefix}:{{elect/{election}}}"),
            None => format!("{prefix}:{{lock/{name}}}"),
        };
        Self {
            withdrawn: format!("{tag}:withdrawn:{token}"),
            standing: format!("{tag}:standing"),
            said: format!("{tag}:said"),
            lock: tag,
        }
    }
}

/// What a claim says about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct About {
    pub(super) owner: String,
    pub(super) session: String,
    pub(super) since_ms: u64,
    #[serde(default)]
    pub(super) info: String,
    #[serde(default, skip_serializing_if = "crate::backend::view::is_zero")]
    pub(super) priority: i32,
}

impl About {
    pub(super) fn candidate(self, term: Fence, modified: Revision) -> CandidateView {
        let Self { owner, session, since_ms, info, priority } = self;
        CandidateView { term, owner, session, since_ms, info, modified, priority }
    }
}

/// A lock's value.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) token: String,
    /// Microseconds since 1970 by the server's clock.
    pub(super) granted: u64,
    pub(super) modified: u64,
    pub(super) about: About,
}

impl Value {
    /// None of somebody else's making.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(Self {
            token: text.get(..32)?.to_owned(),
            granted: text.get(32..48)?.parse().ok()?,
            modified: text.get(48..64)?.parse().ok()?,
            about: serde_json::from_str(text.get(64..)?).ok()?,
        })
    }

    /// The holder that this is.
    pub(super) fn claim(self) -> ClaimView {
        let About { owner, session, since_ms, info, priority } = self.about;
        ClaimView { owner, session, fence: None, since_ms, info, kind: Kind::Exclusive, priority }
    }

    /// The leader that this is. Its term tells leaders apart, and is no fencing token: it goes back when the clock does.
    pub(super) fn candidate(self) -> CandidateView {
        self.about.candidate(Fence::new(self.granted), Revision(self.modified))
    }
}
