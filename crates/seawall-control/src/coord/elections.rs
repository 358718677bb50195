//! Elections: who stands is a claim like that of a lock, answered by the same handlers; here is what a leader does beside, and
//! how others see it.

use std::convert::Infallible;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use seawall_coord::{
    Audit, Backend, CandidateView, Claim, ElectionName, ElectionView, Elections, Fence, HandedOver, LockName, Observer,
    StoreBackend,
};
use seawall_types::{Period, Revision};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::observing::{self, KEEP_ALIVE};
use super::{Coord, Named, Problem, lease};
use crate::api::{MAX_WAIT, Params};

pub(super) fn router() -> Router<Coord> {
    const CANDIDATE: &str = "/v1/elections/{name}/candidates/{token}";
    Router::new()
        .route("/v1/elections", get(list))
        .route("/v1/elections/{name}", get(show))
        .route("/v1/elections/{name}/observe", get(observe))
        .route("/v1/elections/{name}/force", post(force))
        .route(CANDIDATE, put(super::claim).get(super::read).delete(super::release))
        .route(&format!("{CANDIDATE}/info"), put(publish))
        .route(&format!("{CANDIDATE}/hand-over"), post(hand_over))
}

fn election_name(name: &str) -> Result<ElectionName, Problem> {
    ElectionName::try_new(name).map_err(Problem::invalid)
}

async fn list(State(coord): State<Coord>, headers: HeaderMap) -> Result<Response, Problem> {
    if observing::wants_events(&headers) {
        return Ok(observing::events::<ElectionView>(coord.backend, coord.drain, "election").into_response());
    }
    Ok(Json(coord.backend.elections().await?).into_response())
}

async fn force(
    State(coord): State<Coord>,
    Path(name): Path<String>,
    body: Result<Json<super::Force>, JsonRejection>,
) -> Result<Json<Value>, Problem> {
    super::force_from(&coord, &LockName::of_election(&election_name(&name)?), body).await
}

/// An election, and when its leader was removed by force.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    election: ElectionView,
    forced: Vec<Audit>,
}

/// `?wait=30s&seen=none`, or `?wait=30s&seen=<term>-<modified>`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    seen: Option<String>,
    #[serde(default)]
    wait: Period,
}

/// The term and the revision of what was seen last; nothing when nobody led.
fn seen(text: &str) -> Result<Option<(Fence, Revision)>, Problem> {
    let number = |text: &str| text.parse().map_err(|_| ());
    let parse = || {
        let (term, modified) = text.split_once('-').ok_or(())?;
        Ok(Some((Fence::new(number(term)?), Revision(number(modified)?))))
    };
    if text == "none" { Ok(None) } else { parse() }.map_err(|()| {
        Problem::invalid(format!("`seen={text}` is not known; there is `seen=none` and `seen=<term>-<modified>`"))
    })
}

async fn show(
    State(coord): State<Coord>,
    Path(name): Path<String>,
    query: Result<Params<Seen>, crate::api::Problem>,
) -> Result<Json<Shown>, Problem> {
    let name = election_name(&name)?;
    let Params(query) = query.map_err(|problem| Problem::invalid(problem.1))?;
    if let Some(text) = &query.seen {
        let seen = seen(text)?;
        let mut observer = Observer::new(coord.backend.clone(), name.clone());
        let differs = async {
            loop {
                let leader = observer.next().await?;
                if leader.map(|leader| (leader.term, leader.modified)) != seen {
                    return Ok::<_, Problem>(());
                }
            }
        };
        tokio::select! {
            differs = differs => differs?,
            () = tokio::time::sleep(query.wait.get().min(MAX_WAIT)) => {}
            () = coord.drain.signaled() => {}
        }
    }
    let election = coord.backend.election(&name).await?;
    let mut forced = coord.backend.audits().await?;
    forced.retain(|audit| audit.lock.election() == Some(name.as_str()));
    Ok(Json(Shown { election, forced }))
}

async fn observe(
    State(coord): State<Coord>,
    Path(name): Path<String>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let observer = Observer::new(coord.backend.clone(), election_name(&name)?);
    let stream = stream::unfold((observer, coord.drain), |(mut observer, drain)| async {
        let leader = tokio::select! {
            leader = observer.next() => leader.ok()?,
            () = drain.signaled() => return None,
        };
        Some((Ok(event(leader.as_ref())?), (observer, drain)))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn event(leader: Option<&CandidateView>) -> Option<Event> {
    match leader {
        Some(leader) => Event::default().event("leader").id(leader.term.to_string()).json_data(leader).ok(),
        None => Some(Event::default().event("nobody").data("{}")),
    }
}

/// The claim of a candidate's request.
async fn claim_of(
    coord: &Coord,
    Named(name, token): &Named,
    session: &str,
) -> Result<(<StoreBackend as Backend>::Lease, Claim), Problem> {
    let lease = lease(session)?;
    coord.backend.session(&lease).await?;
    match coord.backend.resolve(&lease, name, token).await? {
        Some((claim, _)) => Ok((lease, claim)),
        None => Err(Problem::new(StatusCode::CONFLICT, "not-held", "nobody stands with this token")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Publish {
    session: String,
    info: String,
}

async fn publish(
    State(coord): State<Coord>,
    named: Named,
    body: Result<Json<Publish>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    let Json(Publish { session, info }) = body?;
    let (lease, claim) = claim_of(&coord, &named, &session).await?;
    if coord.backend.publish(&lease, &claim, &info).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::new(StatusCode::CONFLICT, "not-held", "nobody stands with this token any more"))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HandOver {
    session: String,
    to: String,
}

async fn hand_over(
    State(coord): State<Coord>,
    named: Named,
    body: Result<Json<HandOver>, JsonRejection>,
) -> Result<Json<Value>, Problem> {
    let Json(HandOver { session, to }) = body?;
    let (lease, claim) = claim_of(&coord, &named, &session).await?;
    match coord.backend.hand_over(&lease, &claim, &to).await? {
        HandedOver::Now(leader) => {
            // A repetition of the campaign that comes late must not stand again.
            coord.places().withdrawn.insert(named.1);
            coord.ledger.released(named.1);
            Ok(Json(json!({ "leader": leader })))
        }
        HandedOver::NoCandidate => {
            let why = format!("nobody called `{to}` stands for election; nothing was changed");
            Err(Problem::new(StatusCode::NOT_FOUND, "no-candidate", why))
        }
        HandedOver::NotLeading => {
            Err(Problem::new(StatusCode::CONFLICT, "not-held", "this token does not lead; nothing was changed"))
        }
    }
}
