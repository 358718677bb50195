fn main() {}
mod config;
