//! Elections in a Redis.

use super::line::Doing;
use super::node::names;
use super::scripts::{About, CANDIDATES, HAND_OVER, Value};
use super::session::RedisSession;
use super::single::{CALL, Redis};
use crate::backend::view::{CandidateView, ElectionView};
use crate::backend::{BackendError, Claim};
use crate::class::Fence;
use crate::election::{Elections, HandedOver};
use crate::name::{ElectionName, LockName, Token};
use seawall_types::Revision;

/// Whether an observer has seen this one.
pub(super) fn is_new(seen: Option<&Option<CandidateView>>, leader: Option<&CandidateView>) -> bool {
    let which = |view: &CandidateView| (view.term, view.modified);
    seen.is_none_or(|seen| seen.as_ref().map(which) != leader.map(which))
}

impl Elections for Redis {
    async fn election(&self, name: &ElectionName) -> Result<ElectionView, BackendError> {
        let names = names(&LockName::of_election(name), &Token::random());
        let mut script = CANDIDATES.prepare_invoke();
        script.key(&names.lock).key(&names.standing).key(&names.said);
        let (leader, standing): (Option<String>, Vec<String>) = self.line.run(Doing::Read, CALL, &script).await?;
        let leader = leader.and_then(|leader| Value::parse(&leader)).map(Value::candidate);
        let standing = standing.iter().filter_map(|said| serde_json::from_str::<About>(said).ok());
        // It has no term until it leads.
        let mut candidates: Vec<_> = standing.map(|about| about.candidate(Fence::new(0), Revision(0))).collect();
        candidates.sort_by_key(|candidate| candidate.since_ms);
        Ok(ElectionView { name: name.clone(), leader, candidates })
    }

    async fn publish(&self, lease: &RedisSession, claim: &Claim, info: &str) -> Result<bool, BackendError> {
        // Its priority stays as it is, and nobody else writes here.
        let said = self.line.value(CALL, &claim.name).await?;
        let Some(said) = said.filter(|said| said.token == claim.token.to_string()) else { return Ok(false) };
        let about = lease.about(info, said.about.priority).map_err(|why| self.line.place.refused(why))?;
        self.line.update(CALL, &claim.name, &claim.token, &about).await
    }

    async fn hand_over(&self, _lease: &RedisSession, claim: &Claim, to: &str) -> Result<HandedOver, BackendError> {
        let names = names(&claim.name, &claim.token);
        let mut script = HAND_OVER.prepare_invoke();
        script.key(&names.lock).key(&names.standing).key(&names.said).arg(claim.token.to_string()).arg(to);
        let answer: Vec<redis::Value> = self.line.run(Doing::Write, CALL, &script).await?;
        match &answer[..] {
            [redis::Value::Int(1), value] => {
                let text = redis::from_redis_value_ref::<String>(value).unwrap_or_default();
                let strange = || self.line.place.refused("what a candidate said of itself is not understood");
                Ok(HandedOver::Now(Value::parse(&text).ok_or_else(strange)?.candidate()))
            }
            [redis::Value::Int(0)] => Ok(HandedOver::NoCandidate),
            _ => Ok(HandedOver::NotLeading),
        }
    }

    async fn changed(
        &self,
        name: &ElectionName,
        seen: Option<&Option<CandidateView>>,
    ) -> Result<Option<CandidateView>, BackendError> {
        let lock = LockName::of_election(name);
        // It begins before the first look, so that the two miss nothing together.
        let watch = self.listener.watch(&names(&lock, &Token::random()).lock);
        loop {
            let leader = self.line.value(CALL, &lock).await?.map(Value::candidate);
            if is_new(seen, leader.as_ref()) {
                return Ok(leader);
            }
            watch.changed(CALL).await;
        }
    }
}
