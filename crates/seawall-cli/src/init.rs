//! `seawall init`

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file to write.
    #[arg(default_value = "seawall.yaml")]
    file: PathBuf,
}

/// What a new user starts with; `docs/configuration.md` has every key.
pub(crate) const TEMPLATE: &str = include_str!("init.yaml");

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let file = std::fs::File::create_new(&args.file);
    let mut file = file.with_context(|| format!("cannot create {} (it is never overwritten)", args.file.display()))?;
    file.write_all(TEMPLATE.as_bytes())?;
    let file = args.file.display();
    println!(
        "wrote {file}\n\n  seawall config check {file}\n  seawall up {file}\n  curl -i http://127.0.0.1:8080/hello/"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_template_has_no_mistakes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("seawall.yaml");
        std::fs::write(&file, super::TEMPLATE).unwrap();
        crate::config::load::load(&file).unwrap();
    }
}
