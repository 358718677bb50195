//! Order, inventory and payment: three of the four services of the shop. None of them knows Seawall: they listen on
//! `PORT`, call others under `SEAWALL_URL`, and answer a repeated request as they did the first time.

mod call;
mod inventory;
mod order;
mod payment;
mod service;

use clap::{Parser, ValueEnum};

#[derive(Parser)]
struct Cli {
    /// Which service to be.
    service: Service,
    /// Where to listen, on 127.0.0.1.
    #[arg(long, env = "PORT")]
    port: u16,
    /// The directory that the databases live in.
    #[arg(long, env = "SHOP_DATA", default_value = "shop-data")]
    data: std::path::PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Service {
    Order,
    Inventory,
    Payment,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.service {
        Service::Order => service::serve(cli.port, order::router(&cli.data)?).await,
        Service::Inventory => service::serve(cli.port, inventory::router(&cli.data)?).await,
        Service::Payment => service::serve(cli.port, payment::router(&cli.data)?).await,
    }
}
