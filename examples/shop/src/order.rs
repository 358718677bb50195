//! Order: what customers ask for. `POST /orders` starts the saga that reserves, charges and ships; the saga's steps come
//! back here under `/pending`, which the gateway does not serve.

use std::path::Path;

use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::call::Services;
use crate::service::{Db, Problem};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS orders (
        id TEXT PRIMARY KEY, sku TEXT, quantity INTEGER, card TEXT, city TEXT, amount INTEGER, status TEXT NOT NULL
    );
";

#[derive(Clone)]
struct App {
    db: Db,
    services: Services,
}

/// What a customer sends.
#[derive(Deserialize, Serialize)]
struct Wanted {
    sku: String,
    quantity: i64,
    card: String,
    city: String,
}

/// What the saga carries from step to step.
#[derive(Deserialize, Serialize)]
struct Pending {
    order: String,
    amount: i64,
    #[serde(flatten)]
    wanted: Wanted,
}

pub(crate) fn router(data: &Path) -> anyhow::Result<Router> {
    let app = App { db: Db::open(data, "order.db", SCHEMA)?, services: Services::from_env() };
    Ok(Router::new()
        .route("/orders", post(place).get(list))
        .route("/orders/{id}", get(show))
        .route("/pending", post(create))
        .route("/pending/{id}", delete(cancel))
        .route("/pending/{id}/confirmation", put(confirm))
        .with_state(app))
}

/// Places an order: the price from inventory, then the saga. The same `Idempotency-Key` is the same order.
async fn place(
    State(app): State<App>,
    headers: HeaderMap,
    Json(wanted): Json<Wanted>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    if wanted.quantity < 1 || wanted.quantity > 100 {
        return Err(Problem(StatusCode::BAD_REQUEST, "quantity must be 1 to 100".into()));
    }
    let given = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::to_owned);
    let id = given.unwrap_or_else(|| format!("{:016x}", fastrand::u64(..)));
    let target = format!("inventory/products/{}", wanted.sku);
    let (status, product) = app.services.call(Method::GET, &target, None, &headers, &Value::Null).await?;
    let price = match (status, product["price"].as_i64()) {
        (StatusCode::OK, Some(price)) => price,
        (StatusCode::NOT_FOUND, _) => {
            return Err(Problem(StatusCode::BAD_REQUEST, format!("there is no product `{}`", wanted.sku)));
        }
        _ => return Err(Problem(StatusCode::SERVICE_UNAVAILABLE, format!("inventory: {status} {product}"))),
    };
    let pending = Pending { order: id.clone(), amount: price * wanted.quantity, wanted };
    let body = serde_json::to_value(&pending).map_err(|e| Problem(StatusCode::BAD_REQUEST, e.to_string()))?;
    let start = "control/v1/sagas/create-order?wait=15s";
    let (status, saga) = app.services.call(Method::POST, start, Some(&id), &headers, &body).await?;
    let answer =
        |state: &str| Json(json!({ "order": id, "status": state, "saga": saga["id"], "reason": saga["error"] }));
    match (status, saga["status"].as_str()) {
        (_, Some("completed")) => Ok((StatusCode::CREATED, answer("confirmed"))),
        (_, Some("undone")) => Ok((StatusCode::CONFLICT, answer("cancelled"))),
        (_, Some(_)) => Ok((StatusCode::ACCEPTED, answer("pending"))),
        (status, None) => Err(Problem(status, saga.to_string())),
    }
}

async fn list(State(app): State<App>) -> Result<Json<Vec<Value>>, Problem> {
    let list = app.db.write(|db| {
        let mut statement = db.prepare("SELECT id, status FROM orders ORDER BY rowid DESC LIMIT 20")?;
        let rows = statement.query_map([], |row| {
            let (id, status): (String, String) = (row.get(0)?, row.get(1)?);
            Ok(json!({ "order": id, "status": status }))
        })?;
        Ok(rows.collect::<rusqlite::Result<Vec<Value>>>()?)
    });
    Ok(Json(list.await?))
}

async fn show(State(app): State<App>, UrlPath(id): UrlPath<String>) -> Result<Json<Value>, Problem> {
    let found = app.db.write(move |db| {
        let row = db
            .query_row("SELECT status, sku, quantity, amount, city FROM orders WHERE id = ?1", [&id], |row| {
                let (status, sku): (String, Option<String>) = (row.get(0)?, row.get(1)?);
                let (quantity, amount): (Option<i64>, Option<i64>) = (row.get(2)?, row.get(3)?);
                let city: Option<String> = row.get(4)?;
                Ok(json!({
                    "order": id, "status": status, "sku": sku, "quantity": quantity, "amount": amount, "city": city
                }))
            })
            .optional()?;
        row.ok_or_else(|| Problem(StatusCode::NOT_FOUND, format!("there is no order {id}")))
    });
    Ok(Json(found.await?))
}

async fn create(State(app): State<App>, Json(pending): Json<Pending>) -> Result<(StatusCode, Json<Value>), Problem> {
    app.db
        .write(move |db| {
            let Pending { order, amount, wanted } = pending;
            db.execute(
                "INSERT OR IGNORE INTO orders VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'pending')",
                params![order, wanted.sku, wanted.quantity, wanted.card, wanted.city, amount],
            )?;
            let status: String = db.query_row("SELECT status FROM orders WHERE id = ?1", [&order], |row| row.get(0))?;
            if status == "cancelled" {
                return Err(Problem(StatusCode::CONFLICT, format!("order {order} was cancelled")));
            }
            Ok((StatusCode::CREATED, Json(json!({ "order": order }))))
        })
        .await
}

async fn cancel(State(app): State<App>, UrlPath(id): UrlPath<String>) -> Result<Json<Value>, Problem> {
    app.db
        .write(move |db| {
            db.execute(
                "INSERT INTO orders (id, status) VALUES (?1, 'cancelled')
                 ON CONFLICT (id) DO UPDATE SET status = 'cancelled'",
                [&id],
            )?;
            Ok(Json(json!({ "cancelled": id })))
        })
        .await
}

async fn confirm(State(app): State<App>, UrlPath(id): UrlPath<String>) -> Result<Json<Value>, Problem> {
    app.db
        .write(move |db| {
            let done =
                db.execute("UPDATE orders SET status = 'confirmed' WHERE id = ?1 AND status != 'cancelled'", [&id])?;
            if done == 0 {
                return Err(Problem(StatusCode::CONFLICT, format!("there is no open order {id}")));
            }
            Ok(Json(json!({ "confirmed": id })))
        })
        .await
}
