//! `everlog config`: what is in force, or an example to start from.

use anyhow::Result;

use crate::config::{self, FlagLayer, Layers, Problems, Values, effective};
use crate::terminal::print;

/// Prints the example file.
pub(crate) fn example() -> Result<()> {
    Ok(print(&config::example_file())?)
}

/// Prints the effective configuration. What is missing for some command is no mistake here.
pub(crate) fn show(flags: &FlagLayer) -> Result<()> {
    let mut layers = Layers::read(flags, std::env::vars_os().collect());
    let mut problems = layers.take_problems()?;
    let values = Values::parse(&layers.merged, &mut problems);
    config::service::check_all(&values, &layers, &mut problems);
    problems.retain(|problem| !problem.is_missing());
    if !problems.is_empty() {
        return Err(Problems(problems).into());
    }
    let file = layers
        .file
        .as_ref()
        .map_or("no file was read".to_owned(), |path| {
            format!("file: {}", path.display())
        });
    print(&format!(
        "{file}\n\n{}",
        effective::effective(&layers, &values)
    ))?;
    Ok(())
}
