//! Payments that are made once, whoever is asked, and however often: one by one and as a batch, each under its own lock.
//!
//! What makes it right is not the lock alone. The lock keeps two from working at the same payment, and says who does. The
//! record of what is paid, written under the fencing token, is what a later holder goes by. And the bank gets the payment's
//! name as an idempotency key, for the one moment that nobody else can cover: between its answer and the record.
//!
//! ```console
//! $ cargo run -p seawall --example payments --features fenced,sqlite
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use rusqlite::{Connection, OptionalExtension};
use seawall::coord::{ClaimError, Fence, LockName, Owner, Session, SessionConfig, StoreBackend, WithError};
use seawall::fenced::SqliteFence;
use seawall::store::Embedded;
use tokio::sync::Semaphore;

/// How much of this machine's slowness the example bears.
const SOON: Duration = Duration::from_secs(30);

/// What comes of a payment that is asked for. With [`Processor::pay`] the part to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// Made now.
    Paid { receipt: String },
    /// Made before, by whomever.
    AlreadyProcessed { receipt: String },
    /// Somebody else is at it. Ask again for what comes of it.
    BeingProcessed { by: String },
    /// The lock was lost on the way: it may have been made or not. Ask again; the bank knows the key.
    Unknown,
}

/// Makes payments, in one process of several.
#[derive(Clone)]
struct Processor {
    session: Session<StoreBackend>,
    records: Records,
    bank: Bank,
}

impl Processor {
    async fn pay(&self, payment: &str) -> anyhow::Result<Answer> {
        let lock = self.session.lock(LockName::try_new(payment)?);
        let paid = lock.with(Duration::ZERO, async |guard| {
            // Under the lock, for it may have been made while this one was on the way.
            if let Some(receipt) = self.records.find(payment)? {
                return Ok(Answer::AlreadyProcessed { receipt });
            }
            let receipt = self.bank.charge(payment).await?;
            self.records.add(payment, &receipt, guard.fence())?;
            Ok(Answer::Paid { receipt })
        });
        match paid.await {
            Ok(answer) => answer,
            Err(WithError::Claim(ClaimError::Busy { holder })) => {
                let by = holder.map_or_else(|| "somebody".to_owned(), |holder| holder.owner.to_string());
                Ok(Answer::BeingProcessed { by })
            }
            Err(WithError::Lost(_)) => Ok(Answer::Unknown),
            Err(WithError::Claim(error)) => Err(error.into()),
        }
    }

    /// Each by itself: one that fails, or that somebody else is at, stops none of the others.
    async fn pay_all(&self, payments: &[String]) -> BTreeMap<String, anyhow::Result<Answer>> {
        let mut answers = BTreeMap::new();
        for payment in payments {
            answers.insert(payment.clone(), self.pay(payment).await);
        }
        answers
    }
}

/// What is paid: a table that refuses what a former holder of the payment's lock writes.
#[derive(Clone)]
struct Records(Arc<Mutex<Connection>>);

impl Records {
    fn new() -> anyhow::Result<Self> {
        // A file, in earnest.
        let connection = Connection::open_in_memory()?;
        SqliteFence::create_table(&connection)?;
        connection.execute("CREATE TABLE paid (payment TEXT PRIMARY KEY, receipt TEXT NOT NULL)", ())?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, payment: &str) -> anyhow::Result<Option<String>> {
        let find = "SELECT receipt FROM paid WHERE payment = ?1";
        Ok(self.lock().query_row(find, (payment,), |row| row.get(0)).optional()?)
    }

    fn add(&self, payment: &str, receipt: &str, fence: Fence) -> anyhow::Result<()> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        SqliteFence::check(&transaction, payment, fence)?;
        transaction.execute("INSERT INTO paid VALUES (?1, ?2)", (payment, receipt))?;
        Ok(transaction.commit()?)
    }
}

