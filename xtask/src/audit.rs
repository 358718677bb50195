//! The audit: what the four databases of the shop say about each order, and whether stock and money add up.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use rusqlite::{Connection, OpenFlags};

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    pub(crate) confirmed: usize,
    pub(crate) others: usize,
    pub(crate) problems: Vec<String>,
}

#[derive(Default)]
struct Effects {
    status: Option<String>,
    reserved: Option<i64>,
    charged: Option<i64>,
    delivered: bool,
    amount: i64,
    quantity: i64,
}

fn open(dir: &Path, name: &str) -> anyhow::Result<Connection> {
    let path = dir.join(name);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    Connection::open_with_flags(&path, flags).with_context(|| format!("cannot open {}", path.display()))
}

pub(crate) fn audit(dir: &Path) -> anyhow::Result<Audit> {
    let mut orders: BTreeMap<String, Effects> = BTreeMap::new();
    let order = open(dir, "order.db")?;
    let mut statement = order.prepare("SELECT id, status, coalesce(amount, 0), coalesce(quantity, 0) FROM orders")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let effects = orders.entry(row.get(0)?).or_default();
        (effects.status, effects.amount, effects.quantity) = (row.get(1)?, row.get(2)?, row.get(3)?);
    }
    let inventory = open(dir, "inventory.db")?;
    let mut statement = inventory.prepare("SELECT order_id, quantity FROM reservation WHERE status = 'reserved'")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        orders.entry(row.get(0)?).or_default().reserved = row.get(1)?;
    }
    let payment = open(dir, "payment.db")?;
    let mut statement = payment.prepare("SELECT order_id, amount FROM charge WHERE status = 'charged'")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        orders.entry(row.get(0)?).or_default().charged = row.get(1)?;
    }
    let shipping = open(dir, "shipping.db")?;
    let mut statement = shipping.prepare("SELECT order_id FROM delivery WHERE status = 'booked'")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        orders.entry(row.get(0)?).or_default().delivered = true;
    }

    let mut audit = Audit::default();
    for (id, effects) in &orders {
        let Effects { status, reserved, charged, delivered, amount, quantity } = effects;
        if status.as_deref() == Some("confirmed") {
            audit.confirmed += 1;
            if *reserved != Some(*quantity) || *charged != Some(*amount) || !delivered {
                audit.problems.push(format!(
                    "order {id} is confirmed with reservation {reserved:?}, charge {charged:?}, delivery {delivered}"
                ));
            }
        } else {
            audit.others += 1;
            if status.as_deref() != Some("cancelled") || reserved.is_some() || charged.is_some() || *delivered {
                audit.problems.push(format!(
                    "order {id} is {status:?} with reservation {reserved:?}, charge {charged:?}, delivery {delivered}"
                ));
            }
        }
    }
    let sums = [
        (
            &inventory,
            "stock",
            "SELECT count(*) FROM product AS p WHERE stock + coalesce((SELECT sum(quantity) FROM
            reservation AS r WHERE r.sku = p.sku AND status = 'reserved'), 0) != initial",
        ),
        (
            &payment,
            "money",
            "SELECT count(*) FROM card AS c WHERE spent != coalesce((SELECT sum(amount) FROM
            charge WHERE card = c.number AND status = 'charged'), 0)",
        ),
        (
            &shipping,
            "delivery slots",
            "SELECT count(*) FROM city AS c WHERE used != (SELECT count(*) FROM
            delivery WHERE city = c.name AND status = 'booked')",
        ),
    ];
    for (db, what, sql) in sums {
        let wrong: i64 = db.query_row(sql, [], |row| row.get(0))?;
        if wrong > 0 {
            audit.problems.push(format!("{what}: {wrong} rows do not add up"));
        }
    }
    Ok(audit)
}
