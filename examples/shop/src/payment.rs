//! Payment: cards with limits, and what each order has been charged.

use std::path::Path;

use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use rusqlite::{OptionalExtension, params};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::service::{Db, Problem};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS card (
        number TEXT PRIMARY KEY, card_limit INTEGER NOT NULL, spent INTEGER NOT NULL CHECK (spent BETWEEN 0 AND card_limit)
    );
    CREATE TABLE IF NOT EXISTS charge (
        order_id TEXT PRIMARY KEY, card TEXT, amount INTEGER NOT NULL, status TEXT NOT NULL
    );
    INSERT OR IGNORE INTO card VALUES ('gold', 1000000000, 0), ('plain', 100000000, 0), ('poor', 30000, 0);
";

#[derive(Deserialize)]
struct Charge {
    order: String,
    card: String,
    amount: i64,
}

pub(crate) fn router(data: &Path) -> anyhow::Result<Router> {
    let db = Db::open(data, "payment.db", SCHEMA)?;
    Ok(Router::new()
        .route("/cards/{card}", get(card))
        .route("/charges", post(charge))
        .route("/charges/{order}", get(charged).delete(refund))
        .with_state(db))
}

async fn card(State(db): State<Db>, UrlPath(card): UrlPath<String>) -> Result<Json<Value>, Problem> {
    let found = db.write(move |db| {
        let row = db
            .query_row("SELECT card_limit, spent FROM card WHERE number = ?1", [&card], |row| {
                Ok(json!({ "card": card, "limit": row.get::<_, i64>(0)?, "spent": row.get::<_, i64>(1)? }))
            })
            .optional()?;
        row.ok_or_else(|| Problem(StatusCode::NOT_FOUND, format!("there is no card `{card}`")))
    });
    Ok(Json(found.await?))
}

async fn charged(State(db): State<Db>, UrlPath(order): UrlPath<String>) -> Result<Json<Value>, Problem> {
    let found = db.write(move |db| {
        let row = db
            .query_row("SELECT amount, status FROM charge WHERE order_id = ?1", [&order], |row| {
                let (amount, status): (i64, String) = (row.get(0)?, row.get(1)?);
                Ok(json!({ "order": order, "amount": amount, "status": status }))
            })
            .optional()?;
        row.ok_or_else(|| Problem(StatusCode::NOT_FOUND, format!("order {order} has not been charged")))
    });
    Ok(Json(found.await?))
}

/// Charges once an order, whatever is repeated, and never again once it has been refunded.
async fn charge(State(db): State<Db>, Json(wanted): Json<Charge>) -> Result<(StatusCode, Json<Value>), Problem> {
    db.write(move |db| {
        let status: Option<String> = db
            .query_row("SELECT status FROM charge WHERE order_id = ?1", [&wanted.order], |row| row.get(0))
            .optional()?;
        match status.as_deref() {
            Some("charged") => return Ok((StatusCode::OK, Json(json!({ "charged": wanted.amount })))),
            Some(_) => {
                return Err(Problem(StatusCode::CONFLICT, format!("the charge for {} was refunded", wanted.order)));
            }
            None => {}
        }
        if wanted.amount <= 0 {
            return Err(Problem(StatusCode::BAD_REQUEST, format!("{} cannot be charged", wanted.amount)));
        }
        let taken = db.execute(
            "UPDATE card SET spent = spent + ?2 WHERE number = ?1 AND spent + ?2 <= card_limit",
            params![wanted.card, wanted.amount],
        )?;
        if taken == 0 {
            return Err(Problem(StatusCode::PAYMENT_REQUIRED, format!("card `{}` is declined", wanted.card)));
        }
        db.execute(
            "INSERT INTO charge VALUES (?1, ?2, ?3, 'charged')",
            params![wanted.order, wanted.card, wanted.amount],
        )?;
        Ok((StatusCode::CREATED, Json(json!({ "charged": wanted.amount }))))
    })
    .await
}

/// Gives the money back; where none was taken, makes sure that none will be.
async fn refund(State(db): State<Db>, UrlPath(order): UrlPath<String>) -> Result<Json<Value>, Problem> {
    db.write(move |db| {
        db.execute(
            "UPDATE card SET spent = spent - c.amount FROM
                (SELECT card, amount FROM charge WHERE order_id = ?1 AND status = 'charged') AS c
             WHERE card.number = c.card",
            [&order],
        )?;
        db.execute(
            "INSERT INTO charge VALUES (?1, NULL, 0, 'refunded')
             ON CONFLICT (order_id) DO UPDATE SET status = 'refunded'",
            [&order],
        )?;
        Ok(Json(json!({ "refunded": true })))
    })
    .await
}
