//! Elections in PostgreSQL's tables.

use super::lease::{PgLease, PgSession, Row, epoch};
use super::line::Doing;
use super::sql;
use crate::backend::view::{CandidateView, ElectionView};
use crate::backend::{BackendError, Claim, MAX_INFO};
use crate::election::{Elections, HandedOver};
use crate::name::{ElectionName, LockName};
use seawall_types::Revision;

fn candidate(row: Row) -> CandidateView {
    CandidateView::of(row.view, Revision(row.modified.unsigned_abs()))
}

impl Elections for PgLease {
    async fn election(&self, name: &ElectionName) -> Result<ElectionView, BackendError> {
        let lock = LockName::of_election(name);
        let rows = self.rows(sql::SHOW, vec![lock.as_str().into()]).await?;
        Ok(ElectionView::of(name.clone(), rows.into_iter().filter(Row::lives).map(candidate)))
    }

    async fn publish(&self, _lease: &PgSession, claim: &Claim, info: &str) -> Result<bool, BackendError> {
        if info.len() > MAX_INFO {
            let why = format!("an info of {} bytes: at most {MAX_INFO} are allowed", info.len());
            return Err(self.pool.place().refused(why));
        }
        let params = vec![claim.name.as_str().into(), claim.token.to_string().into(), epoch(claim).into(), info.into()];
        Ok(!self.pool.query(Doing::Write, sql::PUBLISH, params).await?.is_empty())
    }

    async fn hand_over(&self, _lease: &PgSession, claim: &Claim, to: &str) -> Result<HandedOver, BackendError> {
        let params = vec![claim.name.as_str().into(), claim.token.to_string().into(), epoch(claim).into(), to.into()];
        let rows = self.pool.query(Doing::Write, sql::HAND_OVER, params).await?;
        let Some(row) = rows.first() else { return Ok(HandedOver::NotLeading) };
        let leads: bool = row.try_get(0).map_err(|error| self.strange(&error))?;
        let next: Option<String> = row.try_get(1).map_err(|error| self.strange(&error))?;
        match next {
            _ if !leads => Ok(HandedOver::NotLeading),
            None => Ok(HandedOver::NoCandidate),
            Some(_) => {
                let next = Row::read(row, 1).map_err(|error| self.strange(&error))?;
                Ok(HandedOver::Now(candidate(next)))
            }
        }
    }

    async fn changed(
        &self,
        name: &ElectionName,
        seen: Option<&Option<CandidateView>>,
    ) -> Result<Option<CandidateView>, BackendError> {
        let lock = LockName::of_election(name);
        // It begins before the first look, so that the two miss nothing together.
        let watch = self.listener.watch(lock.as_str(), 0);
        loop {
            let first = self.first(&lock).await?.map(candidate);
            let which = |view: &CandidateView| (view.term, view.modified);
            if seen.is_none_or(|seen| seen.as_ref().map(which) != first.as_ref().map(which)) {
                return Ok(first);
            }
            watch.changed(None).await;
        }
    }
}
