//! What is wrong with the values of a policy, all of it at once, each with its path.

use std::fmt::Display;

use seawall_types::{Period, Ratio};

/// Collects `(path below the policy, what is wrong)`.
#[derive(Debug, Default)]
pub struct Problems(Vec<(String, String)>);

impl Problems {
    /// Notes one.
    pub fn add(&mut self, path: &str, what: impl Into<String>) {
        self.0.push((path.to_owned(), what.into()));
    }

    /// A time that has to be longer than zero.
    pub fn positive(&mut self, path: &str, value: Option<Period>) {
        if value.is_some_and(|period| period.is_zero()) {
            self.add(path, "must be longer than zero");
        }
    }

    /// A value that has to be within `low..=high`. A NaN is not.
    pub fn range<T: PartialOrd + Copy + Display>(&mut self, path: &str, value: Option<T>, low: T, high: T) {
        if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
            self.add(path, format!("is {value}, allowed is {low} to {high}"));
        }
    }

    /// A share that has to be more than nothing.
    pub fn some(&mut self, path: &str, share: Option<Ratio>, otherwise: &str) {
        if share.is_some_and(|share| share.get() == 0.0) {
            self.add(path, format!("must be more than 0%, or {otherwise}"));
        }
    }

    /// Two times of which the first must not be longer.
    pub fn ordered(&mut self, path: &str, small: Option<Period>, of: &str, large: Option<Period>) {
        if let (Some(small), Some(large)) = (small, large)
            && small > large
        {
            self.add(path, format!("of {small} is longer than {of} of {large}"));
        }
    }

    /// A value that has no effect without another. To write a `default` down is no mistake.
    pub fn idle<T: PartialEq>(&mut self, path: &str, value: Option<T>, default: Option<T>, without: &str) {
        if value.is_some() && value != default {
            self.add(path, format!("has no effect without `{without}`"));
        }
    }

    /// What was found.
    pub fn into_vec(self) -> Vec<(String, String)> {
        self.0
    }
}

/// Fills each field that is absent in the first from the second: `merge!(self, base; a, b)` as a struct's fields.
macro_rules! merge {
    ($own:expr, $base:expr; $($field:ident),+ $(,)?) => {
        Self { $($field: $own.$field.clone().or_else(|| $base.$field.clone())),+ }
    };
}
pub(crate) use merge;
