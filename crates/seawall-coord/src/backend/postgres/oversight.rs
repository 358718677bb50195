//! What an operator sees of the locks in PostgreSQL.

use super::advisory::PgAdvisory;
use super::lease::{PgLease, Row};
use super::line::Doing;
use super::sql;
use crate::backend::BackendError;
use crate::backend::view::{ClaimView, LockView};
use crate::name::LockName;
use crate::oversight::{MAX_NAMES, Oversight};

impl Oversight for PgLease {
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let limit = i64::try_from(MAX_NAMES).unwrap_or(i64::MAX);
        let rows = self.pool.query(Doing::Read, sql::NAMES, vec![limit.into()]).await?;
        let names: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(0)).collect();
        let names = names.map_err(|error| self.strange(&error))?;
        Ok(names.iter().filter_map(|name| LockName::of_text(name)).collect())
    }

    /// May show sessions whose time is just over.
    async fn show(&self, name: &LockName) -> Result<LockView, BackendError> {
        let rows = self.rows(sql::SHOW, vec![name.as_str().into()]).await?;
        let claims = rows.into_iter().map(|row| row.view);
        Ok(LockView::of(name.clone(), claims.collect()))
    }

    async fn force(&self, name: &LockName, _by: &str, _why: &str) -> Result<Option<ClaimView>, BackendError> {
        let rows = self.pool.query(Doing::Write, sql::FORCE, vec![name.as_str().into()]).await?;
        let row = rows.first().map(|row| Row::read(row, 0)).transpose().map_err(|error| self.strange(&error))?;
        Ok(row.map(|row| row.view))
    }
}

impl Oversight for PgAdvisory {
    async fn names(&self) -> Result<Vec<LockName>, BackendError> {
        let notes = self.notes(None).await?;
        Ok(notes.iter().filter_map(|note| LockName::of_text(&note.name)).collect())
    }

    async fn show(&self, name: &LockName) -> Result<LockView, BackendError> {
        let note = self.notes(Some(name.as_str())).await?.pop();
        Ok(LockView::of(name.clone(), note.map(|note| note.view).into_iter().collect()))
    }

    async fn force(&self, name: &LockName, _by: &str, _why: &str) -> Result<Option<ClaimView>, BackendError> {
        match self.notes(Some(name.as_str())).await?.pop() {
            None => Ok(None),
            Some(note) => Err(self.holds_until_it_ends(&note)),
        }
    }

    fn knows_who_waits(&self) -> bool {
        false
    }
}
