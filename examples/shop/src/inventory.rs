//! Inventory: what is in stock, and what is reserved for which order.

use std::path::Path;

use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use rusqlite::{OptionalExtension, params};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::service::{Db, Problem};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS product (
        sku TEXT PRIMARY KEY, name TEXT NOT NULL, price INTEGER NOT NULL, stock INTEGER NOT NULL CHECK (stock >= 0),
        initial INTEGER NOT NULL
    );
    CREATE TABLE IF NOT EXISTS reservation (
        order_id TEXT PRIMARY KEY, sku TEXT, quantity INTEGER NOT NULL, status TEXT NOT NULL
    );
    INSERT OR IGNORE INTO product VALUES
        ('lamp', 'Storm lamp', 3900, 100000, 100000), ('rope', 'Rope, 20 m', 2450, 100000, 100000),
        ('anchor', 'Anchor, 8 kg', 11900, 100000, 100000), ('sextant', 'Sextant, brass', 24900, 12, 12);
";

#[derive(Deserialize)]
struct Reserve {
    order: String,
    sku: String,
    quantity: u32,
}

pub(crate) fn router(data: &Path) -> anyhow::Result<Router> {
    let db = Db::open(data, "inventory.db", SCHEMA)?;
    Ok(Router::new()
        .route("/products", get(products))
        .route("/products/{sku}", get(product))
        .route("/reservations", post(reserve))
        .route("/reservations/{order}", delete(release))
        .with_state(db))
}

async fn products(State(db): State<Db>) -> Result<Json<Vec<Value>>, Problem> {
    let list = db.write(|db| {
        let mut statement = db.prepare("SELECT sku, name, price, stock FROM product ORDER BY sku")?;
        let rows = statement.query_map([], |row| {
            let (sku, name): (String, String) = (row.get(0)?, row.get(1)?);
            let (price, stock): (i64, i64) = (row.get(2)?, row.get(3)?);
            Ok(json!({ "sku": sku, "name": name, "price": price, "stock": stock }))
        })?;
        Ok(rows.collect::<rusqlite::Result<Vec<Value>>>()?)
    });
    Ok(Json(list.await?))
}

async fn product(State(db): State<Db>, UrlPath(sku): UrlPath<String>) -> Result<Json<Value>, Problem> {
    let found = db.write(move |db| {
        let row = db
            .query_row("SELECT name, price, stock FROM product WHERE sku = ?1", [&sku], |row| {
                let (name, price, stock): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                Ok(json!({ "sku": sku, "name": name, "price": price, "stock": stock }))
            })
            .optional()?;
        row.ok_or_else(|| Problem(StatusCode::NOT_FOUND, format!("there is no product `{sku}`")))
    });
    Ok(Json(found.await?))
}

/// Reserves once an order, whatever is repeated, and never again once it has been released.
async fn reserve(State(db): State<Db>, Json(wanted): Json<Reserve>) -> Result<(StatusCode, Json<Value>), Problem> {
    db.write(move |db| {
        let conflict = |why: String| Problem(StatusCode::CONFLICT, why);
        let status: Option<String> = db
            .query_row("SELECT status FROM reservation WHERE order_id = ?1", [&wanted.order], |row| row.get(0))
            .optional()?;
        match status.as_deref() {
            Some("reserved") => return Ok((StatusCode::OK, Json(json!({ "reserved": wanted.quantity })))),
            Some(_) => return Err(conflict(format!("the reservation of {} was released", wanted.order))),
            None => {}
        }
        let taken = db.execute(
            "UPDATE product SET stock = stock - ?2 WHERE sku = ?1 AND stock >= ?2",
            params![wanted.sku, wanted.quantity],
        )?;
        if taken == 0 {
            return Err(conflict(format!("no stock: {} x {}", wanted.quantity, wanted.sku)));
        }
        db.execute(
            "INSERT INTO reservation VALUES (?1, ?2, ?3, 'reserved')",
            params![wanted.order, wanted.sku, wanted.quantity],
        )?;
        Ok((StatusCode::CREATED, Json(json!({ "reserved": wanted.quantity }))))
    })
    .await
}

/// Gives back what was reserved; where nothing was, makes sure that nothing will be.
async fn release(State(db): State<Db>, UrlPath(order): UrlPath<String>) -> Result<Json<Value>, Problem> {
    db.write(move |db| {
        db.execute(
            "UPDATE product SET stock = stock + r.quantity FROM
                (SELECT sku, quantity FROM reservation WHERE order_id = ?1 AND status = 'reserved') AS r
             WHERE product.sku = r.sku",
            [&order],
        )?;
        db.execute(
            "INSERT INTO reservation VALUES (?1, NULL, 0, 'released')
             ON CONFLICT (order_id) DO UPDATE SET status = 'released'",
            [&order],
        )?;
        Ok(Json(json!({ "released": true })))
    })
    .await
}
