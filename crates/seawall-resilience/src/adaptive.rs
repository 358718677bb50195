//! Provisional.
#![allow(missing_docs, dead_code)]
use crate::{Problems, Tick};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdaptiveConfig {
    pub min: Option<u32>,
}
impl AdaptiveConfig {
    pub(crate) fn or(&self, _: &Self) -> Self {
        self.clone()
    }
    pub(crate) fn problems(&self, _: &mut Problems) {}
    pub(crate) fn resolve(&self, _: Option<u32>) -> Option<Config> {
        None
    }
}
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    pub algorithm: u8,
    pub initial: u32,
    pub max: u32,
    pub min: u32,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Answered,
    Dropped,
    Ignored,
}
pub struct Sample {
    pub latency: Duration,
    pub in_flight: u32,
    pub dropped: bool,
}
#[derive(Debug)]
pub struct Adaptive(u32);
impl Adaptive {
    pub fn new(config: Config) -> Self {
        Self(config.initial)
    }
    pub fn algorithm(&self) -> u8 {
        0
    }
    pub fn limit(&self) -> u32 {
        self.0
    }
    pub fn set(&mut self, places: u32) -> u32 {
        places
    }
    pub fn step(&mut self, _: Sample, _: Tick) -> u32 {
        self.0
    }
    pub fn reload(&mut self, _: Config) -> u32 {
        self.0
    }
}