/// Somebody else's service, which charges once for a key, and is slow when it is told to be.
#[derive(Clone)]
struct Bank {
    charged: Arc<Mutex<BTreeSet<String>>>,
    /// How many may be answered.
    open: Arc<Semaphore>,
    asked: Arc<Semaphore>,
}

impl Bank {
    fn new() -> Self {
        Self { charged: Arc::default(), open: Arc::new(Semaphore::new(0)), asked: Arc::new(Semaphore::new(0)) }
    }

    async fn charge(&self, key: &str) -> anyhow::Result<String> {
        // Charged at once, and answered later: as bad as it gets.
        self.charged.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned());
        self.asked.add_permits(1);
        self.open.acquire().await?.forget();
        Ok(format!("receipt-of-{key}"))
    }

    fn charges(&self) -> usize {
        self.charged.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    // Processes share a control node: `Remote::new(["127.0.0.1:7400".parse()?])`. These are tasks, and share a store.
    let backend = StoreBackend::open(Arc::new(Embedded::memory()?)).await?;
    let (records, bank) = (Records::new()?, Bank::new());
    let mut processors = Vec::new();
    for name in ["payment-1", "payment-2", "payment-3"] {
        let session = Session::open(backend.clone(), SessionConfig::new(Owner::try_new(name)?)).await?;
        processors.push(Processor { session, records: records.clone(), bank: bank.clone() });
    }
    let (first, second) = (processors[0].clone(), processors[1].clone());

    // One.
    let paying = tokio::spawn({
        let first = first.clone();
        async move { first.pay("order-7").await }
    });
    tokio::time::timeout(SOON, bank.asked.acquire()).await??.forget();
    let meanwhile = second.pay("order-7").await?;
    bank.open.add_permits(1);
    let paid = paying.await??;
    ensure!(paid == Answer::Paid { receipt: "receipt-of-order-7".to_owned() }, "{paid:?}");
    println!("paid: order-7 by payment-1");
    ensure!(meanwhile == Answer::BeingProcessed { by: "payment-1".to_owned() }, "{meanwhile:?}");
    println!("being processed: that is what payment-2 was told at the same time");
    let again = second.pay("order-7").await?;
    ensure!(again == Answer::AlreadyProcessed { receipt: "receipt-of-order-7".to_owned() }, "{again:?}");
    ensure!(bank.charges() == 1, "charged {} times", bank.charges());
    println!("already processed: that is what it was told later, with the same receipt");

    // A batch, which three processors have been given at once.
    let batch: Vec<String> = (1..=30).map(|number| format!("order-{number}")).collect();
    bank.open.add_permits(29);
    let mut working = tokio::task::JoinSet::new();
    for processor in processors {
        let batch = batch.clone();
        working.spawn(async move { processor.pay_all(&batch).await });
    }
    let mut paid = 0;
    while let Some(answers) = working.join_next().await {
        for (payment, answer) in answers? {
            paid += usize::from(matches!(answer.with_context(|| payment)?, Answer::Paid { .. }));
        }
    }
    ensure!(paid == 29 && bank.charges() == 30, "{paid} were paid, {} charged", bank.charges());
    println!("batch: 30 payments, of which one was made before, each made by one of three");

    // The lock is taken away while the bank has charged and not yet answered.
    let paying = tokio::spawn(async move { first.pay("order-99").await });
    while bank.charges() < 31 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lock = LockName::try_new("order-99")?;
    backend.force(&lock, "the example", "to show what comes of it").await?;
    let answer = tokio::time::timeout(SOON, paying).await???;
    ensure!(answer == Answer::Unknown, "{answer:?}");
    ensure!(records.find("order-99")?.is_none(), "a holder that has lost the lock has written");
    println!("unknown: the lock was lost while the bank was asked, and nothing was recorded");
    bank.open.add_permits(1);
    let answer = second.pay("order-99").await?;
    ensure!(matches!(answer, Answer::Paid { .. }) && bank.charges() == 31, "{answer:?}");
    println!("resolved: asked again, under the same key; the bank has charged once");
    Ok(())
}
