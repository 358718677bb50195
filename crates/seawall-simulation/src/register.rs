//! What locks protect: a register that refuses tokens smaller than the largest that it has seen, and one that takes anything.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall_histories::{Append, Line, Outcome};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::{Weather, World, chance, millis};

/// A register and what was asked of it.
#[derive(Clone, Debug, Default)]
pub struct Register {
    /// What it holds.
    pub lines: Vec<Line>,
    /// What was asked.
    pub appends: Vec<Append>,
}

/// The two registers of one lock; clones are the same ones.
#[derive(Clone, Debug, Default)]
pub struct Registers(Arc<Mutex<(Register, Register)>>);

impl Registers {
    /// A holder appends to both, through a network that may be slow and lose answers.
    pub async fn append(&self, world: &World, process: &str, fence: u64, value: String, weather: Weather) {
        let (answer, answered) = oneshot::channel();
        let append =
            Append { process: process.to_owned(), fence, value, at: world.moment(), outcome: Outcome::Unknown };
        let line = Line { fence, value: append.value.clone() };
        // Before it is sent: its writer may be killed before it hears of it.
        let index = {
            let (fenced, unfenced) = &mut *self.lock();
            unfenced.appends.push(append.clone());
            fenced.appends.push(append);
            fenced.appends.len() - 1
        };
        let registers = self.clone();
        let (there, deaf) = (millis(0, weather.delay * 10), chance(weather.lose_answer));
        world.spawn(async move {
            sleep(there).await;
            let taken = registers.take(line);
            if !deaf {
                let _ = answer.send(taken);
            }
        });
        let Ok(Ok(taken)) = timeout(Duration::from_millis(200), answered).await else { return };
        let (fenced, unfenced) = &mut *self.lock();
        unfenced.appends[index].outcome = Outcome::Done;
        fenced.appends[index].outcome = if taken { Outcome::Done } else { Outcome::Refused };
    }

    /// Whether the one that checks tokens has taken it.
    fn take(&self, line: Line) -> bool {
        let (fenced, unfenced) = &mut *self.lock();
        unfenced.lines.push(line.clone());
        let taken = fenced.lines.last().is_none_or(|before| before.fence <= line.fence);
        if taken {
            fenced.lines.push(line);
        }
        taken
    }

    /// The one that checks tokens.
    pub fn fenced(&self) -> Register {
        self.lock().0.clone()
    }

    /// The one that takes anything.
    pub fn unfenced(&self) -> Register {
        self.lock().1.clone()
    }

    fn lock(&self) -> MutexGuard<'_, (Register, Register)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
